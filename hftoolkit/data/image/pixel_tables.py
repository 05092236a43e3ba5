"""Tables whose columns are the pixels of one image a row, and perhaps its label."""

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.csv as pa_csv  # type: ignore[import-untyped]

from hftoolkit.data.files import SEPARATORS, ending_of, read_bytes
from hftoolkit.errors import DataError
from hftoolkit.recipe import Pixels

LABEL_NAMES = ("label", "labels", "class", "target", "y")
FEWEST_SIDE = 4  # pixels of a square that a number of columns is taken for


@dataclass(frozen=True, slots=True)
class PixelRows:
    """Images and labels of one table.

    Attributes:
        images: (N, H, W) or (N, H, W, C) uint8.
        labels: N texts, empty where a row has no label; None if the table has no label column.
        warnings: what a reader should know of how the table was read.
    """

    images: np.ndarray
    labels: list[str] | None
    warnings: list[str]


def read_pixel_table(
    path: Path, *, shape: Sequence[int], label_first: bool, header: bool, needs_label: bool = True
) -> PixelRows:
    """Read a CSV or TSV file, compressed or not, of H * W * C pixels a row and a label column.

    Args:
        path: the file.
        shape: (H, W) or (H, W, C), in the order of the columns.
        label_first: the label column comes before the pixels, not after them.
        header: the first line names the columns.
        needs_label: whether a table without the label column is refused.

    Raises:
        DataError: unreadable, another number of columns, or a pixel that is no whole number from 0 to 255.
    """
    ending = ending_of(path)
    if ending not in SEPARATORS:
        known = " or ".join(SEPARATORS)
        raise DataError(f"{path.name} cannot be a table of pixels; that is a {known} file, also with .gz, .bz2 or .xz")
    content = read_bytes(path)
    first = _first_line(content, SEPARATORS[ending], path.name)
    num_pixels = prod(shape)
    has_label = needs_label or len(first) != num_pixels
    if len(first) != num_pixels + has_label:
        what = f"data.pixels.shape {list(shape)}" + (" and the label" if has_label else "")
        raise DataError(f"{path.name} has {len(first)} columns, but {what} make {num_pixels + has_label}")
    label = (0 if label_first else num_pixels) if has_label else None
    table = _parse(content, len(first), label, header, SEPARATORS[ending], path.name)
    pixel_columns = [place for place in range(len(first)) if place != label]
    pixels = np.empty((table.num_rows, num_pixels), dtype=np.uint8)
    levels = np.array([_range(table.column(place)) for place in pixel_columns])  # (pixels, 2)
    for place, column in enumerate(pixel_columns):
        values = table.column(column).to_numpy()  # (N,) float32, NaN for an empty cell
        wrong = ~((values >= 0) & (values <= 255) & (values == np.floor(values)))
        if wrong.any():
            raise _wrong_pixels(path.name, values, wrong, column, levels)
        pixels[:, place] = values
    warnings = _header_warnings(first, label, path.name) if header else []
    labels = None if label is None else table.column(label).to_pylist()
    return PixelRows(pixels.reshape(-1, *shape), labels, warnings)


def guess_pixels(path: Path) -> Pixels | None:
    """Return how a table of pixels is read if its header says so: a label first or last, and a square beside it."""
    first = [cell.strip().lower() for cell in first_cells(path)]
    if len(first) < FEWEST_SIDE**2:
        return None
    places = [name for name, cell in (("first", first[0]), ("last", first[-1])) if cell in LABEL_NAMES]
    if not places:
        return None
    for shape_of in (lambda side: (side, side), lambda side: (side, side, 3)):
        shape = shape_of(isqrt((len(first) - 1) // (prod(shape_of(1)))))
        if shape[0] >= FEWEST_SIDE and prod(shape) == len(first) - 1:
            return Pixels.model_validate({"shape": shape, "label": places[0], "header": True})
    return None


def first_cells(path: Path) -> list[str]:
    """Return the cells in the first line of a CSV or TSV file; none of another file."""
    ending = ending_of(path)
    return _first_line(read_bytes(path), SEPARATORS[ending], path.name) if ending in SEPARATORS else []


def _first_line(content: bytes, separator: str, file: str) -> list[str]:
    lines = (line for line in io.BytesIO(content) if line.strip())
    try:
        first = next(lines, b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8; save it as UTF-8") from error
    if not first.strip():
        raise DataError(f"{file} has no rows")
    return next(csv.reader([first], delimiter=separator))


def _parse(content: bytes, num_columns: int, label: int | None, header: bool, separator: str, file: str) -> Any:
    """Return an Arrow table with float32 pixels and the label as text."""
    names = [str(place) for place in range(num_columns)]
    types = {name: pa.string() if place == label else pa.float32() for place, name in enumerate(names)}
    odd: list[Any] = []

    def note(row: Any) -> str:
        odd.append(row)
        return "skip"

    # Without threads, Arrow knows the number of a row that it cannot use.
    reading = pa_csv.ReadOptions(column_names=names, skip_rows=int(header), use_threads=False)
    parsing = pa_csv.ParseOptions(delimiter=separator, invalid_row_handler=note)
    converting = pa_csv.ConvertOptions(column_types=types)
    try:
        table = pa_csv.read_csv(pa.BufferReader(content), reading, parsing, converting)
    except pa.ArrowInvalid as error:
        hint = "" if header else "; if the first line names the columns, set data.pixels.header: true"
        raise DataError(f"{file} is not a table of numbers: {error}{hint}") from error
    if odd:
        line = odd[0]
        raise DataError(
            f"{file}, row {line.number - header} has {line.actual_columns} cells, but there are "
            f"{line.expected_columns} columns ({len(odd)} such rows)"
        )
    if table.num_rows == 0:
        raise DataError(f"{file} has no rows")
    return table


def _range(column: Any) -> tuple[float, float]:
    values = column.to_numpy()
    return (float(np.nanmin(values)), float(np.nanmax(values))) if not np.isnan(values).all() else (0.0, 0.0)


def _wrong_pixels(file: str, values: np.ndarray, wrong: np.ndarray, column: int, levels: np.ndarray) -> DataError:
    rows = np.flatnonzero(wrong) + 1
    low, high = levels[:, 0].min(), levels[:, 1].max()
    found = values[rows[0] - 1]
    hint = "; multiply by 255 and round" if 0 <= low and high <= 1 else ""
    shown = "nothing" if np.isnan(found) else f"{found:g}"
    return DataError(
        f"{file}, row {rows[0]}, column {column + 1} holds {shown}; pixels are "
        f"whole numbers from 0 to 255, and this table has {low:g} to {high:g}{hint}"
    )


def _header_warnings(first: Sequence[str], label: int | None, file: str) -> list[str]:
    """Column names that are all valid pixels may be an image which would be lost unseen."""
    cells = [cell.strip() for place, cell in enumerate(first) if place != label]
    is_pixels = all(cell.isdecimal() and int(cell) <= 255 for cell in cells)
    counts_up = all(int(b) == int(a) + 1 for a, b in itertools.pairwise(cells)) if is_pixels else False
    if not is_pixels or (counts_up and len(cells) > 1):
        return []
    return [f"the first line of {file} looks like an image, but data.pixels.header says that it names the columns"]
