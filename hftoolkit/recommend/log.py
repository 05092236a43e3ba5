"""Read the interaction log, the catalogue and the users: checked row by row; nothing is dropped unsaid."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from hftoolkit.data.labels import canonical_value
from hftoolkit.data.tables import DataTable, require_columns
from hftoolkit.data.text_rows import cell_text, join_parts, parse_template
from hftoolkit.errors import DataError
from hftoolkit.recipe import InteractionTable, ItemTable, UserTable

ROWS_SHOWN = 5
NUMBER_GROUPS = 5  # groups of equal size that a column of numbers is divided into

BROKEN = "row cannot be read"
NO_USER = "user is missing"
NO_ITEM = "item is missing"
UNKNOWN_ITEM = "item is not in the catalogue"
NO_TIME = "timestamp is missing or no time"
NO_VALUE = "value is missing or no number"
NO_WEIGHT = "weight is missing or not over 0"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items that can be recommended.

    Attributes:
        ids: I different ids.
        texts: what the tower reads of each.
        titles: what a person reads of each: its first column.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    titles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Log:
    """The usable interactions, sorted by user, time and row.

    Attributes:
        user_ids: U different ids, in order of appearance.
        users: (N,) places in ``user_ids``.
        items: (N,) places in the catalogue.
        times: (N,) seconds or whatever the timestamps count; file rows where there are none.
        weights: (N,) float32.
        row_numbers: (N,) 1-based rows of the table.
        skipped: reason -> rows left out because they cannot be used.
        below_minimum: rows left out for their value.
        repeats: rows left out because the same user chose the same item again later.
    """

    user_ids: tuple[str, ...]
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    weights: np.ndarray
    row_numbers: np.ndarray
    skipped: dict[str, int]
    below_minimum: int
    repeats: int

    def __len__(self) -> int:
        return len(self.users)


def read_catalogue(table: DataTable, section: ItemTable) -> Catalogue:
    """Return the items in the order of their table.

    Raises:
        DataError: a column is missing, an id is missing or occurs twice, an item has no text, or a flag is not 0 or 1.
        RecipeError: the template does not fit the columns.
    """
    flag_columns = [column for columns in section.flags.values() for column in columns]
    require_columns(table, (section.id, *section.columns, *flag_columns), "data.items")
    ids = [canonical_value(cell) for cell in table.columns[section.id]]
    _check_ids(ids, table.source, section.id)
    cells = [[cell_text(cell) or "" for cell in table.columns[name]] for name in section.columns]
    cells += [_flag_names(table, columns) for columns in section.flags.values()]
    names = (*section.columns, *section.flags)
    template = section.template and parse_template(
        section.template, names, "data.items.template", "data.items.columns and flags"
    )
    texts = [join_parts(parts, names, template or None) for parts in zip(*cells, strict=True)]
    empty = [number for number, parts in enumerate(zip(*cells, strict=True), start=1) if not any(parts)]
    if empty:
        raise DataError(f"{len(empty)} items of {table.source} have no text ({_shown(empty)}); name more columns of it")
    return Catalogue(tuple(ids), tuple(texts), tuple(cells[0]))


def read_log(
    table: DataTable, section: InteractionTable, catalogue: Catalogue, on_bad_rows: str, knob: str = "data.on_bad_rows:"
) -> Log:
    """Return the interactions in order; where a user chose an item more than once, the latest time stays.

    Args:
        table: a row for each interaction.
        section: which columns it has.
        catalogue: the items.
        on_bad_rows: ``skip`` leaves out rows that cannot be used, ``error`` refuses them.
        knob: what the message calls that.

    Raises:
        DataError: a column is missing, rows cannot be used and ``on_bad_rows`` is ``error``, or nothing is left.
    """
    columns = section.columns
    _require_who_and_what(table, section)
    reasons = np.zeros(table.num_rows, dtype=np.int8)  # place in ``names``; the first reason of a row stays
    names = ("", BROKEN, NO_USER, NO_ITEM, UNKNOWN_ITEM, NO_TIME, NO_VALUE, NO_WEIGHT)

    def blame(bad: np.ndarray, reason: str) -> None:
        reasons[bad & (reasons == 0)] = names.index(reason)

    blame(np.isin(np.arange(table.num_rows) + 1, list(table.broken)), BROKEN)
    users, user_ids = _codes(table.columns[columns.user])
    places, item_ids = _codes(table.columns[columns.item])
    known = {item: place for place, item in enumerate(catalogue.ids)}
    items = np.array([known.get(item, -1) for item in item_ids] or [-1], dtype=np.int64)[places]
    blame(users < 0, NO_USER)
    blame(places < 0, NO_ITEM)
    blame(items < 0, UNKNOWN_ITEM)
    rows = np.arange(table.num_rows, dtype=np.float64)
    times = rows if columns.timestamp is None else _times(table.columns[columns.timestamp])
    blame(np.isnan(times), NO_TIME)
    weights = np.ones(table.num_rows) if columns.weight is None else _numbers(table.columns[columns.weight])
    blame(~(weights > 0), NO_WEIGHT)
    values = np.zeros(table.num_rows) if columns.value is None else _numbers(table.columns[columns.value])
    blame(np.isnan(values), NO_VALUE)
    skipped = _counted(reasons, names, table, on_bad_rows, knob)
    wanted = values >= section.minimum_value if section.minimum_value is not None else np.ones(len(rows), dtype=bool)
    kept = np.flatnonzero((reasons == 0) & wanted)
    if not len(kept):
        raise DataError(f"no interaction of {table.source} can be used: {skipped}, {(~wanted).sum()} below the minimum")
    order = kept[np.lexsort((kept, times[kept], users[kept]))]
    latest = _last_of_each_pair(users[order], items[order])
    repeats = len(order) - len(latest)
    order = order[latest]
    return Log(
        user_ids=tuple(user_ids),
        users=users[order],
        items=items[order],
        times=times[order],
        weights=weights[order].astype(np.float32),
        row_numbers=order + 1,
        skipped=skipped,
        below_minimum=int(((reasons == 0) & ~wanted).sum()),
        repeats=repeats,
    )


def read_groups_of_users(table: DataTable, section: UserTable, user_ids: Sequence[str]) -> tuple[np.ndarray, int]:
    """Return which groups each user is in, (U, G) float32 of 0 and 1, and how many users the table lacks.

    A group is a value of a category column, or a fifth of a column of numbers.

    Raises:
        DataError: a column is missing or holds no number, or an id is missing or occurs twice.
    """
    require_columns(table, (section.id, *section.categories, *section.numbers), "data.users")
    ids = [canonical_value(cell) for cell in table.columns[section.id]]
    _check_ids(ids, table.source, section.id)
    membership = _membership(table, section.categories, section.numbers)
    place = {user: row for row, user in enumerate(ids)}
    rows = np.array([place.get(user, -1) for user in user_ids])
    return np.where((rows >= 0)[:, None], membership[rows], 0).astype(np.float32), int((rows < 0).sum())


def read_attributes(table: DataTable, section: ItemTable) -> np.ndarray:
    """Return which attributes each item has, (I, A) float32 of 0 and 1: its flags, and groups as users have them.

    Raises:
        DataError: a column is missing or holds no number, or a flag is not 0 or 1.
    """
    require_columns(table, (*section.categories, *section.numbers), "data.items")
    flags = [_flags(table, name) for columns in section.flags.values() for name in columns]
    groups = _membership(table, section.categories, section.numbers)
    return np.concatenate([np.array(flags).reshape(-1, table.num_rows).T, groups], axis=1).astype(np.float32)


def _membership(table: DataTable, categories: Sequence[str], numbers: Sequence[str]) -> np.ndarray:
    """Return which groups each row is in, (rows, G): a value of a category, or a fifth of a column of numbers."""
    columns = [_codes(table.columns[name])[0] for name in categories]
    for name in numbers:
        values = _times(table.columns[name])
        if np.isnan(values).all():
            raise DataError(f"{table.source}: no value of {name} is a number or a date; name it under categories")
        edges = np.unique(np.nanquantile(values, np.arange(1, NUMBER_GROUPS) / NUMBER_GROUPS))
        columns.append(np.where(np.isnan(values), -1, np.searchsorted(edges, values, side="right")))
    blocks = [column[:, None] == np.arange(column.max() + 1) for column in columns]
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((table.num_rows, 0))


def _require_who_and_what(table: DataTable, section: InteractionTable) -> None:
    columns = section.columns
    named = [columns.user, columns.item, columns.timestamp, columns.value, columns.weight]
    try:
        require_columns(table, [name for name in named if name], "data.interactions.columns")
    except DataError as error:
        if columns.user in table.columns:
            raise
        raise DataError(
            f"{error}. A recommender learns from who chose what; without a column that names the users there are no "
            "histories to learn from"
        ) from error


def _check_ids(ids: Sequence[str], source: str, column: str) -> None:
    missing = [number for number, name in enumerate(ids, start=1) if not name]
    if missing:
        raise DataError(f"{len(missing)} rows of {source} have no {column} ({_shown(missing)}); fill them in")
    if len(set(ids)) < len(ids):
        first = {name: number for number, name in reversed(list(enumerate(ids, start=1)))}
        repeated = [number for number, name in enumerate(ids, start=1) if first[name] != number]
        raise DataError(f"{len(repeated)} rows of {source} repeat a {column} ({_shown(repeated)}); keep one of each")


def _flag_names(table: DataTable, columns: Sequence[str]) -> list[str]:
    """Return the names of the columns that hold 1, joined by commas, for each row."""
    parts: list[list[str]] = [[] for _ in range(table.num_rows)]
    for name in columns:
        for row in np.flatnonzero(_flags(table, name)):
            parts[row].append(name)
    return [", ".join(part) for part in parts]


def _flags(table: DataTable, name: str) -> np.ndarray:
    """Return where a column holds 1, (rows,) bool."""
    flags = [canonical_value(cell) for cell in table.columns[name]]
    for row, flag in enumerate(flags):
        if flag not in ("0", "1", "false", "true", ""):
            cell = table.columns[name][row]
            raise DataError(f"{table.source}, row {row + 1}: {name} is {cell!r}, but data.items.flags are 0 or 1")
    return np.isin(flags, ("1", "true"))


def _codes(cells: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """Return a number for each cell, -1 for a missing one, and the canonical text of each number."""
    by_text: dict[str, int] = {}
    by_cell: dict[Any, int] = {}
    for cell in dict.fromkeys(cells):
        text = canonical_value(cell)
        by_cell[cell] = by_text.setdefault(text, len(by_text)) if text else -1
    return np.fromiter(map(by_cell.__getitem__, cells), dtype=np.int64, count=len(cells)), list(by_text)


def _numbers(cells: Sequence[Any]) -> np.ndarray:
    """Return the cells as numbers, nan for what is none."""
    try:
        numbers = np.array(cells, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.array([_number(cell) for cell in cells])
    numbers[np.isinf(numbers)] = np.nan
    return numbers


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def _times(cells: Sequence[Any]) -> np.ndarray:
    """Return seconds for dates and ISO texts, and numbers as they are; nan for what is neither."""
    numbers = _numbers(cells)
    for row in np.flatnonzero(np.isnan(numbers)):
        numbers[row] = _seconds(cells[int(row)])
    return numbers


def _seconds(cell: Any) -> float:
    moment = _moment(cell.strip()) if isinstance(cell, str) else cell
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if not isinstance(moment, datetime):
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _moment(text: str) -> datetime | None:
    """Return the time that an ISO text or one such as 01-Jan-1995 names; None if it is neither."""
    for read in (datetime.fromisoformat, lambda text: datetime.strptime(text, "%d-%b-%Y")):
        with suppress(ValueError):
            return read(text)
    return None


def _counted(
    reasons: np.ndarray, names: Sequence[str], table: DataTable, on_bad_rows: str, knob: str
) -> dict[str, int]:
    rows_by_reason = {name: np.flatnonzero(reasons == code) + 1 for code, name in enumerate(names) if name}
    found = {name: rows for name, rows in rows_by_reason.items() if len(rows)}
    if found and on_bad_rows == "error":
        lines = [f"  {name}: {len(rows)} ({_shown(rows.tolist())})" for name, rows in found.items()]
        total = sum(map(len, found.values()))
        raise DataError(
            "\n".join([f"{total} of {table.num_rows} rows of {table.source} cannot be used:", *lines])
            + f"\nFix these rows, or leave them out with {knob} skip"
        )
    return {name: len(rows) for name, rows in found.items()}


def _last_of_each_pair(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the places, ascending, where a user has an item for the last time."""
    pairs = users * (int(items.max()) + 1) + items
    _, from_the_end = np.unique(pairs[::-1], return_index=True)
    return np.sort(len(pairs) - 1 - from_the_end)


def _shown(rows: Sequence[int]) -> str:
    more = ", ..." if len(rows) > ROWS_SHOWN else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows[:ROWS_SHOWN]))}{more}"
