"""The images that are to be predicted: files, folders, patterns, tables, or what Python has."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from hftoolkit.contracts import Inputs, Unusable
from hftoolkit.data.image.cache import BrokenImage, Geometry, StoredImage, decode_and_compare, fit
from hftoolkit.data.image.changes import change_warnings
from hftoolkit.data.image.files import printable
from hftoolkit.data.image.formats import explain
from hftoolkit.data.image.sources import open_images
from hftoolkit.errors import DataError
from hftoolkit.recipe import ImageData

CHUNK = 64  # images decoded at a time
MAX_LISTED = 10
RawT = TypeVar("RawT")


def image_inputs(
    source: Any, data: ImageData, geometry: Geometry, make: Callable[[np.ndarray, str], RawT]
) -> Inputs[RawT]:
    """Return images that are decoded some at a time and brought to one size.

    Args:
        source: path of an image, a folder or a table, or a glob pattern; or file names, paths, encoded bytes, (H, W)
            (H, W, 3) or (H, W, 4) uint8 or (H, W) uint16 arrays, or PIL images. The same picture gives the same
            pixels in each form.
        data: of the recipe: columns, pixels, and what to do with broken images.
        geometry: the size.
        make: turns (H, W, 3) uint8 pixels and a name into a raw row.

    Raises:
        DataError: there are no images, or something is none.
    """
    if isinstance(source, Path):
        images = open_images(source, data.columns, data.pixels)
    elif isinstance(source, str | bytes | Mapping):
        raise DataError("predict takes a list of images; write predict([image]) for one")
    else:
        images = [_stored(row, number) for number, row in enumerate(source, start=1)]

    changes: list[str | None] = []

    def opened(image: StoredImage) -> RawT | Unusable:
        try:
            picture, change = decode_and_compare(image)
        except BrokenImage as error:
            return Unusable(explain(image, error.reason))
        changes.append(change)
        return make(fit(picture, geometry), image.name)

    def read(start: int, stop: int) -> list[RawT | Unusable]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(opened, images[start:stop]))

    def describe(broken: Mapping[int, Unusable]) -> str:
        lines = [f"  {images[place].name}: {problem.reason}" for place, problem in broken.items()]
        listed = "\n".join(lines[:MAX_LISTED])
        return (
            f"{len(broken)} of {len(images)} images cannot be read:\n{listed}\n"
            "Remove them, or set data.on_bad_rows: skip"
        )

    names: Sequence[str] = [image.name for image in images] if isinstance(source, Path) else ()
    columns = {"image": list(names)} if names else {}
    return Inputs(
        len(images),
        read,
        CHUNK,
        data.on_bad_rows == "skip",
        describe,
        columns,
        notes=lambda: change_warnings(changes),
    )


def _stored(row: Any, number: int) -> StoredImage:
    if isinstance(row, str | Path):
        return StoredImage(printable(str(row)), Path(row))
    if isinstance(row, bytes):
        return StoredImage(f"row {number}", row)
    if isinstance(row, Image.Image):
        return StoredImage(f"row {number}", row)
    try:
        return StoredImage(f"row {number}", np.asarray(row))
    except (TypeError, ValueError) as error:
        raise DataError(f"row {number} is no image: {type(row).__name__}") from error
