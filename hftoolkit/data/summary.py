"""What a run writes down about its data: counts, a fingerprint, and what a reader should be warned of."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hftoolkit.contracts.names import short
from hftoolkit.data.labels import LabelSet

NAMES_SHOWN = 5  # of classes, or groups of them, in a warning
Texts = Mapping[str, Sequence[str]]
Targets = Mapping[str, np.ndarray]


def summarize(
    texts: Texts, targets: Targets, row_numbers: Mapping[str, np.ndarray], labels: LabelSet, what: str = "text"
) -> dict[str, Any]:
    """Describe the splits in plain JSON types.

    Args:
        texts: by split (``train``, ``validation``, ``test``); of images, the hashes of their pixels.
        targets: by split, (N,) class numbers or (N, C) zeros and ones.
        row_numbers: by split, (N,) 1-based rows in the source.
        labels: the classes.
        what: ``text`` or ``image``, for the name of a key and for warnings.

    Returns:
        ``sizes`` and ``class_counts`` by split, ``duplicates`` (``"train/test"``: rows of test whose text is in train
        too), ``conflicting_texts`` (texts that occur with different labels), ``fingerprint`` and ``warnings``.
    """
    counts = {split: _class_counts(targets[split], labels) for split in texts}
    normal = {split: [normalize(text) for text in texts[split]] for split in texts}
    repeated = duplicates(normal)
    conflicting = _conflicting_texts(normal, targets)
    return {
        "sizes": {split: len(texts[split]) for split in texts},
        "class_counts": counts,
        "duplicates": repeated,
        f"conflicting_{what}s": conflicting,
        "fingerprint": _fingerprint(texts, targets, row_numbers),
        "warnings": [
            *_class_warnings(counts, labels),
            *_spelling_warnings(labels.names),
            *_duplicate_warnings(repeated, normal, conflicting, what),
        ],
    }


def normalize(text: str) -> str:
    """Return the text without differences of case and blanks, by which texts count as the same."""
    return " ".join(text.casefold().split())


def duplicates(texts: Texts) -> dict[str, int]:
    """Return, for each pair of splits ``"a/b"``, how many rows of b have a text that is in a too."""
    known = {split: frozenset(found) for split, found in texts.items()}
    return {f"{a}/{b}": sum(text in known[a] for text in texts[b]) for a, b in combinations(texts, 2)}


def _conflicting_texts(texts: Texts, targets: Targets) -> int:
    seen: dict[str, set[bytes]] = {}
    for split, found in texts.items():
        for text, target in zip(found, targets[split], strict=True):
            seen.setdefault(text, set()).add(target.tobytes())
    return sum(len(different) > 1 for different in seen.values())


def _class_counts(targets: np.ndarray, labels: LabelSet) -> dict[str, int]:
    size = len(labels.names)
    counts = targets.sum(axis=0) if labels.multi_label else np.bincount(targets, minlength=size)
    return {name: int(count) for name, count in zip(labels.names, counts, strict=True)}


def _fingerprint(texts: Texts, targets: Targets, row_numbers: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of split, row number, text and target of every row, one JSON line each."""
    digest = hashlib.sha256()
    for split in texts:
        rows = zip(row_numbers[split].tolist(), texts[split], targets[split].astype(int).tolist(), strict=True)
        for number, text, target in rows:
            digest.update(json.dumps([split, number, text, target]).encode() + b"\n")
    return digest.hexdigest()


def _class_warnings(counts: Mapping[str, Mapping[str, int]], labels: LabelSet) -> list[str]:
    """Return a sentence for each set of splits that classes are missing in, however many classes these are."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in labels.names:
        present = tuple(split for split in counts if counts[split][name])
        if len(present) < len(counts):
            groups.setdefault(present, []).append(name)
    return [_class_warning(names, present, tuple(counts)) for present, names in groups.items()]


def _class_warning(names: Sequence[str], present: Sequence[str], splits: Sequence[str]) -> str:
    is_one = len(names) == 1
    who = f"class {short(names[0])!r}" if is_one else f"{len(names)} classes"
    absent = [split for split in splits if split not in present]
    if not present:
        return f"{who} {'has' if is_one else 'have'} no rows at all{in_brackets(names)}"
    if "train" in absent:
        where, cannot = " and ".join(present), f"{'it' if is_one else 'they'} cannot be learned"
        return f"{who} {'occurs' if is_one else 'occur'} in {where}, but not in train: {cannot}{in_brackets(names)}"
    missing = f"{who} {'has' if is_one else 'have'} no rows in {' and '.join(absent)}"
    return f"{missing}: nothing is measured for {'it' if is_one else 'them'} there{in_brackets(names)}"


def in_brackets(names: Sequence[str]) -> str:
    """Return the first of several names in brackets, for the end of a sentence; nothing for a single one."""
    if len(names) < 2:
        return ""
    shown = [repr(short(name)) for name in names[:NAMES_SHOWN]]
    return f" ({', '.join(shown + ['...'] * (len(names) > NAMES_SHOWN))})"


def _spelling_warnings(names: Sequence[str]) -> list[str]:
    """Return a sentence on classes whose names differ by case, blanks or the form of letters alone."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(normalize(unicodedata.normalize("NFKC", name)), []).append(name)
    groups = [" and ".join(repr(short(name)) for name in found) for found in alike.values() if len(found) > 1]
    if not groups:
        return []
    said = "; ".join(groups[:NAMES_SHOWN]) + ("; ..." if len(groups) > NAMES_SHOWN else "")
    return [f"classes are spelled alike: {said}; if they are one, give both values the same name in task.labels"]


def _duplicate_warnings(repeated: Mapping[str, int], texts: Texts, conflicting: int, what: str) -> list[str]:
    warnings = []
    article = "an" if what == "image" else "a"
    for pair, count in repeated.items():
        if count:
            known, split = pair.split("/")
            warnings.append(f"{count} of {len(texts[split])} rows of {split} repeat {article} {what} of {known}")
    if conflicting:
        warnings.append(f"{conflicting} {what}s occur with different labels")
    return warnings
