"""Rows as Python has them."""

from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hftoolkit.data.given import given_rows, is_missing
from hftoolkit.errors import DataError

pytestmark = pytest.mark.smoke
COLUMNS = {"text": ["a", None, "c"], "n": [1, 2, 3]}
DICTS = [{"text": "a", "n": 1}, {"text": None, "n": 2}, {"text": "c", "n": 3}]


@pytest.mark.parametrize(
    "source",
    [
        DICTS,
        tuple(DICTS),
        (row for row in DICTS),
        COLUMNS,
        pd.DataFrame(COLUMNS),
        pd.DataFrame({"text": ["a", np.nan, "c"], "n": [1, 2, 3]}, index=[7, 7, 9]),
        pd.DataFrame(COLUMNS).convert_dtypes(),
        pa.table(COLUMNS),
        datasets.Dataset.from_dict(COLUMNS),
        datasets.Dataset.from_dict(COLUMNS).to_iterable_dataset(),
    ],
    ids=lambda source: type(source).__name__,
)
def test_whatever_holds_rows_gives_them(source: Any) -> None:
    assert given_rows(source) == DICTS


@pytest.mark.parametrize("source", [pd.Series(["a", "b"]), np.array(["a", "b"]), {"a": 1, "b": 2}.keys(), iter("ab")])
def test_a_column_gives_its_cells(source: Any) -> None:
    assert given_rows(source) == ["a", "b"]


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ("one text", r"predict\(\[row\]\)"),
        ("new.csv", r"predict\(Path\('new.csv'\)\)"),
        (b"bytes", r"predict\(\[row\]\)"),
        ({"text": "one row"}, r"predict\(\[row\]\)"),
        ({}, r"predict\(\[row\]\)"),
        ({"text": ["a"], "n": [1, 2]}, "one length; found text 1, n 2"),
        (datasets.DatasetDict(test=datasets.Dataset.from_dict(COLUMNS)), r"name one: predict\(data\['test'\]\)"),
        (3, "found int"),
    ],
)
def test_what_are_no_rows_is_refused_with_what_to_write(source: Any, fragment: str) -> None:
    with pytest.raises(DataError, match=fragment):
        given_rows(source)


def test_a_broken_image_of_a_data_set_stays_in_its_row() -> None:
    data = datasets.Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}]})
    (row,) = given_rows(data.cast_column("image", datasets.Image()))
    assert row["image"]["bytes"] == b"no image"


def test_markers_of_missing_cells_are_missing() -> None:
    assert all(map(is_missing, (None, float("nan"), np.float64("nan"), pd.NA, pd.NaT)))
    assert not any(map(is_missing, ("", 0, "nan", [], np.zeros(2))))
