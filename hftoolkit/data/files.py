"""Read one table file into columns of plain Python values; rows keep the order of the file."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from hftoolkit.data.formats.content import OPEN_COMPRESSED, decode, read_bytes, read_zip
from hftoolkit.data.formats.json_rows import parse_json
from hftoolkit.data.formats.parsed import Columns, ParsedFile, by_name
from hftoolkit.data.formats.separated import SEPARATOR_OF, parse_separated
from hftoolkit.data.formats.spreadsheet import parse_spreadsheet
from hftoolkit.errors import DataError
from hftoolkit.recipe.sections import TableFormat

__all__ = ["ENDINGS", "SEPARATORS", "Columns", "ending_of", "read_bytes", "read_file", "write_table"]

SEPARATORS = {".csv": ",", ".tsv": "\t"}  # of tables of pixels
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
ARROW_ENDINGS = (".parquet", ".arrow", ".feather")
ENDINGS = (*SEPARATOR_OF, *JSON_ENDINGS, *ARROW_ENDINGS, ".xlsx")
OTHER_SPREADSHEETS = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
OTHER_ARCHIVES = (".tar", ".tgz", ".7z", ".rar", ".zst", ".tbz2", ".txz")


def write_table(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write columns of one length as Parquet."""
    pq.write_table(pa.table({name: list(cells) for name, cells in columns.items()}), path)


def ending_of(path: PurePath) -> str | None:
    """Return which of ``ENDINGS`` a file name has, looking through compression (``x.csv.gz``, ``x.parquet.brotli``).

    A ``.zip`` archive may hold a table of any kind: its ending is ``.zip``.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] == ".zip":
        return ".zip"
    if len(suffixes) == 2 and (suffixes[0] == ".parquet" or suffixes[1] in OPEN_COMPRESSED):
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else None


def read_file(
    path: Path, how: TableFormat, knobs: str, csv_options: Mapping[str, Any], names: Sequence[str] | None
) -> ParsedFile:
    """Read one file by its ending.

    Args:
        path: the file.
        how: what the recipe says of separators, quotes, encoding and names.
        knobs: what the recipe calls that section.
        csv_options: keyword arguments of ``csv.reader`` that a data set card gives.
        names: column names of a CSV file that has no header line, of a data set card.

    Raises:
        DataError: unknown ending, unreadable, in another encoding, malformed, or without rows.
        EnvironmentFault: the package for this kind of file is not installed.
    """
    ending = ending_of(path)
    if ending is None:
        raise DataError(_unknown_ending(path))
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty")
    content: Path | bytes = path
    if ending == ".zip":
        name, content = read_zip(path, lambda inside: ending_of(inside) in ENDINGS and not _is_packed(inside))
        ending = ending_of(PurePath(name)) or ""
    parsed = _parse(content, path.name, ending, how, knobs, (csv_options, how.names or names))
    if not parsed.columns or not next(iter(parsed.columns.values())):
        raise DataError(f"{path.name} has no rows")
    return parsed


def _is_packed(inside: PurePath) -> bool:
    return inside.suffix.lower() in (*OPEN_COMPRESSED, ".zip")


def _parse(
    content: Path | bytes,
    file: str,
    ending: str,
    how: TableFormat,
    knobs: str,
    card: tuple[Mapping[str, Any], Sequence[str] | None],
) -> ParsedFile:
    if ending in ARROW_ENDINGS:
        return _read_arrow(content, file, ending)
    data = read_bytes(content) if isinstance(content, Path) else content
    if ending == ".xlsx":
        return parse_spreadsheet(data, file, sheet=how.sheet, knobs=knobs)
    text, note = decode(data, file, how.encoding, f"{knobs}.encoding")
    options, names = card
    if ending in JSON_ENDINGS:
        parsed = parse_json(text, file, by_line=ending != ".json", root=how.root, names=names, knobs=knobs)
    else:
        parsed = parse_separated(
            text,
            file,
            usual=SEPARATOR_OF[ending],
            separator="\t" if how.separator == "tab" else how.separator,
            quoting=how.quoting,
            names=names,
            options=options,
            knobs=knobs,
        )
    return replace(parsed, notes=(note, *parsed.notes)) if note else parsed


def _unknown_ending(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".py":
        return f"{path.name} is a dataset script; scripts are not run. Save the rows as Parquet, CSV or JSON lines"
    if suffix in OTHER_SPREADSHEETS:
        return f"{path.name} is a spreadsheet of a kind that is not read; save it as CSV (UTF-8), or as .xlsx"
    if suffix in OTHER_ARCHIVES or ".tar" in path.suffixes:
        return f"{path.name} is an archive; unpack it, and set data.source to the folder, or to one file in it"
    known = ", ".join((*ENDINGS, ".zip"))
    return f"cannot tell the format of {path.name} by its ending (known: {known}; also with .gz, .bz2 or .xz)"


def _read_arrow(content: Path | bytes, file: str, ending: str) -> ParsedFile:
    if isinstance(content, Path) and content.suffix.lower() in OPEN_COMPRESSED and not _begins_as_parquet(content):
        content = read_bytes(content)  # compressed as a whole; Parquet names the compression inside of it alike
    try:
        source = content if isinstance(content, Path) else io.BytesIO(content)
        table = pq.read_table(source) if ending == ".parquet" else _read_ipc(content)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as {ending[1:]}: {error}") from error
    columns, repeated = by_name(table.column_names, [column.to_pylist() for column in table.columns])
    return ParsedFile(columns, {}, repeated, schema=table.schema)


def _begins_as_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _read_ipc(content: Path | bytes) -> Any:
    with pa.memory_map(str(content)) if isinstance(content, Path) else pa.BufferReader(content) as source:
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        return (pa.ipc.open_file(source) if is_file_format else pa.ipc.open_stream(source)).read_all()
