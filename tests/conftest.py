"""Fixtures of all tests: tiny backbones, a finished run, tables and recipes."""

import csv
import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from doubles.bert import save_bert
from doubles.commands import hft
from doubles.golden import Golden
from doubles.reviews import RECIPE, review_rows

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # on models this small, threads only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let golden files be written anew."""
    parser.addoption("--update-golden", action="store_true", help="write golden texts instead of comparing them")


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every fault test and nightly test as slow, so that ``-m "not slow"`` is enough to leave all out."""
    for item in items:
        if item.get_closest_marker("faults") or item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """What compares texts with golden files."""
    return Golden(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-block BERT and its tokenizer."""
    return save_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def lively_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with larger weights, which learns tables of reviews in a few epochs."""
    return save_bert(tmp_path_factory.mktemp("lively-bert"), initializer_range=0.3)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, lively_backbone: Path) -> Path:
    """A finished run, for all tests to read and none to change; its output is in ``stdout.txt`` two folders up."""
    folder = tmp_path_factory.mktemp("an \u00e9 folder")
    table = folder / "reviews of mine.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *review_rows(150)])
    text = RECIPE.format(table=table, backbone=lively_backbone).replace("5.0e-3", "1.0e-2")
    (folder / "tiny.yaml").write_text(text, encoding="utf-8")
    with chdir(folder):
        ended = hft("finetune", "tiny.yaml")
    assert ended.code == 0, ended
    (folder / "stdout.txt").write_text(ended.out, encoding="utf-8")
    return folder / "runs" / "tiny"


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as CSV with a header and return the path."""

    def write(rows: list[tuple[object, ...]], header: tuple[str, ...] = ("text", "label"), name: str = "t.csv") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_backbone: Path, write_csv: Callable[..., Path]) -> Callable[..., Path]:
    """Write a small recipe over a table of reviews and return the path."""

    def write(rows: int = 90, extra: str = "", table: Path | None = None) -> Path:
        path = tmp_path / "tiny.yaml"
        table = table or write_csv(review_rows(rows))
        path.write_text(RECIPE.format(table=table, backbone=tiny_backbone) + extra, encoding="utf-8")
        return path

    return write
