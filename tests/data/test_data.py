import csv
import hashlib
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doubles.rows import clean_rows
from hftoolkit.data.labels import LabelSet, canonical_value, check_same
from hftoolkit.data.splits import split_rows
from hftoolkit.data.summary import _spelling_warnings
from hftoolkit.data.tables import DataTable
from hftoolkit.data.text_rows import bad_row_lines, clean_texts
from hftoolkit.data.texts import load_text_splits
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.recipe import Split, TextClassification, TextData

pytestmark = pytest.mark.smoke

TASK = TextClassification(kind="text-classification")
MULTI_TASK = TextClassification(kind="text-classification", multi_label=True)


def data_section(text="text", label="label", **keys) -> TextData:
    return TextData.model_validate({"source": "x", "columns": {"text": text, "label": label}, **keys})


def table_of(**columns) -> DataTable:
    return DataTable(columns, len(next(iter(columns.values()))))


def write_rows(path: Path, rows, header=("text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def numbered_rows(count: int, classes=("a", "b"), prefix="text"):
    return [(f"{prefix} {number}", classes[number % len(classes)]) for number in range(count)]


# Labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 1.0, "1", " 1 ", "1.0", np.int64(1), np.float32(1)), "1"),
        ((True, "true", "TRUE", "True", np.bool_(True)), "true"),
        ((None, "", "  ", float("nan"), np.float64("nan")), ""),
        ((0, -0, "0.00"), "0"),
        ((1.5, "1.5"), "1.5"),
        (("1.10",), "1.10"),
        (("NA", " NA"), "NA"),
        (("v1.0",), "v1.0"),
    ],
)
def test_one_label_value_has_one_canonical_text(values, expected):
    assert {canonical_value(value) for value in values} == {expected}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 2, "1", 2.0], ("1", "2", "10")),
        (["b10", "a", "b2", "B3", "C"], ("a", "b2", "B3", "b10", "C")),
        ([0, -1, 1], ("-1", "0", "1")),
        (["x", 3, "2a", 1.5], ("1.5", "3", "2a", "x")),
        (["a", "A", None, "", float("nan")], ("A", "a")),
    ],
)
def test_labels_of_the_data_are_in_natural_order_however_they_arrive(values, expected):
    for order in itertools.permutations(values):
        assert LabelSet.from_values(order, False).names == expected


def test_recipe_labels_keep_their_order_and_may_share_names():
    labels = LabelSet.from_recipe({5: "pos", "1.0": "neg", 4.0: "pos", True: "yes"}, False)
    assert labels.names == ("pos", "neg", "yes")
    cells = ["4", 5.0, " 1", "pos", "TRUE", "6", None]
    assert [labels.encode(cell) for cell in cells] == [0, 0, 1, 0, 2, None, None]


def test_a_value_in_the_data_counts_before_a_name_that_looks_like_it():
    labels = LabelSet.from_recipe({0: "1", 1: "0"}, False)
    assert [labels.encode(0), labels.encode("1")] == [0, 1]


@pytest.mark.parametrize(
    ("mapping", "word"), [({1: "a", "1.0": "b"}, "twice"), ({}, "empty"), ({1: " "}, "empty name")]
)
def test_recipe_labels_that_contradict_themselves_are_recipe_errors(mapping, word):
    with pytest.raises(RecipeError, match=word):
        LabelSet.from_recipe(mapping, False)


def test_a_label_set_survives_json_and_damage_is_told():
    labels = LabelSet.from_recipe({5: "pos", 1: "neg"}, True)
    assert LabelSet.from_json(json.loads(json.dumps(labels.to_json()))) == labels
    with pytest.raises(DataError, match=r"labels\.json"):
        LabelSet.from_json({"names": ["a"]})


def test_label_sets_with_another_order_are_not_the_same():
    labels = LabelSet.from_names(["a", "b"], False)
    check_same(labels, LabelSet.from_names(["a", "b"], False), "x")
    with pytest.raises(DataError, match=r"of the model differ.\n  expected: a, b .*\n  found:    b, a "):
        check_same(labels, LabelSet.from_names(["b", "a"], False), "the model")


# Rows


def test_text_columns_are_joined_by_line_or_template_and_stripped():
    columns = {"t": [" Hi ", None, "x", 7], "b": ["there\n", "body", "NA", 2.5]}
    texts, bad = clean_texts(columns, data_section(text=["t", "b"]))
    assert (texts, bad) == (["Hi\nthere", "body", "x", "7\n2.5"], {})
    texts, _ = clean_texts(columns, data_section(text=["t", "b"], template=" {{{t}}}: {b} "))
    assert texts == ["{Hi}: there", "{}: body", "{x}:", "{7}: 2.5"]


@pytest.mark.parametrize("template", ["{t} {other}", "{t", "{t.real} {b}", "{t:>9} {b}", "{t!r} {b}", "{} {b}", "{t}"])
def test_a_template_that_does_not_fit_the_columns_is_a_recipe_error(template):
    with pytest.raises(RecipeError, match=r"data\.template"):
        clean_texts({"t": ["x"], "b": ["y"]}, data_section(text=["t", "b"], template=template))


def test_no_markers_means_they_are_texts():
    assert clean_texts({"text": ["NA"]}, data_section(missing_values=[])) == (["NA"], {})


BAD_TABLE = table_of(
    title=["ok", "", "NA", None, "fine", "N/A", "good", "last", "more", ["a"], "\ud800", "end", "x"],
    text=["a", " ", "null", float("nan"), None, "used", "c", "d", "e", "f", "g", "h", "NA"],
    label=[1, 1, 2, 1, None, 2, float("nan"), "maybe", {"x": 1}, 1, 2, "2", " 1.0"],
    group=["g", "g", "g", "g", "g", "g", "g", "g", "g", "g", "g", "", "g"],
)
BAD_REASONS = {
    "text is empty": [2, 4],
    "text is a missing-value marker": [3],
    "label is missing": [5, 7],
    "label is unknown": [8],
    "label is not one value": [9],
    "text is not a text": [10],
    "text is not valid Unicode": [11],
    "group is missing": [12],
}


def clean_bad_table(on_bad_rows: str):
    data = data_section(text=["title", "text"], on_bad_rows=on_bad_rows, split={"group": "group"})
    return clean_rows(BAD_TABLE, data, multi_label=False, mapping={1: "one", 2: "two"})


def test_every_kind_of_bad_row_is_skipped_and_counted_with_its_row_numbers():
    rows = clean_bad_table("skip")
    assert rows.skipped_examples == BAD_REASONS
    assert rows.skipped == {reason: len(numbers) for reason, numbers in BAD_REASONS.items()}
    assert rows.row_numbers.tolist() == [1, 6, 13]
    assert (rows.texts, rows.targets.tolist(), rows.groups) == (["ok\na", "used", "x"], [0, 1, 0], ["g"] * 3)


def test_all_bad_rows_are_told_in_one_error_with_what_to_type():
    with pytest.raises(DataError) as caught:
        clean_bad_table("error")
    message = str(caught.value)
    assert message.startswith("10 rows of the table cannot be used:")
    for reason, numbers in BAD_REASONS.items():
        assert f"{reason}: {len(numbers)} (row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))})" in message
    assert "found 'maybe'; allowed '1', '2': fix it or add it to task.labels" in message
    assert message.endswith("data.on_bad_rows: skip")


def test_only_the_first_five_row_numbers_are_shown():
    with pytest.raises(DataError, match=r"text is empty: 7 \(rows 1, 2, 3, 4, 5, \.\.\.\)"):
        clean_rows(table_of(text=[""] * 7 + ["x"], label=["a"] * 8), data_section(), multi_label=False)


def test_texts_to_predict_keep_their_places_and_say_what_is_wrong():
    texts, bad = clean_texts({"text": ["a", "", "NA"]}, data_section())
    assert texts == ["a", "", ""]
    assert bad_row_lines(bad) == ["text is empty: 1 (row 2)", "text is a missing-value marker: 1 (row 3); found 'NA'"]


def test_a_table_without_usable_rows_is_an_error():
    with pytest.raises(DataError, match="no row of the table can be used: text is empty: 2"):
        clean_rows(table_of(text=["", ""], label=[1, 2]), data_section(on_bad_rows="skip"), multi_label=False)


def test_an_unseen_label_is_an_error_when_the_labels_are_known():
    labels = LabelSet.from_names(["a", "b"], False)
    table = table_of(text=["x", "y"], label=["a", "c"])
    with pytest.raises(DataError, match=r"label is unknown: 1 \(row 2\); found 'c'; allowed 'a', 'b'"):
        clean_rows(table, data_section(), multi_label=False, labels=labels)
    assert clean_rows(table, data_section(on_bad_rows="skip"), multi_label=False, labels=labels).targets.tolist() == [0]


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"label": [["b", "a"], [], ["b"], None]}, "label"),
        ({"label": [" b ; a;b", "", "b;", None]}, "label"),
        ({"a": [1, 0, "0", None], "b": ["1", "False", True, ""]}, ["a", "b"]),
    ],
)
def test_the_three_forms_of_multi_label_give_the_same_targets(columns, label):
    table = table_of(text=["w", "x", "y", "z"], **columns)
    rows = clean_rows(table, data_section(label=label), multi_label=True, label_separator=";")
    assert rows.labels.names == ("a", "b")
    assert rows.targets.dtype == np.float32
    assert rows.targets.tolist() == [[1, 1], [0, 0], [0, 1], [0, 0]]


def test_label_columns_with_other_values_than_flags_are_bad_rows():
    table = table_of(text=["x", "y"], a=[1, "2"], b=[0, 1])
    with pytest.raises(DataError, match=r"label is not 0 or 1: 1 \(row 2\); found '2'"):
        clean_rows(table, data_section(label=["a", "b"]), multi_label=True)


# Splits


@settings(deadline=None, max_examples=60)
@given(
    targets=st.lists(st.integers(0, 4), min_size=10, max_size=120),
    validation=st.sampled_from([0.1, 0.15, 0.3]),
    test=st.sampled_from([0.1, 0.25]),
    seed=st.integers(0, 3),
)
def test_splits_are_disjoint_complete_exact_and_depend_on_the_seed_alone(targets, validation, test, seed):
    split = Split(validation=validation, test=test, seed=seed)
    targets = np.array(targets)
    places = split_rows(targets, split)
    assert sorted(np.concatenate(list(places.values()))) == list(range(len(targets)))
    assert len(places["validation"]) == round(validation * len(targets))
    assert len(places["test"]) == round(test * len(targets))
    again = split_rows(targets, split)
    assert all((places[name] == again[name]).all() for name in places)
    if len(places["train"]) >= len(set(targets.tolist())):
        assert set(targets[places["train"]].tolist()) == set(targets.tolist())


def test_stratified_counts_are_the_ideal_ones_up_to_one_row():
    targets = np.repeat(np.arange(4), [500, 303, 150, 47])
    places = split_rows(targets, Split(validation=0.1, test=0.2))
    for name, share in (("validation", 0.1), ("test", 0.2)):
        counts = np.bincount(targets[places[name]], minlength=4)
        assert (np.abs(counts - share * np.array([500, 303, 150, 47])) < 1).all()
    assert np.bincount(targets[split_rows(np.repeat([0, 1], 50), Split())["test"]]).sum() == 10


def test_classes_of_one_or_two_rows_stay_in_train():
    targets = np.array([0] * 50 + [1] * 47 + [2] * 2 + [3])
    for seed in range(5):
        places = split_rows(targets, Split(validation=0.3, test=0.3, seed=seed))
        assert np.bincount(targets[places["train"]])[2:].tolist() == [2, 1]


def test_another_seed_gives_another_split():
    targets = np.arange(100) % 2
    assert split_rows(targets, Split(seed=0))["test"].tolist() != split_rows(targets, Split(seed=1))["test"].tolist()


def test_multi_label_rows_are_stratified_by_combination_and_rare_ones_by_rarest_label():
    targets = np.zeros((260, 12), dtype=np.float32)
    targets[:100, 0] = 1
    targets[100:190, 1] = 1
    targets[190:, 2] = 1
    targets[200:, 3:] = [[code * 17 % 512 >> bit & 1 for bit in range(9)] for code in range(60)]  # all differ
    places = split_rows(targets, Split(validation=0.2, test=0.2))
    for name in ("validation", "test"):
        assert np.abs(targets[places[name]].sum(axis=0)[:2] - [20, 18]).max() <= 1
        assert len(places[name]) == 52
        assert abs(targets[places[name], 2].sum() - 14) <= 3


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 2)), min_size=10, max_size=150),
    seed=st.integers(0, 3),
)
def test_groups_never_straddle_splits_and_no_split_is_empty(rows, seed):
    groups, targets = [f"g{group}" for group, _ in rows], np.array([target for _, target in rows])
    split = Split(seed=seed, group="g")
    if len(set(groups)) < 3:
        with pytest.raises(DataError, match="too few for 3 splits"):
            split_rows(targets, split, groups)
        return
    places = split_rows(targets, split, groups)
    found = {name: {groups[place] for place in chosen} for name, chosen in places.items()}
    assert sum(map(len, found.values())) == len(set(groups))
    assert sorted(np.concatenate(list(places.values()))) == list(range(len(rows)))
    assert all(len(chosen) for chosen in places.values())


def test_many_small_groups_come_near_the_fractions_in_every_class():
    generator = np.random.default_rng(0)
    groups = [f"g{number}" for number in generator.integers(0, 400, 2000)]
    targets = generator.choice(3, 2000, p=[0.7, 0.2, 0.1])
    places = split_rows(targets, Split(validation=0.1, test=0.2, group="g"), groups)
    for name, share in (("validation", 0.1), ("test", 0.2)):
        shares = np.bincount(targets[places[name]]) / np.bincount(targets)
        assert np.allclose(shares, share, atol=0.02)


def test_rows_too_few_for_the_fractions_are_told_with_the_sizes():
    with pytest.raises(DataError, match=r"4 usable rows .*test: 0.1: the sizes would be train 4, validation 0, test 0"):
        split_rows(np.array([0, 1, 0, 1]), Split())


# All together


def test_a_table_becomes_splits_with_a_summary_that_brute_force_confirms(tmp_path):
    rows = numbered_rows(60, classes=("10", "2", "1"))
    rows += [(f"TEXT   {number} ", "2") for number in range(30)] + [("", "1"), ("NA", "1")]
    path = write_rows(tmp_path / "t.csv", rows)
    data = data_section(on_bad_rows="skip", split={"validation": 0.2, "test": 0.2})
    splits = load_text_splits(path, data, TASK)
    assert splits.labels.names == ("1", "2", "10")
    for name in ("train", "validation", "test"):
        for text, target, number in zip(
            splits.texts[name], splits.targets[name], splits.row_numbers[name], strict=True
        ):
            assert (text, splits.labels.names[target]) == (rows[number - 1][0].strip(), rows[number - 1][1])
    summary = json.loads(json.dumps(splits.summary))
    assert (summary["rows_read"], summary["rows_kept"]) == (92, 90)
    assert summary["skipped"] == {"text is empty": 1, "text is a missing-value marker": 1}
    assert summary["sizes"] == {"train": 54, "validation": 18, "test": 18}
    assert summary["class_counts"]["test"] == {"1": 4, "2": 10, "10": 4}
    assert summary["files"] == {"train": ["t.csv"]}
    same = {name: [" ".join(text.lower().split()) for text in texts] for name, texts in splits.texts.items()}
    for pair, count in summary["duplicates"].items():
        first, second = pair.split("/")
        assert count == sum(any(text == other for other in same[first]) for text in same[second]) > 0
    assert list(summary["duplicates"]) == ["train/validation", "train/test", "validation/test"]
    assert summary["conflicting_texts"] == 20
    digest = hashlib.sha256()
    for name in ("train", "validation", "test"):
        for number, text, target in zip(
            splits.row_numbers[name].tolist(), splits.texts[name], splits.targets[name].tolist(), strict=True
        ):
            digest.update(json.dumps([name, number, text, target]).encode() + b"\n")
    assert summary["fingerprint"] == digest.hexdigest()
    assert any("2 of 92 rows of t.csv are left out" in warning for warning in summary["warnings"])
    assert any(" of 18 rows of test repeat a text of train" in warning for warning in summary["warnings"])


def write_given_splits(folder: Path) -> Path:
    write_rows(folder / "train.csv", numbered_rows(20))
    write_rows(folder / "dev.csv", numbered_rows(6, prefix="dev"))
    write_rows(folder / "test.csv", numbered_rows(5, classes=("a", "c"), prefix="test"))
    return folder


@pytest.mark.parametrize("validation", ["dev", "validation"])
def test_given_splits_are_kept_as_they_are(tmp_path, validation):
    data = data_section(split={"train": "train", "validation": validation, "test": "test"})
    splits = load_text_splits(write_given_splits(tmp_path), data, TASK)
    assert {name: len(texts) for name, texts in splits.texts.items()} == {"train": 20, "validation": 6, "test": 5}
    assert splits.texts["validation"] == [f"dev {number}" for number in range(6)]
    assert splits.summary["files"] == {"train": ["train.csv"], "validation": ["dev.csv"], "test": ["test.csv"]}


def test_fractions_beside_given_splits_come_from_the_training_rows(tmp_path):
    data = data_section(split={"train": "train", "validation": 0.2, "test": "test"})
    splits = load_text_splits(write_given_splits(tmp_path), data, TASK)
    assert {name: len(texts) for name, texts in splits.texts.items()} == {"train": 16, "validation": 4, "test": 5}
    assert all(text.startswith("text") for text in splits.texts["train"] + splits.texts["validation"])
    assert splits.texts["test"] == [f"test {number}" for number in range(5)]
    assert splits.row_numbers["test"].tolist() == [1, 2, 3, 4, 5]
    assert splits.labels.names == ("a", "b", "c")
    warnings = splits.summary["warnings"]
    assert "class 'c' occurs in test, but not in train: it cannot be learned" in warnings
    assert "class 'b' has no rows in test: nothing is measured for it there" in warnings


def test_bad_rows_of_all_given_splits_are_in_one_error(tmp_path):
    write_given_splits(tmp_path)
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}.csv", [("", "a"), *numbered_rows(9)])
    with pytest.raises(DataError, match=r"(?s)1 rows of train.csv .*\(row 1\).*1 rows of test.csv"):
        load_text_splits(tmp_path, data_section(split={"train": "train", "test": "test"}), TASK)


def test_all_splits_of_a_folder_are_joined_with_a_warning_when_that_is_asked_for(tmp_path):
    data = data_section(split={"train": "all", "validation": 0.2, "test": 0.2})
    splits = load_text_splits(write_given_splits(tmp_path), data, TASK)
    assert splits.summary["rows_kept"] == 31
    assert "the source has the splits train, validation, test" in splits.summary["warnings"][0]


def test_a_group_in_two_given_splits_is_an_error(tmp_path):
    header = ("text", "label", "user")
    write_rows(tmp_path / "train.csv", [(f"t{n}", "ab"[n % 2], f"u{n}") for n in range(9)], header)
    write_rows(tmp_path / "test.csv", [("x", "a", "u3"), ("y", "b", "new")], header)
    data = data_section(split={"train": "train", "test": "test", "group": "user"})
    with pytest.raises(DataError, match=r"1 groups lie in both train and test \(u3"):
        load_text_splits(tmp_path, data, TASK)


def test_known_labels_overrule_the_recipe_and_the_data(tmp_path):
    path = write_rows(tmp_path / "t.csv", numbered_rows(30))
    splits = load_text_splits(path, data_section(), TASK, LabelSet.from_names(["c", "b", "a"], False))
    assert splits.labels.names == ("c", "b", "a")
    assert set(splits.targets["train"].tolist()) == {1, 2}
    assert "class 'c' has no rows at all" in splits.summary["warnings"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("x", "a")], "1 usable rows are too few"),
        (numbered_rows(2), "2 usable rows are too few"),
        ([("", "a")] * 4, "no row of t.csv can be used"),
        (numbered_rows(30, classes=("a",)), "all 24 training rows have the label 'a', and a classifier needs two"),
    ],
)
def test_tables_that_nothing_can_be_learned_from_are_errors(tmp_path, rows, message):
    path = write_rows(tmp_path / "t.csv", rows)
    with pytest.raises(DataError, match=message):
        load_text_splits(path, data_section(on_bad_rows="skip"), TASK)


def test_multi_label_tables_are_split_and_counted_by_class(tmp_path):
    path = write_rows(tmp_path / "t.csv", numbered_rows(40, classes=("a|b", "b", "", "a")))
    splits = load_text_splits(path, data_section(), MULTI_TASK)
    assert splits.targets["train"].shape == (32, 2)
    counts = splits.summary["class_counts"]
    assert {name: sum(counts[split][name] for split in counts) for name in "ab"} == {"a": 20, "b": 20}
    with pytest.raises(DataError, match="no training row has any label"):
        load_text_splits(write_rows(path, numbered_rows(40, classes=("",))), data_section(), MULTI_TASK)


def test_twenty_five_thousand_rows_are_cleaned_within_a_second():
    table = table_of(
        title=[f"title {n}" for n in range(25_000)],
        text=["a review of some length " * 5] * 25_000,
        label=[1, 2.0] * 12_500,
    )
    start = time.process_time()
    rows = clean_rows(table, data_section(text=["title", "text"], template="{title}: {text}"), multi_label=False)
    assert time.process_time() - start < 1
    assert len(rows.texts) == 25_000


def test_classes_that_are_spelled_alike_are_told_in_one_sentence():
    names = ("Cat", "cat ", "na\u00efve", "nai\u0308ve", "dog", "\u732b")
    (sentence,) = _spelling_warnings(names)
    assert "'Cat' and 'cat '; 'na\u00efve' and" in sentence and "dog" not in sentence and "task.labels" in sentence
    assert _spelling_warnings(("1", "10", "a", "b")) == []
    many = [name for index in range(250) for name in (f"c{index}", f"C{index}")]
    assert len(_spelling_warnings(many)[0]) < 300
