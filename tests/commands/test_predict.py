"""Predict and evaluate a finished run, compared with what plain transformers says of the same model folder."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import hftoolkit
from doubles.commands import Ended, hft
from doubles.reviews import CLASSES, RECIPE, review_rows
from hftoolkit.cli import render
from hftoolkit.commands import predict
from hftoolkit.commands.evaluate import evaluate
from hftoolkit.errors import DataError
from hftoolkit.recipe import load_recipe

WriteCsv = Callable[..., Path]
TOLERANCE = 1e-5  # on probabilities
LONG = "good word1 " * 200  # far over max_length

# Lengths, order and the long text make padding, sorting and cutting matter.
TEXTS = [text for text, _ in review_rows(70, seed=5)] + ["bad", LONG, "unheard \u00fcber \U0001f600", "fine , good"]


def plain_probabilities(model_folder: Path, texts: Sequence[str], *, sigmoid: bool = False) -> np.ndarray:
    """Predict one text at a time, so without padding, with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0] for text in texts]
    stacked = torch.stack(logits)
    return (stacked.sigmoid() if sigmoid else stacked.softmax(-1)).numpy()


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([list(columns), *(row.values() for row in rows)])
    return path


def read_table(path: Path) -> list[dict[str, Any]]:
    match path.suffix:
        case ".parquet":
            return pq.read_table(path).to_pylist()
        case ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        case _:
            return read_csv(path.read_text(encoding="utf-8"))


def read_csv(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text)))


def probabilities_of(rows: list[dict[str, Any]], names: Sequence[str] = CLASSES) -> np.ndarray:
    return np.array([[float(row[f"p({name})"]) for name in names] for row in rows])


def refused(ended: Ended, code: int, *fragments: str) -> None:
    assert ended.code == code, ended
    assert ended.err.startswith("error: ") and ended.out == ""
    for fragment in fragments:
        assert fragment in ended.err


@pytest.fixture(scope="module")
def expected(tiny_run: Path) -> np.ndarray:
    """Probabilities of ``TEXTS`` by transformers alone, (N, C)."""
    probabilities = plain_probabilities(tiny_run / "model", TEXTS)
    assert len(set(probabilities.argmax(axis=1))) > 1, "a model that always says the same proves nothing"
    return probabilities


@pytest.fixture
def copied_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be tampered with."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copied run", ignore=shutil.ignore_patterns("evaluations")))


# --- predict --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "output"), [("csv", "jsonl"), ("jsonl", "parquet"), ("parquet", "csv")])
def test_a_table_gets_the_predictions_of_plain_transformers_in_its_order(
    ending: str, output: str, tiny_run: Path, tmp_path: Path, expected: np.ndarray
):
    source = write_table(tmp_path / f"in.{ending}", {"other": list(range(len(TEXTS))), "text": TEXTS})
    target = tmp_path / f"out.{output}"
    assert hft("predict", tiny_run, source, "--output", target) == Ended(0, "", "")

    rows = read_table(target)
    assert list(rows[0]) == ["row", "label", *(f"p({name})" for name in CLASSES)]
    assert [int(row["row"]) for row in rows] == list(range(1, len(TEXTS) + 1))
    np.testing.assert_allclose(probabilities_of(rows), expected, atol=TOLERANCE)
    np.testing.assert_allclose(probabilities_of(rows).sum(axis=1), 1, atol=1e-6)
    assert [row["label"] for row in rows] == [CLASSES[index] for index in expected.argmax(axis=1)]


def test_lines_of_standard_input_become_csv_on_standard_output(tiny_run: Path, expected: np.ndarray):
    ended = hft("predict", tiny_run, "-", stdin="".join(f"{text}\r\n" for text in TEXTS).encode("utf-8-sig"))
    assert (ended.code, ended.err) == (0, "")
    np.testing.assert_allclose(probabilities_of(read_csv(ended.out)), expected, atol=TOLERANCE)
    one = hft("predict", tiny_run, "-", stdin=TEXTS[0].encode())  # no line feed at the end
    np.testing.assert_allclose(probabilities_of(read_csv(one.out)), expected[:1], atol=TOLERANCE)


def test_long_predictions_tell_how_far_they_are_beside_the_table(tiny_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(render, "PLAIN_PAUSE", 0.0)
    ended = hft("predict", tiny_run, "-", stdin="\n".join(TEXTS).encode())
    assert (ended.code, ended.err) == (0, f"inference: 64 of {len(TEXTS)} examples\n")
    assert len(read_csv(ended.out)) == len(TEXTS)


def test_no_lines_give_no_rows(tiny_run: Path):
    header = "row,label," + ",".join(f"p({name})" for name in CLASSES) + "\n"
    assert hft("predict", tiny_run, "-", stdin=b"") == Ended(0, header, "")


def test_the_transformers_pipeline_says_the_same(tiny_run: Path, expected: np.ndarray):
    classify = pipeline("text-classification", model=str(tiny_run / "model"), top_k=None, device="cpu")
    for said, probabilities in zip(classify(TEXTS[-5:], truncation=True), expected[-5:], strict=True):
        by_name = {entry["label"]: entry["score"] for entry in said}
        np.testing.assert_allclose([by_name[name] for name in CLASSES], probabilities, atol=TOLERANCE)


def test_python_predicts_texts_and_rows(tiny_run: Path, expected: np.ndarray):
    predictor = hftoolkit.load(str(tiny_run))
    for rows in (TEXTS, [{"text": text, "extra": 1} for text in TEXTS]):
        predictions = predictor.predict(rows)
        found = [[prediction.probabilities[name] for name in CLASSES] for prediction in predictions]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        assert [prediction.label for prediction in predictions] == [CLASSES[i] for i in expected.argmax(axis=1)]
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("rows", "fragment"),
    [
        ("one text", "predict([row])"),
        ({"text": "one row"}, "predict([row])"),
        ([{"txt": "good"}], "rows lack text; they have 'txt', and the model reads text"),
        (["good", {"text": "bad"}], "all texts, or all dicts"),
        ([1, 2], "found int"),
        (pd.DataFrame({"txt": ["good"]}), "rows lack text; they have 'txt'"),
    ],
)
def test_python_refuses_what_are_no_rows(rows: Any, fragment: str, tiny_run: Path):
    with pytest.raises(DataError) as error:
        hftoolkit.load(tiny_run).predict(rows)
    assert fragment in str(error.value)


def test_rows_without_text_keep_their_place_and_are_counted(tiny_run: Path, write_csv: WriteCsv, tmp_path: Path):
    source = write_csv([("",), (TEXTS[0],), ("NA",), (TEXTS[1],)], header=("text",))
    expected = plain_probabilities(tiny_run / "model", TEXTS[:2])
    for ending in ("csv", "jsonl", "parquet"):
        target = tmp_path / f"out.{ending}"
        ended = hft("predict", tiny_run, source, "--output", target)
        assert ended.code == 0 and ended.err.startswith(
            "warning: 2 of 4 rows are left blank: text is empty: 1 (row 1); "
        )
        rows = read_table(target)
        assert [bool(row["label"]) for row in rows] == [False, True, False, True]
        assert all(rows[place][f"p({name})"] in (None, "") for place in (0, 2) for name in CLASSES)
        np.testing.assert_allclose(probabilities_of([rows[1], rows[3]]), expected, atol=TOLERANCE)


def test_rows_without_text_are_refused_when_asked_or_when_there_are_no_others(tiny_run: Path, write_csv: WriteCsv):
    source = write_csv([("good",), ("",), ("bad",), ("NA",)], header=("text",))
    refused(
        hft("predict", tiny_run, source, "--on-bad-rows", "error"),
        3,
        "2 of 4 rows cannot be used",
        "text is empty: 1 (row 2)",
        "marker: 1 (row 4); found 'NA'",
        "--on-bad-rows skip",
    )
    refused(hft("predict", tiny_run, "-", stdin=b"\n\n"), 3, "no row can be predicted", "text is empty: 2 (rows 1, 2)")
    lines = hft("predict", tiny_run, "-", stdin=b"good\n\xff\n")
    assert [bool(row["label"]) for row in read_csv(lines.out)] == [True, False]
    assert "not valid Unicode: 1 (row 2)" in lines.err
    refused(hft("predict", tiny_run, "-", stdin="good".encode("utf-16")), 3, "iconv -f UTF-16")


def test_columns_of_the_table_stand_beside_the_predictions(tiny_run: Path, write_csv: WriteCsv, tmp_path: Path):
    source = write_csv(
        [("k1", "good", "bad"), ("k2", "", "fine"), ("k3", "bad", "bad")], header=("ID", "text", "label")
    )
    rows = read_csv(hft("predict", tiny_run, source).out)
    assert [row["ID"] for row in rows] == ["k1", "k2", "k3"] and list(rows[0])[:3] == ["row", "ID", "label"]
    rows = read_csv(hft("predict", tiny_run, source, "--keep", "label, text").out)
    assert list(rows[0])[:4] == ["row", "label", "text", "predicted"]
    assert [(row["label"], row["text"], row["predicted"]) for row in rows][1] == ("fine", "", "")
    refused(hft("predict", tiny_run, source, "--keep", "labl"), 3, "'labl' (did you mean 'label'?)", "Edit --keep")
    refused(hft("predict", tiny_run, "-", "--keep", "id", stdin=b"good"), 2, "--keep id", "standard input is no table")
    taken = write_csv([("1", "good")], header=("row", "text"), name="row.csv")
    refused(hft("predict", tiny_run, taken, "--keep", "row"), 2, "--keep row")


def test_python_takes_frames_data_sets_and_generators_of_texts(tiny_run: Path, expected: np.ndarray):
    predictor = hftoolkit.load(tiny_run)
    texts = [*TEXTS[:4], None]
    rows = [{"other": 1, "text": text} for text in texts]
    for source in (
        pd.DataFrame(rows),
        pd.DataFrame(rows).text,
        datasets.Dataset.from_list(rows),
        pa.Table.from_pylist(rows),
        (text for text in texts),
        {"text": texts},
        [*rows[:4], {"other": 1}],
    ):
        with pytest.warns(UserWarning, match=r"1 of 5 rows is left blank: text is empty: 1 \(row 5\)"):
            *found, blank = predictor.predict(source)
        shown = [[prediction.probabilities[name] for name in CLASSES] for prediction in found]
        np.testing.assert_allclose(shown, expected[:4], atol=TOLERANCE)
        assert blank.labels == () and blank.probabilities == {}
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used(?s:.*)on_bad_rows='skip'"):
        predictor.predict(["good", ""], on_bad_rows="error")


@pytest.mark.parametrize(
    ("name", "code", "fragment"),
    [
        ("out.xlsx", 2, "one of .csv, .jsonl, .parquet"),
        ("nowhere/out.csv", 2, "there is no folder"),
        ("t.csv", 2, "is the input itself"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(
    name, code, fragment, tmp_path: Path, tiny_run: Path, write_csv: WriteCsv, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predict, "load_run", lambda *_: pytest.fail("the model was loaded"))
    source = write_csv([("good",)], header=("text",))
    before = source.read_bytes()
    refused(hft("predict", tiny_run, source, "--output", tmp_path / name), code, fragment)
    assert source.read_bytes() == before


def test_inputs_that_cannot_be_are_refused(tiny_run: Path, tmp_path: Path, write_csv: WriteCsv):
    wrong = write_csv([("good",)], header=("Text",))
    refused(hft("predict", tiny_run, wrong), 3, "'text' (did you mean 'Text'?)", "the model reads text")
    refused(hft("predict", tiny_run, tmp_path / "nope.csv"), 3, "there is no file", "nope.csv")


@pytest.mark.parametrize("command", [("predict", "-"), ("evaluate",)])
def test_only_a_finished_run_is_used(command: tuple[str, ...], copied_run: Path, tmp_path: Path):
    name, *rest = command
    refused(hft(name, tmp_path, *rest), 3, "is not a run directory", "runs/")
    refused(hft(name, tmp_path / "nope", *rest), 3, "is not a run directory")
    status = copied_run / "status.json"
    status.write_text(json.dumps({"state": "failed", "reason": "its own gate"}))
    refused(hft(name, copied_run, *rest), 3, "is failed (its own gate)")


@pytest.mark.parametrize("command", [("predict", "-"), ("evaluate",)])
def test_one_flipped_bit_of_the_model_is_found(command: tuple[str, ...], copied_run: Path):
    name, *rest = command
    weights = copied_run / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 0x40
    weights.write_bytes(content)
    refused(hft(name, copied_run, *rest), 3, "model.safetensors has changed", "model.sha256")
    for source in (copied_run, copied_run / "model"):
        with pytest.raises(DataError, match="has changed"):
            hftoolkit.load(source)


@pytest.mark.parametrize("command", [("predict", "-"), ("evaluate",)])
def test_a_label_list_that_is_not_the_model_s_is_refused(command: tuple[str, ...], copied_run: Path):
    name, *rest = command
    labels = copied_run / "labels.json"
    original = json.loads(labels.read_text())
    labels.write_text(json.dumps(original | {"names": ["good", "fine", "bad"]}))
    refused(hft(name, copied_run, *rest), 3, "labels of", "good, fine, bad", "bad, fine, good")


# --- evaluate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", "validation"])
def test_evaluate_measures_the_same_again(split: str, tiny_run: Path):
    results = json.loads((tiny_run / "results.json").read_text())
    measured = evaluate(tiny_run, split=split, source=None, emit=lambda _: None)
    again, before = measured["metrics"], results[split]["metrics"]
    if split == "validation":  # measured there before the temperature, which changes how sure the model is only
        again, before = ({k: v for k, v in m.items() if k not in ("ece", "loss", "roc_auc")} for m in (again, before))
    else:
        assert set(measured["intervals"]) == set(results["test"]["intervals"])
        for name, interval in results["test"]["intervals"].items():
            assert measured["intervals"][name] == pytest.approx(interval, abs=1e-6)
    assert again == pytest.approx(before, abs=1e-6)


def test_evaluate_shows_the_metrics(tiny_run: Path):
    results = json.loads((tiny_run / "results.json").read_text())
    ended = hft("evaluate", tiny_run)
    assert (ended.code, ended.err) == (0, "")
    (row,) = [line for line in ended.out.splitlines() if "fine-tuned" in line]
    for name in ("accuracy", "macro_f1"):
        low, high = results["test"]["intervals"][name]
        assert f"{results['test']['metrics'][name]:.3f} [{low:.3f}, {high:.3f}]" in row
    assert f"{tiny_run} on test, 15 examples" in ended.out
    assert "validation, 15 examples" in hft("evaluate", tiny_run, "--split", "validation").out


def test_evaluate_measures_any_table_with_these_columns(tiny_run: Path, write_csv: WriteCsv):
    rows = review_rows(40, seed=9)
    table = write_csv(rows, name="other.csv")
    decided = plain_probabilities(tiny_run / "model", [text for text, _ in rows]).argmax(axis=1)
    accuracy = np.mean([CLASSES[index] == label for index, (_, label) in zip(decided, rows, strict=True)])
    measured = evaluate(tiny_run, split="test", source=str(table), emit=lambda _: None)
    assert measured["examples"] == 40
    assert measured["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert f"{table}, 40 examples" in hft("evaluate", tiny_run, "--data", table).out


def test_evaluate_takes_a_table_with_one_class(tiny_run: Path, write_csv: WriteCsv):
    ended = hft("evaluate", tiny_run, "--data", write_csv([("good", "good"), ("word1", "good")]))
    assert (ended.code, ended.err) == (0, "")


def test_evaluate_refuses_what_it_cannot_measure(tiny_run: Path, write_csv: WriteCsv, tmp_path: Path):
    unknown = write_csv([("good", "great"), ("bad", "bad")])
    ended = hft("evaluate", tiny_run, "--data", unknown, "--on-bad-rows", "error")
    refused(ended, 3, "'great'", "(row 1)", "'bad', 'fine', 'good'", "--on-bad-rows skip")
    assert "task.labels" not in ended.err
    header = write_csv([("good", "good")], ("text", "Label"), "header.csv")
    refused(hft("evaluate", tiny_run, "--data", header), 3, "did you mean 'Label'?", "Edit the header: the run reads")
    none = write_csv([("good", "great")], name="none.csv")
    refused(hft("evaluate", tiny_run, "--data", none), 3, "no row of none.csv can be measured", "'great'")
    refused(hft("evaluate", tiny_run, "--split", "tset"), 2, "--split tset", "train, validation, test")
    refused(hft("evaluate", tiny_run, "--split", "test", "--data", unknown), 2, "leave out one")
    refused(hft("evaluate", tiny_run, "--data", "./nope.csv"), 3, "./nope.csv")


def test_evaluate_leaves_out_rows_that_cannot_be_used_and_keeps_its_figures(copied_run: Path, write_csv: WriteCsv):
    good = review_rows(12, seed=4)
    whole = evaluate(copied_run, split="test", source=str(write_csv(good)), emit=lambda _: None)
    mixed = write_csv([*good[:5], ("good", "great"), ("", "bad"), ("fine", ""), *good[5:]], name="my mixed.csv")
    ended = hft("evaluate", copied_run, "--data", mixed)
    assert ended.code == 0, ended
    assert "warning: 3 of 15 rows of my mixed.csv are left out: " in ended.out
    assert "label is unknown: 1 (row 6); found 'great'; allowed 'bad', 'fine', 'good'" in ended.out
    kept = json.loads((copied_run / "evaluations" / "my-mixed.json").read_text())
    assert kept["metrics"] == whole["metrics"] and kept["examples"] == 12
    assert (kept["data"], kept["rows"]) == (str(mixed), 15)
    assert kept["left_out"] == {"label is unknown": 1, "text is empty": 1, "label is missing": 1}
    assert str(copied_run / "evaluations" / "my-mixed.json") in ended.out

    (mixed.parent / "other").mkdir()  # another table of that name is another measurement, and the same one is replaced
    other = mixed.rename(mixed.parent / "other" / mixed.name)
    for _ in range(2):
        evaluate(copied_run, split="test", source=str(other), emit=lambda _: None)
    evaluate(copied_run, split="validation", source=None, emit=lambda _: None)
    names = {path.name for path in (copied_run / "evaluations").iterdir()}
    assert names == {"t.json", "my-mixed.json", "my-mixed-2.json", "validation.json"}


def test_evaluate_needs_no_column_of_groups(copied_run: Path, write_csv: WriteCsv):
    recipe = copied_run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("group: null", "group: document"))
    assert "group: document" in recipe.read_text()
    assert hft("evaluate", copied_run, "--data", write_csv([("good", "good"), ("word1", "bad")])).code == 0


def test_evaluate_finds_data_from_another_folder(copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe, trained_in, elsewhere = copied_run / "recipe.yaml", tmp_path / "work", tmp_path / "elsewhere"
    trained_in.mkdir()
    elsewhere.mkdir()
    (source,) = [line for line in recipe.read_text().splitlines() if line.strip().startswith("source:")]
    shutil.copy(load_recipe(recipe).data.source, trained_in / "my.csv")
    recipe.write_text(recipe.read_text().replace(source, "  source: ./my.csv"))
    environment = json.loads((copied_run / "environment.json").read_text())
    assert Path(environment["folder"]).is_dir()
    (copied_run / "environment.json").write_text(json.dumps(environment | {"folder": str(trained_in)}))
    monkeypatch.chdir(elsewhere)
    assert hft("evaluate", copied_run).code == 0
    (trained_in / "my.csv").rename(trained_in / "gone.csv")
    refused(hft("evaluate", copied_run), 3, "./my.csv", str(trained_in), "where the run was trained", "--data")
    (trained_in / "gone.csv").rename(elsewhere / "my.csv")
    assert hft("evaluate", copied_run).code == 0


def test_evaluate_refuses_data_that_changed_since_the_run(copied_run: Path, write_csv: WriteCsv):
    recipe = copied_run / "recipe.yaml"
    rows = review_rows(150)
    changed = write_csv([(f"{rows[0][0]} word1", rows[0][1]), *rows[1:]])
    original = tuple(line for line in recipe.read_text().splitlines() if line.strip().startswith("source:"))
    recipe.write_text(recipe.read_text().replace(original[0], f"  source: {changed}"))
    refused(hft("evaluate", copied_run), 3, "has changed since the run", "fingerprint", "--data")
    write_csv(rows)  # the same rows from another file are the same data
    assert hft("evaluate", copied_run).code == 0


# --- multi-label ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def multi_run(tmp_path_factory: pytest.TempPathFactory, lively_backbone: Path) -> Path:
    """A run on texts with none, one or two of the labels, which are joined by a bar."""
    folder = tmp_path_factory.mktemp("multi")
    rows = [(f"{one} {other}", f"{a}|{b}") for (one, a), (other, b) in zip(review_rows(90), MIXED, strict=True)]
    rows[::9] = [(f"word{index} word3", "") for index in range(10)]
    write_table(folder / "t.csv", {"text": [text for text, _ in rows], "tags": [tags for _, tags in rows]})
    text = RECIPE.format(table=folder / "t.csv", backbone=lively_backbone)
    text = text.replace("{kind: text-classification}", "{kind: text-classification, multi_label: true}")
    (folder / "r.yaml").write_text(text.replace("label: label", "label: tags").replace("5.0e-3", "1.0e-2"))
    ended = hft("finetune", folder / "r.yaml", "--run-dir", folder / "run")
    assert ended.code == 0, ended
    return folder / "run"


MIXED = sorted(review_rows(90, seed=3), key=lambda row: len(row[0]))


@pytest.mark.slow
def test_multi_label_runs_end_to_end(multi_run: Path, tmp_path: Path):
    assert json.loads((multi_run / "labels.json").read_text())["names"] == list(CLASSES)
    results = json.loads((multi_run / "results.json").read_text())
    measured = evaluate(multi_run, split="test", source=None, emit=lambda _: None)
    assert measured["metrics"] == pytest.approx(results["test"]["metrics"], abs=1e-6)

    source = write_table(tmp_path / "in.csv", {"text": TEXTS})
    rows = read_csv(hft("predict", multi_run, source).out)
    expected = plain_probabilities(multi_run / "model", TEXTS, sigmoid=True)
    np.testing.assert_allclose(probabilities_of(rows), expected, atol=TOLERANCE)
    names = ["|".join(name for name, p in zip(CLASSES, row, strict=True) if p >= 0.5) for row in expected]
    assert [row["label"] for row in rows] == names
    assert max(name.count("|") for name in names) > 0, "no text has two labels, so joining them was not tried"


@pytest.mark.slow
def test_multi_label_predictions_hold_the_names(multi_run: Path):
    predictor = hftoolkit.load(multi_run)
    (prediction,) = predictor.predict([f"{TEXTS[0]}"])
    assert prediction.labels == tuple(name for name in CLASSES if prediction.probabilities[name] >= 0.5)
    assert prediction.label == "|".join(prediction.labels)
