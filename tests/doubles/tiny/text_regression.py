"""Reviews that are worth as much as their words, and a BERT of two blocks."""

import csv
from pathlib import Path
from typing import Any

from doubles.bert import save_bert
from doubles.reviews import CLASSES, review_rows

RECIPE = """\
task: {{kind: text-regression}}
data: {{source: {table}, columns: {{text: text, label: worth}}}}
model: {{backbone: {backbone}, max_length: 16, dropout: 0.1}}
train: {{epochs: 4, batch_size: 8, learning_rate: 1.0e-2, precision: fp32}}
evaluation: {{bootstrap_samples: 200}}
"""


def write(folder: Path) -> Path:
    """Write 120 reviews with numbers far from 0, a backbone that learns them, and the recipe; return its path."""
    table, recipe = folder / "reviews.csv", folder / "tiny.yaml"
    rows = [(text, 100 + 20 * CLASSES.index(label) + len(text.split())) for text, label in review_rows(120)]
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "worth"), *rows])
    backbone = save_bert(folder / "bert", initializer_range=0.3)
    recipe.write_text(RECIPE.format(table=table, backbone=backbone), encoding="utf-8")
    return recipe


def plain(model: Path, source: Path) -> dict[str, list[Any]]:
    """Return what transformers' pipeline says of the reviews, one at a time, in the unit of the table."""
    from transformers import pipeline

    score = pipeline("text-classification", model=str(model), function_to_apply="none", device="cpu")
    with source.open(newline="", encoding="utf-8") as file:
        return {"worth": [score(row["text"], truncation=True)[0]["score"] for row in csv.DictReader(file)]}
