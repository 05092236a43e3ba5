"""Tables of predictions: columns, formats, and where they may go."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hftoolkit.data import write_table
from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.predictor.common import Prediction

OUTPUT_FORMATS = (".csv", ".jsonl", ".parquet")


def prediction_columns(
    predictions: Sequence[Prediction], names: Sequence[str], examples: Sequence[str] = (), top_k: int | None = None
) -> dict[str, list[Any]]:
    """Return a table: 1-based row, label, and the probability of each class (None for skipped rows).

    Args:
        predictions: one a row.
        names: the classes.
        examples: the file name of each row, for a column of its own; none for rows without.
        top_k: columns ``top1``, ``p1``, ... of the most probable classes instead of one column a class.
    """
    columns: dict[str, list[Any]] = {"row": list(range(1, len(predictions) + 1))}
    if examples:
        columns["image"] = list(examples)
    columns["label"] = [prediction.label for prediction in predictions]
    if top_k is None:
        return columns | {f"p({name})": [p.probabilities.get(name) for p in predictions] for name in names}
    ranked = [sorted(p.probabilities.items(), key=lambda entry: -entry[1]) for p in predictions]
    for place in range(min(top_k, len(names))):
        columns[f"top{place + 1}"] = [row[place][0] if row else None for row in ranked]
        columns[f"p{place + 1}"] = [row[place][1] if row else None for row in ranked]
    return columns


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


def write_or_format(columns: Mapping[str, Sequence[Any]], path: Path | None) -> str:
    """Write a prediction table to ``path``, or return it as CSV text if that is None."""
    if path is None:
        return as_csv(columns)
    write_prediction_file(columns, path)
    return ""


def as_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table as CSV text with a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue()


def as_jsonl(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table as one JSON object a line."""
    rows = zip(*columns.values(), strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
