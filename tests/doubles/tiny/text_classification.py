"""Reviews of a few words and a BERT of two blocks."""

import csv
from pathlib import Path
from typing import Any

from doubles.bert import save_bert
from doubles.reviews import review_rows

RECIPE = """\
task: {{kind: text-classification}}
data: {{source: {table}, columns: {{text: text, label: label}}}}
model: {{backbone: {backbone}, max_length: 16, dropout: 0.1}}
train: {{epochs: 4, batch_size: 8, learning_rate: 1.0e-2, precision: fp32}}
evaluation: {{bootstrap_samples: 200}}
"""


def write(folder: Path) -> Path:
    """Write 150 reviews of three classes, a backbone that learns them, and the recipe; return its path."""
    table, recipe = folder / "reviews.csv", folder / "tiny.yaml"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *review_rows(150)])
    backbone = save_bert(folder / "bert", initializer_range=0.3)
    recipe.write_text(RECIPE.format(table=table, backbone=backbone), encoding="utf-8")
    return recipe


def plain(model: Path, source: Path) -> dict[str, list[Any]]:
    """Return what transformers' pipeline says of the reviews, one at a time."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(model), top_k=None, device="cpu")
    with source.open(newline="", encoding="utf-8") as file:
        answers = [classify([row["text"]], truncation=True)[0] for row in csv.DictReader(file)]
    return as_columns(answers)


def as_columns(answers: list[Any]) -> dict[str, list[Any]]:
    """Return the answers of a classifying pipeline, all classes of each, the best first, as ``predict`` shows them."""
    names = sorted(answer["label"] for answer in answers[0])
    scores = [{answer["label"]: answer["score"] for answer in each} for each in answers]
    columns: dict[str, list[Any]] = {f"p({name})": [score[name] for score in scores] for name in names}
    return {"label": [each[0]["label"] for each in answers]} | columns
