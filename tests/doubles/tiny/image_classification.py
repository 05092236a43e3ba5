"""Pictures of coloured squares and a vision transformer of timm's for tests.

The pictures have the size of the model: nobody resizes them, so that its own pixels are those of plain transformers.
"""

from pathlib import Path
from typing import Any

from doubles.pictures import write_pictures
from doubles.tiny.text_classification import as_columns

SIZE = 32
RECIPE = """\
task: {{kind: image-classification}}
data: {{source: {source}}}
model: {{pretrained: false, architecture: test_vit, image_size: 32, dropout: 0.1}}
train: {{epochs: 2, batch_size: 8, learning_rate: 3.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 200}}
"""


def write(folder: Path) -> Path:
    """Write 90 pictures of three classes, ``photo.jpg`` and the recipe; return its path."""
    from PIL import Image

    source, recipe = write_pictures(folder / "pictures"), folder / "tiny.yaml"
    for path in source.rglob("*.png"):
        with Image.open(path) as picture:
            picture.resize((SIZE, SIZE)).save(path)
    with Image.open(path) as picture:
        picture.save(folder / "photo.jpg")
    recipe.write_text(RECIPE.format(source=source), encoding="utf-8")
    return recipe


def plain(model: Path, source: Path) -> dict[str, list[Any]]:
    """Return what transformers' pipeline says of the pictures class by class, in the order of their numbers."""
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(model), device="cpu")
    paths = sorted(source.rglob("*.png"), key=lambda path: (path.parent, int(path.stem)))
    answers = as_columns([classify(str(path)) for path in paths])
    return {"image": [str(path.relative_to(source)) for path in paths]} | answers
