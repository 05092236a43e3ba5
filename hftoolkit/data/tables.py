"""Tables from a file or a folder: its rows, split by split, and the names of coded labels.

Files are read here and not by ``datasets``, since its CSV reader turns texts like ``NA`` into missing values.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets

from hftoolkit.data.files import ending_of, read_file
from hftoolkit.data.formats.parsed import Broken, Columns, ParsedFile
from hftoolkit.data.formats.text_folders import FILE, TextFolders, find_text_folders, read_texts
from hftoolkit.data.layouts import files_named, layout_of, tables_below
from hftoolkit.errors import DataError
from hftoolkit.recipe.sections import TableFormat

ALL_ROWS = "all"  # as data.split.train: the rows of all splits
AS_IT_COMES = TableFormat()
AS_DATA_FORMAT = "data.format"
SPLIT_FILES_SHOWN = 3
LONGEST_NAME_SHOWN = 60


@dataclass(frozen=True, slots=True)
class DataTable:
    """Rows of one split in the order of their files.

    Attributes:
        columns: column name -> plain Python values, ``num_rows`` each.
        class_names: columns with coded labels -> all names in code order; the columns hold names instead of codes.
        files: the files that were read, relative to the folder.
        joined_splits: the given splits that were put together because none was asked for; empty otherwise.
        broken: rows that could not be read, by 1-based number; their cells are None.
        repeated: a name that several columns have -> what each of them is called in ``columns``.
        notes: sentences on how the files were read, for whoever checks that.
        header: whether the column names are the first line of a file.
        knobs: what the recipe calls the section that says how the files are read.
    """

    columns: Columns
    num_rows: int
    class_names: dict[str, list[str]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    joined_splits: tuple[str, ...] = ()
    broken: Mapping[int, Broken] = field(default_factory=dict)
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    header: bool = False
    knobs: str = AS_DATA_FORMAT

    @property
    def source(self) -> str:
        """Where the rows come from, for messages."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return self.files[0] + more if self.files else "the table"


def read_table(
    path: Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    how: TableFormat = AS_IT_COMES,
    knobs: str = AS_DATA_FORMAT,
    keep_broken: bool = False,
) -> DataTable:
    """Read a table file, or the files of one split of a folder.

    Args:
        path: a file, a folder of table files or of texts, or a snapshot of a Hub data set.
        split: name, file or pattern of a given split; None or ``all`` reads all rows, split after split.
        subset: configuration name in the data set card.
        how: separators, quotes, encoding and names, where the recipe says them.
        knobs: what the recipe calls ``how``, for messages.
        keep_broken: rows that cannot be read are in ``DataTable.broken``; else they are errors.

    Raises:
        DataError: missing or malformed files, or no such split or subset.
        EnvironmentFault: the package for this kind of file is not installed.
    """
    if path.is_dir():
        table = _read_folder(path.resolve(), split, subset, how, knobs)
    elif not path.exists():
        raise DataError(f"{path} does not exist; set data.source to a file or a folder that does")
    elif split not in (None, ALL_ROWS) or subset is not None:
        asked, key = (subset, "data.subset") if split in (None, ALL_ROWS) else (split, "data.split.train")
        raise DataError(f"{path.name} is a single file and has no {asked!r}; leave out {key}, or name a folder")
    else:
        table = _build(read_file(path, how, knobs, {}, None), None, path.name)
    if table.broken and not keep_broken:
        number, broken = min(table.broken.items())
        place = f" ({broken.place})" if broken.place else ""
        raise DataError(f"{table.source}, row {number}{place} {broken.detail}")
    return replace(table, knobs=knobs)


def given_splits(path: Path, subset: str | None) -> dict[str, str]:
    """Return the splits that a source has, and the files of each in words; none of a single file.

    Raises:
        DataError: a folder without tables, or with tables of several kinds.
    """
    if not path.is_dir():
        return {}
    folder = path.resolve()
    if texts := _text_folders(folder):
        return {name: f"{name}/" for name in texts.splits if name}
    layout = layout_of(folder, subset)
    layout.check()
    return {
        name: ", ".join(file.relative_to(folder).as_posix() for file in files[:SPLIT_FILES_SHOWN])
        + (", ..." if len(files) > SPLIT_FILES_SHOWN else "")
        for name, files in layout.files.items()
    }


def require_columns(table: DataTable, names: Sequence[str], where: str) -> None:
    """Raise DataError unless the table has each of ``names`` once; ``where`` is the recipe key that names them."""
    for name in names:
        if name in table.repeated:
            called = ", ".join(map(repr, table.repeated[name]))
            raise DataError(
                f"{table.source} has {len(table.repeated[name])} columns called {name!r}; rename one, or name the one "
                f"that is meant in {where} by its place: {called}"
            )
    missing = [name for name in names if name not in table.columns]
    if not missing:
        return
    existing = {name.casefold(): name for name in table.columns}
    parts = []
    for name in missing:
        close = difflib.get_close_matches(name.strip().casefold(), existing, n=1)
        parts.append(repr(name) + (f" (did you mean {existing[close[0]]!r}?)" if close else ""))
    plural = "columns are" if len(missing) > 1 else "column is"
    message = (
        f"{len(missing)} {plural} not in {table.source}: {', '.join(parts)}; "
        f"it has: {', '.join(map(_shortly, table.columns))}. Edit {where}"
    )
    if table.header and len(missing) == len(names) and "(did you mean" not in message:
        message += f". {_about_header(len(table.columns), table.knobs)}"
    raise DataError(message)


def _about_header(num_columns: int, knobs: str) -> str:
    if num_columns == 1:
        return f"Only one column was found; if cells are separated by another character, set {knobs}.separator"
    names = ", ".join(["NAME"] * num_columns)
    return f"The first line was taken as the header; if it is a row, set {knobs}.names: [{names}]"


def _shortly(name: str) -> str:
    return repr(name) if len(name) <= LONGEST_NAME_SHOWN else repr(name[:LONGEST_NAME_SHOWN] + "...")


def _text_folders(folder: Path) -> TextFolders | None:
    if any(ending_of(path) != ".txt" for path in tables_below(folder)):
        return None
    return find_text_folders(folder)


def _read_folder(folder: Path, split: str | None, subset: str | None, how: TableFormat, knobs: str) -> DataTable:
    texts = _text_folders(folder)
    if texts is not None:
        named = None if split == ALL_ROWS and ALL_ROWS not in texts.splits else split
        columns, notes = read_texts(texts, named, how.encoding, knobs)
        if not columns[FILE]:
            raise DataError(f"{folder.name} has no texts in the split folder {named!r}")
        joined = tuple(texts.splits) if named is None and len(texts.splits) > 1 else ()
        place = f"{texts.root.relative_to(folder).as_posix()}/{named or ''}".removeprefix("./").rstrip("/")
        return DataTable(columns, len(columns[FILE]), {}, (f"{place or folder.name}/",), joined, notes=notes)
    layout = layout_of(folder, subset)
    if split is None or (split == ALL_ROWS and ALL_ROWS not in layout.files):
        layout.check()
        chosen = [path for paths in layout.files.values() for path in paths]
        joined, notes = tuple(layout.files) if len(layout.files) > 1 else (), layout.notes
    else:
        chosen, joined, notes = layout.files.get(split) or files_named(folder, split), (), layout.notes
    if not chosen:
        raise DataError(f"{folder.name} has no split {split!r}; it has: {', '.join(layout.files)}. Edit data.split")
    parts = []
    for path in chosen:
        parsed = read_file(path, how, knobs, layout.csv_options, layout.csv_names)
        parts.append(_build(parsed, layout.features, path.relative_to(folder).as_posix()))
    return _concatenate(parts, joined, notes)


def _build(parsed: ParsedFile, features: Mapping[str, Any] | None, file: str) -> DataTable:
    columns = parsed.columns
    if not features:
        features = datasets.Features.from_arrow_schema(parsed.schema) if parsed.schema is not None else {}
    class_names = {}
    for name, feature in features.items():
        coded = getattr(feature, "feature", feature)  # a list of labels wraps its element
        if name.strip() in columns and isinstance(coded, datasets.ClassLabel):
            class_names[name.strip()] = list(coded.names)
    named = {name: [_named(cell, names, name, file) for cell in columns[name]] for name, names in class_names.items()}
    return DataTable(
        {**columns, **named},
        len(next(iter(columns.values()))),
        class_names,
        (file,),
        broken=parsed.broken,
        repeated=parsed.repeated,
        notes=parsed.notes,
        header=parsed.header,
    )


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


def _concatenate(parts: Sequence[DataTable], joined: tuple[str, ...], notes: Sequence[str]) -> DataTable:
    first = parts[0]
    broken: dict[int, Broken] = {}
    rows_before = 0
    for part in parts:
        if set(part.columns) != set(first.columns):
            raise DataError(
                f"{part.files[0]} and {first.files[0]} have different columns ({', '.join(part.columns)} and "
                f"{', '.join(first.columns)}), so they are not one table. Set data.split.train, or name one file"
            )
        broken |= {rows_before + number: each for number, each in part.broken.items()}
        rows_before += part.num_rows
    columns = {name: [cell for part in parts for cell in part.columns[name]] for name in first.columns}
    files = tuple(file for part in parts for file in part.files)
    alike: dict[str, list[str]] = {}  # the same of several files
    for part in parts:
        for note in part.notes:
            alike.setdefault(note.replace(Path(part.files[0]).name, ""), []).append(note)
    of_files = [
        each[0] + (f", and {len(each) - 1} more files alike" if len(each) > 1 else "") for each in alike.values()
    ]
    said = tuple(dict.fromkeys([*notes, *of_files]))
    return DataTable(columns, rows_before, first.class_names, files, joined, broken, first.repeated, said, first.header)
