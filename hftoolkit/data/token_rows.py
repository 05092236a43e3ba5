"""Texts with spans, or words with tags: read from a table and brought to texts with spans of characters.

A span is ``(type, start, end)`` in characters, the end exclusive.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.contracts import Columns, Labelled, Unusable
from hftoolkit.contracts import names as shown
from hftoolkit.data.given import column_names, given_rows, is_missing
from hftoolkit.data.labels import natural_key
from hftoolkit.data.rows import DividedRows, labelled_rows, load_rows
from hftoolkit.data.summary import in_brackets
from hftoolkit.data.tables import DataTable, read_table, require_columns
from hftoolkit.data.text_rows import (
    BROKEN_TEXT,
    EMPTY_TEXT,
    NOT_TEXT,
    BadRow,
    BadRows,
    broken_rows,
    cell_text,
    is_unicode,
    require_header,
)
from hftoolkit.errors import DataError
from hftoolkit.recipe.token_classification import TokenData

Span = tuple[str, int, int]
Word = tuple[int, int]  # start, end

OUTSIDE = "O"
SCHEMES = {"BIO": frozenset("BI"), "BIOES": frozenset("BIESLU")}

NOT_SPANS = "spans are no list of [start, end, type] or {start, end, label}"
OUTSIDE_TEXT = "a span lies outside of its text, or is empty"
UNEQUAL = "words and tags are not lists of one length"
UNKNOWN_TYPE = "type of a span is unknown"


@dataclass(frozen=True, slots=True)
class SpanText:
    """A text and its entities.

    Attributes:
        text: as it is in the source; of words, joined by blanks.
        spans: ``(type, start, end)`` in characters, the end exclusive, by start; None where they are to be predicted.
    """

    text: str
    spans: tuple[Span, ...] | None = None

    @property
    def key(self) -> str:
        return self.text

    def to_json(self) -> Any:
        """Return text and spans."""
        return [self.text, self.spans]


@dataclass(frozen=True, slots=True)
class EntityTypes:
    """The types of entities of a data set, in order."""

    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"types": list(self.names)}

    def describe(self) -> str:
        """Return the types in words."""
        return f"entity types: {shown.listed(self.names)}"

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Raise DataError unless the tags of the model in ``where`` are those of these types."""
        found = list(dict.fromkeys(name[2:] for name in names if name[1:2] == "-"))
        if found != list(self.names):
            raise DataError(f"{where} knows the types {', '.join(found)}, and the run has {', '.join(self.names)}")


def load_token_rows(
    source: Path, data: TokenData, types: Sequence[str] | None, scheme: str
) -> tuple[DividedRows[SpanText], EntityTypes]:
    """Read, check and divide texts with entities.

    Args:
        source: the file or folder that ``data.source`` led to.
        data: columns, splits, and what to do with bad rows.
        types: known types; None takes those of the data.
        scheme: of tags: ``BIO``, ``BIOES``, ``bare``, or ``auto`` to find out.

    Raises:
        DataError: the files, columns, rows or splits cannot be used, or no text has an entity.
    """
    said: list[str] = []
    divided = load_rows(source, data, lambda table: _parse(table, data, types, scheme, said), "text")
    names = tuple(types or _types_of(divided.splits))
    if not names:
        raise DataError("no text has an entity; check data.columns.spans, or data.columns.tags")
    counts = {
        split: dict(Counter(name for row in rows for name, *_ in row.spans or ()))
        for split, rows in divided.splits.items()
    }
    warnings = [*said, *divided.summary["warnings"], *_missing(counts, names)]
    summary = divided.summary | {"entity_counts": counts, "warnings": list(dict.fromkeys(warnings))}
    return replace(divided, summary=summary), EntityTypes(names)


def read_token_rows(source: Path, data: TokenData, types: Sequence[str], scheme: str) -> Labelled[SpanText]:
    """Return all rows of another source, with entities of known types."""
    table, columns = read_table(source, how=data.format, keep_broken=True), data.columns
    names = [columns.text, columns.spans] if columns.spans is not None else [columns.words, columns.tags]
    require_header(table, [name for name in names if name is not None])
    return labelled_rows(table, _parse(table, data, types, scheme, []))


def unlabelled_texts(source: Any, data: TokenData) -> tuple[list[SpanText | Unusable], Columns]:
    """Return the texts that are to be predicted, each or why it cannot be, and all columns of their table.

    Args:
        source: the ``Path`` of a table, or rows as Python has them (``data.given``): texts, lists of words, or dicts.
        data: of the recipe.

    Raises:
        DataError: there is no such file, these are no rows, or the column is missing.
    """
    name = data.columns.text or data.columns.words
    assert name is not None  # the recipe names one of them
    table, broken = _columns_of_table(source, data, name) if isinstance(source, Path) else ({}, {})
    cells = table[name] if table else _cells(given_rows(source), name)
    are_words = data.columns.text is None
    read = (unlabelled_text(cell, are_words=are_words) for cell in cells)
    return [broken.get(number) or row for number, row in enumerate(read, start=1)], table


def _columns_of_table(source: Path, data: TokenData, name: str) -> tuple[Columns, BadRows]:
    if not source.exists():
        raise DataError(f"there is no file {source}; name a table, or - for a text a line on standard input")
    table = read_table(source, how=data.format, keep_broken=True)
    require_columns(table, [name], f"the header: the model reads {name}")
    return table.columns, broken_rows(table)


def _cells(rows: Sequence[Any], name: str) -> list[Any]:
    """Return the text or the words of each row as Python has it; None where it has none."""
    found = column_names([row for row in rows if isinstance(row, Mapping)])
    if found and name not in found:
        have = ", ".join(map(repr, found))
        raise DataError(f"rows lack {name}; they have {have}, and the model reads {name}")
    return [row.get(name) if isinstance(row, Mapping) else row for row in rows]


def unlabelled_text(cell: Any, *, are_words: bool) -> SpanText | Unusable:
    """Return the text of a cell that is to be predicted, or its words joined by blanks; or why it has none.

    Args:
        cell: a text, or a list of words.
        are_words: the column is one of words, which may be a list written as JSON.
    """
    if isinstance(cell, list | tuple | np.ndarray):
        cell = " ".join(map(str, cell))
    elif are_words and isinstance(cell, str) and cell.lstrip().startswith("["):
        listed = _listed(cell)
        cell = cell if listed is None else " ".join(map(str, listed))
    if is_missing(cell) or (isinstance(cell, str) and not cell.strip()):
        return Unusable(EMPTY_TEXT)
    if not isinstance(cell, str):
        return Unusable(NOT_TEXT, cell)
    return SpanText(cell) if is_unicode(cell) else Unusable(BROKEN_TEXT)


def _types_of(splits: Mapping[str, Sequence[SpanText]]) -> list[str]:
    found = {name for rows in splits.values() for row in rows for name, *_ in row.spans or ()}
    return sorted(found, key=natural_key)


def _missing(counts: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> list[str]:
    warnings = []
    for split, found in counts.items():
        if absent := [name for name in names if not found.get(name)]:
            many = f"{len(absent)} types have" if len(absent) > 1 else f"type {absent[0]!r} has"
            consequence = ": it cannot be learned" if split == "train" else ""
            warnings.append(f"{many} no entity in {split}{consequence}{in_brackets(absent)}")
    return warnings


def _parse(
    table: DataTable, data: TokenData, types: Sequence[str] | None, scheme: str, said: list[str]
) -> tuple[list[SpanText], BadRows]:
    columns = data.columns
    if columns.text is not None and columns.spans is not None:
        require_columns(table, [columns.text, columns.spans], "data.columns")
        rows, bad = _texts_with_spans(table.columns[columns.text], table.columns[columns.spans])
    else:
        assert columns.words is not None and columns.tags is not None
        require_columns(table, [columns.words, columns.tags], "data.columns")
        rows, bad = _words_with_tags(table.columns[columns.words], table.columns[columns.tags], scheme, said)
    if types is not None:
        for number, row in enumerate(rows, start=1):
            unknown = [name for name, *_ in row.spans or () if name not in types]
            if unknown and number not in bad:
                bad[number] = BadRow(UNKNOWN_TYPE, unknown[0])
    return rows, bad


def _texts_with_spans(texts: Sequence[Any], cells: Sequence[Any]) -> tuple[list[SpanText], BadRows]:
    rows, bad = [], {}
    for number, (cell, marked) in enumerate(zip(texts, cells, strict=True), start=1):
        text, spans = cell if isinstance(cell, str) else cell_text(cell), _spans(marked)
        if text is None or not text.strip():
            bad[number] = BadRow(NOT_TEXT if text is None else EMPTY_TEXT, None if text == "" else cell)
        elif spans is None:
            bad[number] = BadRow(NOT_SPANS, marked)
        elif any(not 0 <= start < end <= len(text) for _, start, end in spans):
            bad[number] = BadRow(OUTSIDE_TEXT, marked)
        rows.append(SpanText(text or "", tuple(sorted(spans or (), key=lambda span: span[1:]))))
    return rows, bad


def _spans(cell: Any) -> list[Span] | None:
    """Return the spans of a cell, or None if it is no list of them; an empty cell has none."""
    listed = _listed(cell)
    if listed is None:
        return None
    spans = []
    for each in listed:
        if isinstance(each, Mapping):
            name = next((each[key] for key in ("label", "type", "entity", "tag") if key in each), None)
            start, end = each.get("start"), each.get("end")
        elif isinstance(each, list | tuple) and len(each) == 3:
            start, end, name = each
        else:
            return None
        if not (isinstance(start, int) and isinstance(end, int) and isinstance(name, str) and name):
            return None
        spans.append((name, start, end))
    return spans


def _listed(cell: Any) -> list[Any] | None:
    """Return a cell as a list: one already, JSON of one, or nothing for an empty cell."""
    if isinstance(cell, str):
        if not cell.strip():
            return []
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    if cell is None or cell != cell:
        return []
    return list(cell) if isinstance(cell, list | tuple) else None


def _words_with_tags(
    words: Sequence[Any], tags: Sequence[Any], scheme: str, said: list[str]
) -> tuple[list[SpanText], BadRows]:
    pairs = [(_words(one), _words(other)) for one, other in zip(words, tags, strict=True)]
    if scheme == "auto":
        scheme = find_scheme(tag for _, found in pairs for tag in found or ())
    rows, bad, repaired = [], {}, 0
    for number, (found, marked) in enumerate(pairs, start=1):
        if found is None or marked is None or len(found) != len(marked):
            bad[number] = BadRow(UNEQUAL)
            rows.append(SpanText("", ()))
            continue
        if not any(word.strip() for word in found):
            bad[number] = BadRow(EMPTY_TEXT)
        places, end = [], 0
        for word in found:
            places.append((end, end + len(word)))
            end += len(word) + 1
        marked_spans, count = spans_of_tags(marked, places, scheme)
        repaired += count
        rows.append(SpanText(" ".join(found), tuple(marked_spans)))
    said.append(f"tags are read as {scheme}")
    if repaired:
        said.append(f"{repaired} tags cannot follow the one before them, and begin an entity")
    return rows, bad


def _words(cell: Any) -> list[str] | None:
    """Return the words or tags of a cell: a list, JSON of one, or a text with blanks between them."""
    listed = _listed(cell)
    if listed is None and isinstance(cell, str):
        return cell.split()
    return None if listed is None else [str(each) for each in listed]


def tag_names(types: Sequence[str]) -> tuple[str, ...]:
    """Return what the head of a model predicts for a word: ``O``, and ``B-`` and ``I-`` of each type."""
    return (OUTSIDE, *(f"{mark}-{name}" for name in types for mark in "BI"))


def find_scheme(tags: Iterable[str]) -> str:
    """Return how tags mark where entities begin: ``BIO``, ``BIOES`` or ``bare``."""
    marks = {tag[0] if tag[1:2] == "-" else "" for tag in set(tags) - {OUTSIDE, ""}}
    if "" in marks or not marks <= SCHEMES["BIOES"]:
        return "bare"
    return "BIO" if marks <= SCHEMES["BIO"] else "BIOES"


def spans_of_tags(tags: Sequence[str], words: Sequence[Word], scheme: str) -> tuple[list[Span], int]:
    """Return the spans that tags of words mark, and how many tags were impossible after the one before.

    An impossible tag, such as ``I-PER`` after ``O``, begins an entity, as in transformers' pipeline.

    Args:
        tags: one a word.
        words: where each is.
        scheme: ``BIO``, ``BIOES`` (``BILOU`` too) or ``bare``.

    Raises:
        DataError: a tag is none of the scheme.
    """
    spans: list[Span] = []
    open_type, repaired = "", 0
    for tag, (start, end) in zip(tags, words, strict=True):
        mark, name = _parts(tag, scheme)
        continues = name and name == open_type and mark in ("I", "E", "L", "")
        if name and not continues and mark in ("I", "E", "L"):
            repaired += 1
        if continues:
            spans[-1] = (name, spans[-1][1], end)
        elif name:
            spans.append((name, start, end))
        open_type = "" if mark in ("E", "L", "S", "U") else name
    return spans, repaired


def _parts(tag: str, scheme: str) -> tuple[str, str]:
    """Return mark and type of a tag; no type outside of entities."""
    if tag in (OUTSIDE, ""):
        return "", ""
    if scheme == "bare":
        return "", tag
    mark, dash, name = tag.partition("-")
    if not dash or mark not in SCHEMES["BIOES"] or not name:
        raise DataError(f"{tag!r} is no tag of {scheme} (B-TYPE, I-TYPE, O); set task.scheme: bare, or mend the tags")
    return mark, name


def tags_of_spans(spans: Sequence[Span], words: Sequence[Word]) -> tuple[list[str], int]:
    """Return a BIO tag for each word, and how many spans begin or end inside of a word, or hold none.

    A word belongs to the first span that it shares a character with.
    """
    tags = [OUTSIDE] * len(words)
    moved = 0
    for name, start, end in spans:
        inside = [place for place, (first, last) in enumerate(words) if first < end and start < last]
        free = [place for place in inside if tags[place] == OUTSIDE]
        for place in free:
            tags[place] = f"{'B' if place == free[0] else 'I'}-{name}"
        moved += not inside or words[inside[0]][0] != start or words[inside[-1]][1] != end
    return tags, moved
