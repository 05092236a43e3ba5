"""From table rows to texts and targets; rows that cannot be used are found here, all in one pass."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from string import Formatter
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from hftoolkit.contracts import Unusable
from hftoolkit.data.label_cells import NOT_ONE_LABEL, LabelCells, many_label_cells, one_label_cells
from hftoolkit.data.labels import LabelSet, canonical_value
from hftoolkit.data.tables import DataTable, require_columns
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.recipe import TextData

EXAMPLES_SHOWN = 5
ALLOWED_SHOWN = 20  # known labels in a message
LEAVE_OUT = "leave them out with data.on_bad_rows: skip"

EMPTY_TEXT = "text is empty"
MARKER_TEXT = "text is a missing-value marker"
NOT_TEXT = "text is not a text"
BROKEN_TEXT = "text is not valid Unicode"
UNKNOWN_LABEL = "label is unknown"
NOT_A_FLAG = "label is not 0 or 1"
NO_GROUP = "group is missing"
TRAINING_ADVICE = {
    UNKNOWN_LABEL: ": fix it or add it to task.labels",
    NOT_ONE_LABEL: "; any number of labels a text needs task.multi_label: true",
}


BadRow = Unusable
BadRows = dict[int, BadRow]  # by 1-based row number


class TextPair(str):
    """Two texts that a tokenizer puts its separator between; as a text, both, each on lines of its own."""

    first: str
    second: str

    def __new__(cls, first: str, second: str) -> Self:
        pair = super().__new__(cls, f"{first}\n{second}")
        pair.first, pair.second = first, second
        return pair

    def __reduce__(self) -> tuple[type["TextPair"], tuple[str, str]]:
        return TextPair, (self.first, self.second)


@dataclass(frozen=True, slots=True)
class ParsedRows:
    """All rows of one table, before it is known which labels there are.

    Attributes:
        texts: one a row; empty where the row is bad.
        values: canonical label values of each row; exactly one unless multi-label.
        groups: the group of each row, or None without ``data.split.group``.
        bad: rows that cannot be used.
        classes: all of them, where the label cells say how many there are (multi-hot); else empty.
        hints: sentences on labels that look like another setting.
    """

    texts: list[str]
    values: list[tuple[str, ...]]
    groups: list[str] | None
    bad: BadRows
    classes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CleanRows:
    """The usable rows of one table, in its order.

    Attributes:
        texts: N texts.
        targets: (N,) int64 class numbers; multi-label: (N, C) float32 of 0 and 1.
        row_numbers: (N,) int64, 1-based rows of the table.
        labels: the classes.
        groups: N group values, or None.
        skipped: reason -> number of rows left out.
        skipped_examples: reason -> the first few of their row numbers.
    """

    texts: list[str]
    targets: np.ndarray
    row_numbers: np.ndarray
    labels: LabelSet
    groups: list[str] | None
    skipped: dict[str, int]
    skipped_examples: dict[str, list[int]]


def clean_texts(columns: Mapping[str, Sequence[Any]], data: TextData) -> tuple[list[str], BadRows]:
    """Join the text columns of each row.

    Args:
        columns: at least the columns of ``data.columns.text``.
        data: which columns, the template, and the texts that mean 'no text'.

    Returns:
        One text a row, stripped, and empty where the row is bad; a ``TextPair`` with ``text_pair``. And the
        bad rows.

    Raises:
        RecipeError: the template does not fit the text columns.
    """
    texts, bad = _joined_texts(columns, data)
    if data.columns.text_pair is None:
        return texts, bad
    markers = frozenset(data.missing_values)
    for place, cell in enumerate(columns[data.columns.text_pair]):
        second = cell_text(cell)
        usable = "" if second is None or second in markers else second
        problem = _text_problem([cell], [second], [usable], usable)
        if problem and place + 1 not in bad:
            bad[place + 1] = problem
        texts[place] = "" if place + 1 in bad else TextPair(texts[place], usable)
    return texts, bad


def _joined_texts(columns: Mapping[str, Sequence[Any]], data: TextData) -> tuple[list[str], BadRows]:
    """Return the text columns of each row as one text, and the rows without any."""
    names = data.columns.text
    template = None if data.template is None else parse_template(data.template, names)
    markers = frozenset(data.missing_values)
    texts: list[str] = []
    bad: BadRows = {}
    for number, cells in enumerate(zip(*(columns[name] for name in names), strict=True), start=1):
        parts = [cell_text(cell) for cell in cells]
        usable = ["" if part is None or part in markers else part for part in parts]
        text = join_parts(usable, names, template)
        problem = _text_problem(cells, parts, usable, text)
        if problem:
            bad[number] = problem
        texts.append("" if problem else text)
    return texts, bad


def text_columns(data: TextData) -> tuple[str, ...]:
    """Return the columns that hold texts, that of the second text of pairs last."""
    pair = data.columns.text_pair
    return data.columns.text if pair is None else (*data.columns.text, pair)


def parse_rows(table: DataTable, data: TextData, *, multi_label: bool, label_separator: str) -> ParsedRows:
    """Read texts, label values and groups of all rows; a row with several faults is listed for the first.

    Raises:
        DataError: the table lacks a column.
        RecipeError: the template does not fit the text columns.
    """
    require_columns(table, text_columns(data), "data.columns.text")
    require_columns(table, data.columns.label, "data.columns.label")
    texts, bad = clean_texts(table.columns, data)
    labels = label_values(table, data.columns.label, multi_label=multi_label, label_separator=label_separator)
    groups, bad_groups = read_groups(table, data.split.group)
    all_bad = {**bad_groups, **labels.bad, **bad, **broken_rows(table)}
    return ParsedRows(texts, labels.values, groups, all_bad, labels.classes, labels.hints)


def label_values(table: DataTable, names: Sequence[str], *, multi_label: bool, label_separator: str) -> LabelCells:
    """Read the labels of each row: of one column, or of several 0/1 columns."""
    cells = [table.columns[name] for name in names]
    if len(cells) > 1:
        return LabelCells(*_flag_values(cells, names))
    if multi_label:
        return many_label_cells(cells[0], label_separator, is_coded=names[0] in table.class_names)
    return one_label_cells(cells[0])


def require_header(table: DataTable, names: Sequence[str]) -> None:
    """Raise DataError unless a table for a finished run, whose recipe is fixed, has the columns that it reads."""
    require_columns(table, names, f"the header: the run reads {', '.join(names)}")


def find_labels(
    parsed: Collection[ParsedRows],
    columns: Sequence[str],
    *,
    multi_label: bool,
    mapping: Mapping[Any, str] | None,
    table: DataTable,
) -> LabelSet:
    """Return the classes: those of the recipe, else the names the table gives, else the values of all usable rows."""
    coded_names = table.class_names.get(columns[0], []) if len(columns) == 1 else []
    if mapping is not None:
        return LabelSet.from_recipe(mapping, multi_label).with_coded_names(coded_names)
    if len(columns) > 1:
        return LabelSet.from_names(columns, multi_label)
    if coded_names:
        return LabelSet.from_names(coded_names, multi_label)
    widths = {len(rows.classes): rows.classes for rows in parsed if rows.classes}
    if len(widths) > 1:
        raise DataError(
            f"lists of 0 and 1 have {' and '.join(map(str, widths))} places in different splits; make them one"
        )
    if widths:
        return LabelSet.from_names(next(iter(widths.values())), multi_label)
    usable = (
        value
        for rows in parsed
        for place, values in enumerate(rows.values, 1)
        if place not in rows.bad
        for value in values
    )
    return LabelSet.from_values(usable, multi_label)


def encode_rows(parsed: ParsedRows, labels: LabelSet) -> tuple[CleanRows, BadRows]:
    """Keep the usable rows and encode their labels; return them and all bad rows, those with unknown labels too."""
    bad = dict(parsed.bad)
    class_of = {value: labels.encode(value) for value in set(chain.from_iterable(parsed.values))}
    for number, values in enumerate(parsed.values, start=1):
        unknown = [value for value in values if class_of[value] is None]
        if unknown and number not in bad:
            bad[number] = BadRow(UNKNOWN_LABEL, unknown[0])
    kept = [place for place in range(len(parsed.texts)) if place + 1 not in bad]
    classes = [[known for value in parsed.values[place] if (known := class_of[value]) is not None] for place in kept]
    counts, examples = _by_reason(bad)
    rows = CleanRows(
        texts=[parsed.texts[place] for place in kept],
        targets=_targets(classes, labels),
        row_numbers=np.array(kept, dtype=np.int64) + 1,
        labels=labels,
        groups=None if parsed.groups is None else [parsed.groups[place] for place in kept],
        skipped=counts,
        skipped_examples=examples,
    )
    return rows, bad


def check_bad_rows(
    bad_by_source: Mapping[str, BadRows], labels: LabelSet, on_bad_rows: str, hints: Sequence[str] = ()
) -> None:
    """Raise one DataError that lists every kind of bad row of every source, unless they are to be skipped.

    Args:
        bad_by_source: what is bad, by what the source is called.
        labels: the known classes.
        on_bad_rows: of the recipe.
        hints: sentences on what may be wrong with all rows.
    """
    if on_bad_rows == "skip" or not any(bad_by_source.values()):
        return
    lines = []
    for source, bad in bad_by_source.items():
        if bad:
            lines.append(f"{len(bad)} rows of {source} cannot be used:")
            lines += [f"  {line}" for line in bad_row_lines(bad, tuple(labels.values), TRAINING_ADVICE)]
    raise DataError("\n".join([*lines, *hints, f"Fix these rows, or {LEAVE_OUT}"]))


def parse_template(
    template: str, names: Sequence[str], key: str = "data.template", columns_key: str = "data.columns.text"
) -> list[tuple[str, str | None]]:
    """Split a template into (literal, column or None) pairs; only plain ``{column}`` fields of text columns pass.

    Args:
        template: of the recipe.
        names: the columns; each must occur.
        key: what the recipe calls the template.
        columns_key: what the recipe calls the columns.

    Raises:
        RecipeError: the template does not fit the columns.
    """
    allowed = ", ".join(f"{{{name}}}" for name in names)
    try:
        fields = list(Formatter().parse(template))
    except ValueError as error:
        raise RecipeError(f"{key} {template!r}: {error}; write fields as {allowed}, a brace as {{{{") from error
    for _, name, spec, conversion in fields:
        if name is not None and (name not in names or spec or conversion):
            field = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            raise RecipeError(f"{key} has {field}, but the fields are {allowed} ({columns_key})")
    unused = [name for name in names if name not in {name for _, name, _, _ in fields}]
    if unused:
        raise RecipeError(f"{key} leaves out {', '.join(unused)}; add it, or drop it from {columns_key}")
    return [(literal, name) for literal, name, _, _ in fields]


def join_parts(parts: Sequence[str], names: Sequence[str], template: Sequence[tuple[str, str | None]] | None) -> str:
    """Return the parts in the template's places, or each non-empty one on a line without a template."""
    if template is None:
        return "\n".join(part for part in parts if part)
    by_name = dict(zip(names, parts, strict=True))
    return "".join(literal + (by_name[name] if name is not None else "") for literal, name in template).strip()


def cell_text(cell: Any) -> str | None:
    """Return the stripped text of a cell, ``""`` for a missing one, None for what is no text: lists, objects, bytes."""
    if isinstance(cell, str):
        return cell.strip()
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return None if isinstance(cell, list | tuple | dict | bytes) else str(cell)


def _text_problem(cells: Sequence[Any], parts: Sequence[str | None], usable: Sequence[str], text: str) -> BadRow | None:
    if None in parts:
        return BadRow(NOT_TEXT, cells[parts.index(None)])
    if not any(usable):
        return BadRow(MARKER_TEXT, next(part for part in parts if part)) if any(parts) else BadRow(EMPTY_TEXT)
    return None if is_unicode(text) else BadRow(BROKEN_TEXT)


def is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, which come through JSON, and from bytes that are not UTF-8.

    No tokenizer and no file takes them.
    """
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _flag_values(columns: Sequence[Sequence[Any]], names: Sequence[str]) -> tuple[list[tuple[str, ...]], BadRows]:
    """Read 0/1 columns: the values of a row are the names of its columns that hold 1; an empty cell is 0."""
    values: list[tuple[str, ...]] = []
    bad: BadRows = {}
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        flags = [canonical_value(cell) for cell in cells]
        wrong = [flag for flag in flags if flag not in ("0", "1", "true", "false", "")]
        if wrong:
            bad[number] = BadRow(NOT_A_FLAG, wrong[0])
        values.append(tuple(name for name, flag in zip(names, flags, strict=True) if flag in ("1", "true")))
    return values, bad


def broken_rows(table: DataTable) -> BadRows:
    """Return the rows of a table that could not be read."""
    return {number: BadRow(each.reason, name=each.place or None) for number, each in table.broken.items()}


def read_groups(table: DataTable, column: str | None) -> tuple[list[str] | None, BadRows]:
    """Return the group of each row, and the rows without one; None without a column.

    Raises:
        DataError: the table lacks the column.
    """
    if column is None:
        return None, {}
    require_columns(table, [column], "data.split.group")
    groups = [canonical_value(cell) for cell in table.columns[column]]
    return groups, {number: BadRow(NO_GROUP) for number, group in enumerate(groups, start=1) if not group}


def _targets(classes: Sequence[list[int]], labels: LabelSet) -> np.ndarray:
    if not labels.multi_label:
        return np.array([row[0] for row in classes], dtype=np.int64)
    targets = np.zeros((len(classes), len(labels.names)), dtype=np.float32)
    for place, row in enumerate(classes):
        targets[place, row] = 1
    return targets


def _by_reason(bad: Mapping[int, Unusable]) -> tuple[dict[str, int], dict[str, list[int]]]:
    rows: dict[str, list[int]] = {}
    for number in sorted(bad):
        rows.setdefault(bad[number].reason, []).append(number)
    return {reason: len(found) for reason, found in rows.items()}, {
        reason: found[:EXAMPLES_SHOWN] for reason, found in rows.items()
    }


def bad_row_lines(
    bad: Mapping[int, Unusable], allowed: Sequence[str] = (), advice: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Return a line for each reason: how many rows, the first of them, and what was found there.

    Args:
        bad: by 1-based number of the row.
        allowed: values of a label that are known.
        advice: reason -> what to do, at the end of its line.
    """
    lines = []
    counts, examples = _by_reason(bad)
    for reason, count in counts.items():
        named = [f"{number} ({name})" if (name := bad[number].name) else str(number) for number in examples[reason]]
        rows = f"row{'s' if count > 1 else ''} {', '.join(named)}"
        line = f"{reason}: {count} ({rows}{', ...' if count > EXAMPLES_SHOWN else ''})"
        found = dict.fromkeys(
            f"{row.found!r:.40}" for row in bad.values() if row.reason == reason and row.found is not None
        )
        if found:
            line += f"; found {', '.join(list(found)[:EXAMPLES_SHOWN])}"
        if reason == UNKNOWN_LABEL:
            more = f", and {len(allowed) - ALLOWED_SHOWN} more" if len(allowed) > ALLOWED_SHOWN else ""
            line += f"; allowed {', '.join(map(repr, allowed[:ALLOWED_SHOWN]))}{more}"
        lines.append(line + advice.get(reason, ""))
    return lines


def count_list(skipped: Mapping[str, int]) -> str:
    """Return reasons and counts in one line."""
    return ", ".join(f"{reason}: {count}" for reason, count in skipped.items())
