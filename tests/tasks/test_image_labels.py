"""Images with any number of labels: the same head, metrics and answers as texts have."""

import csv
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

import hftoolkit
from doubles.commands import hft, read_json

pytestmark = pytest.mark.slow

RECIPE = """\
task: {{kind: image-classification, multi_label: true, label_separator: " "}}
data: {{source: {table}, columns: {{image: image_name, label: tags}}, split: {{validation: 0.2, test: 0.2}}}}
model: {{pretrained: false, architecture: resnet10t, image_size: 32}}
augmentation: {{mixup: 0.2}}
train: {{epochs: 6, batch_size: 8, learning_rate: 3.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 100}}
"""


def write_tagged(folder: Path, count: int = 80) -> Path:
    """Write pictures whose upper half is bright or not, and whose left half is blue or not, and a table of tags."""
    generator = np.random.default_rng(0)
    rows = [("image_name", "tags")]
    (folder / "im").mkdir()
    for number in range(count):
        bright, blue = number % 2, number // 2 % 2
        pixels = generator.integers(60, 90, (32, 32, 3))
        pixels[:16] += 140 * bright
        pixels[:, :16, 2] += 70 * blue
        pixels[:, :16, :2] -= 50 * blue
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "im" / f"img{number:03d}.png")
        rows.append((f"img{number:03d}", " ".join([*["bright"] * bright, *["blue"] * blue])))
    with (folder / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "tags.csv"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HOME", str(folder / "cache"))
        (folder / "r.yaml").write_text(RECIPE.format(table=write_tagged(folder)))
        ended = hft("finetune", folder / "r.yaml", "--run-dir", folder / "run")
        assert ended.code == 0, ended
        assert "80 names of images lack the ending" in ended.out + ended.err
        evaluated = hft("evaluate", folder / "run", "--data", folder / "tags.csv")
        assert evaluated.code == 0 and "80 examples" in evaluated.out, evaluated
    return folder / "run"


def test_tags_are_learned_calibrated_measured_and_drawn(run: Path) -> None:
    results = read_json(run / "results.json")
    metrics = results["test"]["metrics"]
    assert metrics["macro_f1"] > 0.8 and {"f1/blue", "f1/bright", "mcc", "ece", "roc_auc"} <= set(metrics)
    assert results["baselines"]["pixel_logreg"]["metrics"]["macro_f1"] > 0.9
    assert results["gate"]["saved"] < 1e-4
    assert {"worst.png", "reliability.png", "where_it_looks.png"} <= {path.name for path in (run / "report").iterdir()}
    with (run / "predictions" / "test.csv").open(newline="") as file:
        truth = {row["label"] for row in csv.DictReader(file)}
    assert truth == {"", "blue", "bright", "blue|bright"}


def test_answers_are_those_of_the_plain_pipeline_with_a_sigmoid_each(run: Path) -> None:
    from transformers import pipeline

    paths = [run.parent / "im" / f"img{number:03d}.png" for number in range(4)]
    answers = hftoolkit.load(run).predict(paths)
    classify = pipeline("image-classification", model=str(run / "model"), device="cpu")
    for path, answer in zip(paths, answers, strict=True):
        plain = {found["label"]: found["score"] for found in classify(str(path))}
        assert plain == pytest.approx(dict(answer.probabilities), abs=0.02)
        assert answer.labels == tuple(name for name, share in answer.probabilities.items() if share >= 0.5)
    assert {len(answer.labels) for answer in answers} == {0, 1, 2}
