"""Tables of texts whose class is a word in them, and a small recipe over one."""

import random

CLASSES = ("bad", "fine", "good")
FILLERS = tuple(f"word{index}" for index in range(30))
RECIPE = """\
task: {{kind: text-classification}}
data:
  source: {table}
  columns: {{text: text, label: label}}
model: {{backbone: {backbone}, max_length: 16}}
train: {{epochs: 4, batch_size: 8, learning_rate: 5.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 100, baselines: false}}
"""


def review_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Rows of (text, label): one class word among up to ten fillers; texts differ."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        label = CLASSES[index % 3]
        words = [*generator.choices(FILLERS, k=generator.randint(3, 10)), label]
        generator.shuffle(words)
        rows.append((" ".join(words), label))
    return rows
