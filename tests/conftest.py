"""Tiny doubles: a BERT of a few thousand weights, made here, and tables of texts whose class is a word in them."""

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

CLASSES = ("bad", "fine", "good")
FILLERS = tuple(f"word{index}" for index in range(30))
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CLASSES, *FILLERS)

RECIPE = """\
task: {{kind: text-classification}}
data:
  source: {table}
  columns: {{text: text, label: label}}
model: {{backbone: {backbone}, max_length: 16}}
train: {{epochs: 4, batch_size: 8, learning_rate: 5.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 100, baselines: false}}
"""


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-block BERT and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)})
    assert len(tokenizer) == len(VOCABULARY)
    tokenizer.save_pretrained(folder)
    return folder


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


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as CSV with a header and return the path."""

    def write(rows: list[tuple[object, ...]], header: tuple[str, ...] = ("text", "label"), name: str = "t.csv") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_backbone: Path, write_csv: Callable[..., Path]) -> Callable[..., Path]:
    """Write a small recipe over a table of reviews and return the path."""

    def write(rows: int = 90, extra: str = "", table: Path | None = None) -> Path:
        path = tmp_path / "tiny.yaml"
        table = table or write_csv(review_rows(rows))
        path.write_text(RECIPE.format(table=table, backbone=tiny_backbone) + extra, encoding="utf-8")
        return path

    return write
