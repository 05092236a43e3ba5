"""Sentences whose entities are told by a word before them."""

import json
import random
from pathlib import Path

from doubles.reviews import FILLERS

NAMES = {"person": ("word1", "word2", "word3"), "place": ("word4", "word5", "word6")}
CUES = {"person": "good", "place": "bad"}
TOKEN_RECIPE = """\
task: {{kind: token-classification, window_overlap: 4}}
data:
  source: {table}
  columns: {{text: text, spans: spans}}
model: {{backbone: {backbone}, max_length: {length}}}
train: {{epochs: 14, batch_size: 8, learning_rate: 1.0e-2, precision: fp32}}
evaluation: {{bootstrap_samples: 100}}
"""


def sentence(generator: random.Random, length: int) -> dict:
    """A text where ``good X Y`` makes X Y a person and ``bad X`` makes X a place; the same words are no names alone."""
    words, spans = [], []
    while len(words) < length:
        kind = generator.choice(("person", "place", None, None))
        if kind is None:
            words.append(generator.choice(FILLERS))
            continue
        words.append(CUES[kind])
        start = len(" ".join(words)) + 1
        words += generator.choices(NAMES[kind], k=2 if kind == "person" else 1)
        spans.append([start, len(" ".join(words)), kind])
    return {"text": " ".join(words), "spans": spans}


def write_sentences(path: Path, count: int = 180, length: int = 8) -> Path:
    generator = random.Random(3)
    path.write_text("".join(json.dumps(sentence(generator, length)) + "\n" for _ in range(count)), encoding="utf-8")
    return path
