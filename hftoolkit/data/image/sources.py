"""Where images come from: class folders, tables that name or hold them, and tables of pixels."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hftoolkit.data.files import SEPARATORS, Columns, ending_of
from hftoolkit.data.image.archives import check_no_archive
from hftoolkit.data.image.arrays import ImageArrays, read_image_arrays, read_measured_arrays
from hftoolkit.data.image.cache import StoredImage
from hftoolkit.data.image.cells import images_of_cells
from hftoolkit.data.image.files import ImageFiles, files_below, is_image, is_table, named_images, no_images, printable
from hftoolkit.data.image.layout import (
    Chosen,
    check_measured_folders,
    check_training_folders,
    choose_images,
    left_out_folders,
)
from hftoolkit.data.image.pixel_tables import first_cells, guess_pixels, read_pixel_table
from hftoolkit.data.image.table_files import rows_of_split, table_among_images
from hftoolkit.data.labels import natural_key
from hftoolkit.data.layouts import files_named
from hftoolkit.data.reading import read_each_split, with_given_splits, with_split_column
from hftoolkit.data.tables import ALL_ROWS, DataTable, read_table, require_columns
from hftoolkit.data.text_rows import BadRows, broken_rows
from hftoolkit.errors import DataError
from hftoolkit.recipe import ImageColumns, ImageData, Pixels

ARRAYS = ".npz"
FOLDER_LABEL, PIXEL_LABEL = "folder", "label"  # columns of the tables made here
COLUMNAR = (".parquet", ".arrow")  # of data sets of the Hub, which may hold pictures of their card beside them


@dataclass(frozen=True, slots=True)
class ImageTable:
    """A table, and the image of each of its rows.

    Attributes:
        table: the rows.
        labels: which of its columns are the label; several only where each is a class that a row has or not.
        images: one a row, empty bytes where the row has none.
        bad: the rows that have none.
        warnings: what a reader should know of how they were found.
    """

    table: DataTable
    labels: tuple[str, ...]
    images: list[StoredImage]
    bad: BadRows
    warnings: list[str] = field(default_factory=list)


def no_class(_: str) -> bool:
    """Return False: no folder is known to be a class."""
    return False


def read_image_tables(path: Path, data: ImageData, is_class: Callable[[str], bool] = no_class) -> dict[str, ImageTable]:
    """Read each given split; ``train`` is the one that fractions are taken from. No image is decoded.

    Args:
        path: the file or folder that ``data.source`` led to.
        data: how it is read, and the splits.
        is_class: whether the recipe names a folder as a class; such folders are never taken for splits.

    Raises:
        DataError: the files, folders or columns cannot be used.
    """
    check_no_archive(path, data.columns is not None)
    if data.pixels is not None:
        pixels = data.pixels
        return read_each_split(data.split, lambda split: _read_pixels(path, pixels, split, labelled=True))
    if data.columns is not None:
        return _read_tables(path, data, data.columns, _files_of(path))
    if path.suffix == ARRAYS:
        return read_each_split(data.split, lambda split: _array_table(path, read_image_arrays(path, split), split))
    if not path.is_dir():
        raise DataError(_how_to_read(path))
    for_tables = {"split.group": data.split.group, "split.column": data.split.column, "subset": data.subset}
    for key, value in for_tables.items():
        if value is not None:
            raise DataError(f"data.{key} is for tables, and {path.name} is read as class folders; drop it")
    files = files_below(path)
    _check_no_tables_alone(files)
    check_training_folders(files, data.split, _extensible(path, data.source), is_class)
    found = read_each_split(data.split, lambda split: choose_images(files, split))
    used = [image for chosen in found.values() for image in chosen.images]
    found["train"].warnings.extend(left_out_folders(files, used))
    names = {"train": data.split.train, "validation": data.split.validation, "test": data.split.test}
    return {name: _folder_table(files, chosen, names[name]) for name, chosen in found.items()}


def read_told_image_tables(
    path: Path, data: ImageData, is_class: Callable[[str], bool] = no_class
) -> tuple[dict[str, ImageTable], ImageData, list[str]]:
    """Do the same, and take the splits that tables have where the recipe names none; return those in force as well.

    Raises:
        DataError: the files, folders or columns cannot be used.
    """
    columns = data.columns
    if columns is None:
        return read_image_tables(path, data, is_class), data, []
    check_no_archive(path, may_be_table=True)
    files, notes = _files_of(path), list[str]()
    if files is None or not files.images:  # tables beside images are told apart by what they hold
        data, notes = with_given_splits(path, data)
    tables = _read_tables(path, data, columns, files)
    if list(tables) == ["train"]:
        data, found = with_split_column(data, tables["train"].table)
        notes = [*notes, *found]
    return tables, data, notes


def read_measured_images(path: Path, data: ImageData, is_class: Callable[[str], bool]) -> ImageTable:
    """Read all images with labels of another source than the run learned from; splits of the recipe do not count.

    A folder may hold class folders whatever the recipe has, a table may be one of pixels or of names.

    Raises:
        DataError: the files, folders or columns cannot be used; a folder that can is named where there is one.
    """
    check_no_archive(path, data.columns is not None)
    if path.suffix == ARRAYS:
        return _array_table(path, read_measured_arrays(path))
    if not path.is_dir():
        return _read_any_table(path, data.columns, data.pixels, labelled=True)
    files = files_below(path)
    tables = [file for file in files.others if is_table(file)]
    classes = {image.relative_to(path).parts[0] for image in files.images if image.parent != path}
    if tables and not any(map(is_class, classes)) and (data.columns is not None or not files.images):
        if not files.images:
            return _read_any_table(path, data.columns, data.pixels, labelled=True)
        if len(tables) > 1:
            names = " or ".join(f"--data {printable(str(table))}" for table in tables[:3])
            raise DataError(f"{path.name} holds images and {len(tables)} tables; name one: {names}")
        return _read_any_table(tables[0], data.columns, data.pixels, labelled=True)
    check_measured_folders(files, is_class)
    return _folder_table(files, choose_images(files, None), None)


def open_image_table(
    source: Path | str, columns: ImageColumns | None, pixels: Pixels | None
) -> tuple[list[StoredImage], BadRows, Columns]:
    """Return the images to predict, in natural or table order; none is decoded, and labels are not needed.

    Args:
        source: an image file, a folder of images at any depth, a pattern (``photos/*.jpg``), or a table.
        columns: which column of a table holds the image; None: ``image``.
        pixels: how to read a table of pixels.

    Returns:
        The images, the rows that have none by 1-based number, and all columns of the table that names or holds the
        images; no columns without such a table.

    Raises:
        DataError: nothing is there, or the table cannot be used.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        files = files_below(path)
        if files.images:
            return named_images(files.images, path), {}, {}
        if not any(map(is_table, files.others)):
            raise no_images(path)
    elif not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True), key=natural_key)
        images = [Path(match) for match in matches if is_image(Path(match))]
        if not images:
            raise no_images(path)
        return [StoredImage(printable(str(image)), image) for image in images], {}, {}
    check_no_archive(path, may_be_table=ending_of(path) is not None)
    if path.suffix == ARRAYS:
        return _array_table(path, read_measured_arrays(path)).images, {}, {}
    if path.is_file() and ending_of(path) is None:
        return [StoredImage(printable(path.name), path)], {}, {}
    opened = _read_any_table(path, columns, pixels, labelled=False)
    has_names = (columns or ImageColumns()).image in opened.table.columns
    return opened.images, opened.bad, opened.table.columns if has_names else {}


def _extensible(path: Path, source: str) -> str | None:
    """Return the address of a source, if that of a folder inside it is the same with the folder added."""
    is_local = Path(os.path.expanduser(source)).absolute() == path.absolute()
    return source if is_local or source.startswith("pypi:") else None


def _how_to_read(path: Path) -> str:
    guessed = guess_pixels(path)
    if guessed is not None:
        pixels = f"{{shape: {list(guessed.shape)}, label: {guessed.label}, header: true}}"
        return f"{path.name} is a table of pixels, by its header; say so with data.pixels: {pixels}"
    return (
        f"{path.name} is a file, not a folder with a folder a class; say how to read it with "
        "data.columns: {image: COLUMN, label: COLUMN}, or with data.pixels for a table of pixels"
    )


def _check_no_tables_alone(files: ImageFiles) -> None:
    if not files.images and any(map(is_table, files.others)):
        raise DataError(
            f"{files.root.name} holds tables and no images; set data.columns: {{image: COLUMN, label: COLUMN}}"
        )


def _folder_table(files: ImageFiles, chosen: Chosen, split: str | float | None) -> ImageTable:
    """Return the images of class folders as a table whose label is the folder; an image in no class has none."""
    base = split if isinstance(split, str) else files.root.name
    columns: dict[str, list[Any]] = {FOLDER_LABEL: list(chosen.labels)}
    table = DataTable(columns, len(chosen.images), files=(f"{base.rstrip('/')}/",))
    return ImageTable(table, (FOLDER_LABEL,), named_images(chosen.images, files.root), {}, chosen.warnings)


def _array_table(path: Path, arrays: ImageArrays, split: str | None = None) -> ImageTable:
    columns: dict[str, list[Any]] = {PIXEL_LABEL: arrays.labels or [None] * len(arrays.images)}
    images = [StoredImage(f"row {number}", image) for number, image in enumerate(arrays.images, start=1)]
    name = path.name if split is None else f"{path.name} ({split})"
    return ImageTable(DataTable(columns, len(images), files=(name,)), (PIXEL_LABEL,), images, {})


def _files_of(path: Path) -> ImageFiles | None:
    return files_below(path) if path.is_dir() else None


def _read_tables(path: Path, data: ImageData, columns: ImageColumns, files: ImageFiles | None) -> dict[str, ImageTable]:
    """Read the tables of a source in which images have names or are the cells; ``files`` are those of a folder."""
    if files is not None and files.images and not any(ending_of(file) in COLUMNAR for file in files.others):
        return read_each_split(data.split, lambda split: _read_table_among_images(files, data, columns, split))
    if files is None and data.split.train not in (None, ALL_ROWS) and data.subset is None:
        whole = read_table(path, how=data.format, keep_broken=True)
        require_columns(whole, [columns.image], "data.columns.image")
        parts = read_each_split(
            data.split, lambda split: _with_images(rows_of_split(whole, split, columns), columns, [path.parent])
        )
        if left := whole.num_rows - sum(part.table.num_rows for part in parts.values()):
            told = f"{left} of {whole.num_rows} rows of {path.name} are in no split that data.split names"
            parts["train"].warnings.append(told)
        return parts
    return read_each_split(data.split, lambda split: _read_whole_table(path, data, columns, split))


def _read_table_among_images(
    files: ImageFiles, data: ImageData, columns: ImageColumns, split: str | None
) -> ImageTable:
    place, is_whole = table_among_images(files, columns, split, _extensible(files.root, data.source))
    read = read_table(place, how=data.format, keep_broken=True)
    table = replace(read, files=(place.relative_to(files.root).as_posix(),))
    if split is not None and not is_whole:
        table = rows_of_split(table, split, columns)
    return _with_images(table, columns, list(dict.fromkeys((place.parent, files.root))))


def _read_whole_table(path: Path, data: ImageData, columns: ImageColumns, split: str | None) -> ImageTable:
    table = read_table(path, split=split, subset=data.subset, how=data.format, keep_broken=True)
    root = path if path.is_dir() else path.parent
    return _with_images(table, columns, list(dict.fromkeys((root / file).parent for file in table.files)))


def _with_images(
    table: DataTable, columns: ImageColumns, folders: Sequence[Path], *, labelled: bool = True
) -> ImageTable:
    require_columns(table, [columns.image], "data.columns.image" if labelled else "the header: the model reads that")
    if labelled:
        require_columns(table, columns.label, "data.columns.label")
    found = images_of_cells(table.columns[columns.image], folders, table.source)
    return ImageTable(table, columns.label, found.images, {**found.bad, **broken_rows(table)}, found.warnings)


def _read_any_table(path: Path, columns: ImageColumns | None, pixels: Pixels | None, *, labelled: bool) -> ImageTable:
    """Read a table of another source, which may be of another kind than the one that the run learned from."""
    names = columns or ImageColumns()
    if columns is None and not (path.is_file() and names.image in first_cells(path)):
        pixels = pixels or (guess_pixels(path) if path.is_file() else None)
        if pixels is not None:
            return _read_pixels(path, pixels, None, labelled=labelled)
    table = read_table(path, keep_broken=True)
    needed = (names.image, *names.label) if labelled else (names.image,)
    if columns is None and not set(needed) <= set(table.columns):
        raise DataError(
            f"{table.source} has no columns {' and '.join(map(repr, needed))}, which a table must have for a run that "
            f"learned from other than tables (it has: {', '.join(map(repr, table.columns))}); rename them"
        )
    root = path if path.is_dir() else path.parent
    folders: Iterable[Path] = dict.fromkeys((root / file).parent for file in table.files)
    return _with_images(table, names, list(folders), labelled=labelled)


def _read_pixels(path: Path, pixels: Pixels, split: str | None, *, labelled: bool) -> ImageTable:
    file = _pixel_file(path, split)
    label_first = pixels.label == "first"
    rows = read_pixel_table(
        file, shape=pixels.shape, label_first=label_first, header=pixels.header, needs_label=labelled
    )
    columns: dict[str, list[Any]] = {PIXEL_LABEL: rows.labels or [None] * len(rows.images)}
    images = [StoredImage(f"row {number}", image) for number, image in enumerate(rows.images, start=1)]
    name = file.relative_to(path).as_posix() if path.is_dir() else file.name
    return ImageTable(DataTable(columns, len(images), files=(name,)), (PIXEL_LABEL,), images, {}, rows.warnings)


def _pixel_file(path: Path, split: str | None) -> Path:
    """Return the one table that is meant: the file itself, or that of a split in a folder."""
    if not path.exists():
        raise DataError(f"{path} does not exist; set data.source to a file or a folder that does")
    if not path.is_dir():
        if split is not None:
            raise DataError(f"{path.name} is a single file and has no {split!r}; leave out data.split.train")
        return path
    tables = [file for file in sorted(path.rglob("*")) if ending_of(file) in SEPARATORS and file.is_file()]
    found = tables if split is None else [file for file in files_named(path, split) if file in tables]
    if len(found) != 1:
        names = ", ".join(file.relative_to(path).as_posix() for file in tables) or "none"
        asked = "" if split is None else f" for the split {split!r}"
        raise DataError(
            f"{path.name} has {len(found)} tables of pixels{asked}, not one (tables: {names}); name the file"
        )
    return found[0]
