"""Sheets of Excel files, read with openpyxl where that is installed."""

import io
import zipfile
from datetime import date, datetime
from typing import Any

from hftoolkit.data.formats.content import ALWAYS_ALLOWED_BYTES, MOST_EXPANSION
from hftoolkit.data.formats.parsed import ParsedFile, by_name
from hftoolkit.errors import DataError, EnvironmentFault


def parse_spreadsheet(content: bytes, file: str, *, sheet: str | None, knobs: str) -> ParsedFile:
    """Read one sheet, whose first row that is not empty names the columns; empty rows are left out.

    Args:
        content: of the .xlsx file.
        file: its name, for messages.
        sheet: which one; None: the first.
        knobs: what the recipe calls the section with these settings.

    Raises:
        DataError: damaged, too large when unpacked, or no such sheet.
        EnvironmentFault: openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise EnvironmentFault(
            f"{file} is an Excel file; pip install 'hftoolkit[excel]' to read it, or save it as CSV in the spreadsheet "
            "program (UTF-8) and set data.source to that"
        ) from error
    _check_size(content, file)
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        names = [each.title for each in book.worksheets]
        if sheet is not None and sheet not in names:
            raise DataError(f"{file} has no sheet {sheet!r}; it has: {', '.join(names)}. Edit {knobs}.sheet")
        chosen = book[sheet or names[0]]
        chosen.reset_dimensions()  # what programs write there is often wrong
        rows = [list(row) for row in chosen.iter_rows(values_only=True)]
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, IndexError) as error:
        raise DataError(f"cannot read {file} as an Excel file: {error}; save it as CSV (UTF-8)") from error
    filled = [row for row in rows if any(cell not in (None, "") for cell in row)]
    width = max((len(row) for row in filled), default=0)
    even = [[*map(_plain, row), *[None] * (width - len(row))] for row in filled]
    used = [place for place in range(width) if any(row[place] not in (None, "") for row in even)]
    header = ["" if even[0][place] is None else even[0][place] for place in used] if even else []
    columns, repeated = by_name(header, [[row[place] for row in even[1:]] for place in used])
    unread = [name for name in names if name != chosen.title]
    notes = (
        [f"of {file}, the sheet {chosen.title!r} is read, not {', '.join(unread)} ({knobs}.sheet)"] if unread else []
    )
    return ParsedFile(columns, {}, repeated, () if sheet else tuple(notes), header=True)


def _plain(cell: Any) -> Any:
    """Return a cell as what other tables would have: dates in ISO form, whole numbers without a point."""
    if isinstance(cell, datetime | date):
        return cell.isoformat()
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _check_size(content: bytes, file: str) -> None:
    try:
        unpacked = sum(info.file_size for info in zipfile.ZipFile(io.BytesIO(content)).infolist())
    except zipfile.BadZipFile as error:
        raise DataError(f"cannot read {file} as an Excel file: {error}; save it as CSV (UTF-8)") from error
    if unpacked > max(ALWAYS_ALLOWED_BYTES, MOST_EXPANSION * len(content)):
        raise DataError(
            f"{file} unpacks to {unpacked:,} bytes from {len(content):,}, too much for a table; save it as CSV"
        )
