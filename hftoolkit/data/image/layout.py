"""How the folders of images lie: class folders, split folders at any depth, wrapped ones; and what to type for each.

Folders that look like splits are never taken for classes: they are refused with the lines that name them.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from hftoolkit.data.image.files import ImageFiles, count_endings, is_table, no_images, printable
from hftoolkit.errors import DataError
from hftoolkit.recipe import Split

SPLIT_WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst", "evaluation", "eval", "holdout"),
    "predict": ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"),
}
MEASURED = ("train", "validation", "test")
# What names of splits have beside the word itself: train_set, seg_train, images-val, PublicTest, val2017.
FILLERS = frozenset(
    "set sets data dataset image images img imgs photo photos pic pics picture pictures folder dir split splits fold "
    "seg subset sample samples simple public private final full all raw new small large class classes crop "
    "cropped".split()
)
GLUED = re.compile(r"(train|training|valid|validation|val|dev|test|testing)(set|data|images|imgs|dir|folder)s?")
MAX_LISTED = 5
SHOWN_FOLDERS = 8

Parts = tuple[str, ...]  # of a path below the root


@dataclass(frozen=True, slots=True)
class Chosen:
    """Images of a split, and the folder that is the class of each; None where it lies in none.

    Attributes:
        images: in natural order.
        labels: one an image.
        warnings: what a reader should know of how they lie.
    """

    images: list[Path]
    labels: list[str | None]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Splits:
    """Split folders that were found: what to write for each split, and those that are left out."""

    paths: dict[str, str]
    folders: list[str]
    unlabelled: list[str]
    others: list[str]


def split_of(name: str) -> str | None:
    """Return which split a folder, file or value is called after: ``seg_train``, ``test-images``, ``PublicTest``."""
    split, rest = split_and_rest(name)
    return split if not rest else None


def split_and_rest(name: str) -> tuple[str | None, Parts]:
    """Return the split that a name has the word of, and its words that do not belong to the name of a split."""
    words = re.findall(r"[a-z]{2,}", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    words = [GLUED.sub(r"\1", word) if GLUED.fullmatch(word) else word for word in words]
    found = [split for split, known in SPLIT_WORDS.items() for word in words if word in known]
    if len(set(found)) != 1:
        return None, tuple(words)
    known = SPLIT_WORDS[found[0]]
    return found[0], tuple(word for word in words if word not in known and word not in FILLERS)


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Return which of some names are splits, and which: of those with other words, such as another split goes with."""
    found = {name: split_and_rest(name) for name in names}
    splits_with: dict[Parts, set[str]] = {}
    for split, rest in found.values():
        if split is not None:
            splits_with.setdefault(rest, set()).add(split)
    plain = splits_with.get((), set())
    return {
        name: split
        for name, (split, rest) in found.items()
        if split is not None and (not rest or len(splits_with[rest] | plain) > 1)
    }


def one_of_each(named: Mapping[str, str]) -> dict[str, str]:
    """Return a name for each split; of a public and a private test set, as contests have, the first one validates."""
    chosen: dict[str, str] = {}
    for name, split in named.items():
        chosen.setdefault(split, name)
    public = [name for name, split in named.items() if split == "test" and "public" in name.lower()]
    private = [name for name, split in named.items() if split == "test" and "private" in name.lower()]
    if "validation" not in chosen and public and private:
        chosen |= {"validation": public[0], "test": private[0]}
    return chosen


def choose_images(files: ImageFiles, split: str | None) -> Chosen:
    """Return the images of all class folders, or of those in a split folder or pattern (``*/train``).

    Of a split folder, the first folder below it is the class; of a pattern, the folder that its first ``*`` stands for.
    """
    wanted = _parts_of(split)
    place = next((place for place, part in enumerate(wanted) if "*" in part), len(wanted))
    images, labels = [], []
    for image in files.images:
        parts = image.relative_to(files.root).parts
        if len(parts) > len(wanted) and all(map(_matches, parts, wanted)):
            images.append(image)
            labels.append(printable(parts[place]) if len(parts) > place + 1 else None)
    return Chosen(images, labels, _folder_warnings(files, wanted, images))


def check_training_folders(
    files: ImageFiles, split: Split, source: str | None, is_class: Callable[[str], bool]
) -> None:
    """Raise DataError unless class folders lie where the recipe looks for them.

    Args:
        files: of the source.
        split: of the recipe.
        source: the address of the root, to which folders can be added; None where they cannot.
        is_class: whether the recipe names a folder as a class.
    """
    if not files.images:
        raise no_images(files.root)
    tree = _Tree(files)
    if split.train is None:
        _check_unsplit(tree, source, is_class)
        return
    labels: set[str] = set()
    given = {name: getattr(split, name) for name in MEASURED}
    for name, folder in given.items():
        if isinstance(folder, str):
            _check_given(tree, name, folder, given, labels)


def check_measured_folders(files: ImageFiles, is_class: Callable[[str], bool]) -> None:
    """Raise DataError if what is to be measured lies in split folders, or one folder deeper; name those."""
    if not files.images:
        raise no_images(files.root)
    tree = _Tree(files)
    base = tree.unwrapped(())
    if any(map(is_class, tree.children(()))):
        return
    splits = _find_splits(tree, base)
    if splits is not None:
        patterns = [path for path in splits.paths.values() if "*" in path]
        if patterns:
            raise DataError(
                f"{files.root.name} has the folders {_listed(splits.folders)} in each class folder; evaluate measures "
                "one folder of class folders: put those of one split into a folder of their own"
            )
        places = [f"--data {_shown(files.root / path)}" for path in _test_first(splits.paths)]
        raise DataError(
            f"{files.root.name} has the split folders {_listed(splits.folders)}; name one: {' or '.join(places)}"
        )
    if base:
        raise DataError(
            f"the class folders ({_listed(tree.children(base))}) lie deeper; name their folder: "
            f"--data {_shown(files.root.joinpath(*base))}"
        )
    if not tree.children(()):
        raise DataError(f"{files.root.name} holds images, but no folder a class, by which they could be measured")


class _Tree:
    """Which folders with images lie in which."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files
        self.images: dict[Parts, int] = {}  # by folder, those directly in it
        self.below: dict[Parts, dict[str, int]] = {}  # by folder, its folders with images, and how many
        for image in files.images:
            folder = image.relative_to(files.root).parts[:-1]
            self.images[folder] = self.images.get(folder, 0) + 1
            for depth in range(len(folder)):
                children = self.below.setdefault(folder[:depth], {})
                children[folder[depth]] = children.get(folder[depth], 0) + 1

    def children(self, folder: Parts) -> list[str]:
        """Return the names of the folders in a folder that have images below them, in natural order."""
        return list(self.below.get(folder, ()))

    def is_flat(self, folder: Parts) -> bool:
        return not self.children(folder)

    def is_nested(self, folder: Parts) -> bool:
        """Return whether all images of a folder lie in folders inside it."""
        return bool(self.children(folder)) and folder not in self.images

    def unwrapped(self, folder: Parts) -> Parts:
        """Return the folder at the end of those that hold nothing but one folder."""
        while len(self.children(folder)) == 1:
            inner = (*folder, self.children(folder)[0])
            if not self.is_nested(inner) or (folder in self.images and len(self.children(inner)) < 2):
                break
            folder = inner
        return folder

    def find(self, folder: str) -> list[Parts]:
        """Return the folders with images that a split of the recipe names, directly or by a pattern."""
        wanted = _parts_of(folder)
        known = {parent[:depth] for parent in self.images for depth in range(len(parent) + 1)}
        return [found for found in known if len(found) == len(wanted) and all(map(_matches, found, wanted))]


def _check_unsplit(tree: _Tree, source: str | None, is_class: Callable[[str], bool]) -> None:
    root = tree.files.root
    folders = tree.children(())
    if not folders:
        raise DataError(
            f"{root.name} holds images, but no folder a class; sort them into folders named like the classes"
            f"{_or_table(tree.files)}"
        )
    if any(map(is_class, folders)):
        return
    base = tree.unwrapped(())
    splits = _find_splits(tree, base)
    if splits is not None:
        raise DataError(_split_message(tree.files, splits))
    if len(folders) == 1 and tree.is_flat((folders[0],)) and any(map(is_table, tree.files.others)):
        raise DataError(
            f"{root.name} holds images in one folder, {printable(folders[0])}, and not in a folder for each class; "
            f"sort them into folders named like the classes{_or_table(tree.files)}"
        )
    if base:
        inside = "/".join(base)
        fix = f"data.split.train: {inside}" if source is None else f"data.source: {source.rstrip('/')}/{inside}"
        raise DataError(
            f"{root.name} holds one folder, {printable(inside)}, and the class folders are in that "
            f"({_listed(tree.children(base))}); set {printable(fix)}"
        )


def _or_table(files: ImageFiles) -> str:
    """Return the other thing to do with images that lie in no class folders."""
    tables = [printable(file.relative_to(files.root).as_posix()) for file in files.others if is_table(file)]
    if not tables:
        return ", or name a table of file names with data.source and data.columns"
    named = f"a table, like {tables[0]}," if len(tables) > 1 else f"the table {tables[0]}"
    return f", or let {named} name them with data.columns: {{image: COLUMN, label: COLUMN}}"


def _find_splits(tree: _Tree, base: Parts) -> _Splits | None:
    """Return the split folders in a folder, or in each of its class folders; None where there are none."""
    folders = tree.children(base)
    named = splits_among(folders)
    others = [folder for folder in folders if folder not in named]
    kinds = set(named.values()) & set(MEASURED)
    alone = len(kinds) == 1 and not any(tree.is_nested((*base, folder)) for folder in others)
    has_classes = [folder for folder in named if tree.is_nested((*base, folder))]
    if len(kinds) > 1 or (alone and has_classes):
        labelled = [folder for folder in named if not tree.is_flat((*base, folder)) and named[folder] in MEASURED]
        chosen = one_of_each({folder: named[folder] for folder in labelled})
        paths = {split: "/".join(tree.unwrapped((*base, folder))) for split, folder in chosen.items()}
        unlabelled = [folder for folder in named if folder not in labelled]
        return _Splits(paths, ["/".join((*base, folder)) for folder in named], unlabelled, others)
    inside: dict[str, int] = {}
    for folder in folders:
        for name in tree.children((*base, folder)):
            inside[name] = inside.get(name, 0) + 1
    within = splits_among(inside)
    if len(set(within.values()) & set(MEASURED)) < 2 or set(within) != set(inside) or max(inside.values()) < 2:
        return None
    patterns = {split: f"'{'/'.join((*base, '*', name))}'" for split, name in one_of_each(within).items()}
    return _Splits(patterns, list(inside), [], [])


def _split_message(files: ImageFiles, splits: _Splits) -> str:
    """Return what to write for split folders."""
    where = " in each class folder" if any("*" in path for path in splits.paths.values()) else ""
    beside = f" beside {_listed(splits.others)}" if splits.others else ""
    found = f"{files.root.name} has the split folders {_listed(splits.folders)}{beside}{where}"
    if "train" not in splits.paths:
        return (
            f"{found}, and no class folders to train on in them; sort the training images into folders named like the "
            f"classes{_or_table(files)}"
        )
    shown = ", ".join(f"{split}: {printable(splits.paths.get(split, '0.1'))}" for split in MEASURED)
    message = f"{found}; write data.split: {{{shown}}}"
    if splits.unlabelled:
        folders = _listed(splits.unlabelled)
        message += f". Without class folders, nothing can be measured on {folders}: that is for hftoolkit predict"
    return message


def _check_given(tree: _Tree, name: str, folder: str, given: Mapping[str, object], labels: set[str]) -> None:
    """Raise DataError unless a split of the recipe is a folder of class folders; add its classes to ``labels``."""
    root = tree.files.root
    found = tree.find(folder)
    if not found:
        raise DataError(f"{root.name} has no folder {folder!r}; it has: {_listed(tree.children(()))}. Edit data.split")
    if "*" in folder:
        return
    base = found[0]
    if tree.is_flat(base):
        advice = "name a folder that has some" if name == "train" else f"write data.split.{name}: 0.1"
        raise DataError(
            f"{folder} holds {tree.images[base]} images and no folder a class, so there is nothing to compare with; "
            f"{advice}. Images without a class are for hftoolkit predict"
        )
    deeper = tree.unwrapped(base)
    if deeper != base and deeper[len(base)] not in labels:
        shown = dict(given) | {name: "/".join(deeper)}
        written = ", ".join(f"{split}: {value}" for split, value in shown.items())
        raise DataError(
            f"{folder} holds one folder, {deeper[len(base)]}, and the class folders are in that "
            f"({_listed(tree.children(deeper))}); write data.split: {{{written}}}"
        )
    labels.update(tree.children(base))


def _folder_warnings(files: ImageFiles, wanted: Parts, images: Sequence[Path]) -> list[str]:
    """Return sentences on class folders without images, folders inside class folders, and what no split names."""
    warnings = []
    if not any("*" in part for part in wanted):
        base = files.root.joinpath(*wanted)
        warnings += _empty_classes(files, base, images)
        deep = [image for image in images if len(image.relative_to(base).parts) > 2]
        if deep:
            example = printable(deep[0].relative_to(base).parent.as_posix())
            warnings.append(
                f"{len(deep)} of {len(images)} images of {base.name} lie in folders inside class folders ({example}, "
                "...); the outermost folder is their class"
            )
    if files.others:
        total = len(files.images) + len(files.others)
        warnings.append(
            f"files of {files.root.name} that are no images and are left out: {len(files.others)} of {total} "
            f"({count_endings(files.others)})"
        )
    return warnings


def _empty_classes(files: ImageFiles, base: Path, images: Sequence[Path]) -> list[str]:
    depth = len(base.parts)
    used = {image.parts[depth] for image in images if len(image.parts) > depth + 1}
    empty = [folder for folder in files.folders if folder.parent == base and folder.name not in used]
    if not empty:
        return []
    shown = []
    for folder in empty[:SHOWN_FOLDERS]:
        held = count_endings(file for file in files.others if file.is_relative_to(folder))
        shown.append(f"{printable(folder.name)} ({held or 'empty'})")
    more = f" and {len(empty) - SHOWN_FOLDERS} more" if len(empty) > SHOWN_FOLDERS else ""
    return [f"folders without images are no classes: {', '.join(shown)}{more}"]


def left_out_folders(files: ImageFiles, used: Iterable[Path]) -> list[str]:
    """Return a sentence on the images that no given split names."""
    known = set(used)
    left = [image for image in files.images if image not in known]
    if not left:
        return []
    folders: dict[str, int] = {}
    for image in left:
        name = image.relative_to(files.root).parts[0] if image.parent != files.root else "no folder"
        folders[name] = folders.get(name, 0) + 1
    shown = ", ".join(f"{printable(name)} {count}" for name, count in list(folders.items())[:SHOWN_FOLDERS])
    return [f"{len(left)} of {len(files.images)} images are in no split that data.split names: {shown}"]


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or ("*" in wanted and fnmatchcase(name, wanted))


def _parts_of(split: str | None) -> Parts:
    if split is None:
        return ()
    return tuple(part for part in split.replace("\\", "/").split("/") if part not in ("", "."))


def _test_first(paths: dict[str, str]) -> list[str]:
    return [paths[split] for split in reversed(MEASURED) if split in paths]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_FOLDERS} more" if len(names) > SHOWN_FOLDERS else ""
    return printable(", ".join(names[:SHOWN_FOLDERS])) + more


def _shown(path: Path) -> str:
    """Return a path as it is typed: relative to the current folder where it is below that."""
    here = Path(os.getcwd())
    return printable(str(path.relative_to(here) if path.is_relative_to(here) else path))
