"""Rows in JSON: a list of objects, an object a line, columns, or a list under some key."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hftoolkit.data.formats.parsed import Broken, ParsedFile, by_name
from hftoolkit.data.split_names import role_of
from hftoolkit.errors import DataError

NOT_JSON = "row is not valid JSON"
NOT_AN_OBJECT = "row is not an object"
MOST_BROKEN = 0.5
SPLIT_COLUMN = "split"  # of rows that lie under the names of splits
ADVICE = (
    "Write a list of objects, [{...}, {...}], or an object a line; pandas writes them with "
    'df.to_json(FILE, orient="records", lines=True)'
)

Rows = list[Any]


def parse_json(
    text: str, file: str, *, by_line: bool, root: str | None, names: Sequence[str] | None, knobs: str
) -> ParsedFile:
    """Read the rows of a JSON text; a key that a row lacks is None there.

    Args:
        text: of the file.
        file: its name, for messages.
        by_line: the ending says that each line is a row.
        root: keys, with dots between them, that lead to the rows; None: they are found.
        names: column names of rows that are lists.
        knobs: what the recipe calls the section with these settings.

    Raises:
        DataError: not valid JSON, no rows in it, or several lists that could be the rows.
    """
    rows, broken, notes = _read(text, file, by_line, root, names, knobs)
    for number, row in enumerate(rows, start=1):
        row = rows[number - 1] = _named(row, names)
        if not isinstance(row, dict) and number not in broken:
            detail = f"is not an object like {{'text': ..., 'label': ...}}: {row!r:.60}"
            if isinstance(row, list):
                detail += f"; {knobs}.names would name the {len(row)} cells of a list"
            broken[number] = Broken(NOT_AN_OBJECT, "", detail)
    if len(broken) > MOST_BROKEN * len(rows):
        number, first = min(broken.items())
        place = f" ({first.place})" if first.place else ""
        raise DataError(f"{file}, row {number}{place} {first.detail}. {ADVICE}")
    whole = [row if isinstance(row, dict) and number not in broken else {} for number, row in enumerate(rows, start=1)]
    keys = list(dict.fromkeys(key for row in whole for key in row))
    columns, repeated = by_name(keys, [[row.get(key) for row in whole] for key in keys])
    return ParsedFile(columns, broken, repeated, tuple(notes))


def _read(
    text: str, file: str, by_line: bool, root: str | None, names: Sequence[str] | None, knobs: str
) -> tuple[Rows, dict[int, Broken], list[str]]:
    """Return rows of any type, those that are no JSON, and notes."""
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    except ValueError as error:
        if not _is_json(next((line for line in text.split("\n") if line.strip()), "")):
            raise DataError(f"{file} is not valid JSON: {error}. {ADVICE}") from error
        return (*_lines(text), [])
    is_row = by_line and root is None and "\n" not in text.strip()
    if isinstance(document, dict) and not is_row:
        rows, notes = _rows_of_object(document, file, root, names, knobs)
        return rows, {}, notes
    return document if isinstance(document, list) else [document], {}, []


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _lines(text: str) -> tuple[Rows, dict[int, Broken]]:
    rows: Rows = []
    broken = {}
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            rows.append(None)
            broken[len(rows)] = Broken(NOT_JSON, f"line {line_number}", f"is not valid JSON: {error}")
    return rows, broken


def _rows_of_object(
    document: Mapping[str, Any], file: str, root: str | None, names: Sequence[str] | None, knobs: str
) -> tuple[Rows, list[str]]:
    """Return the rows that one object holds, and how they were found."""
    if root is not None:
        found = _at(document, root, file, knobs)
        rows = found if isinstance(found, list) else _table_rows(found) if isinstance(found, dict) else None
        if rows is None:
            raise DataError(f"{file}: {knobs}.root: {root!r} leads to {found!r:.40}, and not to rows. {ADVICE}")
        return rows, []
    lists = {path: rows for path, rows in _lists(document, "", names) if rows}
    if lists and all(role_of(path) for path in lists) and len({role_of(path) for path in lists}) == len(lists) > 1:
        return [_with_split(row, path) for path, rows in lists.items() for row in rows], []
    if (table := _table_rows(document)) is not None:
        return table, []
    if len(lists) == 1:
        path, rows = next(iter(lists.items()))
        return rows, [f"the rows of {file} are those under the key {path!r}"]
    if lists:
        counts = ", ".join(f"{path!r} ({len(rows)} rows)" for path, rows in lists.items())
        raise DataError(f"{file} is one object that holds several lists of rows: {counts}; set {knobs}.root to one key")
    if any(isinstance(value, dict) or _is_nested(value) for value in document.values()):
        keys = ", ".join(map(repr, list(document)[:5]))
        lists_too = f"; {knobs}.names names the cells of rows that are lists" if names is None else ""
        raise DataError(f"{file} is one object (keys: {keys}) without a list of objects in it{lists_too}. {ADVICE}")
    return [document], []


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(cell, dict | list) for cell in value)


def _named(row: Any, names: Sequence[str] | None) -> Any:
    is_list = isinstance(row, list) and names is not None and len(row) == len(names)
    return dict(zip(names or (), row, strict=True)) if is_list else row


def _with_split(row: Any, split: str) -> Any:
    return {SPLIT_COLUMN: split, **row} if isinstance(row, dict) else row


def _at(document: Any, root: str, file: str, knobs: str) -> Any:
    """Return what keys with dots between them lead to."""
    found = document
    for key in root.split("."):
        if not isinstance(found, dict) or key not in found:
            there = ", ".join(map(repr, list(found)[:10])) if isinstance(found, dict) else "no keys"
            raise DataError(f"{file} has no key {key!r} of {knobs}.root: {root!r}; there are: {there}")
        found = found[key]
    return found


def _lists(found: Mapping[str, Any], prefix: str, names: Sequence[str] | None) -> Iterator[tuple[str, Rows]]:
    """Yield all lists of objects in an object, and in objects in it, by their keys with dots between them.

    With ``names``, lists of lists with as many cells are lists of objects.
    """
    for key, value in found.items():
        path = f"{prefix}{key}"
        rows = [_named(row, names) for row in value] if isinstance(value, list) else [None]
        if all(isinstance(row, dict) for row in rows):
            yield path, rows
        elif isinstance(value, dict):
            table = _table_rows(value) if _looks_like_columns(value) else None
            if table is not None:
                yield path, table
            else:
                yield from _lists(value, f"{path}.", names)


def _looks_like_columns(value: Mapping[str, Any]) -> bool:
    return len(value) > 1 and all(isinstance(cells, dict | list) for cells in value.values())


def _table_rows(table: Mapping[str, Any]) -> Rows | None:
    """Return the rows of an object that is a table: what pandas writes, or lists of one length by column."""
    values = list(table.values())
    if {"columns", "data"} <= set(table) and isinstance(table["columns"], list) and isinstance(table["data"], list):
        names = [str(name) for name in table["columns"]]
        if all(isinstance(row, list) and len(row) == len(names) for row in table["data"]):
            return [dict(zip(names, row, strict=True)) for row in table["data"]]
    if {"schema", "data"} == set(table) and isinstance(table["data"], list):
        return table["data"]
    if values and all(isinstance(value, dict) and value for value in values):
        return _rows_of_objects(table)
    columns = {name: cells for name, cells in table.items() if isinstance(cells, list)}
    rest = [value for name, value in table.items() if name not in columns]
    lengths = {len(cells) for cells in columns.values()}
    nested = [*rest, *(cells[0] for cells in columns.values() if cells)]
    if len(columns) < 2 or any(isinstance(value, dict) for value in nested) or len(lengths) != 1 or lengths == {0}:
        return None
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _rows_of_objects(table: Mapping[str, Mapping[str, Any]]) -> Rows | None:
    """Return the rows of ``{column: {row: cell}}`` or ``{row: {column: cell}}``; rows are numbered, or are more."""
    outer, inner = list(table), list(next(iter(table.values())))
    numbered = [all(str(key).lstrip("-").isdigit() for key in keys) for keys in (outer, inner)]
    cells = next(iter(table.values())).values()
    is_nested = any(isinstance(cell, dict | list) for cell in cells) and numbered != [True, False]
    if is_nested or any(set(cells) != set(inner) for cells in table.values()):
        return None  # a mapping of other things
    rows_inside = numbered[1] if numbered[0] != numbered[1] else len(inner) >= len(outer)
    if rows_inside:
        return [{name: table[name][key] for name in outer} for key in inner]
    return [dict(table[key]) for key in outer]
