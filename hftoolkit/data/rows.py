"""Rows of any kind: read from tables, checked one by one, divided into splits, and summed up."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from hftoolkit.contracts import Labelled
from hftoolkit.data.labels import LabelSet
from hftoolkit.data.reading import (
    check_disjoint_groups,
    check_not_empty,
    places_by_split,
    read_tables,
    reading,
    reading_warnings,
    told_splits,
)
from hftoolkit.data.summary import duplicates, normalize
from hftoolkit.data.tables import DataTable
from hftoolkit.data.text_rows import BadRow, BadRows, broken_rows, check_bad_rows, read_groups
from hftoolkit.recipe.sections import Data, Split

NO_LABELS = LabelSet((), {}, multi_label=False)


class Row(Protocol):
    """What is asked of a raw row."""

    @property
    def key(self) -> str:
        """The text by which rows count as the same."""
        ...

    def to_json(self) -> Any:
        """Return what identifies the row with its target, in plain JSON types."""
        ...


RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True, slots=True)
class UsableRows(Generic[RowT]):
    """The rows of one table that can be used, in its order.

    Attributes:
        rows: N rows.
        row_numbers: (N,) int64, 1-based rows of the table.
        groups: N group values, or None.
        skipped: reason -> number of rows left out.
    """

    rows: list[RowT]
    row_numbers: np.ndarray
    groups: list[str] | None
    skipped: dict[str, int]


@dataclass(frozen=True, slots=True)
class DividedRows(Generic[RowT]):
    """Rows by split, their 1-based numbers in the source, and what data.json says of them."""

    splits: dict[str, list[RowT]]
    row_numbers: dict[str, np.ndarray]
    summary: dict[str, Any] = field(default_factory=dict)


Parsed = tuple[list[RowT], BadRows]
Parse = Callable[[DataTable], Parsed[RowT]]


def load_rows(source: Path, data: Data, parse: Parse[RowT], what: str) -> DividedRows[RowT]:
    """Read, check and divide the rows of a source.

    Args:
        source: the file or folder that ``data.source`` led to.
        data: splits, and what to do with bad rows.
        parse: returns one row for each of a table, whatever for bad ones, and the bad ones by 1-based number.
        what: an example is called, for the names of keys and for warnings.

    Raises:
        DataError: the files, columns, rows or splits cannot be used; all bad rows are in one message.
    """
    tables, data, notes = read_tables(source, data)
    divided = divide_rows(tables, data, {name: parse(table) for name, table in tables.items()}, what)
    return replace(divided, summary={**divided.summary, "warnings": [*notes, *divided.summary["warnings"]]})


def divide_rows(
    tables: Mapping[str, DataTable], data: Data, parsed: Mapping[str, Parsed[RowT]], what: str
) -> DividedRows[RowT]:
    """Check and divide parsed rows; ``load_rows`` for rows that more than the cells of their table went into.

    Args:
        tables: each given split; ``train`` is the one that fractions are taken from.
        data: splits, and what to do with bad rows.
        parsed: the rows of each table.
        what: an example is called, for the names of keys and for warnings.

    Raises:
        DataError: the rows or splits cannot be used; all bad rows are in one message.
    """
    told, untold = told_splits(tables["train"], data.split.column)
    train, bad = parsed["train"]
    rows = usable_rows(tables, data, {**parsed, "train": (train, {**untold, **bad})})
    check_disjoint_groups(rows)
    splits, numbers = _divide(rows, data.split, told)
    summary = reading(rows, tables) | _summary(splits, numbers, what)
    summary["warnings"] = [*reading_warnings(rows, tables), *summary["warnings"]]
    return DividedRows(splits, numbers, summary)


def usable_rows(
    tables: Mapping[str, DataTable], data: Data, parsed: Mapping[str, Parsed[RowT]]
) -> dict[str, UsableRows[RowT]]:
    """Return the usable rows of each table, given all of them and which are bad.

    Raises:
        DataError: there are bad rows and ``data.on_bad_rows`` is ``error``, or no row is left.
    """
    found, bad_by_source = {}, {}
    for name, table in tables.items():
        rows, bad = parsed[name]
        groups, bad_groups = read_groups(table, data.split.group)
        bad = {**bad_groups, **bad, **broken_rows(table)}
        bad_by_source[table.source] = bad
        kept = [place for place in range(len(rows)) if place + 1 not in bad]
        found[name] = UsableRows(
            [rows[place] for place in kept],
            np.array(kept, dtype=np.int64) + 1,
            None if groups is None else [groups[place] for place in kept],
            dict(Counter(problem.reason for problem in bad.values())),
        )
    check_bad_rows(bad_by_source, NO_LABELS, data.on_bad_rows)
    check_not_empty(found, tables)
    return found


def labelled_rows(table: DataTable, parsed: Parsed[RowT]) -> Labelled[RowT]:
    """Return the parsed rows of a table that is not divided."""
    rows, bad = parsed
    bad = {**bad, **broken_rows(table)}
    return Labelled([row for number, row in enumerate(rows, start=1) if number not in bad], bad, table.source)


def _divide(
    rows: Mapping[str, UsableRows[RowT]], split: Split, told: Sequence[str] | None
) -> tuple[dict[str, list[RowT]], dict[str, np.ndarray]]:
    """Take fractions from the training rows by seed; nothing is stratified."""
    strata = np.zeros(len(rows["train"].rows), dtype=np.int64)
    splits, numbers = {}, {}
    for name, (source, chosen) in places_by_split(rows, strata, split, told).items():
        splits[name] = [rows[source].rows[place] for place in chosen]
        numbers[name] = rows[source].row_numbers[chosen]
    return splits, numbers


def _summary(splits: Mapping[str, Sequence[Row]], numbers: Mapping[str, np.ndarray], what: str) -> dict[str, Any]:
    keys = {name: [normalize(row.key) for row in rows] for name, rows in splits.items()}
    repeated = duplicates(keys)
    digest = hashlib.sha256()
    for name, rows in splits.items():
        for number, row in zip(numbers[name].tolist(), rows, strict=True):
            digest.update(json.dumps([name, number, row.to_json()]).encode() + b"\n")
    warnings = [
        f"{count} of {len(splits[pair.partition('/')[2]])} rows of {pair.partition('/')[2]} repeat a {what} of "
        f"{pair.partition('/')[0]}"
        for pair, count in repeated.items()
        if count
    ]
    return {
        "sizes": {name: len(rows) for name, rows in splits.items()},
        "duplicates": repeated,
        "fingerprint": digest.hexdigest(),
        "warnings": warnings,
    }


def numbers_of(cells: Sequence[Any], what: str) -> tuple[list[float], BadRows]:
    """Return the finite number in each cell, 0 where there is none, and the rows without one."""
    values: list[float] = []
    bad: BadRows = {}
    for number, cell in enumerate(cells, start=1):
        try:
            value = float(str(cell).strip())
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            bad[number] = BadRow(f"{what} is not a number", cell)
        values.append(value if np.isfinite(value) else 0.0)
    return values, bad
