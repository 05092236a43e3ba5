"""Texts with spans, or words with tags: read from a table and brought to texts with spans of characters."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.contracts import Labelled, Unusable
from hftoolkit.data.given import is_missing
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
    cell_text,
    is_unicode,
    require_header,
)
from hftoolkit.errors import DataError
from hftoolkit.recipe.token_classification import TokenData

Span = tuple[str, int, int]

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
        return f"entity types: {', '.join(self.names)}"

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Raise DataError unless the tags of the model in ``where`` are those of these types."""
        found = list(dict.fromkeys(name[2:] for name in names if name[1:2] == "-"))
        if found != list(self.names):
            raise DataError(f"{where} knows the types {', '.join(found)}, and the run has {', '.join(self.names)}")


def load_token_rows(
    source: Path, data: TokenData, types: Sequence[str] | None, spans_of: Any
) -> tuple[DividedRows[SpanText], EntityTypes]:
    """Read, check and divide texts with entities.

    Args:
        source: the file or folder that ``data.source`` led to.
        data: columns, splits, and what to do with bad rows.
        types: known types; None takes those of the data.
        spans_of: ``(tags of all rows) -> (scheme, function from tags and words to spans)``.

    Raises:
        DataError: the files, columns, rows or splits cannot be used, or no text has an entity.
    """
    said: list[str] = []
    divided = load_rows(source, data, lambda table: _parse(table, data, types, spans_of, said), "text")
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


def read_token_rows(source: Path, data: TokenData, types: Sequence[str], spans_of: Any) -> Labelled[SpanText]:
    """Return all rows of another source, with entities of known types."""
    table, columns = read_table(source), data.columns
    names = [columns.text, columns.spans] if columns.spans is not None else [columns.words, columns.tags]
    require_header(table, [name for name in names if name is not None])
    return labelled_rows(table, _parse(table, data, types, spans_of, []))


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
    table: DataTable, data: TokenData, types: Sequence[str] | None, spans_of: Any, said: list[str]
) -> tuple[list[SpanText], BadRows]:
    columns = data.columns
    if columns.text is not None and columns.spans is not None:
        require_columns(table, [columns.text, columns.spans], "data.columns")
        rows, bad = _texts_with_spans(table.columns[columns.text], table.columns[columns.spans])
    else:
        assert columns.words is not None and columns.tags is not None
        require_columns(table, [columns.words, columns.tags], "data.columns")
        rows, bad = _words_with_tags(table.columns[columns.words], table.columns[columns.tags], spans_of, said)
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
    words: Sequence[Any], tags: Sequence[Any], spans_of: Any, said: list[str]
) -> tuple[list[SpanText], BadRows]:
    pairs = [(_words(one), _words(other)) for one, other in zip(words, tags, strict=True)]
    scheme, spans = spans_of(tag for _, found in pairs for tag in found or ())
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
        marked_spans, count = spans(marked, places)
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
