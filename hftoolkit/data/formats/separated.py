"""Cells with separators between them: which separator, quoted or not, and rows with another number of cells."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hftoolkit.data.formats.parsed import Broken, ParsedFile, by_name
from hftoolkit.errors import DataError

# The separator that an ending promises.
SEPARATOR_OF = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|", ".txt": None}
SEPARATORS = (",", "\t", ";", "|")
SAID = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}
NO_SEPARATOR = "\x1f"  # where no line has any: each is one cell
# Far above any text, so that a cell is never refused for its length; csv's own limit is 128 KiB.
LARGEST_CELL_CHARACTERS = 2**31 - 1

SAMPLE_LINES = 1000
# Share of sampled rows with as many cells as the first line, under which another separator than the usual one is tried,
# and over which it is taken.
EVEN_ENOUGH, FEWEST_EVEN = 0.9, 0.5
# With more broken rows than this, the file is not what it was taken for.
MOST_BROKEN = 0.5

CELLS = "row has another number of cells than the header"
QUOTES = "row has quotes in the wrong places"
EXCEL_HINT = re.compile(r"sep=(.)\s*")  # a first line that spreadsheets write


@dataclass(slots=True)
class _Reading:
    """What one way of reading the lines gives.

    ``fused`` counts cells over several lines each of which would make a whole row, ``long`` all cells over several
    lines, ``fault`` is what the reading ended at, and ``headed`` says that the first line is a header.
    """

    first: list[str] = field(default_factory=list)
    rows: list[Sequence[str | None]] = field(default_factory=list)
    broken: dict[int, Broken] = field(default_factory=dict)
    fused: int = 0
    long: int = 0
    fault: str | None = None
    headed: bool = False


def parse_separated(
    text: str,
    file: str,
    *,
    usual: str | None,
    separator: str | None,
    quoting: str,
    names: Sequence[str] | None,
    options: Mapping[str, Any],
    knobs: str,
) -> ParsedFile:
    """Read a table of cells; every cell stays the text it is, ``NA`` and empty ones too, and blank lines are no rows.

    Args:
        text: of the file.
        file: its name, for messages.
        usual: the separator that the ending promises, or None.
        separator: the one that the recipe says, or None to find it.
        quoting: ``standard``, ``none``, or ``auto``: standard, unless it would fuse rows.
        names: column names of a file that has no header line.
        options: keyword arguments of ``csv.reader`` that a data set card gives.
        knobs: what the recipe calls the section with these settings.

    Raises:
        DataError: the quotes do not fit, or most rows have another number of cells than the header.
    """
    lines = list(io.StringIO(text, newline=""))
    hinted = EXCEL_HINT.fullmatch(lines[0]) if lines else None
    if hinted:
        lines[0] = "\n"
    options = dict(options)
    given = separator or options.pop("delimiter", None) or (hinted and hinted[1])
    if quoting == "none":
        options["quoting"] = csv.QUOTE_NONE
    with _cells_of_any_size():
        found = given or find_separator(lines, usual, options)
        reading = _read(lines, {**options, "delimiter": found}, names)
        unquoted = (
            _without_quotes(reading, lines, {**options, "delimiter": found}, names) if quoting == "auto" else None
        )
    notes = []
    if given is None and usual != found and (usual or found != NO_SEPARATOR):
        notes.append(f"cells of {file} are separated by {SAID.get(found, found)} ({knobs}.separator)")
    if unquoted is not None and found == "\t":
        reading = unquoted
        notes.append(
            f"quotes in {file} are read as plain characters, since they do not enclose cells ({knobs}.quoting)"
        )
    elif unquoted is not None and reading.fault is None and 2 * reading.fused > reading.long:
        raise DataError(_fused(reading, file, knobs))
    if reading.fault is not None:
        raise DataError(f"{file}, {reading.fault}. {_about_quotes(knobs)}")
    return _table(reading, file, names, notes, knobs)


def find_separator(lines: Sequence[str], usual: str | None, options: Mapping[str, Any]) -> str:
    """Return what divides the first line, and most others, into equally many cells; the usual one where that does."""
    first = next((line for line in lines if line.strip()), "")
    sample = lines[:SAMPLE_LINES]
    even: dict[str, float] = {}  # share of rows as wide as the first, of separators that divide it
    for separator in dict.fromkeys((usual or ",", *SEPARATORS)):
        if separator in first:
            widths = [len(cells) for cells in csv.reader(sample, **{**options, "delimiter": separator}) if cells]
            if widths and widths[0] > 1:
                even[separator] = sum(width == widths[0] for width in widths) / len(widths)
    if not even:
        return usual or NO_SEPARATOR
    best = max(even, key=lambda each: even[each])
    if even.get("\t") == 1 and usual == ",":
        return "\t"  # texts have commas, evenly or not, and hardly ever tabs
    if usual in even:
        return usual if even[usual] >= min(EVEN_ENOUGH, even[best]) else best
    return best if even[best] >= FEWEST_EVEN else usual or NO_SEPARATOR


def _read(lines: Sequence[str], options: Mapping[str, Any], names: Sequence[str] | None) -> _Reading:
    reading = _Reading(list(names or ()))
    reader = csv.reader(lines, strict=True, **options)
    separator = options["delimiter"]
    start = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return reading
        except csv.Error as error:
            place = f"line {reader.line_num}"
            reading.broken[len(reading.rows) + 1] = Broken(QUOTES, place, f"is not valid CSV: {error}")
            reading.rows.append(())
            # A quote that was never closed has taken more than its row.
            if reader.line_num - start > 1:
                reading.fault = f"row {len(reading.rows)} ({place}) is not valid CSV: {error}"
                return reading
        else:
            if cells and not reading.rows and not reading.headed and _is_header(cells, names):
                reading.first, reading.headed = cells, True
            elif cells:
                _add(reading, cells, f"line {reader.line_num}")
                if reader.line_num - start > 1:
                    reading.long += 1
                    width = len(reading.first)
                    reading.fused += width > 1 and all(
                        line.count(separator) == width - 1 for line in lines[start : reader.line_num] if line.strip()
                    )
        start = reader.line_num


def _is_header(cells: Sequence[str], names: Sequence[str] | None) -> bool:
    """Tell whether the first line names columns: always without names, and with them where it has one of these."""
    return not names or any(cell.strip("\ufeff ") in names for cell in cells)


def _add(reading: _Reading, cells: list[str], place: str) -> None:
    width = len(reading.first)
    while len(cells) > width and not cells[-1]:
        cells.pop()  # separators at the end of a line
    if len(cells) != width:
        detail = f"has {len(cells)} cells, but there are {width} columns"
        reading.broken[len(reading.rows) + 1] = Broken(CELLS, place, detail)
    reading.rows.append(cells)


def _without_quotes(
    reading: _Reading, lines: Sequence[str], options: Mapping[str, Any], names: Sequence[str] | None
) -> _Reading | None:
    """Return the rows with quotes as plain characters, where only so no rows are fused or broken by quotes."""
    if options.get("quoting") == csv.QUOTE_NONE:
        return None
    by_quotes = sum(broken.reason == QUOTES for broken in reading.broken.values())
    if not by_quotes and not 2 * reading.fused > reading.long:
        return None
    plain = _read(lines, {**options, "quoting": csv.QUOTE_NONE}, names)
    is_better = len(plain.first) == len(reading.first) and (
        len(plain.broken) < by_quotes + 2 * reading.fused or not plain.broken
    )
    return plain if is_better else None


def _fused(reading: _Reading, file: str, knobs: str) -> str:
    count = "a quote" if reading.fused == 1 else f"{reading.fused} quotes"
    return (
        f"{file}: {count} at the start of a cell, closed only lines later, would make one row of lines that are rows "
        f"by themselves. Set {knobs}.quoting: none if quotes are plain characters there, or standard if these cells do "
        "have several lines"
    )


def _about_quotes(knobs: str) -> str:
    return (
        "A quoted cell ends with a double quote; a double quote inside it is written twice. If quotes are plain "
        f"characters there, set {knobs}.quoting: none"
    )


def _table(reading: _Reading, file: str, names: Sequence[str] | None, notes: list[str], knobs: str) -> ParsedFile:
    rows, broken = reading.rows, reading.broken
    if names and reading.headed:
        notes.append(f"the first line of {file} is a header, and no row; {knobs}.names is not used")
    if len(broken) > MOST_BROKEN * len(rows):
        raise DataError(_mostly_broken(broken, len(rows), file, not reading.headed, knobs))
    empty = (None,) * len(reading.first)
    whole = [empty if number in broken else row for number, row in enumerate(rows, start=1)] if broken else rows
    cells = [list(column) for column in zip(*whole, strict=True)] if whole else [[] for _ in reading.first]
    columns, repeated = by_name(reading.first, cells)
    return ParsedFile(columns, broken, repeated, tuple(notes), header=reading.headed)


def _mostly_broken(broken: Mapping[int, Broken], num_rows: int, file: str, named: bool, knobs: str) -> str:
    number, first = next(iter(broken.items()))
    start = f"{file}, row {number} ({first.place}) {first.detail}"
    if first.reason == QUOTES:
        return f"{start}. {_about_quotes(knobs)}"
    names = f"correct {knobs}.names" if named else f"name the columns with {knobs}.names if there is no header line"
    return (
        f"{start}, and so it is with {len(broken)} of {num_rows} rows; set {knobs}.separator if cells are separated by "
        f"another character, or {names}, or remove what stands before the header"
    )


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    limit = csv.field_size_limit(LARGEST_CELL_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
