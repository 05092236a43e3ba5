import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

import hftoolkit
from doubles.commands import hft, read_json, refused
from doubles.reviews import CLASSES, FILLERS, review_rows

pytestmark = pytest.mark.slow

RECIPE = """\
task: {{kind: text-regression}}
data:
  source: {table}
  columns: {{text: text, label: price}}
model: {{backbone: {backbone}, max_length: 16}}
train: {{epochs: 6, batch_size: 8, learning_rate: 1.0e-2, precision: fp32}}
evaluation: {{bootstrap_samples: 100}}
"""


def write_prices(path: Path) -> Path:
    """Reviews whose class is worth 1000, 2000 or 3000."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "price"))
        writer.writerows((text, 1000 * (1 + CLASSES.index(label))) for text, label in review_rows(150))
    return path


@pytest.fixture(scope="module", params=["full", "lora"])
def run(request, tmp_path_factory, lively_backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("prices")
    text = RECIPE.format(table=write_prices(folder / "prices.csv"), backbone=lively_backbone)
    tuning = "tuning: {method: lora, rank: 8, head_learning_rate_scale: 2.0}\n" if request.param == "lora" else ""
    (folder / "prices.yaml").write_text(text + tuning)
    ended = hft("finetune", folder / "prices.yaml", "--run-dir", folder / "run")
    assert ended.code == 0, ended
    return folder / "run"


def test_a_plain_model_gives_the_number_in_its_own_unit(run: Path):
    from transformers import pipeline

    plain = pipeline("text-classification", model=str(run / "model"), function_to_apply="none")
    with (run / "predictions" / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    predicted = np.array([float(row["predicted"]) for row in rows])
    expected = [plain(row["text"], truncation=True)[0]["score"] for row in rows]
    np.testing.assert_allclose(predicted, expected, rtol=1e-4)
    truth = np.array([float(row["price"]) for row in rows])
    metrics = read_json(run / "results.json")["test"]["metrics"]
    assert metrics["mae"] == pytest.approx(mean_absolute_error(truth, predicted), rel=1e-4)
    assert metrics["r2"] == pytest.approx(r2_score(truth, predicted), rel=1e-4)
    assert metrics["r2"] > 0.5 and 500 < predicted.mean() < 3500


def test_python_gives_the_same_numbers(run: Path):
    answers = hftoolkit.load(run).predict(["word1 good word2", "bad word3"])
    assert answers[0] > answers[1] and all(isinstance(answer, float) for answer in answers)
    assert hftoolkit.load(run / "model").predict(["word1 good word2", "bad word3"]) == answers


def test_a_run_goes_on_from_an_earlier_one_in_its_unit(run: Path):
    """With a rate that changes nothing, an earlier run of the same number is as good as it was."""
    earlier, recipe = read_json(run / "results.json")["test"]["metrics"], run.parent / "later.yaml"
    text = RECIPE.format(table=run.parent / "prices.csv", backbone=run / "model")
    recipe.write_text(text.replace("1.0e-2", "1.0e-12").replace("epochs: 6", "epochs: 1"))
    ended = hft("finetune", recipe, "--run-dir", run.parent / "later")
    assert ended.code == 0, ended
    later = read_json(run.parent / "later" / "results.json")["test"]["metrics"]
    assert later["mae"] == pytest.approx(earlier["mae"], rel=1e-3)


def test_evaluate_gives_results_again(run: Path):
    ended = hft("evaluate", run)
    assert ended.code == 0, ended
    assert f"{read_json(run / 'results.json')['test']['metrics']['rmse']:.3f}" in ended.out


@pytest.mark.parametrize(
    ("cell", "fragment"), [("dear", "price is not a number"), ("", "price is not a number"), ("nan", "not a number")]
)
def test_rows_without_a_number_are_listed(cell, fragment, tmp_path: Path, lively_backbone: Path):
    table = write_prices(tmp_path / "prices.csv")
    table.write_text(table.read_text() + f"a word,{cell}\n")
    (tmp_path / "prices.yaml").write_text(RECIPE.format(table=table, backbone=lively_backbone))
    refused(hft("finetune", tmp_path / "prices.yaml", "--dry-run"), 3, fragment, "row 151")


def test_numbers_that_are_all_equal_are_refused(tmp_path: Path, lively_backbone: Path):
    table = tmp_path / "prices.csv"
    table.write_text("text,price\n" + "".join(f"word{index} good,5\n" for index in range(30)))
    (tmp_path / "prices.yaml").write_text(RECIPE.format(table=table, backbone=lively_backbone))
    refused(hft("finetune", tmp_path / "prices.yaml", "--dry-run"), 3, "have the same price, 5")


@pytest.mark.parametrize("kind", ["text-regression", "text-classification"])
def test_pairs_of_texts_are_read_as_plain_libraries_read_them(kind: str, tmp_path: Path, lively_backbone: Path):
    from transformers import pipeline

    table = tmp_path / "pairs.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "other", "price"))
        for index, (text, label) in enumerate(review_rows(120)):
            other = label if index % 2 else CLASSES[(CLASSES.index(label) + 1) % 3]
            writer.writerow((text, f"{FILLERS[index % 30]} {other}", index % 2))
    text = RECIPE.format(table=table, backbone=lively_backbone)
    recipe = tmp_path / "pairs.yaml"
    recipe.write_text(
        text.replace("text-regression", kind)
        .replace("text: text,", "text: text, text_pair: other,")
        .replace("epochs: 6", "epochs: 1")
        .replace("max_length: 16", "max_length: 24")
    )
    ended = hft("finetune", recipe, "--run-dir", tmp_path / "run")
    assert ended.code == 0, ended
    plain = pipeline("text-classification", model=str(tmp_path / "run" / "model"), top_k=None)
    options = {"function_to_apply": "none"} if kind == "text-regression" else {}
    (answer,) = hftoolkit.load(tmp_path / "run").predict([{"text": "word1 good", "other": "word2 good"}])
    found = plain({"text": "word1 good", "text_pair": "word2 good"}, **options)
    scores = {item["label"]: item["score"] for item in (found if isinstance(found, list) else [found])}
    ours = {"price": answer} if kind == "text-regression" else dict(answer.probabilities)
    assert ours == pytest.approx(scores, abs=1e-5)
    lonely = tmp_path / "lonely.csv"
    lonely.write_text("text\ngood\n")
    refused(hft("predict", tmp_path / "run", lonely), 3, "'other'")
