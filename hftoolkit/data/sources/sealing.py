"""The hashes of a finished model, in a file beside its folder, so that what is loaded later is what was checked.

The file is one that ``sha256sum --check`` reads, in the folder around both.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hftoolkit.data.sources.hashing import disk_faults, sha256_of_file
from hftoolkit.errors import DataError

MODEL, MODEL_HASHES = "model", "model.sha256"
LINE = re.compile(r"(?P<sha256>[0-9a-f]{64}) [ *](?P<name>\S.*)")
# Cards and pictures are written after the model, and people add to them; no library loads them.
NOT_LOADED = {"", ".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4"}


def seal(folder: Path) -> None:
    """Write the hash of each file that a library may load, after giving all files the mode that the umask asks for.

    Args:
        folder: a finished model; its hashes go into ``NAME.sha256`` beside it.
    """
    share(folder)
    record = _record_of(folder)
    lines = [f"{sha256_of_file(folder / name)}  {folder.name}/{name}\n" for name in _loaded(folder)]
    part = record.with_name(f"{record.name}.part")
    part.write_text("".join(lines), encoding="utf-8")
    sync(part)
    os.replace(part, record)


def check_seal(folder: Path) -> bool:
    """Compare a model with its hashes; return whether there are any.

    Raises:
        DataError: a file was changed, removed or added.
    """
    record = _record_of(folder)
    if not record.is_file():
        return False
    with disk_faults(folder, "check its permissions"):
        _compare(folder, _read(record, folder.name), record)
    return True


def check_model_folder(path: Path) -> None:
    """Check a folder or file as ``check_seal`` does if it is the model of a run, whatever way it was named.

    Raises:
        DataError: a file was changed, removed or added.
    """
    whole = Path(os.path.realpath(path))
    if whole.name == MODEL and whole.is_dir() and whole.with_name("recipe.yaml").is_file():
        check_seal(whole)


def share(folder: Path) -> None:
    """Give all files of a folder the mode that the umask gives to new ones; safetensors writes private ones."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has all files of a folder, and their names."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compare(folder: Path, expected: Mapping[str, str], record: Path) -> None:
    for name, sha256 in expected.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is gone since {_advice(record)}")
        if (actual := sha256_of_file(path)) != sha256:
            raise DataError(f"{path} has changed (sha256 {actual[:12]}, was {sha256[:12]}) since {_advice(record)}")
    if added := [name for name in _loaded(folder) if name not in expected]:
        raise DataError(f"{folder / added[0]} was added since {_advice(record)}")


def _record_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256")


def _loaded(folder: Path) -> Iterator[str]:
    """Yield the files that a library may load, by their path in the folder; hidden ones come and go."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and path.suffix.lower() not in NOT_LOADED:
            yield name.as_posix()


def _read(record: Path, folder: str) -> dict[str, str]:
    try:
        lines = record.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {record}: {error}") from error
    found = [LINE.fullmatch(line) for line in lines]
    expected = {match["name"].removeprefix(f"{folder}/"): match["sha256"] for match in found if match}
    if not expected or len(expected) != len(lines):
        raise DataError(f"{record} is damaged, and with it the proof that the model is whole; restore the run")
    return expected


def _advice(record: Path) -> str:
    return (
        "the run ended: the model is damaged or was edited. Restore the run from a copy or train it again; if the "
        f"change is yours, remove {record}, and the model is loaded unchecked"
    )
