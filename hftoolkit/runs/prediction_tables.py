"""Tables of predictions: columns, formats, and where they may go."""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hftoolkit.data.files import write_table
from hftoolkit.errors import EnvironmentFault, RecipeError

OUTPUT_FORMATS = (".csv", ".jsonl", ".parquet")


def check_output(path: Path, source: Path) -> None:
    """Refuse what cannot become a prediction file, before the work is done.

    Raises:
        RecipeError: an unknown ending, a missing folder, a folder, or the input itself.
        EnvironmentFault: the folder cannot be written to.
    """
    if path.suffix not in OUTPUT_FORMATS:
        raise RecipeError(f"--output {path.name}: the ending must be one of {', '.join(OUTPUT_FORMATS)}")
    if not path.parent.is_dir():
        raise RecipeError(f"--output {path}: there is no folder {path.parent}; make it, or name another one")
    if path.is_dir():
        raise RecipeError(f"--output {path} is a folder; name a file in it, like {path / 'predictions.csv'}")
    if path.exists() and source.exists() and path.samefile(source):
        raise RecipeError(f"--output {path} is the input itself; name another file")
    if not os.access(path.resolve().parent, os.W_OK):
        raise EnvironmentFault(f"cannot write {path}: no permission in {path.resolve().parent}; name another folder")


def write_prediction_file(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write a prediction table as CSV, JSONL or Parquet, by the ending of ``path``.

    Raises:
        EnvironmentFault: the file cannot be written; one that was there is as it was.
    """
    assert path.suffix in OUTPUT_FORMATS, path
    with written_whole(path) as part:
        if path.suffix == ".parquet":
            write_table({name: _flat(cells) for name, cells in columns.items()}, part)
        else:
            part.write_text(as_csv(columns) if path.suffix == ".csv" else as_jsonl(columns), encoding="utf-8")


def write_csv(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write a table as CSV, numbers that are no counts with 6 decimals; ``path`` is replaced.

    Raises:
        EnvironmentFault: the file cannot be written; one that was there is as it was.
    """
    rounded = {
        name: [f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells] for name, cells in columns.items()
    }
    with written_whole(path) as part:
        part.write_text(as_csv(rounded, "\r\n"), encoding="utf-8", newline="")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a file beside ``path`` to write to, which replaces it when all is on the disk.

    A link stays one: the file that it leads to is replaced.

    Raises:
        EnvironmentFault: it cannot be written; what was at ``path`` is as it was.
    """
    target = path.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_or_format(columns: Mapping[str, Sequence[Any]], path: Path | None) -> str:
    """Write a prediction table to ``path``, or return it as CSV text if that is None."""
    if path is None:
        return as_csv(columns)
    write_prediction_file(columns, path)
    return ""


def _flat(cells: Sequence[Any]) -> Sequence[Any]:
    """Return lists and objects as JSON, and all cells as texts where they are of types that share no column."""
    flat = [
        json.dumps(cell, ensure_ascii=False, default=str) if isinstance(cell, list | dict) else cell for cell in cells
    ]
    types = {type(cell) for cell in flat if cell is not None}
    return flat if len(types) < 2 or types == {int, float} else [None if cell is None else str(cell) for cell in flat]


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
    return "".join(
        json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=str) + "\n" for row in rows
    )
