"""Splits that tables of images have."""

from pathlib import Path

import pytest

from hftoolkit.data.image.sources import read_told_image_tables
from hftoolkit.recipe import ImageData

DATA = ImageData.model_validate({"source": "x", "columns": {"image": "file", "label": "kind"}})


def write(path: Path, *rows: str, header: str = "file;kind") -> None:
    path.write_text("\n".join([header, *rows]))


def test_tables_of_file_names_are_given_splits(tmp_path):
    (tmp_path / "tables").mkdir()
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    write(tmp_path / "tables" / "train.csv", "../a.png;x", "../b.png;y", "torn")
    write(tmp_path / "tables" / "Test.csv", "../c.png;x")
    tables, told, notes = read_told_image_tables(tmp_path / "tables", DATA)
    assert (told.split.train, told.split.validation, told.split.test) == ("train", 0.1, "test")
    assert {name: len(source.images) for name, source in tables.items()} == {"train": 3, "test": 1}
    assert tables["train"].bad[3].reason == "row has another number of cells than the header"
    assert "test (Test.csv)" in notes[0]


def test_a_column_of_usages_is_a_split_of_images_and_none_of_pixels_or_folders(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    rows = ("a.png;x;Training", "b.png;y;Training", "c.png;x;PrivateTest")
    write(tmp_path / "t.csv", *rows, header="file;kind;Usage")
    _, told, notes = read_told_image_tables(tmp_path / "t.csv", DATA)
    assert told.split.column == "Usage"
    assert "column 'Usage' of t.csv says which row is for train, test" in notes[0]
    pixels = {"shape": [2, 2], "label": "last", "header": False}
    with pytest.raises(ValueError, match=r"pixels has no column for split\.column; drop one of the two"):
        ImageData.model_validate({"source": "x", "pixels": pixels, "split": {"column": "Usage"}})
