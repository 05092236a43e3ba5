"""Tiny doubles: a BERT of a few thousand weights, made here, and tables of texts whose class is a word in them."""

import csv
import io
import json
import os
import random
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from hftoolkit.cli import main

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # on models this small, threads only wait for each other

CLASSES = ("bad", "fine", "good")
FILLERS = tuple(f"word{index}" for index in range(30))
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CLASSES, *FILLERS)

RECIPE = """\
task: {{kind: text-classification}}
data:
  source: {table}
  columns: {{text: text, label: label}}
model: {{backbone: {backbone}, max_length: 16}}
train: {{epochs: 4, batch_size: 8, learning_rate: 5.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 100, baselines: false}}
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def hft(*arguments: object, stdin: bytes = b"") -> Ended:
    """Run the command line in this process, which spares the seconds that importing torch takes."""
    out, err = io.StringIO(), io.StringIO()
    argv, lines = ["hftoolkit", *map(str, arguments)], io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    with mock.patch.object(sys, "argv", argv), mock.patch.object(sys, "stdin", lines):
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code or 0
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


def refused(ended: Ended, code: int, *fragments: str) -> None:
    """Assert a clean refusal: the exit code, one message on stderr that holds the fragments, and no traceback."""
    assert ended.code == code, ended
    assert ended.err.startswith("error: ") and "Traceback" not in ended.err
    for fragment in fragments:
        assert fragment in ended.err


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-block BERT and its tokenizer."""
    return save_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def lively_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with larger weights, which learns the tables below in a few epochs."""
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


def save_bert(folder: Path, initializer_range: float = 0.02) -> Path:
    """Write a random BERT of two blocks and 16 channels, and a tokenizer that knows ``VOCABULARY``."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=initializer_range,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)})
    assert len(tokenizer) == len(VOCABULARY)
    tokenizer.save_pretrained(folder)
    return folder


def review_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Rows of (text, label): one class word among up to ten fillers; texts differ."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        label = CLASSES[index % 3]
        words = [*generator.choices(FILLERS, k=generator.randint(3, 10)), label]
        generator.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


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
