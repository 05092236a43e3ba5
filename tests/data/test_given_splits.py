"""Splits that a source has: files, folders, patterns and columns, a text a file, and tables that belong to none."""

import csv
import json
import zipfile
from pathlib import Path

import pytest

from hftoolkit.data.rows import load_rows, numbers_of
from hftoolkit.data.split_names import role_of
from hftoolkit.data.tables import DataTable, read_table
from hftoolkit.data.texts import load_text_splits
from hftoolkit.errors import DataError
from hftoolkit.recipe import TextClassification, TextData
from hftoolkit.recipe.sections import Split

TASK = TextClassification(kind="text-classification")


def section(**keys) -> TextData:
    return TextData.model_validate({"source": "x", "columns": {"text": "text", "label": "label"}, **keys})


def write(path: Path, count: int, prefix: str = "text", header: tuple[str, ...] = ("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = [(f"{prefix} {number}", "ab"[number % 2])[: len(header)] for number in range(count)]
        csv.writer(file).writerows([header, *rows])
    return path


def sizes(path: Path, **keys) -> dict[str, int]:
    return load_text_splits(path, section(**keys), TASK).summary["sizes"]


def warnings(path: Path, **keys) -> str:
    return "\n".join(load_text_splits(path, section(**keys), TASK).summary["warnings"])


def message(path: Path, **keys) -> str:
    with pytest.raises(DataError) as caught:
        load_text_splits(path, section(**keys), TASK)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", "train"),
        ("seg_train", "train"),
        ("TrainingSet", "train"),
        ("20news-bydate-test", "test"),
        ("VAL", "validation"),
        ("trainer", None),
        ("latest", None),
        ("train_test_split", None),
    ],
)
def test_names_speak_of_splits_by_whole_words(name, role):
    assert role_of(name) == role


# Files and folders


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "test.csv"),
        ("Train.csv", "Test.csv"),
        ("train.csv", "Test.csv"),
        ("reviewsTraining.csv", "reviewsTest.csv"),
        ("seg_train/rows.csv", "seg_test/rows.csv"),
        ("DATA/TRAIN/rows.csv", "DATA/TEST/rows.csv"),
    ],
)
def test_rows_for_test_are_never_trained_on(tmp_path, names):
    for name, count in zip(names, (40, 12), strict=True):
        write(tmp_path / name, count, prefix=name)
    splits = load_text_splits(tmp_path, section(), TASK)
    assert splits.summary["sizes"] == {"train": 36, "validation": 4, "test": 12}
    assert all(text.startswith(names[1]) for text in splits.texts["test"])
    assert all(text.startswith(names[0]) for text in splits.texts["train"] + splits.texts["validation"])
    assert f"train ({names[0]}), test ({names[1]})" in splits.summary["warnings"][0]


def test_all_three_splits_are_taken_and_others_are_named(tmp_path):
    for name, count in (("train", 40), ("dev", 8), ("test", 6)):
        write(tmp_path / f"{name}.csv", count)
    write(tmp_path / "sample_submission.csv", 6, header=("text",))
    assert sizes(tmp_path) == {"train": 40, "validation": 8, "test": 6}
    assert "tables of" in warnings(tmp_path)
    assert "belong to no split are not read: sample_submission.csv" in warnings(tmp_path)


def test_fractions_of_the_recipe_do_not_go_with_splits_of_the_source(tmp_path):
    write(tmp_path / "train.csv", 40)
    write(tmp_path / "test.csv", 12)
    told = message(tmp_path, split={"test": 0.3})
    assert "data.split.test is a fraction; write data.split: {train: train, test: test}, or train: all" in told
    assert sizes(tmp_path, split={"validation": 0.2}) == {"train": 32, "validation": 8, "test": 12}
    assert sizes(tmp_path, split={"train": "all", "test": 0.25}) == {"train": 34, "validation": 5, "test": 13}
    with pytest.raises(ValueError, match="train: all is the rows of all splits, those of test too"):
        Split(train="all", test="test")


def test_a_test_file_without_labels_is_left_out_and_named(tmp_path):
    write(tmp_path / "train.csv", 40)
    write(tmp_path / "test.csv", 12, header=("text",))
    assert sizes(tmp_path) == {"train": 32, "validation": 4, "test": 4}
    assert "test.csv has no 'label', so it is not used, and data.split.test is a fraction" in warnings(tmp_path)


def test_two_splits_for_one_are_a_question(tmp_path):
    for name in ("train", "test_matched", "test_other"):
        write(tmp_path / name / "rows.jsonl", 0)
        lines = [json.dumps({"text": f"{name} {n}", "label": "ab"[n % 2]}) for n in range(9)]
        (tmp_path / name / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - {{split: {name}, path: {name}/*}}\n" for name in ("train", "test_matched", "test_other"))
        + "---\n"
    )
    assert "write data.split: {train: train, test: test_matched or test_other}" in message(tmp_path)


@pytest.mark.parametrize(
    "split",
    [
        {"train": "part-*.csv", "test": "gold/*.csv"},
        {"train": "part", "test": "gold"},
        {"train": "part-*.csv", "test": "gold/held.csv"},
    ],
)
def test_a_split_is_named_by_file_folder_or_pattern(tmp_path, split):
    for shard in range(2):
        write(tmp_path / f"part-{shard}.csv", 20, prefix=f"shard {shard}")
    write(tmp_path / "gold" / "held.csv", 7)
    assert sizes(tmp_path, split=split) == {"train": 36, "validation": 4, "test": 7}


def test_an_archive_beside_what_was_unpacked_from_it_is_not_read_again(tmp_path):
    for name, count in (("train", 40), ("test", 12)):
        path = write(tmp_path / f"{name}.csv", count)
        with zipfile.ZipFile(f"{path}.zip", "w") as archive:
            archive.write(path, path.name)
    assert sizes(tmp_path) == {"train": 36, "validation": 4, "test": 12}
    assert "are not read: test.csv.zip, train.csv.zip" in warnings(tmp_path)


def test_a_readme_that_lists_no_files_changes_nothing(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Words\n")
    write(tmp_path / "Train.csv", 40)
    write(tmp_path / "Test.csv", 12)
    assert sizes(tmp_path) == {"train": 36, "validation": 4, "test": 12}


def test_a_file_for_test_beside_one_of_another_name_is_a_question(tmp_path):
    write(tmp_path / "reviews.csv", 40)
    write(tmp_path / "test.csv", 12)
    assert "none is called train; there is also reviews.csv. Name them with data.split: {train: reviews.csv" in message(
        tmp_path
    )
    assert sizes(tmp_path, split={"train": "reviews.csv", "test": "test"})["test"] == 12


def test_tables_of_several_kinds_in_a_folder_are_a_question(tmp_path):
    write(tmp_path / "a.csv", 40)
    write(tmp_path / "b.csv", 3)
    (tmp_path / "c.jsonl").write_text('{"text": "x", "label": "a"}\n')
    assert "holds tables of several kinds: a.csv, and c.jsonl. Set data.source to one file" in message(tmp_path)
    assert sum(sizes(tmp_path, split={"train": "*.csv"}).values()) == 43
    (tmp_path / "c.jsonl").rename(tmp_path / "settings.json")
    assert "are not read: settings.json" in warnings(tmp_path)


@pytest.mark.parametrize("ending", [".txt", ".psv"])
def test_folders_of_files_that_datasets_does_not_know_are_read(tmp_path, ending):
    for name, count in (("train", 40), ("test", 12)):
        write(tmp_path / "x.csv", count).rename(tmp_path / f"{name}{ending}")
    assert sizes(tmp_path) == {"train": 36, "validation": 4, "test": 12}


# A text a file


def write_texts(root: Path, counts: dict[str, int]) -> Path:
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.txt").write_text(f"{folder}\ntext {number}")
    return root


def test_folders_named_like_classes_hold_a_text_a_file(tmp_path):
    write_texts(tmp_path / "wrapped" / "texts", {"good": 12, "bad": 10})
    (tmp_path / "wrapped" / "texts" / "good" / "message").write_text("no ending")
    (tmp_path / "wrapped" / "texts" / "good" / "scores.feat").write_text("1")
    table = read_table(tmp_path)
    assert (table.num_rows, table.columns["label"].count("good")) == (23, 13)
    assert table.columns["file"][:3] == ["bad/0.txt", "bad/1.txt", "bad/2.txt"]
    assert table.columns["file"][9:13] == ["bad/9.txt", "good/0.txt", "good/1.txt", "good/2.txt"]
    assert table.columns["text"][0] == "bad\ntext 0"
    assert table.notes == ("files of texts that are no texts and are left out: 1 (.feat 1)",)
    assert table.files == ("wrapped/texts/",)


def test_split_folders_around_class_folders_are_splits(tmp_path):
    write_texts(tmp_path, {"train/neg": 15, "train/pos": 15, "test/neg": 5, "test/pos": 5})
    (tmp_path / "train" / "urls_pos.txt").write_text("not a text of a class")
    assert sizes(tmp_path) == {"train": 27, "validation": 3, "test": 10}
    assert sizes(tmp_path, split={"train": "train", "test": 0.2}) == {"train": 21, "validation": 3, "test": 6}
    assert "no split folder 'tset'; it has: test, train" in message(tmp_path, split={"train": "train", "test": "tset"})


def test_a_text_in_another_encoding_is_named(tmp_path):
    write_texts(tmp_path, {"neg": 5, "pos": 5})
    (tmp_path / "pos" / "2.txt").write_bytes(b"a caf\xe9")
    assert "pos/2.txt is not UTF-8" in message(tmp_path)
    assert sizes(tmp_path, format={"encoding": "latin-1"}) == {"train": 8, "validation": 1, "test": 1}


# A column


def table_with_column(path: Path, values: list[str], name: str = "part") -> Path:
    with path.open("w", newline="") as file:
        rows = [(f"text {n}", "ab"[n % 2], value) for n, value in enumerate(values)]
        csv.writer(file).writerows([("text", "label", name), *rows])
    return path


def test_a_column_that_says_train_and_test_is_a_split(tmp_path):
    path = table_with_column(tmp_path / "t.csv", ["Training"] * 20 + ["PublicTest"] * 4 + ["PrivateTest"] * 6)
    splits = load_text_splits(path, section(), TASK)
    assert splits.summary["sizes"] == {"train": 20, "validation": 4, "test": 6}
    assert splits.row_numbers["test"].tolist() == [25, 26, 27, 28, 29, 30]
    assert "column 'part' of t.csv says which row is for train, validation, test" in splits.summary["warnings"][0]
    two = table_with_column(path, ["train"] * 20 + ["test"] * 5)
    assert sizes(two) == {"train": 18, "validation": 2, "test": 5}
    assert sizes(two, split={"validation": 0.2, "test": 0.2}) == {"train": 15, "validation": 5, "test": 5}
    assert "data.split.column: part would use it" in warnings(two, split={"test": 0.2})


@pytest.mark.parametrize("values", [["train"] * 20, ["train", "test", "bus", "plane"] * 5, ["a", "b"] * 10])
def test_other_columns_are_no_splits(tmp_path, values):
    assert sizes(table_with_column(tmp_path / "t.csv", values)) == {"train": 16, "validation": 2, "test": 2}


def test_a_column_of_the_recipe_is_obeyed_row_by_row(tmp_path):
    path = table_with_column(tmp_path / "t.csv", ["train"] * 20 + ["test"] * 5 + ["", "later"])
    split = {"column": "part"}
    assert "split is none of train, validation and test: 2 (rows 26, 27)" in message(path, split=split)
    assert sizes(path, split=split, on_bad_rows="skip") == {"train": 18, "validation": 2, "test": 5}
    assert "'prat' (did you mean 'part'?)" in message(path, split={"column": "prat"})
    assert "says train of no row" in message(path, split={"column": "label"})
    with pytest.raises(ValueError, match="column says which row is in which split, and test names one"):
        Split(column="part", test="test")


def test_groups_may_not_lie_across_a_column_of_splits(tmp_path):
    path = table_with_column(tmp_path / "t.csv", ["train"] * 20 + ["test"] * 5)
    assert "the group 'a' lies in both train and test" in message(path, split={"column": "part", "group": "label"})


class Number:
    """A row that is a number."""

    def __init__(self, value: float) -> None:
        self.key, self.value = str(value), value

    def to_json(self) -> float:
        return self.value


def test_rows_of_any_kind_obey_files_and_columns(tmp_path):
    def parse(table: DataTable):
        values, bad = numbers_of(table.columns["text"], "text")
        return [Number(value) for value in values], bad

    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = [(number, "a", "test" if number < 6 else "train") for number in range(26)]
        csv.writer(file).writerows([("text", "label", "part"), *rows, ("lonely",)])
    divided = load_rows(tmp_path / "t.csv", section(on_bad_rows="skip"), parse, "number")
    assert [row.value for row in divided.splits["test"]] == [0, 1, 2, 3, 4, 5]
    assert divided.summary["skipped"] == {"row has another number of cells than the header": 1}
    folder = tmp_path / "folder"
    write(folder / "train.csv", 20, prefix="")
    write(folder / "test.csv", 4, prefix="")
    assert load_rows(folder, section(), parse, "number").summary["sizes"] == {"train": 18, "validation": 2, "test": 4}
