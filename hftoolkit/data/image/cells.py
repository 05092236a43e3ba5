"""From cells of a table to images: file names, encoded bytes, images of the Hub, or the pixels themselves."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.data.image.cache import StoredImage
from hftoolkit.data.image.files import printable
from hftoolkit.data.image.named_files import find_named
from hftoolkit.data.text_rows import BadRow, BadRows

NO_IMAGE = "image is missing"
NOT_AN_IMAGE = "image is neither a file name nor bytes"
WEB_ADDRESS = "image is a web address; download the files and name those"
TOO_LONG = "image is a text too long for a file name"
SEVERAL_FILES = "image name fits several files"
ODD_PIXEL_TEXT = "image is a list of numbers that are no gray square of 0 to 255"
LONGEST_NAME_BYTES, LONGEST_PATH_BYTES = 255, 4000
FEWEST_PIXELS = 16  # of an image written as numbers
BEGINS_WITH_NUMBERS = re.compile(r"\[?\s*(\d{1,3}[\s,;]+){15}\d")
BETWEEN_NUMBERS = str.maketrans("[],;", "    ")


@dataclass(frozen=True, slots=True)
class CellImages:
    """One image a cell, empty bytes where there is none; the bad ones by 1-based row; and warnings."""

    images: list[StoredImage]
    bad: BadRows
    warnings: list[str]


def images_of_cells(cells: Sequence[Any], folders: Sequence[Path], table: str) -> CellImages:
    """Return the image of each cell.

    Args:
        cells: file names, encoded bytes, ``{bytes, path}`` of Hub images, or pixels: numbers in a text
            (``70 80 82 ...``, a gray square) or nested lists.
        folders: that file names are relative to.
        table: what it is called.

    Raises:
        DataError: no name is that of a file.
    """
    read = [_read(cell, f"row {number}") for number, cell in enumerate(cells, start=1)]
    names = [found for found, _ in read if isinstance(found, str)]
    found = find_named(names, folders, table)
    images: list[StoredImage] = []
    bad: BadRows = {}
    sides: set[tuple[int, ...]] = set()
    for number, (image, problem) in enumerate(read, start=1):
        if isinstance(image, str):
            several = found.several.get(image)
            if several:
                problem = BadRow(SEVERAL_FILES, ", ".join(printable(path.name) for path in several[:3]))
            image = StoredImage(printable(image), found.paths.get(image) or folders[0] / image)
        elif isinstance(image.content, np.ndarray):
            sides.add(image.content.shape[:2])
        images.append(image)
        if problem is not None:
            bad[number] = problem
    sizes = ", ".join(f"{height} x {width}" for height, width in sorted(sides)[:5])
    pixels = [f"cells of {table} hold pixels, read as images of {sizes}"] if sizes else []
    return CellImages(images, bad, [*found.warnings, *pixels])


def image_of_cell(cell: Any, row: str) -> StoredImage | BadRow:
    """Return the image of one cell as Python has it, whose file name is a path; or why there is none.

    Args:
        cell: as of ``images_of_cells``, or a ``Path``.
        row: what an image without a name is called.
    """
    image, problem = _read(str(cell) if isinstance(cell, Path) else cell, row)
    if isinstance(image, str):
        image = StoredImage(printable(image), Path(image))
    return problem or image


def _read(cell: Any, row: str) -> tuple[StoredImage | str, BadRow | None]:
    """Return an image or the name of its file, and what is wrong."""
    if isinstance(cell, Mapping) and not {"bytes", "path"}.isdisjoint(cell):
        content, name = cell.get("bytes"), cell.get("path")
        if content:
            return StoredImage(printable(name or row), bytes(content)), None
        cell = name
    if isinstance(cell, bytes | bytearray):
        return StoredImage(row, bytes(cell)), None
    if isinstance(cell, int) and not isinstance(cell, bool):
        cell = str(cell)  # an id; the ending is found on disk
    if isinstance(cell, str) and cell.strip():
        return _read_text(cell.strip(), row)
    if isinstance(cell, list | tuple):
        pixels = _pixels(cell)
        return (
            (StoredImage(row, b""), BadRow(NOT_AN_IMAGE, cell)) if pixels is None else (StoredImage(row, pixels), None)
        )
    is_empty = cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())
    return StoredImage(row, b""), BadRow(NO_IMAGE) if is_empty else BadRow(NOT_AN_IMAGE, cell)


def _read_text(text: str, row: str) -> tuple[StoredImage | str, BadRow | None]:
    if BEGINS_WITH_NUMBERS.match(text):
        pixels = _pixels(_numbers(text))
        problem = BadRow(ODD_PIXEL_TEXT, f"{text[:30]}...") if pixels is None else None
        return StoredImage(row, b"" if pixels is None else pixels), problem
    if text.lower().startswith(("http://", "https://", "s3://", "gs://")):
        return StoredImage(row, b""), BadRow(WEB_ADDRESS, text)
    longest = max(len(part.encode(errors="replace")) for part in text.split("/"))
    if longest > LONGEST_NAME_BYTES or len(text) > LONGEST_PATH_BYTES or "\0" in text:
        return StoredImage(row, b""), BadRow(TOO_LONG, text)
    return text, None


def _numbers(text: str) -> Sequence[Any] | np.ndarray:
    try:
        return np.array(text.translate(BETWEEN_NUMBERS).split(), dtype=np.int64)  # much faster than int for each
    except ValueError:
        return ()


def _pixels(values: Sequence[Any] | np.ndarray) -> np.ndarray | None:
    """Return numbers as an image, (H, W) or (H, W, 3) uint8; a flat list must be a square. None where they are none."""
    try:
        found = np.array(values)
    except ValueError:  # rows of unequal length
        return None
    if found.dtype.kind not in "iu" or found.size < FEWEST_PIXELS or found.min() < 0 or found.max() > 255:
        return None
    if found.ndim == 1:
        side = math.isqrt(found.size)
        if side * side != found.size:
            return None
        found = found.reshape(side, side)
    is_image = found.ndim == 2 or (found.ndim == 3 and found.shape[2] in (1, 3))
    return found.astype(np.uint8) if is_image else None
