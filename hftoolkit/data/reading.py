"""From usable rows to splits: what is the same for every kind of example."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, Protocol, TypeVar

import numpy as np

from hftoolkit.data.labels import LabelSet
from hftoolkit.data.splits import split_rows
from hftoolkit.data.tables import DataTable
from hftoolkit.data.text_rows import CleanRows, count_list
from hftoolkit.errors import DataError
from hftoolkit.recipe import Split

SPLITS = ("train", "validation", "test")
FEWEST_ROWS = 20  # from which on the number of classes says something
OWN_CLASS_SHARE = 0.8  # more classes than that share of the rows are ids
Read = TypeVar("Read")


class Grouped(Protocol):
    """Rows that may be in groups."""

    @property
    def groups(self) -> list[str] | None:
        """The group of each row, or None without groups."""
        ...


def read_each_split(split: Split, read: Callable[[str | None], Read]) -> dict[str, Read]:
    """Read each given split by its name; ``train`` is the one that fractions are taken from."""
    found = {"train": read(split.train)}
    for name, given in (("validation", split.validation), ("test", split.test)):
        if isinstance(given, str):
            found[name] = read(given)
    return found


def check_disjoint_groups(rows: Mapping[str, Grouped]) -> None:
    """Raise DataError if a group lies in two given splits: no division of the training rows can mend that."""
    for a, b in combinations(rows, 2):
        shared = sorted(set(rows[a].groups or ()) & set(rows[b].groups or ()))
        if shared:
            raise DataError(
                f"{len(shared)} groups lie in both {a} and {b} ({', '.join(shared[:3])}, ...), and the source gives "
                "both splits; use fractions for data.split.validation and data.split.test, or drop data.split.group"
            )


def check_not_empty(rows: Mapping[str, CleanRows], tables: Mapping[str, DataTable]) -> None:
    """Raise DataError if a table has no usable row."""
    for name, kept in rows.items():
        if not kept.texts:
            raise DataError(f"no row of {tables[name].source} can be used: {count_list(kept.skipped)}")


def check_two_classes(targets: np.ndarray, labels: LabelSet, advice: str) -> None:
    """Raise DataError if nothing tells one training row from another."""
    found = np.unique(targets)
    if len(found) < 2:
        raise DataError(
            f"all {len(targets)} training rows have the label {labels.names[found[0]]!r}, and a classifier needs two; "
            f"{advice}"
        )


def label_column_warnings(rows: Mapping[str, CleanRows], labels: LabelSet, key: str) -> list[str]:
    """Return a sentence where there are less than two rows a class, which is rarely meant.

    Args:
        rows: of each table.
        labels: the classes that were found in them.
        key: of the recipe, says which column the labels are.

    Raises:
        DataError: nearly each row has a class of its own, as with an id or a text for a label.
    """
    num_rows, classes = sum(len(kept.texts) for kept in rows.values()), len(labels.names)
    if num_rows < FEWEST_ROWS or classes <= num_rows / 2:
        return []
    shown = ", ".join(f"{name!r:.40}" for name in labels.names[:3])
    found = f"{num_rows} rows have {classes} different labels ({shown}, ...)"
    if classes > num_rows * OWN_CLASS_SHARE:
        raise DataError(
            f"{found}: nearly each row would be a class of its own, as where an id or a text is taken for the label. "
            f"Check {key}, and that it is not swapped with the text; it must name what takes few values"
        )
    return [f"{found}, less than two rows a class; check that {key} is no id and no text"]


def check_not_swapped(rows: Mapping[str, CleanRows], labels: LabelSet) -> None:
    """Raise DataError where there are far more classes than different texts, as when their columns are swapped."""
    texts = {text for kept in rows.values() for text in kept.texts}
    if len(labels.names) >= FEWEST_ROWS and len(labels.names) > 2 * len(texts):
        raise DataError(
            f"the texts are {len(texts)} different ones ({', '.join(f'{text!r:.40}' for text in sorted(texts)[:3])}), "
            f"and the labels {len(labels.names)}; swap data.columns.text and data.columns.label"
        )


def places_by_split(rows: Mapping[str, CleanRows], split: Split) -> dict[str, tuple[str, np.ndarray]]:
    """Return, for each split, the table that its rows come from and their places among its usable rows."""
    places = split_rows(rows["train"].targets, split, rows["train"].groups)
    return {
        name: ("train", places[name]) if name in places else (name, np.arange(len(rows[name].texts))) for name in SPLITS
    }


def reading(rows: Mapping[str, CleanRows], tables: Mapping[str, DataTable]) -> dict[str, Any]:
    """Return which files were read, and what became of their rows, in plain JSON types."""
    skipped: Counter[str] = Counter()
    for kept in rows.values():
        skipped.update(kept.skipped)
    return {
        "files": {name: list(table.files) for name, table in tables.items()},
        "rows_read": sum(table.num_rows for table in tables.values()),
        "rows_kept": sum(len(kept.texts) for kept in rows.values()),
        "skipped": dict(skipped),
    }


def reading_warnings(rows: Mapping[str, CleanRows], tables: Mapping[str, DataTable]) -> list[str]:
    """Return sentences on joined splits and rows left out."""
    warnings = []
    for name, table in tables.items():
        if table.joined_splits:
            joined = ", ".join(table.joined_splits)
            warnings.append(f"the source has the splits {joined}; all their rows are used, see data.split.train")
        if rows[name].skipped:
            left_out = table.num_rows - len(rows[name].texts)
            reasons = count_list(rows[name].skipped)
            warnings.append(f"{left_out} of {table.num_rows} rows of {table.source} are left out ({reasons})")
    return warnings
