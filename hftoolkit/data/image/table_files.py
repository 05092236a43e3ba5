"""Which table among images is meant, and which of its rows: by a file's name or path, or by a column of splits."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hftoolkit.data.image.files import ImageFiles, is_table, printable
from hftoolkit.data.image.layout import MEASURED, one_of_each, splits_among
from hftoolkit.data.tables import DataTable, read_table
from hftoolkit.errors import DataError
from hftoolkit.recipe import ImageColumns

MOST_SPLITS = 6  # different values of a column that says the split
MAX_LISTED = 8


def table_among_images(
    files: ImageFiles, columns: ImageColumns, split: str | None, source: str | None
) -> tuple[Path, bool]:
    """Return the one table in a folder of images that the recipe means, and whether all of it is of the split.

    Args:
        files: of the folder.
        columns: of the recipe.
        split: a table's path in the folder, its name without ending, or a value of a column of the only table.
        source: the address of the folder, to which a file can be added; None where it cannot.

    Raises:
        DataError: there is none, or there are several; the message says what to write.
    """
    tables = sorted(file for file in files.others if is_table(file))
    if not tables:
        example = printable(files.images[0].relative_to(files.root).as_posix())
        raise DataError(
            f"{files.root.name} is a folder with images in it ({example}, ...) and without a table, and data.columns "
            "is for tables; set data.source to a table, or drop data.columns if each class has a folder"
        )
    if split is None:
        if len(tables) == 1:
            return tables[0], True
        raise DataError(_several_tables(files, tables, columns, source))
    if files.root / split in tables:
        return files.root / split, True
    named = re.compile(re.escape(split) + r"([-_.].*)?")
    found = [file for file in tables if any(map(named.fullmatch, file.relative_to(files.root).parts))]
    exact = [file for file in found if _stem(file) == split]
    if len(exact or found) == 1:
        return (exact or found)[0], True
    if not found and len(tables) == 1:
        return tables[0], False
    raise DataError(
        f"{files.root.name} has {len(found)} tables for the split {split!r}, not one; it has: "
        f"{_names(tables, files.root)}. Write one of them in data.split"
    )


def rows_of_split(table: DataTable, split: str | None, columns: ImageColumns) -> DataTable:
    """Return the rows of a table that say in a column that they are of a split; None returns all.

    Raises:
        DataError: no column, or more than one, has that value.
    """
    if split is None:
        return table
    others = [name for name in table.columns if name not in (columns.image, *columns.label)]
    found = [name for name in others if any(str(cell).strip() == split for cell in table.columns[name])]
    if len(found) > 1:
        found = [name for name in found if len(set(map(str, table.columns[name]))) <= MOST_SPLITS]
    if len(found) != 1:
        raise DataError(
            f"{table.source} is a single file, and {len(found) or 'no'} columns beside image and label hold {split!r}; "
            "leave out data.split.train, name a folder of tables in data.source, or a value of one column"
        )
    kept = [place for place, cell in enumerate(table.columns[found[0]]) if str(cell).strip() == split]
    picked = {name: [cells[place] for place in kept] for name, cells in table.columns.items()}
    return replace(
        table, columns=picked, num_rows=len(kept), broken={}, files=(f"{table.source} ({found[0]}: {split})",)
    )


def _several_tables(files: ImageFiles, tables: Sequence[Path], columns: ImageColumns, source: str | None) -> str:
    """Return what to write where several tables lie among images."""
    message = f"{files.root.name} holds images and the tables {_names(tables, files.root)}; "
    splits = {split: file for split, file in _split_tables(tables).items() if _has_labels(file, columns)}
    if "train" in splits and len(splits) > 1:
        shown = ", ".join(f"{split}: {_stem(splits[split]) if split in splits else '0.1'}" for split in MEASURED)
        return f"{message}write data.split: {{{shown}}}"
    best = printable(splits.get("train", tables[0]).relative_to(files.root).as_posix())
    fix = f"data.split.train: {best}" if source is None else f"data.source: {source.rstrip('/')}/{best}"
    return f"{message}name one, like {fix}"


def _split_tables(tables: Sequence[Path]) -> dict[str, Path]:
    stems = {_stem(table): table for table in tables}
    chosen = one_of_each(splits_among(stems))
    return {split: stems[name] for split, name in chosen.items() if split in MEASURED}


def _has_labels(table: Path, columns: ImageColumns) -> bool:
    return {columns.image, *columns.label} <= set(read_table(table).columns)


def _stem(table: Path) -> str:
    return table.name.split(".")[0]


def _names(tables: Sequence[Path], root: Path) -> str:
    more = f" and {len(tables) - MAX_LISTED} more" if len(tables) > MAX_LISTED else ""
    return printable(", ".join(table.relative_to(root).as_posix() for table in tables[:MAX_LISTED])) + more
