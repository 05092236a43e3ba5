"""Rows as Python has them: lists, generators, data frames, Arrow tables, data sets, columns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from hftoolkit.data.files import ending_of
from hftoolkit.errors import DataError

TAKEN = "a list or generator of rows, a data frame, a data set, or a dict of columns"


def given_rows(source: Any) -> list[Any]:
    """Return the rows of whatever holds some, in order: cells, or dicts of cells by column.

    Images of a data set stay as they are stored, so that a broken one costs one row.

    Args:
        source: any iterable of rows; a pandas or polars data frame; an Arrow table; a split of ``datasets``; or a dict
            of columns of one length.

    Raises:
        DataError: it holds no rows, is a single one, or a data set whose split is not named.
    """
    if isinstance(source, Mapping):
        return _rows_of_columns(source)
    if isinstance(source, str) and ending_of(Path(source)):
        raise DataError(f"predict takes {TAKEN}; write predict(Path({source!r})) for a table file")
    if isinstance(source, str | bytes | Path):
        raise DataError(f"predict takes {TAKEN}; write predict([row]) for one")
    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return list(_with_stored_images(source))
    if hasattr(source, "to_pylist"):  # Arrow
        return list(source.to_pylist())
    if hasattr(source, "to_dicts"):  # polars
        return list(source.to_dicts())
    if hasattr(source, "columns") and hasattr(source, "to_dict"):  # pandas; where its markers of missing cells are None
        return list(source.astype(object).where(source.notna(), None).to_dict("records"))
    if not isinstance(source, Iterable):
        raise DataError(f"predict takes {TAKEN}; found {type(source).__name__}")
    return list(source)


def is_missing(cell: Any) -> bool:
    """Return whether a cell holds nothing: None, NaN, or pandas' NA."""
    return (
        cell is None or (isinstance(cell, float) and math.isnan(cell)) or type(cell).__name__ in ("NAType", "NaTType")
    )


def column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns that any of the rows has, in order."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _rows_of_columns(source: Mapping[str, Any]) -> list[Any]:
    if any(isinstance(value, datasets.Dataset | datasets.IterableDataset) for value in source.values()):
        names = ", ".join(map(repr, source))
        raise DataError(
            f"this is a data set of several splits ({names}); name one: predict(data[{next(iter(source))!r}])"
        )
    columns = {name: cells for name, cells in source.items() if not isinstance(cells, str | bytes | Mapping)}
    if len(columns) < len(source) or not all(hasattr(cells, "__len__") for cells in columns.values()) or not columns:
        raise DataError(f"predict takes {TAKEN}; write predict([row]) for one")
    if len({len(cells) for cells in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {len(cells)}" for name, cells in columns.items())
        raise DataError(f"columns must have one length; found {sizes}")
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _with_stored_images(source: Any) -> Any:
    """Return the data set with images as bytes and path instead of decoded."""
    for name, feature in (source.features or {}).items():
        if isinstance(feature, datasets.Image):
            source = source.cast_column(name, datasets.Image(decode=False))
    return source
