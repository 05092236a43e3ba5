"""Folders of small pictures whose class is a colour, and small recipes over one."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 60), "red": (210, 40, 30)}
RECIPE = """\
task: {{kind: image-classification}}
data: {{source: {source}}}
model: {{pretrained: false, architecture: {architecture}, image_size: 32}}
train: {{epochs: 3, batch_size: 16, learning_rate: 3.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 100, best_by: accuracy}}
"""
PICTURE_RECIPE = """\
task: {{kind: image-classification}}
data: {{source: {source}}}
model: {{pretrained: false, architecture: resnet10t, image_size: 32}}
train: {{epochs: 1, batch_size: 16, precision: fp32}}
evaluation: {{bootstrap_samples: 100, baselines: false}}
"""


def picture(colour: tuple[int, int, int], generator: random.Random) -> Image.Image:
    """A coloured square somewhere on gray noise."""
    noise = np.array([[generator.randrange(90, 150)] * 3 for _ in range(40 * 36)], dtype=np.uint8).reshape(36, 40, 3)
    left, top = generator.randrange(20), generator.randrange(16)
    noise[top : top + 20, left : left + 20] = colour
    return Image.fromarray(noise)


def write_pictures(folder: Path, per_class: int = 30) -> Path:
    generator = random.Random(5)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            picture(colour, generator).save(folder / name / f"{number}.png")
    return folder
