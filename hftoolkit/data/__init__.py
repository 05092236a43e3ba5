"""Tables of texts and labels: read, checked row by row, divided into splits, and summed up."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.data.files import write_table
from hftoolkit.data.labels import LabelSet, canonical_value, check_same
from hftoolkit.data.splits import split_rows
from hftoolkit.data.summary import summarize
from hftoolkit.data.tables import Table, read_table, require_columns
from hftoolkit.data.text_rows import (
    BadRow,
    BadRows,
    CleanRows,
    clean_rows,
    clean_texts,
    count_list,
    describe_bad_texts,
    encode_rows,
    find_labels,
    parse_rows,
    refuse_bad_rows,
)
from hftoolkit.errors import DataError
from hftoolkit.recipe import Data, Split, TextClassification

__all__ = [
    "BadRow",
    "BadRows",
    "CleanRows",
    "LabelSet",
    "Table",
    "TextSplits",
    "canonical_value",
    "check_same",
    "clean_rows",
    "clean_texts",
    "describe_bad_texts",
    "load_text_splits",
    "read_table",
    "require_columns",
    "split_rows",
    "write_table",
]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class TextSplits:
    """Texts and targets by split: ``train``, ``validation``, ``test``.

    Attributes:
        texts: N texts.
        targets: (N,) int64 class numbers; multi-label: (N, C) float32 of 0 and 1.
        row_numbers: (N,) int64, 1-based rows of the table they came from.
        labels: the classes, those that occur in one split only too.
        summary: counts, fingerprint and warnings in plain JSON types.
    """

    texts: dict[str, list[str]]
    targets: dict[str, np.ndarray]
    row_numbers: dict[str, np.ndarray]
    labels: LabelSet
    summary: dict[str, Any]


def load_text_splits(path: Path, data: Data, task: TextClassification, labels: LabelSet | None = None) -> TextSplits:
    """Read, check and divide a table of texts and labels.

    Args:
        path: the file or folder that ``data.source`` led to.
        data: columns, splits, and what to do with bad rows.
        task: the labels, and whether a text has one or any number.
        labels: known classes, which overrule ``task.labels``.

    Raises:
        DataError: the files, columns, rows or splits cannot be used; all bad rows are in one message.
        RecipeError: the template or ``task.labels`` is not valid.
    """
    tables = _read_tables(path, data)
    parsed = {
        name: parse_rows(table, data, multi_label=task.multi_label, label_separator=task.label_separator)
        for name, table in tables.items()
    }
    if labels is None:
        labels = find_labels(
            parsed.values(), data, multi_label=task.multi_label, mapping=task.labels, table=tables["train"]
        )
    encoded = {name: encode_rows(rows, labels) for name, rows in parsed.items()}
    bad = {tables[name].source: bad_rows for name, (_, bad_rows) in encoded.items()}
    refuse_bad_rows(bad, labels, data.on_bad_rows)
    rows = {name: kept for name, (kept, _) in encoded.items()}
    _refuse_shared_groups(rows)
    return _divide(rows, tables, data.split, labels)


def _read_tables(path: Path, data: Data) -> dict[str, Table]:
    """Read the table of each given split; ``train`` is the one that fractions are taken from."""
    tables = {"train": read_table(path, split=data.split.train, subset=data.subset)}
    for name, given in (("validation", data.split.validation), ("test", data.split.test)):
        if isinstance(given, str):
            tables[name] = read_table(path, split=given, subset=data.subset)
    return tables


def _refuse_shared_groups(rows: Mapping[str, CleanRows]) -> None:
    """Raise DataError if a group lies in two given splits: no division of the training rows can mend that."""
    for a, b in combinations(rows, 2):
        shared = sorted(set(rows[a].groups or ()) & set(rows[b].groups or ()))
        if shared:
            raise DataError(
                f"{len(shared)} groups lie in both {a} and {b} ({', '.join(shared[:3])}, ...), and the source gives "
                "both splits; use fractions for data.split.validation and data.split.test, or drop data.split.group"
            )


def _divide(rows: Mapping[str, CleanRows], tables: Mapping[str, Table], split: Split, labels: LabelSet) -> TextSplits:
    for name, kept in rows.items():
        if not kept.texts:
            raise DataError(f"no row of {tables[name].source} can be used: {count_list(kept.skipped)}")
    if not rows["train"].targets.any() and labels.multi_label:
        raise DataError("no training row has any label; check data.columns.label and task.label_separator")
    places = split_rows(rows["train"].targets, split, rows["train"].groups)
    texts, targets, row_numbers = {}, {}, {}
    for name in SPLITS:
        source = rows["train"] if name in places else rows[name]
        chosen = places.get(name, np.arange(len(source.texts)))
        texts[name] = [source.texts[place] for place in chosen]
        targets[name] = source.targets[chosen]
        row_numbers[name] = source.row_numbers[chosen]
    if not labels.multi_label:
        _refuse_one_class(targets["train"], labels)
    summary = summarize(texts, targets, row_numbers, labels)
    summary["warnings"] = [*_reading_warnings(rows, tables), *summary["warnings"]]
    return TextSplits(texts, targets, row_numbers, labels, {**_reading(rows, tables), **summary})


def _refuse_one_class(targets: np.ndarray, labels: LabelSet) -> None:
    """Raise DataError if nothing tells one training row from another."""
    found = np.unique(targets)
    if len(found) < 2:
        raise DataError(
            f"all {len(targets)} training rows have the label {labels.names[found[0]]!r}, and a classifier needs two; "
            "check data.columns.label and task.labels"
        )


def _reading(rows: Mapping[str, CleanRows], tables: Mapping[str, Table]) -> dict[str, Any]:
    skipped: Counter[str] = Counter()
    for kept in rows.values():
        skipped.update(kept.skipped)
    return {
        "files": {name: list(table.files) for name, table in tables.items()},
        "rows_read": sum(table.num_rows for table in tables.values()),
        "rows_kept": sum(len(kept.texts) for kept in rows.values()),
        "skipped": dict(skipped),
    }


def _reading_warnings(rows: Mapping[str, CleanRows], tables: Mapping[str, Table]) -> list[str]:
    warnings = []
    for name, table in tables.items():
        if table.joined_splits:
            joined = ", ".join(table.joined_splits)
            warnings.append(f"the source has the splits {joined}; all their rows are used, see data.split.train")
        if rows[name].skipped:
            left_out = table.num_rows - len(rows[name].texts)
            reasons = count_list(rows[name].skipped)
            warnings.append(f"{left_out} of {table.num_rows} rows of {table.source} are left out ({reasons})")
    return warnings
