"""Gray pictures that are worth as much as they are bright, and a vision transformer of timm's.

The pictures have the size of the model: nobody resizes them, so that its own pixels are those of plain transformers.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 32
RECIPE = """\
task: {{kind: image-regression}}
data: {{source: {table}, columns: {{image: image, label: worth}}}}
model: {{pretrained: false, architecture: test_vit, image_size: 32, dropout: 0.1}}
train: {{epochs: 6, batch_size: 8, learning_rate: 3.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 200}}
"""


def write(folder: Path) -> Path:
    """Write 90 pictures, a table of their worth, ``photo.jpg`` and the recipe; return its path."""
    from PIL import Image

    table, recipe = write_bright_pictures(folder), folder / "tiny.yaml"
    with Image.open(folder / "0.png") as picture:
        picture.save(folder / "photo.jpg")
    recipe.write_text(RECIPE.format(table=table), encoding="utf-8")
    return recipe


def write_bright_pictures(folder: Path, count: int = 90) -> Path:
    """Write noisy pictures of one gray each, and ``worth.csv`` with numbers from 100 to 200; return its path."""
    from PIL import Image

    generator, table = np.random.default_rng(5), folder / "worth.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "worth"))
        for number in range(count):
            gray = int(generator.integers(30, 226))
            noise = generator.integers(-30, 31, size=(SIZE, SIZE, 1)).repeat(3, axis=2)
            Image.fromarray((gray + noise).astype(np.uint8)).save(folder / f"{number}.png")
            writer.writerow((f"{number}.png", round(100 + (gray - 30) * 100 / 195, 1)))
    return table


def plain(model: Path, source: Path) -> dict[str, list[Any]]:
    """Return what transformers' pipeline says of the pictures, one at a time, in the unit of the table."""
    from transformers import pipeline

    score = pipeline("image-classification", model=str(model), function_to_apply="none", device="cpu")
    with source.open(newline="", encoding="utf-8") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    return {"image": names, "worth": [score(str(source.parent / name))[0]["score"] for name in names]}
