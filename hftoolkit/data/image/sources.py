"""Where images come from: class folders, tables that name or hold them, and tables of pixels."""

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hftoolkit.data.files import SEPARATORS, Columns, ending_of
from hftoolkit.data.image.cache import StoredImage
from hftoolkit.data.image.pixel_tables import read_pixel_table
from hftoolkit.data.labels import natural_key
from hftoolkit.data.reading import read_each_split
from hftoolkit.data.tables import DataTable, files_named, read_table, require_columns
from hftoolkit.data.text_rows import BadRow, BadRows
from hftoolkit.errors import DataError
from hftoolkit.recipe import ImageColumns, ImageData, Pixels

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
FOLDER_LABEL, PIXEL_LABEL = "folder", "label"  # columns of the tables made here

NO_IMAGE = "image is missing"
NOT_AN_IMAGE = "image is neither a file name nor bytes"


@dataclass(frozen=True, slots=True)
class ImageTable:
    """A table, and the image of each of its rows.

    Attributes:
        table: the rows.
        label: which of its columns is the label.
        images: one a row, empty bytes where the row has none.
        bad: the rows that have none.
        warnings: what a reader should know of how they were found.
    """

    table: DataTable
    label: str
    images: list[StoredImage]
    bad: BadRows
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Files:
    images: list[Path]  # in natural order
    others: Counter[str]  # ending -> how many


def read_image_tables(path: Path, data: ImageData) -> dict[str, ImageTable]:
    """Read each given split; ``train`` is the one that fractions are taken from. No image is decoded.

    Raises:
        DataError: the files, folders or columns cannot be used.
    """
    if data.pixels is not None:
        pixels = data.pixels
        return read_each_split(data.split, lambda split: _read_pixels(path, pixels, split, labelled=True))
    if data.columns is not None:
        _check_no_images(path)
        columns = data.columns
        return read_each_split(
            data.split, lambda split: _read_images_of_table(path, columns, split, data.subset, labelled=True)
        )
    if not path.is_dir():
        raise DataError(
            f"{path.name} is a file, not a folder with a folder a class; say how to read it with "
            "data.columns: {image: COLUMN, label: COLUMN}, or with data.pixels for a table of pixels"
        )
    for key, value in (("data.split.group", data.split.group), ("data.subset", data.subset)):
        if value is not None:
            raise DataError(f"{key} is for tables, and {path.name} is read as class folders; drop it")
    files = _files_below(path)
    _check_class_folders(path, files, data)
    return read_each_split(data.split, lambda split: _read_folder(path, files, split))


def open_images(source: Path | str, columns: ImageColumns | None, pixels: Pixels | None) -> list[StoredImage]:
    """Return the images to predict, see ``open_image_table``."""
    return open_image_table(source, columns, pixels)[0]


def open_image_table(
    source: Path | str, columns: ImageColumns | None, pixels: Pixels | None
) -> tuple[list[StoredImage], Columns]:
    """Return the images to predict, in natural or table order; none is decoded, and labels are not needed.

    Args:
        source: an image file, a folder of images at any depth, a pattern (``photos/*.jpg``), or a table.
        columns: which column of a table holds the image; None: ``image``.
        pixels: how to read a table of pixels.

    Returns:
        The images, and all columns of the table that names or holds them; no columns without such a table.

    Raises:
        DataError: nothing is there, or the table cannot be used.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        found = _files_below(path).images
        if found or columns is None:
            return _named(found or _no_images(path), path), {}
    elif not path.exists():
        matches = sorted(glob.glob(str(path), recursive=True), key=natural_key)
        images = [Path(match) for match in matches if _is_image(Path(match))]
        return [StoredImage(str(image), image) for image in images or _no_images(path)], {}
    elif ending_of(path) is None:
        return [StoredImage(path.name, path)], {}
    if pixels is not None:
        return _read_pixels(path, pixels, None, labelled=False).images, {}
    opened = _read_images_of_table(path, columns or ImageColumns(), None, None, labelled=False)
    return opened.images, opened.table.columns


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".") and path.is_file()


def _files_below(root: Path) -> _Files:
    """Find images in natural order of their folders and names; hidden files and folders do not count."""
    images: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()  # followed links can make a circle
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else [name for name in subfolders if not name.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            if _is_image(Path(folder, name)):
                images.append(Path(folder, name))
            elif not name.startswith("."):
                others[Path(name).suffix.lower() or name] += 1
    return _Files(sorted(images, key=partial(_natural_parts, root)), others)


def _natural_parts(root: Path, path: Path) -> tuple[Any, ...]:
    return tuple(natural_key(part) for part in path.relative_to(root).parts)


def _no_images(path: Path) -> list[Path]:
    raise DataError(f"{path}: no images there; an image ends in {', '.join(IMAGE_ENDINGS)}")


def _named(images: Sequence[Path], root: Path) -> list[StoredImage]:
    return [StoredImage(image.relative_to(root).as_posix(), image) for image in images]


def _check_class_folders(root: Path, files: _Files, data: ImageData) -> None:
    """Raise DataError unless there are class folders, and split folders just when the recipe names splits."""
    if not files.images:
        if any(ending in files.others for ending in (".csv", ".tsv", ".parquet", ".arrow", ".jsonl", ".json", ".gz")):
            raise DataError(
                f"{root.name} holds tables and no images; set data.columns: {{image: COLUMN, label: COLUMN}}"
            )
        _no_images(root)
    folders = sorted({image.relative_to(root).parts[0] for image in files.images if image.parent != root})
    if not folders:
        raise DataError(
            f"{root.name} holds images, but no folder a class; sort them into folders named like the classes, "
            "or name a table of file names with data.source and data.columns"
        )
    if data.split.train is None and _looks_split(folders):
        raise DataError(f"{root.name} has the split folders {', '.join(folders)}; {_how_to_name_splits(folders)}")
    for name in (data.split.train, data.split.validation, data.split.test):
        if isinstance(name, str) and name not in folders:
            raise DataError(f"{root.name} has no folder {name!r}; it has: {', '.join(folders)}. Edit data.split")


def _looks_split(folders: Sequence[str]) -> bool:
    known = {name for names in SPLIT_NAMES.values() for name in names}
    names = {folder.lower() for folder in folders}
    return names <= known and not names.isdisjoint(SPLIT_NAMES["train"])


def _how_to_name_splits(folders: Sequence[str]) -> str:
    def named(split: str) -> str:
        return next((folder for folder in folders if folder.lower() in SPLIT_NAMES[split]), "0.1")

    shown = ", ".join(f"{split}: {named(split)}" for split in SPLIT_NAMES)
    return f"write data.split: {{{shown}}}"


def _read_folder(root: Path, files: _Files, split: str | None) -> ImageTable:
    """Read ``class/.../image`` of the folder, or of one of its split folders; an image in no class has no label."""
    base = root if split is None else root / split
    chosen = [image for image in files.images if image.is_relative_to(base)]
    if not chosen:
        _no_images(base)
    parts = [image.relative_to(base).parts for image in chosen]
    labels = [place[0] if len(place) > 1 else None for place in parts]
    table = DataTable({FOLDER_LABEL: labels}, len(chosen), files=(f"{base.name}/",))
    warnings = []
    if files.others:
        counts = ", ".join(f"{ending} {count}" for ending, count in files.others.most_common(5))
        warnings.append(f"files of {root.name} that are no images and are left out: {files.others.total()} ({counts})")
    return ImageTable(table, FOLDER_LABEL, _named(chosen, root), {}, warnings)


def _check_no_images(path: Path) -> None:
    if path.is_dir() and (files := _files_below(path)).images:
        tables = sorted(str(place) for place in path.iterdir() if ending_of(place))
        named = f"the table itself, like {tables[0]}" if tables else "a table"
        example = files.images[0].relative_to(path).as_posix()
        raise DataError(
            f"{path.name} is a folder with images in it ({example}, ...), and data.columns is for tables; set "
            f"data.source to {named}, or drop data.columns if each class has a folder"
        )


def _read_images_of_table(
    path: Path, columns: ImageColumns, split: str | None, subset: str | None, *, labelled: bool
) -> ImageTable:
    table = read_table(path, split=split, subset=subset)
    require_columns(table, [columns.image], "data.columns.image" if labelled else "the header: the model reads that")
    if labelled:
        require_columns(table, [columns.label], "data.columns.label")
    root = path if path.is_dir() else path.parent
    folders = list(dict.fromkeys((root / file).parent for file in table.files))
    images, bad = [], {}
    for number, cell in enumerate(table.columns[columns.image], start=1):
        image, problem = _stored(cell, f"row {number}", folders)
        images.append(image)
        if problem is not None:
            bad[number] = problem
    return ImageTable(table, columns.label, images, bad)


def stored_image(cell: Any, row: str) -> StoredImage | BadRow:
    """Return the image of a cell as Python has it: a file name, encoded bytes, or ``{bytes, path}``; or why not."""
    image, problem = _stored(str(cell) if isinstance(cell, Path) else cell, row, [Path()])
    return problem or image


def _stored(cell: Any, row: str, folders: Sequence[Path]) -> tuple[StoredImage, BadRow | None]:
    """Return the image of a cell: a file name, encoded bytes, or the ``{bytes, path}`` of a Hub image."""
    if isinstance(cell, Mapping) and not {"bytes", "path"}.isdisjoint(cell):
        content, name = cell.get("bytes"), cell.get("path")
        if content:
            return StoredImage(name or row, bytes(content)), None
        cell = name
    if isinstance(cell, bytes | bytearray):
        return StoredImage(row, bytes(cell)), None
    if isinstance(cell, str) and cell.strip():
        name = cell.strip()
        places = [folder / name for folder in folders]  # an absolute name stays as it is
        # Tables of one split may lie in several folders, and a row does not say in which.
        place = places[0] if len(places) == 1 else next((place for place in places if place.exists()), places[0])
        return StoredImage(name, place), None
    is_empty = cell is None or cell == "" or (isinstance(cell, str) and not cell.strip()) or cell != cell
    problem = BadRow(NO_IMAGE) if is_empty else BadRow(NOT_AN_IMAGE, cell)
    return StoredImage(row, b""), problem


def _read_pixels(path: Path, pixels: Pixels, split: str | None, *, labelled: bool) -> ImageTable:
    file = _pixel_file(path, split)
    label_first = pixels.label == "first"
    rows = read_pixel_table(
        file, shape=pixels.shape, label_first=label_first, header=pixels.header, needs_label=labelled
    )
    columns: dict[str, list[Any]] = {PIXEL_LABEL: rows.labels or [None] * len(rows.images)}
    images = [StoredImage(f"row {number}", image) for number, image in enumerate(rows.images, start=1)]
    name = file.relative_to(path).as_posix() if path.is_dir() else file.name
    return ImageTable(DataTable(columns, len(images), files=(name,)), PIXEL_LABEL, images, {}, rows.warnings)


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
