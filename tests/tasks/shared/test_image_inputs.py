"""Images to predict: the same in each form, and what a plain pipeline would see otherwise is said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hftoolkit.contracts import Unusable
from hftoolkit.data.image.cache import Geometry
from hftoolkit.errors import DataError
from hftoolkit.recipe import ImageData
from hftoolkit.tasks.shared.image_inputs import image_inputs

GEOMETRY = Geometry(8, 8, 1.0, "bilinear")
DATA = ImageData(source="x")


def test_a_transparent_picture_is_the_same_in_each_form_and_is_told_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as opened:
        rows = [str(path), path, path.read_bytes(), opened, pixels, Image.new("L", (3, 3))]
        inputs = image_inputs(rows, DATA, GEOMETRY, lambda shown, name: shown)
        assert inputs.notes() == []
        found = inputs.read(0, len(rows))
    assert all((np.asarray(shown) == np.asarray(found[0])).all() for shown in found[:5])
    (note,) = inputs.notes()
    assert note.startswith("5 of 6 images have transparent parts")


def test_rows_that_are_no_images_are_told_apart(tmp_path: Path) -> None:
    rows = [tmp_path / "no.png", b"text", np.zeros((2, 2), np.float32)]
    found = image_inputs(rows, DATA, GEOMETRY, lambda shown, name: shown).read(0, 3)
    assert [isinstance(row, Unusable) for row in found] == [True] * 3
    with pytest.raises(DataError, match=r"predict\(\[row\]\)"):
        image_inputs(b"content", DATA, GEOMETRY, lambda shown, name: shown)
