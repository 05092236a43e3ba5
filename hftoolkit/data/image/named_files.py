"""Images that a table names by less than their path: without an ending or a folder, or as another machine wrote it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hftoolkit.data.image.files import IMAGE_ENDINGS, printable
from hftoolkit.data.image.layout import split_of
from hftoolkit.errors import DataError

MAX_DEPTH = 5  # of folders below the table that are searched
MAX_DEPTH_BESIDE = 3  # of folders below the one that holds the folder of the table
MAX_SEARCHED = 2_000_000  # files


@dataclass(frozen=True, slots=True)
class Found:
    """The files that the names of a table mean.

    Attributes:
        paths: by name; a name that no file has is absent.
        several: by name, the files that it fits equally well.
        warnings: how names differ from files, each kind with an example.
    """

    paths: dict[str, Path]
    several: dict[str, list[Path]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def find_named(names: Sequence[str], folders: Sequence[Path], table: str) -> Found:
    """Find the images that names mean: at their path or, if none is there, by the end of it anywhere below the folders.

    Args:
        names: as the table has them.
        folders: the tables lie there.
        table: what it is called; of two files that fit equally well, the one in a folder of the same split is meant.

    Raises:
        DataError: no name is that of a file.
    """
    wanted = list(dict.fromkeys(names))
    places = {name: place for name in wanted if (place := _at_path(name, folders)) is not None}
    if places or not wanted:  # where some are at their path, a file that is not is missing, and not elsewhere
        return Found(places, {}, _warnings({name: places[name] for name in places if "\\" in name}, folders))
    split = split_of(Path(table).name.split(".")[0])
    index = _Index(folders, MAX_DEPTH)
    fitting = index.find_all(wanted, split)
    if not fitting:  # labels/train.csv beside images/
        beside = [folder.parent for folder in folders if folder.parent not in (Path.home(), Path(folder.anchor))]
        fitting = _Index(beside, MAX_DEPTH_BESIDE).find_all(wanted, split)
    if not fitting:
        raise DataError(_nothing_found(wanted[0], folders, index))
    one = {name: found[0] for name, found in fitting.items() if len(found) == 1}
    return Found(one, {name: found for name, found in fitting.items() if len(found) > 1}, _warnings(one, folders))


def _at_path(name: str, folders: Sequence[Path]) -> Path | None:
    places = (folder / text for folder in folders for text in (name, name.replace("\\", "/")))
    return next((place for place in places if place.exists()), None)


class _Index:
    """The images below some folders, by name and by name without ending, in lower case."""

    def __init__(self, folders: Sequence[Path], max_depth: int) -> None:
        self.by_name: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        self.folders: set[str] = set()
        self.count = 0
        for folder in folders:
            self._add(folder, max_depth)

    def _add(self, root: Path, max_depth: int) -> None:
        for folder, subfolders, names in os.walk(root):
            is_deep = len(Path(folder).relative_to(root).parts) >= max_depth
            subfolders[:] = [] if is_deep else sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                ending = os.path.splitext(name)[1].lower()
                if ending in IMAGE_ENDINGS and self.count < MAX_SEARCHED:
                    self.count += 1
                    self.folders.add(Path(folder).name.lower())
                    self.by_name.setdefault(name.lower(), []).append(Path(folder, name))
                    self.by_stem.setdefault(name[: -len(ending)].lower(), []).append(Path(folder, name))

    @property
    def example(self) -> Path | None:
        return next((paths[0] for paths in self.by_name.values()), None)

    def find_all(self, names: Sequence[str], split: str | None) -> dict[str, list[Path]]:
        """Return what ``find`` does for each name, without those that fit nothing."""
        return {name: found for name in names if (found := self.find(name, split))}

    def find(self, name: str, split: str | None) -> list[Path]:
        """Return the files that fit a name best; several where none fits better than another."""
        parts = parts_of_any_machine(name)
        if not parts:
            return []
        fitting = self.by_name.get(parts[-1]) or self.by_stem.get(parts[-1]) or []
        shared = [_shared_folders(path, parts) for path in fitting]
        if len(parts) > 1 and parts[-2] in self.folders and not any(shared):
            return []  # its folder is here, and the file is not in it
        best = [path for path, count in zip(fitting, shared, strict=True) if count == max(shared)]
        if len(best) > 1 and split is not None:
            same = [path for path in best if any(split_of(part) == split for part in path.parent.parts)]
            best = same or best
        return best


def parts_of_any_machine(name: str) -> tuple[str, ...]:
    r"""Return the parts of a path in lower case, of ``C:\photos\1.png`` and ``./photos/1.png`` those from photos on."""
    plain = name.strip().replace("\\", "/").lower()
    return tuple(part for part in PurePosixPath(plain).parts if part not in ("/", ".", "..") and not part.endswith(":"))


def _shared_folders(path: Path, parts: Sequence[str]) -> int:
    """Return how many folders, counted from the file, a path has in common with a name."""
    count = 0
    for ours, named in zip(reversed(path.parent.parts), reversed(parts[:-1]), strict=False):
        if ours.lower() != named:
            break
        count += 1
    return count


def _nothing_found(name: str, folders: Sequence[Path], index: _Index) -> str:
    looked = " and ".join(str(folder) for folder in folders[:3])
    message = f"no row names an image: {name[:80]!r} was looked for in {looked} and in the folders there, "
    if index.example is None:
        return message + "which hold no images at all; put the table beside them, or name a table that is"
    inside = next(folder for folder in folders if index.example.is_relative_to(folder))
    there = printable(index.example.relative_to(inside).as_posix())
    slashes = " (a backslash is read as a slash)" if "\\" in name else ""
    return (
        message + f"where images have other names{slashes}, like {there}; name the column with file names in "
        "data.columns.image, or write them as the files are called, with or without folder and ending"
    )


def _warnings(repaired: dict[str, Path], folders: Sequence[Path]) -> list[str]:
    """Return a sentence for each way in which names are not those of files."""
    kinds: dict[str, list[str]] = {}
    for name, path in repaired.items():
        parts = parts_of_any_machine(name)
        if "\\" in name:
            kind = "have backslashes"
        elif parts[-1] != path.name.lower():
            kind = "lack the ending"
        else:
            kind = "are not paths from the table"
        kinds.setdefault(kind, []).append(name)
    warnings = []
    for kind, names in kinds.items():
        path = repaired[names[0]]
        there = printable(Path(os.path.relpath(path, folders[0])).as_posix())
        warnings.append(f"{len(names)} names of images {kind}: {names[0]!r} is taken for {there}")
    return warnings
