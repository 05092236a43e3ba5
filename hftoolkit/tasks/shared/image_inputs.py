"""The images that are to be predicted: files, folders, patterns, tables, or what Python has."""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from hftoolkit.contracts import Inputs, Unusable
from hftoolkit.data.given import column_names, given_rows, is_missing
from hftoolkit.data.image.cache import BrokenImage, Geometry, StoredImage, decode_and_compare, fit
from hftoolkit.data.image.cells import image_of_cell
from hftoolkit.data.image.changes import change_warnings
from hftoolkit.data.image.formats import explain
from hftoolkit.data.image.sources import open_image_table
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
            paths, encoded bytes, (H, W), (H, W, 3) or (H, W, 4) uint8 or (H, W) uint16 arrays, or PIL images, or dicts
            with the image column. The same picture gives the same pixels in each form.
        data: of the recipe: columns and pixels.
        geometry: the size.
        make: turns (H, W, 3) uint8 pixels and a name into a raw row.

    Raises:
        DataError: there are no images, or the table lacks a column.
    """
    if isinstance(source, Path):
        opened, bad, table = open_image_table(source, data.columns, data.pixels)
        columns = {"image": [image.name for image in opened]}
        images = [bad.get(number) or image for number, image in enumerate(opened, start=1)]
    else:
        columns, table, images = {}, {}, _given_images(given_rows(source), data)
    changes: list[str | None] = []

    def decoded(image: StoredImage | Unusable) -> RawT | Unusable:
        if isinstance(image, Unusable):
            return image
        try:
            picture, change = decode_and_compare(image)
        except BrokenImage as error:
            return Unusable(explain(image, error.reason), name=None if ROW_NAME.fullmatch(image.name) else image.name)
        changes.append(change)
        return make(fit(picture, geometry), image.name)

    def read(start: int, stop: int) -> list[RawT | Unusable]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(decoded, images[start:stop]))

    return Inputs(len(images), read, CHUNK, columns, lambda: change_warnings(changes), table)


def _given_images(rows: Sequence[Any], data: ImageData) -> list[StoredImage | Unusable]:
    """Return the image of each row as Python has it."""
    name = (data.columns or ImageColumns()).image
    found = column_names([row for row in rows if isinstance(row, Mapping)])
    is_stored = {"bytes", "path"}.issuperset(found)  # the images of a data set's column
    if found and not is_stored and name not in found:
        raise DataError(f"rows lack {name}; they have {', '.join(map(repr, found))}, and the model reads {name}")
    cells = [row.get(name) if isinstance(row, Mapping) and not is_stored else row for row in rows]
    return [_stored(cell, f"row {number}") for number, cell in enumerate(cells, start=1)]


def _stored(cell: Any, row: str) -> StoredImage | Unusable:
    if is_missing(cell) or isinstance(cell, str | Path | bytes | bytearray | Mapping):
        return image_of_cell(cell, row)
    if isinstance(cell, Image.Image):
        return StoredImage(row, cell)
    try:
        return StoredImage(row, np.asarray(cell))
    except (TypeError, ValueError):
        return Unusable(NOT_PIXELS, type(cell).__name__)
