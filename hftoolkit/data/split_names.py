"""What files, folders, columns and keys are called that hold a split: train, validation or test."""

import re
from collections.abc import Iterable

WORDS = {
    "train": ("train", "training", "trn", "trainset"),
    "validation": ("validation", "valid", "val", "dev", "development", "valset", "devset", "publictest"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "testset", "privatetest"),
}
_ROLES = {word: role for role, words in WORDS.items() for word in words}
SPLITS = tuple(WORDS)


def role_of(name: str) -> str | None:
    """Return which split a name speaks of (``seg_train``, ``TestSet``), or None if of none or several."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    roles = {_ROLES[word.lower()] for word in words if word.lower() in _ROLES}
    return next(iter(roles)) if len(roles) == 1 else None


def role_of_value(value: str) -> str | None:
    """Return which split a cell says; unlike a name it has no other words."""
    return _ROLES.get(re.sub(r"[\s_-]", "", value.casefold()))


def by_role(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names that speak of each split, in the order train, validation, test."""
    found: dict[str, list[str]] = {role: [] for role in SPLITS}
    for name in names:
        if role := role_of(name):
            found[role].append(name)
    return {role: those for role, those in found.items() if those}
