"""Texts and labels: read from a table, checked row by row, divided into splits, and summed up."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.data.labels import LabelSet
from hftoolkit.data.reading import (
    check_any_label,
    check_disjoint_groups,
    check_not_empty,
    check_not_swapped,
    check_two_classes,
    label_column_warnings,
    label_hints,
    places_by_split,
    read_tables,
    reading,
    reading_warnings,
    told_splits,
)
from hftoolkit.data.summary import summarize
from hftoolkit.data.tables import DataTable
from hftoolkit.data.text_rows import (
    BadRows,
    CleanRows,
    check_bad_rows,
    encode_rows,
    find_labels,
    parse_rows,
    require_header,
    text_columns,
)
from hftoolkit.recipe import Split, TextClassification, TextData


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


def load_text_splits(
    path: Path, data: TextData, task: TextClassification, labels: LabelSet | None = None
) -> TextSplits:
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
    tables, data, notes = read_tables(path, data)
    parsed = {
        name: parse_rows(table, data, multi_label=task.multi_label, label_separator=task.label_separator)
        for name, table in tables.items()
    }
    told, untold = told_splits(tables["train"], data.split.column)
    parsed["train"].bad.update({number: row for number, row in untold.items() if number not in parsed["train"].bad})
    found_labels = labels is None and task.labels is None
    if labels is None:
        labels = find_labels(
            parsed.values(),
            data.columns.label,
            multi_label=task.multi_label,
            mapping=task.labels,
            table=tables["train"],
        )
    encoded = {name: encode_rows(rows, labels) for name, rows in parsed.items()}
    bad = {tables[name].source: bad_rows for name, (_, bad_rows) in encoded.items()}
    hints = label_hints(parsed.values(), task.labels, labels, data.columns.label[0])
    check_bad_rows(bad, labels, data.on_bad_rows, hints)
    rows = {name: kept for name, (kept, _) in encoded.items()}
    check_disjoint_groups(rows)
    check_not_empty(rows, tables)
    if labels.multi_label:
        check_any_label(rows["train"].targets)
    if found_labels:
        hints += label_column_warnings(rows, labels, "data.columns.label")
        check_not_swapped(rows, labels)
    divided = _divide(rows, places_by_split(rows, rows["train"].targets, data.split, told), labels)
    warnings = [*notes, *hints, *reading_warnings(rows, tables), *divided.summary["warnings"]]
    return replace(divided, summary={**reading(rows, tables), **divided.summary, "warnings": warnings})


def encode_table(
    table: DataTable, data: TextData, task: TextClassification, labels: LabelSet
) -> tuple[CleanRows, BadRows]:
    """Return the usable rows of another table, with targets of known classes, and the bad ones; nothing is divided.

    Raises:
        DataError: the table lacks a column.
    """
    data = data.model_copy(update={"split": Split()})
    require_header(table, (*text_columns(data), *data.columns.label))
    parsed = parse_rows(table, data, multi_label=labels.multi_label, label_separator=task.label_separator)
    return encode_rows(parsed, labels)


def _divide(
    rows: Mapping[str, CleanRows], places: Mapping[str, tuple[str, np.ndarray]], labels: LabelSet
) -> TextSplits:
    texts, targets, row_numbers = {}, {}, {}
    for name, (source, chosen) in places.items():
        texts[name] = [rows[source].texts[place] for place in chosen]
        targets[name] = rows[source].targets[chosen]
        row_numbers[name] = rows[source].row_numbers[chosen]
    if not labels.multi_label:
        check_two_classes(targets["train"], labels, "check data.columns.label and task.labels")
    return TextSplits(texts, targets, row_numbers, labels, summarize(texts, targets, row_numbers, labels))
