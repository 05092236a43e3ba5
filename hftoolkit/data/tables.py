"""Tables from a file or a folder: which files belong to which split, and the names of coded labels.

The ``datasets`` library decides which files of a folder form which split (data set cards, shards, ``save_to_disk``);
the files themselves are read here, since its CSV reader turns texts like ``NA`` into missing values.
"""

import difflib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.csv.csv import CsvConfig

from hftoolkit.data.files import Columns, ending_of, read_file
from hftoolkit.errors import DataError

CSV_READER_OPTIONS = ("quotechar", "quoting", "escapechar", "doublequote", "skipinitialspace")


@dataclass(frozen=True, slots=True)
class DataTable:
    """Rows of one split in the order of their files.

    Attributes:
        columns: column name -> plain Python values, ``num_rows`` each.
        class_names: columns with coded labels -> all names in code order; the columns hold names instead of codes.
        files: the files that were read, relative to the folder.
        joined_splits: the given splits that were put together because none was asked for; empty otherwise.
    """

    columns: Columns
    num_rows: int
    class_names: dict[str, list[str]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    joined_splits: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Where the rows come from, for messages."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return self.files[0] + more if self.files else "the table"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which files a folder offers, and how they are to be read."""

    files: dict[str, list[Path]]  # by split
    features: Any  # datasets.Features of the data set card, or None
    csv_options: dict[str, Any]
    csv_names: Sequence[str] | None


def read_table(path: Path, *, split: str | None = None, subset: str | None = None) -> DataTable:
    """Read a table file, or the files of one split of a folder.

    Args:
        path: a file, a folder of table files, or a snapshot of a Hub data set.
        split: name of a given split; None reads all rows, split after split.
        subset: configuration name in the data set card.

    Raises:
        DataError: missing or malformed files, or no such split or subset.
    """
    if path.is_dir():
        return _read_folder(path.resolve(), split, subset)
    if not path.exists():
        raise DataError(f"{path} does not exist; set data.source to a file or a folder that does")
    if split is not None or subset is not None:
        asked, key = (split, "data.split.train") if split is not None else (subset, "data.subset")
        raise DataError(f"{path.name} is a single file and has no {asked!r}; leave out {key}, or name a folder")
    columns, schema = read_file(path, {}, None)
    features = datasets.Features.from_arrow_schema(schema) if schema is not None else {}
    return _build(columns, features, (path.name,))


def require_columns(table: DataTable, names: Sequence[str], where: str) -> None:
    """Raise DataError unless the table has all ``names``; ``where`` is the recipe key that names them."""
    missing = [name for name in names if name not in table.columns]
    if not missing:
        return
    existing = {name.casefold(): name for name in table.columns}
    parts = []
    for name in missing:
        close = difflib.get_close_matches(name.strip().casefold(), existing, n=1)
        parts.append(repr(name) + (f" (did you mean {existing[close[0]]!r}?)" if close else ""))
    plural = "columns are" if len(missing) > 1 else "column is"
    raise DataError(
        f"{len(missing)} {plural} not in {table.source}: {', '.join(parts)}; "
        f"it has: {', '.join(map(repr, table.columns))}. Edit {where}"
    )


def _read_folder(folder: Path, split: str | None, subset: str | None) -> DataTable:
    layout = _layout(folder, subset)
    if split is None:
        chosen = [path for paths in layout.files.values() for path in paths]
        joined = tuple(layout.files) if len(layout.files) > 1 else ()
    else:
        chosen, joined = layout.files.get(split) or files_named(folder, split), ()
    if not chosen:
        raise DataError(f"{folder.name} has no split {split!r}; it has: {', '.join(layout.files)}. Edit data.split")
    parts = []
    for path in chosen:
        columns, schema = read_file(path, layout.csv_options, layout.csv_names)
        features = layout.features or (datasets.Features.from_arrow_schema(schema) if schema is not None else {})
        parts.append(_build(columns, features, (path.relative_to(folder).as_posix(),)))
    return _concatenate(parts, joined)


def _layout(folder: Path, subset: str | None) -> _Layout:
    """Ask ``datasets`` which files form which split; nothing is converted or cached."""
    with tempfile.TemporaryDirectory() as cache, _without_progress_bars():
        try:
            saved = _saved_files(folder)
            builder = datasets.load_dataset_builder(str(folder), name=subset, data_files=saved, cache_dir=cache)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"cannot use {folder} as a data set: {error}{_hint(folder, error)}") from error
    files = {str(split): [Path(file) for file in found] for split, found in (builder.config.data_files or {}).items()}
    if not any(files.values()):
        raise DataError(f"{folder} holds no table files")
    is_csv = isinstance(builder.config, CsvConfig)
    return _Layout(files, builder.info.features, *(_csv_reading(builder.config) if is_csv else ({}, None)))


def _saved_files(folder: Path) -> dict[str, str] | None:
    """Return the patterns of a data set that ``save_to_disk`` wrote; datasets 4 would take its state.json for rows."""
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        return {"train": "*.arrow"}
    if not (folder / "dataset_dict.json").exists():
        return None
    splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    return {split: f"{split}/*.arrow" for split in splits}


def _csv_reading(config: Any) -> tuple[dict[str, Any], Sequence[str] | None]:
    """Translate what a data set card says about its CSV files to ``csv.reader``'s options and the column names."""
    options = {name: getattr(config, name) for name in CSV_READER_OPTIONS}
    if config.sep != ",":  # the default, which must not overrule a .tsv ending
        options["delimiter"] = config.sep
    return options, config.names


def _hint(folder: Path, error: Exception) -> str:
    if "script" in str(error) or any(folder.glob("*.py")):
        return ". Dataset scripts are not run: save the rows as Parquet, CSV or JSON lines"
    if "onfig" in str(error):  # BuilderConfig 'x' not found; Config name is missing
        return ". Set data.subset"
    return ""


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    were_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()


def files_named(folder: Path, split: str) -> list[Path]:
    """Find table files called ``split``, ``split-...`` or lying in a folder of that name, for names of one's own."""
    pattern = re.compile(re.escape(split) + r"([-_.].*)?")
    found = []
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        is_named = pattern.fullmatch(path.name) or any(pattern.fullmatch(part) for part in place.parts[:-1])
        if is_named and path.is_file() and ending_of(path):
            found.append(path)
    return found


def _build(columns: Columns, features: Mapping[str, Any], files: tuple[str, ...]) -> DataTable:
    class_names = {}
    for name, feature in features.items():
        coded = getattr(feature, "feature", feature)  # a list of labels wraps its element
        if name.strip() in columns and isinstance(coded, datasets.ClassLabel):
            class_names[name.strip()] = list(coded.names)
    named = {
        name: [_named(cell, names, name, files[0]) for cell in columns[name]] for name, names in class_names.items()
    }
    return DataTable({**columns, **named}, len(next(iter(columns.values()))), class_names, files)


def _named(cell: Any, names: Sequence[str], column: str, file: str) -> Any:
    """Replace a label code, or a list of them, by names; ``-1`` means that the label is withheld."""
    if isinstance(cell, list):
        return [_named(element, names, column, file) for element in cell]
    if cell is None or cell in names or str(cell).strip() in ("", "-1"):
        return cell if cell in names else None
    text = str(cell).strip()
    if not re.fullmatch(r"\d{1,9}", text) or int(text) >= len(names):
        raise DataError(f"{file}: column {column!r} holds {cell!r}, but has {len(names)} classes: {', '.join(names)}")
    return names[int(text)]


def _concatenate(parts: Sequence[DataTable], joined: tuple[str, ...]) -> DataTable:
    first = parts[0]
    for part in parts[1:]:
        if set(part.columns) != set(first.columns):
            raise DataError(
                f"{part.files[0]} and {first.files[0]} have different columns ({', '.join(part.columns)} and "
                f"{', '.join(first.columns)}), so they are not one table. Set data.split.train, or name one file"
            )
    columns = {name: [cell for part in parts for cell in part.columns[name]] for name in first.columns}
    files = tuple(file for part in parts for file in part.files)
    return DataTable(columns, sum(part.num_rows for part in parts), first.class_names, files, joined)
