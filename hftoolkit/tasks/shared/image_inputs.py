"""The images that are to be predicted: files, folders, patterns, tables, or what Python has."""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hftoolkit.contracts import Inputs, Unusable
from hftoolkit.data.given import column_names, given_rows, is_missing
from hftoolkit.data.image.cache import DAMAGED, BrokenImage, Geometry, StoredImage, decode, fit
from hftoolkit.data.image.sources import open_image_table, stored_image
from hftoolkit.errors import DataError
from hftoolkit.recipe import ImageColumns, ImageData

CHUNK = 64  # images decoded at a time
NOT_PIXELS = "image is no file name, bytes, array or PIL image"
ROW_NAME = re.compile(r"row \d+")
RawT = TypeVar("RawT")


def image_inputs(
    source: Any, data: ImageData, geometry: Geometry, make: Callable[[np.ndarray, str], RawT]
) -> Inputs[RawT]:
    """Return images that are decoded some at a time and brought to one size.

    Args:
        source: path of an image, a folder or a table, or a glob pattern; or rows (see ``data.given``) of file names,
            paths, encoded bytes, (H, W) or (H, W, 3) uint8 arrays, or PIL images, or dicts with the image column.
        data: of the recipe: columns and pixels.
        geometry: the size.
        make: turns (H, W, 3) uint8 pixels and a name into a raw row.

    Raises:
        DataError: there are no images, or the table lacks a column.
    """
    images: Sequence[StoredImage | Unusable]
    images, table = (
        open_image_table(source, data.columns, data.pixels)
        if isinstance(source, Path)
        else (_given_images(given_rows(source), data), {})
    )

    def opened(image: StoredImage | Unusable) -> RawT | Unusable:
        if isinstance(image, Unusable):
            return image
        try:
            return make(fit(decode(image), geometry), image.name)
        except BrokenImage as error:
            return Unusable(error.reason, name=None if ROW_NAME.fullmatch(image.name) else image.name)

    def read(start: int, stop: int) -> list[RawT | Unusable]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(opened, images[start:stop]))

    names = [image.name for image in images if isinstance(image, StoredImage)] if isinstance(source, Path) else []
    return Inputs(len(images), read, CHUNK, {"image": names} if names else {}, table)


def _given_images(rows: Sequence[Any], data: ImageData) -> list[StoredImage | Unusable]:
    """Return the image of each row as Python has it."""
    name = (data.columns or ImageColumns()).image
    found = column_names([row for row in rows if isinstance(row, Mapping)])
    is_stored = {"bytes", "path"}.issuperset(found)  # the images of a data set's column
    if found and not is_stored and name not in found:
        raise DataError(f"rows lack {name}; they have {', '.join(map(repr, found))}, and the model reads {name}")
    cells = [row.get(name) if isinstance(row, Mapping) and not is_stored else row for row in rows]
    return [_stored(cell, f"row {number}") for number, cell in enumerate(cells, start=1)]


def _stored(cell: Any, name: str) -> StoredImage | Unusable:
    if is_missing(cell) or isinstance(cell, str | Path | bytes | bytearray | Mapping):
        return stored_image(cell, name)
    try:
        return StoredImage(name, np.asarray(cell.convert("RGB") if hasattr(cell, "convert") else cell))
    except OSError:  # a PIL image is read when its pixels are asked for
        return Unusable(DAMAGED)
    except (TypeError, ValueError):
        return Unusable(NOT_PIXELS, type(cell).__name__)
