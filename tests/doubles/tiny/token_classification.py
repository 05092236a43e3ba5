"""Reviews whose class word is one kind of entity and some fillers another; every fifth is longer than the model reads.

Windows do not overlap and entities are single words: then a plain pipeline puts windows together as hftoolkit does.
"""

import json
import random
from pathlib import Path
from typing import Any

from doubles.bert import save_bert
from doubles.reviews import CLASSES, FILLERS

RECIPE = """\
task: {{kind: token-classification, window_overlap: 0}}
data: {{source: {table}, columns: {{text: text, spans: spans}}}}
model: {{backbone: {backbone}, max_length: 16, dropout: 0.1}}
train: {{epochs: 4, batch_size: 8, learning_rate: 5.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 200}}
"""
TYPES = dict.fromkeys(CLASSES, "mood") | dict.fromkeys(FILLERS[:6], "thing")


def write(folder: Path) -> Path:
    """Write 120 texts with their entities, a backbone that learns them, and the recipe; return its path."""
    table, recipe, generator = folder / "texts.jsonl", folder / "tiny.yaml", random.Random(0)
    rows = []
    for number in range(120):
        words = [
            *generator.choices(FILLERS, k=30 if number % 5 == 0 else generator.randint(4, 10)),
            CLASSES[number % 3],
        ]
        generator.shuffle(words)
        starts = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
        spans = [
            [start, start + len(word), TYPES[word]] for start, word in zip(starts, words, strict=True) if word in TYPES
        ]
        rows.append({"text": " ".join(words), "spans": spans})
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    backbone = save_bert(folder / "bert", initializer_range=0.3)
    recipe.write_text(RECIPE.format(table=table, backbone=backbone), encoding="utf-8")
    return recipe


def plain(model: Path, source: Path) -> dict[str, list[Any]]:
    """Return what transformers' pipeline finds in each text."""
    from transformers import pipeline

    find = pipeline("token-classification", model=str(model), aggregation_strategy="first", stride=0, device="cpu")
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    return {"entities": [[as_cell(entity, text) for entity in find(text)] for text in texts]}


def as_cell(entity: dict[str, Any], text: str) -> dict[str, Any]:
    """Return an entity of a pipeline as ``predict`` shows it."""
    start, end = entity["start"], entity["end"]
    where = {"start": start, "end": end, "text": text[start:end]}
    return {"type": entity["entity_group"], **where, "score": float(entity["score"])}
