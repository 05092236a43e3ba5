"""From usable rows to splits: what is the same for every kind of example."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from hftoolkit.data.labels import LabelSet
from hftoolkit.data.split_names import SPLITS, by_role, role_of_value
from hftoolkit.data.splits import split_rows
from hftoolkit.data.tables import DataTable, given_splits, read_table, require_columns
from hftoolkit.data.text_rows import BadRow, BadRows, CleanRows, ParsedRows, count_list
from hftoolkit.errors import DataError
from hftoolkit.recipe import Split
from hftoolkit.recipe.sections import DEFAULT_FRACTION, Data

NO_SPLIT = "split is none of train, validation and test"
DataT = TypeVar("DataT", bound=Data)
FEWEST_ROWS = 20  # from which on the number of classes says something
OWN_CLASS_SHARE = 0.8  # more classes than that share of the rows are ids
Read = TypeVar("Read")


class Kept(Protocol):
    """The usable rows of one table, in its order."""

    @property
    def row_numbers(self) -> np.ndarray:
        """(N,) int64, 1-based rows of the table."""
        ...

    @property
    def groups(self) -> list[str] | None:
        """The group of each row, or None without groups."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """Reason -> number of rows left out."""
        ...


def read_each_split(split: Split, read: Callable[[str | None], Read]) -> dict[str, Read]:
    """Read each given split by its name; ``train`` is the one that fractions are taken from."""
    found = {"train": read(split.train)}
    for name, given in (("validation", split.validation), ("test", split.test)):
        if isinstance(given, str):
            found[name] = read(given)
    return found


def with_given_splits(source: Path, data: DataT) -> tuple[DataT, list[str]]:
    """Return the section with the splits that the source has, where the recipe names none, and what was taken.

    Raises:
        DataError: the recipe draws a fraction for a split that the source has, or it has two for one.
    """
    split = data.split
    if split.train is not None or split.column is not None:
        return data, []
    files = given_splits(source, data.subset)
    roles = by_role(files)
    if len(files) < 2 or "train" not in roles:
        return data, []
    names = ", ".join(f"{role}: {' or '.join(those)}" for role, those in roles.items())
    drawn = [role for role in roles if role != "train" and getattr(split, role) != DEFAULT_FRACTION]
    if drawn or any(len(those) > 1 for those in roles.values()):
        what = f"data.split.{drawn[0]} is a fraction" if drawn else "data.split names none"
        raise DataError(
            f"{source.name} has the splits {', '.join(files)}, and {what}; write data.split: {{{names}}}, or train: "
            "all to draw fractions from all rows"
        )
    chosen = {role: those[0] for role, those in roles.items()}
    said = ", ".join(f"{role} ({files[name]})" for role, name in chosen.items())
    unused = [name for name in files if name not in chosen.values()]
    notes = [f"the splits that {source.name} has are used: {said}; see data.split"]
    if unused:
        notes.append(f"of {source.name}, these splits are not used: {', '.join(unused)}")
    return data.model_copy(update={"split": split.model_copy(update=chosen)}), notes


def read_tables(source: Path, data: DataT) -> tuple[dict[str, DataTable], DataT, list[str]]:
    """Read the table of each split: those of the recipe, or else those that the source has.

    Returns:
        The tables, ``train`` the one that fractions are taken from; the section with the splits in force, also where
        a column of the table says them; and sentences on both.

    Raises:
        DataError: the files or splits cannot be used.
    """
    told, notes = with_given_splits(source, data)
    tables = read_each_split(
        told.split,
        lambda split: read_table(source, split=split, subset=data.subset, how=data.format, keep_broken=True),
    )
    if told is not data:
        told, dropped = _without_unlabelled(told, tables)
        notes += dropped
    if list(tables) == ["train"]:
        told, found = with_split_column(told, tables["train"])
        notes += found
    return tables, told, notes


def _without_unlabelled(data: DataT, tables: dict[str, DataTable]) -> tuple[DataT, list[str]]:
    """Leave out splits that were not asked for and that nothing can be measured on, as those of competitions."""
    notes = []
    for name in [name for name in tables if name != "train"]:
        table = tables[name]
        missing = [column for column in tables["train"].columns if column not in table.columns]
        missing += [column for column in table.class_names if not any(map(_is_told, table.columns[column]))]
        if missing:
            notes.append(
                f"{table.source} has no {', '.join(map(repr, missing))}, so it is not used, and data.split.{name} is "
                "a fraction of the training rows"
            )
            del tables[name]
            data = data.model_copy(update={"split": data.split.model_copy(update={name: DEFAULT_FRACTION})})
    return data, notes


def _is_told(cell: Any) -> bool:
    return cell is not None


def with_split_column(data: DataT, table: DataTable) -> tuple[DataT, list[str]]:
    """Return the section with the column whose cells all say train, validation or test, and a sentence on it.

    Where the recipe says what is drawn, the column is not used, and the sentence says so.
    """
    if data.split.column is not None:
        return data, []
    read = str(data.model_dump().get("columns"))
    for name, column in table.columns.items():
        cells = [cell for number, cell in enumerate(column, start=1) if number not in table.broken]
        if repr(name) in read or name == data.split.group:
            continue
        roles = _roles(cells)
        if roles is None:
            continue
        fractions = [role for role in SPLITS[1:] if getattr(data.split, role) != DEFAULT_FRACTION]
        if fractions or data.split.train is not None:
            return data, [
                f"column {name!r} of {table.source} says {', '.join(roles)} and is not used, since data.split says "
                f"otherwise; data.split.column: {name} would use it"
            ]
        note = f"column {name!r} of {table.source} says which row is for {', '.join(roles)} (data.split.column)"
        return data.model_copy(update={"split": data.split.model_copy(update={"column": name})}), [note]
    return data, []


def _roles(cells: Sequence[Any]) -> list[str] | None:
    """Return the splits that a column speaks of, or None if a cell says anything else, or all say the same."""
    found: set[str] = set()
    for cell in cells:
        role = role_of_value(cell) if isinstance(cell, str) else None
        if role is None:
            return None
        found.add(role)
    return [role for role in SPLITS if role in found] if "train" in found and len(found) > 1 else None


def told_splits(table: DataTable, column: str | None) -> tuple[list[str] | None, BadRows]:
    """Return which split a column says of each row, and the rows of which it says none; None without a column.

    Raises:
        DataError: the table lacks the column, or it says of no row that it is for training.
    """
    if column is None:
        return None, {}
    require_columns(table, [column], "data.split.column")
    told: list[str] = []
    bad: BadRows = {}
    for number, cell in enumerate(table.columns[column], start=1):
        role = role_of_value(str(cell)) if cell is not None else None
        if role is None and number not in table.broken:
            bad[number] = BadRow(NO_SPLIT, cell)
        told.append(role or "")
    if "train" not in told:
        found = ", ".join(sorted({f"{cell!r:.30}" for cell in table.columns[column]})[:5])
        raise DataError(
            f"column {column!r} of {table.source} says train of no row (found: {found}); edit data.split.column"
        )
    return told, bad


def check_disjoint_groups(rows: Mapping[str, Kept]) -> None:
    """Raise DataError if a group lies in two given splits: no division of the training rows can mend that."""
    for a, b in combinations(rows, 2):
        shared = sorted(set(rows[a].groups or ()) & set(rows[b].groups or ()))
        if shared:
            raise DataError(
                f"{len(shared)} groups lie in both {a} and {b} ({', '.join(shared[:3])}, ...), and the source gives "
                "both splits; use fractions for data.split.validation and data.split.test, or drop data.split.group"
            )


def check_not_empty(rows: Mapping[str, Kept], tables: Mapping[str, DataTable]) -> None:
    """Raise DataError if a table has no usable row."""
    for name, kept in rows.items():
        if not len(kept.row_numbers):
            raise DataError(f"no row of {tables[name].source} can be used: {count_list(kept.skipped)}")


def check_two_classes(targets: np.ndarray, labels: LabelSet, advice: str) -> None:
    """Raise DataError if nothing tells one training row from another."""
    found = np.unique(targets)
    if len(found) < 2:
        raise DataError(
            f"all {len(targets)} training rows have the label {labels.names[found[0]]!r}, and a classifier needs two; "
            f"{advice}"
        )


def check_any_label(targets: np.ndarray) -> None:
    """Raise DataError if no training row has a label, with targets (N, C)."""
    if not targets.any():
        raise DataError("no training row has any label; check data.columns.label and task.label_separator")


def label_hints(
    parsed: Collection[ParsedRows], mapping: Mapping[Any, str] | None, labels: LabelSet, column: str
) -> list[str]:
    """Return sentences on label cells that look like another setting, or whose classes have no names.

    Args:
        parsed: the rows of each table.
        mapping: ``task.labels``.
        labels: the classes in force.
        column: of the labels.
    """
    hints = list(dict.fromkeys(hint for rows in parsed for hint in rows.hints))
    if mapping is None and any(rows.classes for rows in parsed):
        hints.append(_multi_hot_note(len(labels.names), column))
    return hints


def _multi_hot_note(width: int, column: str) -> str:
    names = f"0: NAME, ..., {width - 1}: NAME" if width > 2 else "0: NAME, 1: NAME"
    return (
        f"the cells of {column!r} are lists of {width} numbers 0 and 1: each place is read as a class, called 0 to "
        f"{width - 1}; name them with task.labels: {{{names}}}"
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
    uses = sum((_uses(kept.targets, labels) for kept in rows.values()), np.zeros(len(labels.names)))
    num_rows, given, classes = sum(len(kept.texts) for kept in rows.values()), uses.sum(), np.count_nonzero(uses)
    if num_rows < FEWEST_ROWS or classes <= given / 2:
        return []
    shown = ", ".join(f"{name!r:.40}" for name in labels.names[:3])
    found = f"{num_rows} rows have {classes} different labels ({shown}, ...)"
    if classes > given * OWN_CLASS_SHARE:
        raise DataError(
            f"{found}: nearly each row would be a class of its own, as where an id or a text is taken for the label. "
            f"Check {key}, and that it is not swapped with the text; it must name what takes few values"
        )
    return [f"{found}, less than two rows a class; check that {key} is no id and no text"]


def _uses(targets: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Return how many rows have each class, (C,), given targets (N,) or (N, C)."""
    counts: np.ndarray = targets.sum(0) if labels.multi_label else np.bincount(targets, minlength=len(labels.names))
    return counts


def check_not_swapped(rows: Mapping[str, CleanRows], labels: LabelSet) -> None:
    """Raise DataError where there are far more classes than different texts, as when their columns are swapped."""
    texts = {text for kept in rows.values() for text in kept.texts}
    if len(labels.names) >= FEWEST_ROWS and len(labels.names) > 2 * len(texts):
        raise DataError(
            f"the texts are {len(texts)} different ones ({', '.join(f'{text!r:.40}' for text in sorted(texts)[:3])}), "
            f"and the labels {len(labels.names)}; swap data.columns.text and data.columns.label"
        )


def places_by_split(
    rows: Mapping[str, Kept], strata: np.ndarray, split: Split, told: Sequence[str] | None
) -> dict[str, tuple[str, np.ndarray]]:
    """Return, for each split, the table that its rows come from and their places among its usable rows.

    Args:
        rows: of each table; fractions are taken from those of ``train``.
        strata: (N, ...) of the rows of ``train``, for ``split_rows``.
        split: what is taken.
        told: what ``told_splits`` says of all rows of ``train``, those that cannot be used as well.
    """
    train = rows["train"]
    of_kept = None if told is None else [told[number - 1] for number in train.row_numbers]
    places = split_rows(strata, split, train.groups, of_kept)
    return {
        name: ("train", places[name]) if name in places else (name, np.arange(len(rows[name].row_numbers)))
        for name in SPLITS
    }


def reading(rows: Mapping[str, Kept], tables: Mapping[str, DataTable]) -> dict[str, Any]:
    """Return which files were read, and what became of their rows, in plain JSON types."""
    skipped: Counter[str] = Counter()
    for kept in rows.values():
        skipped.update(kept.skipped)
    return {
        "files": {name: list(table.files) for name, table in tables.items()},
        "rows_read": sum(table.num_rows for table in tables.values()),
        "rows_kept": sum(len(kept.row_numbers) for kept in rows.values()),
        "skipped": dict(skipped),
    }


def reading_warnings(rows: Mapping[str, Kept], tables: Mapping[str, DataTable]) -> list[str]:
    """Return sentences on joined splits and rows left out."""
    warnings = list(dict.fromkeys(note for table in tables.values() for note in table.notes))
    for name, table in tables.items():
        if table.joined_splits:
            joined = ", ".join(table.joined_splits)
            warnings.append(f"the source has the splits {joined}; all their rows are used, see data.split.train")
        if rows[name].skipped:
            left_out = table.num_rows - len(rows[name].row_numbers)
            reasons = count_list(rows[name].skipped)
            warnings.append(f"{left_out} of {table.num_rows} rows of {table.source} are left out ({reasons})")
    return warnings
