"""Folders with a text a file: a folder a class, with or without a folder a split around them."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hftoolkit.data.formats.content import decode
from hftoolkit.data.formats.parsed import Columns
from hftoolkit.data.labels import natural_key
from hftoolkit.data.split_names import role_of
from hftoolkit.errors import DataError

TEXT_ENDINGS = (".txt", ".text", "")
TEXT, LABEL, FILE = "text", "label", "file"  # columns of the table that is made


@dataclass(frozen=True, slots=True)
class TextFolders:
    """Where texts lie.

    Attributes:
        root: the folder with the class folders, or with the split folders.
        splits: name of each split folder -> its files in natural order; of a source without any, ``""`` -> all files.
        others: ending -> how many files are no texts.
    """

    root: Path
    splits: Mapping[str, Sequence[Path]]
    others: Counter[str]

    def notes(self) -> list[str]:
        """Return a sentence on files that are no texts, if there are any."""
        if not self.others:
            return []
        counts = ", ".join(f"{ending} {count}" for ending, count in self.others.most_common(5))
        return [f"files of {self.root.name} that are no texts and are left out: {self.others.total()} ({counts})"]


def find_text_folders(folder: Path) -> TextFolders | None:
    """Return the texts of a folder whose subfolders hold them, or None if it is none.

    A folder that holds nothing but another one is looked through.
    """
    root = folder
    while len(inside := [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]) == 1:
        if not inside[0].is_dir() or not any(entry.is_dir() for entry in inside[0].iterdir()):
            break
        root = inside[0]
    texts, others = _texts_below(root)
    tops = list(dict.fromkeys(text.relative_to(root).parts[0] for text in texts))
    roles = [role_of(top) for top in tops]
    if "train" not in roles or not all(roles) or len(tops) < 2:
        return TextFolders(root, {"": texts}, others) if len(tops) > 1 else None
    labelled = [text for text in texts if len(text.relative_to(root).parts) > 2]
    others.update(text.suffix.lower() for text in texts if len(text.relative_to(root).parts) == 2)
    splits = {top: [text for text in labelled if text.is_relative_to(root / top)] for top in tops}
    return TextFolders(root, splits, others) if labelled else None


def _texts_below(root: Path) -> tuple[list[Path], Counter[str]]:
    """Return the texts in subfolders, in natural order, and the endings of other files; hidden ones do not count."""
    texts: list[Path] = []
    others: Counter[str] = Counter()
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in (*TEXT_ENDINGS, *_numbers(path)) and path.parent != root:
                texts.append(path)
            else:
                others[path.suffix.lower() or path.name] += 1
    return sorted(texts, key=lambda path: [natural_key(part) for part in path.relative_to(root).parts]), others


def _numbers(path: Path) -> tuple[str, ...]:
    return (path.suffix.lower(),) if path.suffix[1:].isdigit() else ()  # message.17


def read_texts(
    folders: TextFolders, split: str | None, encoding: str | None, knobs: str
) -> tuple[Columns, tuple[str, ...]]:
    """Return columns ``text``, ``label`` (the class folder) and ``file`` of one split, or of all, and notes.

    Raises:
        DataError: no such split, or a text in another encoding.
    """
    if split is not None and split not in folders.splits:
        there = ", ".join(name for name in folders.splits if name) or "none"
        raise DataError(f"{folders.root.name} has no split folder {split!r}; it has: {there}. Edit data.split")
    columns: Columns = {TEXT: [], LABEL: [], FILE: []}
    notes: dict[str, None] = dict.fromkeys(folders.notes())
    for name in folders.splits if split is None else [split]:
        base = folders.root / name
        for path in folders.splits[name]:
            place = path.relative_to(folders.root).as_posix()
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"cannot read {place}: {error}") from error
            text, note = decode(content, place, encoding, f"{knobs}.encoding")
            if note:
                notes[f"texts of {folders.root.name} are read as {note.rpartition(' ')[2]}"] = None
            inside = path.relative_to(base).parts
            columns[TEXT].append(text)
            columns[LABEL].append(inside[0])
            columns[FILE].append(place)
    return columns, tuple(notes)
