"""Tables of predictions: columns, formats, and where they may go."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hftoolkit.data.files import write_table
from hftoolkit.errors import EnvironmentFault, RecipeError

OUTPUT_FORMATS = (".csv", ".jsonl", ".parquet")


def check_output(path: Path, source: Path) -> None:
    """Refuse what cannot become a prediction file, before the work is done.

    Raises:
        RecipeError: an unknown ending, a missing folder, or the input itself.
    """
    if path.suffix not in OUTPUT_FORMATS:
        raise RecipeError(f"--output {path.name}: the ending must be one of {', '.join(OUTPUT_FORMATS)}")
    if not path.parent.is_dir():
        raise RecipeError(f"--output {path}: there is no folder {path.parent}; make it, or name another one")
    if path.exists() and source.exists() and path.samefile(source):
        raise RecipeError(f"--output {path} is the input itself; name another file")


def write_prediction_file(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write a prediction table as CSV, JSONL or Parquet, by the ending of ``path``.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    assert path.suffix in OUTPUT_FORMATS, path
    try:
        if path.suffix == ".parquet":
            write_table(columns, path)
        else:
            path.write_text(as_csv(columns) if path.suffix == ".csv" else as_jsonl(columns), encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}") from error


def write_csv(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write a table as CSV, numbers that are no counts with 6 decimals; ``path`` is overwritten."""
    rounded = {
        name: [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells] for name, cells in columns.items()
    }
    path.write_text(as_csv(rounded, "\r\n"), encoding="utf-8", newline="")


def write_or_format(columns: Mapping[str, Sequence[Any]], path: Path | None) -> str:
    """Write a prediction table to ``path``, or return it as CSV text if that is None."""
    if path is None:
        return as_csv(columns)
    write_prediction_file(columns, path)
    return ""


def as_csv(columns: Mapping[str, Sequence[Any]], line_end: str = "\n") -> str:
    """Return a table as CSV text with a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=line_end)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue()


def as_jsonl(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table as one JSON object a line."""
    rows = zip(*columns.values(), strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
