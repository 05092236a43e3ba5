"""Which files of a folder belong to which split.

The ``datasets`` library knows data set cards, shards, and what ``save_to_disk`` writes. What it leaves out, or takes
for training rows because of a capital letter in ``Test.csv``, is found here.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.csv.csv import CsvConfig

from hftoolkit.data.files import ending_of
from hftoolkit.data.split_names import by_role, role_of
from hftoolkit.errors import DataError

CSV_READER_OPTIONS = ("quotechar", "quoting", "escapechar", "doublequote", "skipinitialspace")
# Files of settings and words beside the tables; by themselves they may be tables too.
OFTEN_NO_TABLES = (".json", ".txt")
FILES_SHOWN = 5
PACKED = (".zip", ".gz", ".bz2", ".xz")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which files a folder offers, and how they are to be read.

    Attributes:
        files: by split.
        features: ``datasets.Features`` of the data set card, or None.
        csv_options: keyword arguments of ``csv.reader``.
        csv_names: column names of CSV files without a header line, or None.
        notes: sentences on files that are not read.
        problem: why this is not all that the folder may be meant to be, or None.
    """

    files: dict[str, list[Path]]
    features: Any = None
    csv_options: dict[str, Any] = field(default_factory=dict)
    csv_names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = None

    def check(self) -> None:
        """Raise DataError if it takes a word in the recipe to say which files are meant."""
        if self.problem is not None:
            raise DataError(self.problem)


def layout_of(folder: Path, subset: str | None) -> Layout:
    """Return which files of a folder form which split; nothing is converted or cached.

    Raises:
        DataError: there are no tables, or no such subset.
    """
    with tempfile.TemporaryDirectory() as cache, _without_progress_bars():
        try:
            saved = _saved_files(folder)
            builder = datasets.load_dataset_builder(str(folder), name=subset, data_files=saved, cache_dir=cache)
        except FileNotFoundError as error:
            if not (own := tables_below(folder)):
                raise DataError(f"cannot use {folder} as a data set: {error}{_hint(folder, error)}") from error
            return _divided(folder, Layout({"train": own}))
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"cannot use {folder} as a data set: {error}{_hint(folder, error)}") from error
    files = {str(split): [Path(file) for file in found] for split, found in (builder.config.data_files or {}).items()}
    if not any(files.values()):
        raise DataError(f"{folder} holds no table files")
    is_csv = isinstance(builder.config, CsvConfig)
    layout = Layout(files, builder.info.features, *(_csv_reading(builder.config) if is_csv else ({}, None)))
    return layout if saved or _card_lists_files(folder) else _divided(folder, layout)


def tables_below(folder: Path) -> list[Path]:
    """Return all table files below a folder, in order; hidden files and folders do not count."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if ending_of(path)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _card_lists_files(folder: Path) -> bool:
    card = folder / "README.md"
    return (
        card.exists() and re.search(r"^configs:", card.read_text(encoding="utf-8", errors="replace"), re.M) is not None
    )


def _divided(folder: Path, layout: Layout) -> Layout:
    """Give files with the names of splits to these, and account for tables that no split has."""
    # Beside an archive often lies what was unpacked from it.
    files = {split: [path for path in paths if _is_unpacked(path)] for split, paths in layout.files.items()}
    if list(files) == ["train"]:
        kinds = {ending_of(path) for path in files["train"]}
        alike = [path for path in tables_below(folder) if ending_of(path) in kinds and _is_unpacked(path)]
        files = _by_name(folder, alike) or files
    read = {os.path.realpath(path) for paths in files.values() for path in paths}
    unread = [path for path in tables_below(folder) if os.path.realpath(path) not in read]
    if not unread:
        return Layout(files, layout.features, layout.csv_options, layout.csv_names)
    names = [path.relative_to(folder).as_posix() for path in unread]
    shown = ", ".join(names[:FILES_SHOWN]) + (", ..." if len(names) > FILES_SHOWN else "")
    kinds = {ending_of(path) for paths in files.values() for path in paths}
    other = [path for path in unread if ending_of(path) not in kinds and _is_surely_table(path)]
    problem = None
    if other:
        first = next(path for paths in files.values() for path in paths).relative_to(folder).as_posix()
        problem = (
            f"{folder.name} holds tables of several kinds: {first}, and {other[0].relative_to(folder).as_posix()}. Set "
            "data.source to one file, name files with data.split (train: '*.csv'), or keep one kind in the folder"
        )
    elif "train" not in by_role(files) and by_role(files):
        given = ", ".join(f"{role}: {those[0]}" for role, those in by_role(files).items())
        problem = (
            f"{folder.name} has files for {', '.join(files)}, and none is called train; there is also {shown}. Name "
            f"them with data.split: {{train: {names[0]}, {given}}}"
        )
    note = f"tables of {folder.name} that belong to no split are not read: {shown}"
    return Layout(files, layout.features, layout.csv_options, layout.csv_names, (note,), problem)


def _is_unpacked(path: Path) -> bool:
    return path.suffix.lower() not in PACKED or not path.with_suffix("").exists()


def _is_surely_table(path: Path) -> bool:
    if not _is_unpacked(path):
        return False
    return ending_of(path) not in OFTEN_NO_TABLES or role_of(path.stem) is not None


def _by_name(folder: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Return files by the split that their names speak of; nothing if none is for validation or test."""
    roles = [_role_of_file(path.relative_to(folder)) for path in paths]
    if "test" not in roles and "validation" not in roles:
        return {}
    found: dict[str, list[Path]] = {}
    for split in ("train", "validation", "test"):
        if those := [path for path, role in zip(paths, roles, strict=True) if role == split]:
            found[split] = those
    return found


def _role_of_file(place: Path) -> str | None:
    names = [place.name.partition(".")[0], *reversed(place.parts[:-1])]
    return next((role for name in names if (role := role_of(name))), None)


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
    """Find the table files that a name means: a file, a folder, a pattern, or files and folders that begin so.

    ``gold`` finds ``gold.csv``, ``gold-0.csv`` and all tables in a folder ``gold``, but not ``golden.csv``.
    """
    tables = tables_below(folder)
    places = {path: path.relative_to(folder) for path in tables}
    if any(char in split for char in "*?["):
        return [path for path, place in places.items() if place.match(split)]
    exact = [path for path, place in places.items() if place.as_posix() == split.strip("/")]
    if exact or "/" in split:
        inside = folder / split
        return exact or [path for path in tables if path.is_relative_to(inside)]
    pattern = re.compile(re.escape(split) + r"([-_.].*)?")
    return [
        path
        for path, place in places.items()
        if pattern.fullmatch(path.name) or any(pattern.fullmatch(part) for part in place.parts[:-1])
    ]
