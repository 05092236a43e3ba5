"""Files of predictions: whole or not at all."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.runs.prediction_tables import check_output, write_csv, write_prediction_file

LARGE = {"row": list(range(20_000)), "text": ["x" * 20] * 20_000}


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow over 10,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_full_disk_leaves_the_file_that_was_there(ending: str, tmp_path: Path, small_disk: None) -> None:
    path = tmp_path / f"out.{ending}"
    path.write_text("what was there")
    columns = LARGE if ending != "parquet" else {"row": [str(number**9) for number in range(20_000)]}
    with pytest.raises(EnvironmentFault, match=rf"cannot write .*out\.{ending}"):
        write_prediction_file(columns, path)
    assert path.read_text() == "what was there" and list(tmp_path.iterdir()) == [path]
    if ending == "csv":
        with pytest.raises(EnvironmentFault):
            write_csv(LARGE, path)
        assert path.read_text() == "what was there" and list(tmp_path.iterdir()) == [path]


def test_a_link_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "real.csv").chmod(0o640)
    (tmp_path / "link.csv").symlink_to("real.csv")
    write_prediction_file({"row": [1]}, tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "row\n1\n"
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o640


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(RecipeError, match="is a folder"):
        check_output(tmp_path / "out.csv", Path("-"))


def test_kept_cells_of_any_type_can_be_written(tmp_path: Path) -> None:
    columns = {"row": [1, 2, 3], "id": [7, "x", None], "tags": [["a"], [], None], "p": [0.5, 1, None]}
    write_prediction_file(columns, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == {
        "row": [1, 2, 3],
        "id": ["7", "x", None],
        "tags": ['["a"]', "[]", None],
        "p": [0.5, 1.0, None],
    }
    write_prediction_file(columns, tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0]) == {
        "row": 1,
        "id": 7,
        "tags": ["a"],
        "p": 0.5,
    }
