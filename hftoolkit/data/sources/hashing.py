"""SHA-256 of files and folders, and faults of the disk they lie on."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hftoolkit.errors import DataError, EnvironmentFault


def sha256_of_file(path: Path) -> str:
    """Return the hash of the content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(folder: Path) -> str:
    """Hash relative names and contents. Hidden files (.git, .DS_Store) come and go and do not count."""
    names = [name for name in names_below(folder, folder) if not any(p.startswith(".") for p in name.split("/"))]
    if not names:
        raise DataError(f"the folder {folder} has no files")
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0" + sha256_of_file(folder / name).encode() + b"\n")
    return digest.hexdigest()


def names_below(path: Path, root: Path) -> list[str]:
    """Return the regular files at or below ``path``, sorted, as POSIX paths relative to ``root``."""
    if path.is_file():
        return [path.relative_to(root).as_posix()]
    files: list[Path] = []
    seen: set[str] = set()  # followed links can make a circle
    for folder, subfolders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        files += [Path(folder, name) for name in names if Path(folder, name).is_file()]
    return sorted(file.relative_to(root).as_posix() for file in files)


def check_sha256(what: str, actual: str, expected: str | None, advice: str) -> None:
    """Raise DataError if a hash was expected, and it is another one."""
    if expected is not None and actual != expected:
        raise DataError(f"{what} has sha256 {actual}, the recipe expects {expected}; {advice}")


@contextmanager
def disk_faults(path: Path, advice: str) -> Iterator[None]:
    """Turn errors of the disk under ``path`` into EnvironmentFault."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"cannot use {path}: {error.strerror or error}; {advice}") from error
