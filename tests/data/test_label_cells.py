"""Labels as people write them: lists, texts of lists, 0 and 1 for each class, the wrong separator, the wrong column."""

import csv
from pathlib import Path
from typing import Any

import pytest

from hftoolkit.data.label_cells import NOT_ONE_LABEL, many_label_cells, one_label_cells
from hftoolkit.data.texts import load_text_splits
from hftoolkit.errors import DataError
from hftoolkit.recipe import TextClassification, TextData

pytestmark = pytest.mark.smoke
ONE = TextClassification(kind="text-classification")
MANY = TextClassification(kind="text-classification", multi_label=True)


def write_rows(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def section(text: str = "text", label: str = "label") -> TextData:
    return TextData.model_validate({"source": "x", "columns": {"text": text, "label": label}})


@pytest.mark.parametrize(
    "cells",
    [
        [[1, 0, 1], [0, 0, 1], None],
        [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], []],
        [[True, False, True], [False, False, True], []],
        ["[1, 0, 1]", "[0, 0, 1]", ""],
        ["[1 0 1]", "[0. 0. 1.]", ""],
        ["(1, 0, 1)", "(0, 0, 1)", ""],
        ["1|0|1", "0|0|1", ""],
        ["1, 0, 1", "0, 0, 1", ""],
        ["1 0 1", "0 0 1", ""],
        ["array([1, 0, 1])", "tensor([0, 0, 1])", ""],
        [["1", "0", "1"], ["0", "0", "1"], None],
    ],
    ids=repr,
)
def test_lists_of_0_and_1_are_a_class_a_place_and_not_the_classes_0_and_1(cells: list[Any]) -> None:
    found = many_label_cells(cells, "|", is_coded=False)
    assert found.classes == ("0", "1", "2") and found.bad == {}
    assert found.values == [("0", "2"), ("2",), ()]


def test_a_place_that_nobody_has_is_a_class_too_and_another_length_is_a_bad_row() -> None:
    found = many_label_cells([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1]], "|", is_coded=False)
    assert found.classes == ("0", "1", "2", "3") and list(found.bad) == [3]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        ([[0, 1], [0], [1]], [("0", "1"), ("0",), ("1",)]),  # numbers of classes: none is listed twice
        (["0|1", "1"], [("0", "1"), ("1",)]),
        ([[0, 1], [0, 1]], [("0", "1"), ("0", "1")]),
        ([[0, 2, 5], [1]], [("0", "2", "5"), ("1",)]),
    ],
)
def test_lists_of_numbers_of_classes_stay_lists_of_classes(cells: list[Any], values: list[tuple[str, ...]]) -> None:
    found = many_label_cells(cells, "|", is_coded=False)
    assert (found.values, found.classes) == (values, ())


def test_two_places_are_multi_hot_where_a_list_of_classes_would_be_odd() -> None:
    assert many_label_cells([[1, 0], [0, 1]], "|", is_coded=False).values == [("0",), ("1",)]
    assert many_label_cells([[0, 0], [0, 1]], "|", is_coded=False).values == [(), ("1",)]
    assert many_label_cells([["1", "0", "1"]], "|", is_coded=True).classes == ()  # the table names its classes


@pytest.mark.parametrize(
    "cell",
    [
        "['a', 'b c']",
        "['a', nan, 'b c']",
        "[a, b c]",
        "{a,b c}",
        {"a": 1, "b c": True, "c": 0},
        '["a", "b c"]',
        "['a' 'b c']",
        "('a', 'b c')",
        ["a", "b c"],
        "a|b c",
        " a | b c |",
    ],
    ids=repr,
)
def test_lists_that_pandas_numpy_or_json_wrote_as_text_are_lists(cell: Any) -> None:
    assert many_label_cells([cell], "|", is_coded=False).values == [("a", "b c")]


def test_fractions_and_texts_that_only_look_like_lists() -> None:
    soft = many_label_cells([[0.2, 0.8], "[0.5, 0.5]"], "|", is_coded=False)
    assert list(soft.bad) == [1, 2] and "fractions" in soft.bad[1].reason
    assert many_label_cells(["[PAD]", "a (b)", "[x"], "|", is_coded=False).values == [("[PAD]",), ("a (b)",), ("[x",)]
    assert many_label_cells(["[a]", "[b, c]"], "|", is_coded=False).values == [("a",), ("b", "c")]
    assert list(many_label_cells([b"a", {"a": "yes"}, "a"], "|", is_coded=False).bad) == [1, 2]


def test_a_list_is_not_one_label() -> None:
    found = one_label_cells(["[1, 0, 1]", "['a']", "[PAD]", "[1]", "a", [1]])
    assert [number for number, bad in found.bad.items() if bad.reason == NOT_ONE_LABEL] == [1, 2, 6]


@pytest.mark.parametrize(("separator", "shown"), [(", ", "','"), (";", "';'"), (" / ", "'/'"), (" ", "' '")])
def test_another_separator_is_noticed(separator: str, shown: str) -> None:
    cells = [separator.join(parts) for parts in (["bill", "pay"], ["pay"], ["bill"], ["log", "bill"], ["log"])]
    (hint,) = many_label_cells(cells, "|", is_coded=False).hints
    assert f"set task.label_separator: {shown}" in hint and "5 classes instead of 3" in hint
    (hint,) = one_label_cells(cells).hints
    assert "task.multi_label: true" in hint and shown in hint


@pytest.mark.parametrize(
    "cells",
    [
        ["Food, Drink", "Cars, Boats", "Toys"],
        ["very good", "good", "bad", "very bad", "not good at all"],
        ["a|b", "c, d", "c", "d"],
        ["New York", "New Jersey", "Ohio"],
    ],
)
def test_names_that_hold_a_separator_are_no_mistake(cells: list[str]) -> None:
    assert many_label_cells(cells, "|", is_coded=False).hints == ()


def test_what_was_noticed_is_a_warning_of_the_data(tmp_path: Path) -> None:
    hot = write_rows(tmp_path / "hot.csv", [(f"text {n}", f"[{n % 2}, {n % 3 % 2}, 0]") for n in range(40)])
    splits = load_text_splits(hot, section(), MANY)
    assert splits.labels.names == ("0", "1", "2")
    assert "task.labels: {0: NAME, ..., 2: NAME}" in splits.summary["warnings"][0]
    named = TextClassification(kind="text-classification", multi_label=True, labels={0: "a", 1: "b", 2: "c"})
    splits = load_text_splits(hot, section(), named)
    assert splits.labels.names == ("a", "b", "c") and "NAME" not in str(splits.summary["warnings"])
    commas = write_rows(tmp_path / "c.csv", [(f"text {n}", ("a, b", "b", "a", "c, a", "c")[n % 5]) for n in range(40)])
    assert "task.label_separator: ','" in load_text_splits(commas, section(), MANY).summary["warnings"][0]
    listed = TextClassification(kind="text-classification", multi_label=True, labels={"a": "a", "b": "b", "c": "c"})
    with pytest.raises(DataError, match=r"label is unknown(?s:.*)set task.label_separator: ','"):
        load_text_splits(commas, section(), listed)


def test_a_label_of_its_own_in_nearly_each_row_is_refused(tmp_path: Path) -> None:
    rows = [(f"some text {n}", "ab"[n % 2]) for n in range(40)]
    swapped = write_rows(tmp_path / "swapped.csv", rows)
    for task in (ONE, MANY):
        with pytest.raises(DataError, match=r"40 rows have 40 different labels .*Check data\.columns\.label"):
            load_text_splits(swapped, section("label", "text"), task)
    few = write_rows(tmp_path / "few.csv", [(f"t{n % 15}", "ab"[n % 2]) for n in range(40)] * 30)
    with pytest.raises(DataError, match=r"texts are 2 different ones .*swap data\.columns\.text"):
        load_text_splits(
            write_rows(few, [(f"t{n % 30}", "ab"[n % 2]) for n in range(600)]), section("label", "text"), ONE
        )
    id_like = write_rows(tmp_path / "id.csv", [(f"some text {n}", n // 3 if n < 30 else n) for n in range(60)])
    warnings = load_text_splits(id_like, section(), ONE).summary["warnings"]
    assert "less than two rows a class; check that data.columns.label is no id" in warnings[0]
    listed = TextClassification(
        kind="text-classification", labels={f"some text {n}": "x" for n in range(39)} | {"some text 39": "y"}
    )
    assert load_text_splits(swapped, section("label", "text"), listed).labels.names == ("x", "y")


def test_many_classes_without_rows_are_one_warning(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "many.csv", [(f"text {n}", f"intent {n % 250}") for n in range(500)])
    warnings = load_text_splits(path, section(), ONE).summary["warnings"]
    assert 1 <= len(warnings) <= 6
    assert all(len(warning) < 300 for warning in warnings)
    assert any(
        "classes have no rows in" in warning and "nothing is measured for them" in warning for warning in warnings
    )


def test_many_columns_of_flags_are_no_labels_of_their_own(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(22)]
    rows = [(f"some text {n}", *((n + place) % 2 for place in range(22))) for n in range(24)]
    with (tmp_path / "flags.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", *names), *rows])
    data = TextData.model_validate({"source": "x", "columns": {"text": "text", "label": names}})
    assert "different labels" not in str(load_text_splits(tmp_path / "flags.csv", data, MANY).summary["warnings"])
