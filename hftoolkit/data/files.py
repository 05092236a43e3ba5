"""Read one table file into columns of plain Python values; rows keep the order of the file."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from hftoolkit.errors import DataError

Columns = dict[str, list[Any]]

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather")
DECOMPRESS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
# Far above any text, so that a cell is never refused for its length; csv's own limit is 128 KiB.
LARGEST_CELL_CHARACTERS = 2**31 - 1


def write_table(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write columns of one length as Parquet."""
    pq.write_table(pa.table({name: list(cells) for name, cells in columns.items()}), path)


def ending_of(path: Path) -> str | None:
    """Return which of ``ENDINGS`` a file name has, looking through compression (``x.csv.gz``, ``x.parquet.brotli``)."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if len(suffixes) == 2 and (suffixes[0] == ".parquet" or suffixes[1] in DECOMPRESS):
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else None


def read_file(path: Path, csv_options: Mapping[str, Any], names: Sequence[str] | None) -> tuple[Columns, Any]:
    """Read one file by its ending.

    Args:
        path: the file.
        csv_options: keyword arguments of ``csv.reader`` that differ from the usual ones for this ending.
        names: column names of a CSV file that has no header line.

    Returns:
        The columns, and the Arrow schema where the file has one, else None.

    Raises:
        DataError: unknown ending, unreadable, not UTF-8, malformed, or without rows.
    """
    ending = ending_of(path)
    if ending is None:
        raise DataError(_unknown_ending(path))
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty")
    if ending in (".parquet", ".arrow", ".feather"):
        return _read_arrow(path, ending)
    text = _read_text(path)
    if ending in SEPARATORS:
        columns = _parse_csv(text, path.name, {"delimiter": SEPARATORS[ending], **csv_options}, names)
    else:
        columns = _parse_json(text, path.name)
    if not columns or not next(iter(columns.values())):
        raise DataError(f"{path.name} has no rows")
    return columns, None


def _unknown_ending(path: Path) -> str:
    if path.suffix == ".py":
        return f"{path.name} is a dataset script; scripts are not run. Save the rows as Parquet, CSV or JSON lines"
    known = ", ".join(ENDINGS)
    return f"cannot tell the format of {path.name} by its ending (known: {known}; also with .gz, .bz2 or .xz)"


def read_bytes(path: Path) -> bytes:
    """Return what a file holds, decompressed if its ending says so.

    Raises:
        DataError: it cannot be read, or its compression is damaged.
    """
    try:
        content = path.read_bytes()
        if path.suffix.lower() in DECOMPRESS:
            content = DECOMPRESS[path.suffix.lower()](content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot read {path.name}: {error}") from error
    return content


def _read_text(path: Path) -> str:
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} is not UTF-8 (byte 0x{error.object[error.start]:02x} in line {line}); save it as UTF-8, "
            "for example with: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error


def _parse_csv(text: str, file: str, options: Mapping[str, Any], names: Sequence[str] | None) -> Columns:
    """Every cell stays the text it is, ``NA`` and empty ones too; blank lines are not rows."""
    limit = csv.field_size_limit(LARGEST_CELL_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **options)
    header = list(names) if names else None
    rows: list[list[str]] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = cells
            elif len(cells) != len(header):
                raise DataError(
                    f"{file}, row {len(rows) + 1} (line {reader.line_num}) has {len(cells)} cells, "
                    f"but there are {len(header)} columns"
                )
            else:
                rows.append(cells)
    except csv.Error as error:
        raise DataError(
            f"{file}, row {len(rows) + 1} (line {reader.line_num}) is not valid CSV: {error}. "
            "A quoted cell ends with a double quote; a double quote inside it is written twice"
        ) from error
    finally:
        csv.field_size_limit(limit)
    return _by_column(_tidy(header or [], file), rows)


def _by_column(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Columns:
    return {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)} if rows else {}


def _parse_json(text: str, file: str) -> Columns:
    """Read a list of objects, or one object a line; a key that a row lacks is None there."""
    rows = _json_list(text, file) if text.lstrip().startswith("[") else _json_lines(text, file)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number} is not an object like {{'text': ..., 'label': ...}}: {row!r:.60}")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {name: [row.get(key) for row in rows] for key, name in zip(keys, _tidy(keys, file), strict=True)}


def _json_list(text: str, file: str) -> list[Any]:
    try:
        rows: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    return rows


def _json_lines(text: str, file: str) -> list[Any]:
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            place = f"{file}, row {len(rows) + 1} (line {line_number})"
            raise DataError(f"{place} is not valid JSON: {error}. Write one object a line, or a list") from error
    return rows


def _read_arrow(path: Path, ending: str) -> tuple[Columns, Any]:
    try:
        table = pq.read_table(path) if ending == ".parquet" else _read_ipc(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path.name} as {ending[1:]}: {error}") from error
    if table.num_rows == 0:
        raise DataError(f"{path.name} has no rows")
    names = _tidy(table.column_names, path.name)
    return {name: column.to_pylist() for name, column in zip(names, table.columns, strict=True)}, table.schema


def _read_ipc(path: Path) -> Any:
    with pa.memory_map(str(path)) as source:
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        return (pa.ipc.open_file(source) if is_file_format else pa.ipc.open_stream(source)).read_all()


def _tidy(names: Sequence[str], file: str) -> list[str]:
    """Return names without surrounding blanks and byte order marks; a nameless column is called by its place."""
    tidy = [name.strip("\ufeff \t\r\n") or f"column {place}" for place, name in enumerate(names, start=1)]
    repeated = sorted({name for name in tidy if tidy.count(name) > 1})
    if repeated:
        raise DataError(f"{file} has columns of the same name: {', '.join(repeated)}; rename or remove one")
    return tidy
