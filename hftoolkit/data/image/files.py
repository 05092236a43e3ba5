"""Which files below a folder are images: by their ending, or by their first bytes where the ending says nothing."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hftoolkit.data.files import ending_of
from hftoolkit.data.image.cache import StoredImage
from hftoolkit.data.labels import natural_key
from hftoolkit.errors import DataError

JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp")  # one format under many names
IMAGE_ENDINGS = (".png", ".apng", *JPEG_ENDINGS, ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Pictures that are not read. They count as images, so that a row that is lost to its format is told like a broken one.
OTHER_PICTURES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".ppm", ".pgm", ".tga", ".dcm", ".dng", ".cr2", ".nef")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
LEFT_BY_PROGRAMS = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")  # in copies and archives; nobody's data
NO_PICTURES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".md", ".py", ".npy")  # never looked into
FIRST_BYTES = 16
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
OTHER_BRANDS = (b"heic", b"heix", b"mif1", b"avif", b"avis")  # of ISO media files: HEIC and AVIF
MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What lies below a folder; hidden files and folders do not count.

    Attributes:
        root: the folder.
        images: in natural order of their folders and names, as the others.
        others: files that are no images.
        folders: all folders below it, empty ones too.
    """

    root: Path
    images: list[Path]
    others: list[Path]
    folders: list[Path]


def files_below(root: Path) -> ImageFiles:
    """Return the images and other files below a folder, at any depth; links are followed, circles once."""
    images: list[Path] = []
    others: list[Path] = []
    folders: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not _is_hidden(name))
        if real in seen:
            continue
        seen.add(real)
        folders += [Path(folder, name) for name in subfolders]
        for name in names:
            path = Path(folder, name)
            if not _is_hidden(name) and (path.is_file() or path.is_symlink()):  # a link to nowhere is a missing file
                (images if _is_picture(path) else others).append(path)
    in_order = partial(_natural_parts, root)
    return ImageFiles(root, *(sorted(found, key=in_order) for found in (images, others, folders)))


def is_image(path: Path) -> bool:
    """Return whether a file that is not hidden is a picture, of a format that is read or of another."""
    return not _is_hidden(path.name) and path.is_file() and _is_picture(path)


def is_table(path: Path) -> bool:
    """Return whether a file is a table; an archive among images is taken for one of images."""
    return ending_of(path) not in (None, ".zip")


def archive_ending(path: Path) -> str | None:
    """Return which of ``ARCHIVE_ENDINGS`` a file name has."""
    name = path.name.lower()
    return next((ending for ending in ARCHIVE_ENDINGS if name.endswith(ending)), None)


def count_endings(paths: Iterable[Path]) -> str:
    """Return how many files have which ending, the most common first: ``.txt 3, README 1``."""
    counts = Counter(path.suffix.lower() or printable(path.name) for path in paths)
    return ", ".join(f"{ending} {count}" for ending, count in counts.most_common(MAX_LISTED))


def named_images(images: Sequence[Path], root: Path) -> list[StoredImage]:
    """Return images that are called by their path below ``root``."""
    return [StoredImage(printable(image.relative_to(root).as_posix()), image) for image in images]


def printable(name: str) -> str:
    r"""Return a file name that can be shown and written: bytes that are not UTF-8 become ``\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def no_images(path: Path) -> DataError:
    """Return the error of a folder, file or pattern without images, which says what else is there."""
    files = files_below(path) if path.is_dir() else None
    archives = [file for file in files.others if archive_ending(file)] if files else []
    if archives:
        names = ", ".join(printable(file.relative_to(path).as_posix()) for file in archives[:MAX_LISTED])
        return DataError(f"{path}: no images there, but archives: {names}. Unpack them, and name the folder")
    found = f" (there are other files: {count_endings(files.others)})" if files and files.others else ""
    return DataError(f"{path}: no images there; an image ends in {', '.join(IMAGE_ENDINGS)}{found}")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BY_PROGRAMS


def _is_picture(path: Path) -> bool:
    ending = path.suffix.lower()
    if ending in NO_PICTURES:
        return False
    return ending in IMAGE_ENDINGS or ending in OTHER_PICTURES or _begins_like_a_picture(path)


def _begins_like_a_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(FIRST_BYTES)
    except OSError:  # whoever reads it for what it is says what is the matter
        return False
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    return head.startswith(SIGNATURES) or is_webp or is_bitmap or (head[4:8] == b"ftyp" and head[8:12] in OTHER_BRANDS)


def _natural_parts(root: Path, path: Path) -> tuple[Any, ...]:
    return tuple(natural_key(part) for part in path.relative_to(root).parts)
