"""A small world for tests of recommendation: 40 items of 4 kinds, and 60 users who each prefer one kind."""

import csv
from pathlib import Path

import numpy as np

KINDS = ("bad", "fine", "good", "word1")
NUM_ITEMS, NUM_USERS, HISTORY = 40, 60, 9

RECIPE = """\
task: {{kind: recommendation, draws_per_epoch: 4}}
data:
  interactions: {{source: {folder}/log.csv, columns: {{user: who, item: what, timestamp: when}}}}
  items:
    source: {folder}/items.csv
    id: what
    columns: title
    flags: {{kinds: [red, blue]}}
    template: "{{title}} {{kinds}}"
  users: {{source: {folder}/users.csv, id: who, categories: [country], numbers: [age]}}
model: {{backbone: {backbone}, max_length: 16}}
train: {{epochs: 6, batch_size: 60, learning_rate: 1.0e-2, precision: fp32}}
fusion: {{parts: [text, ease, popularity, groups, attributes], folds: 3}}
id_models: {{ials_dimensions: 4, ials_iterations: 3, ease_regularization: 20}}
evaluation: {{bootstrap_samples: 100, cutoff: 5, block_users: 7}}
"""


def kind_of(item: int) -> int:
    return item % len(KINDS)


def write_world(folder: Path) -> None:
    """Write log.csv, items.csv and users.csv; ids are texts, and items i and i + 4 are of one kind."""
    generator = np.random.default_rng(0)
    log = []
    for user in range(NUM_USERS):
        liked = [item for item in range(NUM_ITEMS) if kind_of(item) == user % len(KINDS)]
        chosen = list(generator.permutation(liked)[: HISTORY - 2]) + list(generator.permutation(NUM_ITEMS)[:2])
        for place, item in enumerate(dict.fromkeys(int(each) for each in generator.permutation(chosen))):
            log.append((f"u{user}", f"i{item}", 1000 + place * 60 + user))
    items = [(f"i{item}", f"{KINDS[kind_of(item)]} word{item % 29}", item % 2, 1) for item in range(NUM_ITEMS)]
    users = [(f"u{user}", "xyz"[user % 3], 20 + user) for user in range(NUM_USERS)]
    write_csv(folder / "log.csv", ("who", "what", "when"), log)
    write_csv(folder / "items.csv", ("what", "title", "red", "blue"), items)
    write_csv(folder / "users.csv", ("who", "country", "age"), users)


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path
