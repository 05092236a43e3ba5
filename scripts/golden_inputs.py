"""Recipes and inputs of scripts/golden.py: small tables, pictures and models that are the same each time.

Nothing is imported from hftoolkit, whose runs are compared, or from tests, which change with it.
"""

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSES = ("bad", "fine", "good")
FILLERS = tuple(f"word{index}" for index in range(30))
COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 60), "red": (210, 40, 30)}
SIZE = 32  # of images, in pixels

TEXT = """\
task: {{kind: text-classification{task}}}
data: {{source: {table}, columns: {{text: text, label: label}}}}
model: {{backbone: bert, max_length: 16, dropout: {dropout}}}
tuning: {{{tuning}}}
train: {{epochs: {epochs}, batch_size: 8, micro_batch_size: 4, learning_rate: 1.0e-2, precision: fp32,
  checkpoint_every: {every}}}
evaluation: {{bootstrap_samples: 100, baselines: {baselines}}}
"""
IMAGES = """\
task: {{kind: image-classification}}
data: {{source: pictures}}
model: {{{model}, image_size: 32}}
tuning: {{{tuning}}}
augmentation: {{preset: light, mixup: 0.2}}
train: {{epochs: 1, batch_size: 16, learning_rate: 3.0e-3, precision: fp32, checkpoint_every: 100}}
evaluation: {{bootstrap_samples: 100, best_by: accuracy}}
"""
RECOMMENDATION = """\
task: {{kind: recommendation, draws_per_epoch: 4}}
data:
  interactions: {{source: world/log.csv, columns: {{user: who, item: what, timestamp: when}}}}
  items:
    source: world/items.csv
    id: what
    columns: title
    flags: {{kinds: [red, blue]}}
    template: "{{title}} {{kinds}}"
  users: {{source: world/users.csv, id: who, categories: [country], numbers: [age]}}
  split: {{protocol: {protocol}}}
model: {{backbone: bert, max_length: 16}}
train: {{epochs: 2, batch_size: 60, learning_rate: 1.0e-2, precision: fp32, checkpoint_every: 100}}
fusion: {{parts: [{parts}], folds: 3}}
id_models: {{ials_dimensions: 4, ials_iterations: 3, ease_regularization: 20}}
evaluation: {{bootstrap_samples: 100, cutoff: 5, block_users: 7}}
"""
DQN = """\
environment: {id: CartPole-v1, num_envs: 3}
algorithm: {kind: dqn, network: {encoder: mlp, hidden_sizes: [16, 16]}, learning_starts: 30, batch_size: 8,
  replay_size: 500}
train: {steps: 600, checkpoint_every: 250}
evaluation: {episodes: 4, curve_points: 3, curve_episodes: 2, bootstrap_samples: 100}
"""
Q_LEARNING = """\
environment: {id: FrozenLake-v1, options: {is_slippery: false}}
algorithm: {kind: q-learning, learning_rate: 0.5, epsilon_fraction: 1.0}
train: {steps: 3000}
evaluation: {episodes: 4, curve_points: 0, bootstrap_samples: 100}
"""


def write_bert(path: Path) -> None:
    """Write a random BERT of two blocks and 16 channels, and a tokenizer that knows the words of the tables."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CLASSES, *FILLERS)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.3, **shape)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(path)
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(path)


def write_vit(path: Path) -> None:
    """Write a random vision transformer of two blocks and 16 channels, as transformers keeps it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(image_size=SIZE, patch_size=8, **shape)).save_pretrained(path)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(path)


def write_reviews(path: Path) -> None:
    """Write texts whose class is a word in them."""
    generator = random.Random(0)
    rows = []
    for index in range(120):
        words = [*generator.choices(FILLERS, k=generator.randint(3, 10)), CLASSES[index % 3]]
        generator.shuffle(words)
        rows.append((" ".join(words), CLASSES[index % 3]))
    write_csv(path, ("text", "label"), rows)


def write_tags(path: Path) -> None:
    """Write texts with none, one or several classes, each a word in the text."""
    generator = random.Random(1)
    rows = []
    for index in range(120):
        tags = [name for place, name in enumerate(CLASSES) if index >> place & 1]
        words = [*generator.choices(FILLERS, k=generator.randint(3, 9)), *tags]
        generator.shuffle(words)
        rows.append((" ".join(words), "|".join(tags)))
    write_csv(path, ("text", "label"), rows)


def write_pictures(path: Path) -> None:
    """Write a folder a class of pictures: a square of the class's colour on gray noise."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(5)
    for name, colour in COLOURS.items():
        (path / name).mkdir(parents=True)
        for number in range(24):
            pixels = np.repeat(generator.integers(90, 150, (36, 40, 1), dtype=np.uint8), 3, axis=2)
            top, left = generator.integers(16), generator.integers(20)
            pixels[top : top + 20, left : left + 20] = colour
            Image.fromarray(pixels).save(path / name / f"{number}.png")


def write_world(path: Path) -> None:
    """Write a log, items of four kinds, and users who each prefer one kind."""
    generator, kinds = random.Random(0), (*CLASSES, "word1")
    log = []
    for user in range(60):
        chosen = [*generator.sample(range(user % 4, 40, 4), 7), *generator.sample(range(40), 2)]
        generator.shuffle(chosen)
        log += [(f"u{user}", f"i{item}", 1000 + at * 60 + user) for at, item in enumerate(dict.fromkeys(chosen))]
    items = [(f"i{item}", f"{kinds[item % 4]} word{item % 29}", item % 2, 1) for item in range(40)]
    path.mkdir()
    write_csv(path / "log.csv", ("who", "what", "when"), log)
    write_csv(path / "items.csv", ("what", "title", "red", "blue"), items)
    write_csv(path / "users.csv", ("who", "country", "age"), [(f"u{n}", "xyz"[n % 3], 20 + n) for n in range(60)])


def write_csv(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


WRITERS: dict[str, Callable[[Path], None]] = {
    "bert": write_bert,
    "vit": write_vit,
    "reviews.csv": write_reviews,
    "tags.csv": write_tags,
    "pictures": write_pictures,
    "world": write_world,
}
