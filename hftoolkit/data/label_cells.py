"""What the cells of a label column hold: one value, any number of them, or a 0 or 1 for each class.

Tables hold several labels as lists, as texts with a separator, or as lists that pandas or numpy wrote as text.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hftoolkit.contracts import Unusable
from hftoolkit.data.labels import canonical_value

NO_LABEL = "label is missing"
NOT_ONE_LABEL = "label is not one value"
SOFT_LABEL = "label is a list of fractions, not of classes or of 0 and 1"
OTHER_WIDTH = "label is not a list of as many 0 and 1 as in the other rows"

NO_LIST = "label is no value and no list of values"

ON, OFF = ("1", "true"), ("0", "false")
SEPARATORS = (",", ";", "|", "/", "\t", "\n", " ")
NOTHING = ("nan", "none", "null")  # in lists that are written as text
ARRAY = re.compile(r"(?:np\.)?(?:array|tensor)\(\s*(\[.*\])[^\[\]]*\)", re.DOTALL)  # as numpy and torch show them
ELEMENT = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,'"]+)""")
BETWEEN_QUOTES = re.compile(r"""['"]\s+['"]""")
FLAGS = re.compile(r"[01](?:\s*[,;|/\s]\s*[01])+")


@dataclass(frozen=True, slots=True)
class LabelCells:
    """What a label column holds.

    Attributes:
        values: canonical values of each row.
        bad: rows that cannot be used, by 1-based number.
        classes: all classes, where the cells themselves say how many there are; else empty.
        hints: sentences on what looks like another setting.
    """

    values: list[tuple[str, ...]]
    bad: dict[int, Unusable] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def single_values(cells: Sequence[Any]) -> tuple[list[tuple[str, ...]], dict[int, Unusable]]:
    """Return the canonical label of each cell, and the rows that have none or more than one."""
    values: list[tuple[str, ...]] = []
    bad: dict[int, Unusable] = {}
    for number, cell in enumerate(cells, start=1):
        is_one = not isinstance(cell, list | tuple | dict | bytes) and not _lists_several(cell)
        value = canonical_value(cell) if is_one else ""
        if not value:
            bad[number] = Unusable(NO_LABEL) if is_one else Unusable(NOT_ONE_LABEL, cell)
        values.append((value,) if value else ())
    return values, bad


def one_label_cells(cells: Sequence[Any]) -> LabelCells:
    """Read a column with one label a row."""
    values, bad = single_values(cells)

    def advice(separator: str, combined: int, classes: int, parts: int) -> str:
        return (
            f"{combined} labels hold {separator!r}, and what stands between occurs in others too ({classes} classes "
            f"are made of {parts}); for any number of labels a text set task.multi_label: true, and "
            f"task.label_separator: {separator!r}"
        )

    return LabelCells(values, bad, hints=_separator_hint(cells, None, advice))


def many_label_cells(cells: Sequence[Any], separator: str, *, is_coded: bool) -> LabelCells:
    """Read a column with any number of labels a row.

    Lists of equal length that hold nothing but 0 and 1 are read as multi-hot: a class is a place, ``0`` the first.

    Args:
        cells: lists, texts of lists, texts with separators, or objects with a 0 or 1 for each class.
        separator: ``task.label_separator``.
        is_coded: the table names the classes, so that a number in a list is a class and never multi-hot.
    """
    rows = _lists(cells, separator)
    width = None if is_coded else _multi_hot_width([row for row in rows if row is not None])
    bad: dict[int, Unusable] = {}
    values: list[tuple[str, ...]] = []
    for number, row in enumerate(rows, start=1):
        problem = _problem(row, width)
        if problem is not None:
            bad[number] = Unusable(problem, cells[number - 1])
        texts = [canonical_value(part) for part in row or ()]
        places = [str(place) for place, text in enumerate(texts) if text in ON]
        values.append(tuple(dict.fromkeys(text for text in texts if text)) if width is None else tuple(places))
    if width is not None:
        return LabelCells(values, bad, classes=tuple(map(str, range(width))))

    def advice(other: str, combined: int, classes: int, parts: int) -> str:
        return (
            f"{combined} labels hold {other!r}, and none the separator {separator!r}, so that each combination is a "
            f"class of its own ({classes} classes instead of {parts}); set task.label_separator: {other!r}"
        )

    are_lists = any(isinstance(cell, str) and _list_of_text(cell, is_list=False) for cell in cells)
    return LabelCells(values, bad, hints=() if are_lists else _separator_hint(cells, separator, advice))


def _problem(row: Sequence[Any] | None, width: int | None) -> str | None:
    """Return why a list of labels cannot be used."""
    if row is None:
        return NO_LIST
    if width is not None and row and len(row) != width:
        return OTHER_WIDTH
    is_soft = width is None and len(row) > 1 and any(isinstance(part, float) and part % 1 > 0 for part in row)
    return SOFT_LABEL if is_soft else None


def _lists(cells: Sequence[Any], separator: str) -> list[list[Any] | None]:
    """Return the labels of each cell; nothing for an empty one, None for what holds no labels."""
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    are_flags = bool(texts) and all(map(FLAGS.fullmatch, texts))
    are_lists = bool(texts) and all(text[0] + text[-1] in ("[]", "{}") for text in texts)
    return [
        re.findall("[01]", cell) if are_flags and isinstance(cell, str) else _list(cell, separator, are_lists)
        for cell in cells
    ]


def _list(cell: Any, separator: str, are_lists: bool) -> list[Any] | None:
    if isinstance(cell, str):
        listed = _list_of_text(cell, is_list=are_lists)
        return [part for part in cell.split(separator) if part.strip()] if listed is None else listed
    if isinstance(cell, Mapping):
        flags = {name: canonical_value(flag) for name, flag in cell.items()}
        is_flagged = all(flag in (*ON, *OFF, "") for flag in flags.values())
        return [name for name, flag in flags.items() if flag in ON] if is_flagged else None
    if isinstance(cell, list | tuple | np.ndarray):
        return list(cell)
    return None if isinstance(cell, bytes) else [cell] if canonical_value(cell) else []


def _list_of_text(text: str, *, is_list: bool) -> list[Any] | None:
    """Return the list that a text writes: in Python, JSON, as numpy shows arrays, or with bare words; None if none.

    Args:
        text: of a cell.
        is_list: a bare word in brackets is a list too, and not a name like ``[PAD]``.
    """
    text = text.strip()
    array = ARRAY.fullmatch(text)
    text = array[1] if array else text
    if len(text) < 2 or text[0] + text[-1] not in ("[]", "()", "{}"):
        return None
    inside = text[1:-1].strip()
    if re.fullmatch(r"[01]\.?(\s+[01]\.?)+", inside):  # numpy: [1 0 1], [1. 0.]
        return [int(part.rstrip(".")) for part in inside.split()]
    if not BETWEEN_QUOTES.search(inside):  # numpy's ['a' 'b'], which Python would join
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
        else:
            return list(found) if isinstance(found, list | tuple | set) else None
    if text[0] == "(" or not (is_list or any(mark in inside for mark in ",'\"")):
        return None
    parts = [(one or other, bare.strip()) for one, other, bare in ELEMENT.findall(inside)]
    return [quoted or bare for quoted, bare in parts if quoted or (bare and bare.lower() not in NOTHING)]


def _lists_several(cell: Any) -> bool:
    """Return whether a text writes a list of several values, or of a text in quotes."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(("[", "array(", "tensor(")):
        return False
    listed = _list_of_text(cell, is_list=False)
    return listed is not None and (len(listed) > 1 or "'" in cell or '"' in cell)


def _multi_hot_width(rows: Sequence[Sequence[Any]]) -> int | None:
    """Return the number of classes of multi-hot rows; None if these are lists of classes.

    Lists of classes do not repeat one, and lists of three or more 0 and 1 cannot help it.
    """
    lengths: Counter[int] = Counter()
    repeats = falls = False
    for row in rows:
        flags = [canonical_value(part) for part in row]
        if any(flag not in ON and flag not in OFF for flag in flags):
            return None
        if flags:
            lengths[len(flags)] += 1
            repeats = repeats or len(set(flags)) < len(flags)
            falls = falls or (len(flags) == 2 and flags[0] in ON and flags[1] in OFF)
    width = max(lengths, key=lambda length: (lengths[length], length), default=0)
    is_multi_hot = width > 1 and (repeats or (falls and len(lengths) == 1))
    return width if is_multi_hot else None


def _separator_hint(
    cells: Sequence[Any], separator: str | None, advice: Callable[[str, int, int, int], str]
) -> tuple[str, ...]:
    """Return a sentence where labels look like several that another separator joins.

    Args:
        cells: of the column.
        separator: the one in force; None: there is none.
        advice: returns the sentence for a separator, the number of different labels with it, of all different labels,
            and of their different parts.
    """
    labels = {canonical_value(cell) for cell in cells if isinstance(cell, str)} - {""}
    if separator is not None and any(separator in label for label in labels):
        return ()
    for other in SEPARATORS:
        combined = [label for label in labels if other in label]
        if other == separator or len(combined) < 2:
            continue
        split = {label: {part for part in map(canonical_value, label.split(other)) if part} for label in labels}
        uses = Counter(part for parts in split.values() for part in parts)
        of_combined = {part for label in combined for part in split[label]}
        shared = [part for part in of_combined if uses[part] > 1]
        alone = [part for part in of_combined if part in labels]
        # Names with a comma, like 'Food, Drink', share few of their parts.
        needs_more = separator is None or other == " "
        if 2 * len(shared) < len(of_combined) or (
            needs_more and (len(uses) >= len(labels) or 2 * len(alone) < len(of_combined))
        ):
            continue
        return (advice(other, len(combined), len(labels), len(uses)),)
    return ()
