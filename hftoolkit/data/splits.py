"""Divide rows into train, validation and test: seeded, stratified, and with groups kept whole."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hftoolkit import seeding
from hftoolkit.errors import DataError
from hftoolkit.recipe import Split

# A combination of labels with fewer rows is stratified with others that share its rarest label.
FEWEST_ROWS_OF_A_COMBINATION = 10
# Classes this small stay in train while others can fill the rest.
MOST_ROWS_OF_A_RARE_CLASS = 2


def split_rows(
    targets: np.ndarray, split: Split, groups: Sequence[str] | None = None, told: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Choose rows for ``train`` and for each of ``validation`` and ``test`` that is a fraction.

    Args:
        targets: (N,) class numbers or (N, C) zeros and ones.
        split: the fractions and the seed.
        groups: N values; rows of one group go together. None: every row for itself.
        told: N times ``train``, ``validation`` or ``test``; fractions are for what is never said. None: for both.

    Returns:
        Row places by split, ascending; together they are all N. Sizes are ``round(fraction * N)`` exactly, and
        about that with groups.

    Raises:
        DataError: a split would be empty, or a group is in two splits that were told.
    """
    if told is not None:
        return _split_as_told(targets, split, groups, np.asarray(told))
    fractions = {
        name: share
        for name, share in (("validation", split.validation), ("test", split.test))
        if isinstance(share, float)
    }
    sizes = {name: round(share * len(targets)) for name, share in fractions.items()}
    sizes = {"train": len(targets) - sum(sizes.values()), **sizes}
    if groups is None:
        _check_not_empty(sizes, fractions)
    strata = _strata(targets)
    generator = seeding.numpy_generator("split", split.seed)
    if groups is None:
        chosen = _choose_rows(strata, list(sizes.values()), generator)
    else:
        chosen = _choose_groups(strata, groups, list(sizes.values()), generator)
    return {name: np.flatnonzero(chosen == place) for place, name in enumerate(sizes)}


def _split_as_told(
    targets: np.ndarray, split: Split, groups: Sequence[str] | None, told: np.ndarray
) -> dict[str, np.ndarray]:
    given = {name: np.flatnonzero(told == name) for name in ("validation", "test") if (told == name).any()}
    rest = np.flatnonzero(told == "train")
    if groups is not None:
        _check_groups_apart(groups, told)
    drawn = split.model_copy(update={name: name for name in given})  # a name is no fraction
    places = split_rows(targets[rest], drawn, None if groups is None else [groups[place] for place in rest.tolist()])
    return {name: rest[chosen] for name, chosen in places.items()} | given


def _check_groups_apart(groups: Sequence[str], told: np.ndarray) -> None:
    split_of: dict[str, str] = {}
    for group, name in zip(groups, told.tolist(), strict=True):
        if split_of.setdefault(group, name) != name:
            raise DataError(
                f"the group {group!r} lies in both {split_of[group]} and {name}, as data.split.column says; drop "
                "data.split.group, or correct the column"
            )


def _check_not_empty(sizes: dict[str, int], fractions: dict[str, float]) -> None:
    empty = [name for name, size in sizes.items() if size < 1]
    if empty:
        counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        asked = ", ".join(f"data.split.{name}: {share}" for name, share in fractions.items())
        raise DataError(
            f"{sum(sizes.values())} usable rows are too few for {asked}: the sizes would be {counts}. "
            f"Give more rows, or a fraction that leaves some for {' and '.join(empty)}"
        )


def _strata(targets: np.ndarray) -> np.ndarray:
    """Return (N,) numbers from 0 on: the class, or the combination of labels, rare ones pooled by rarest label."""
    if targets.ndim == 1:
        return np.unique(targets, return_inverse=True)[1].astype(np.int64)
    combinations, places, counts = np.unique(targets > 0, axis=0, return_inverse=True, return_counts=True)
    label_counts = targets.sum(axis=0)  # (C,)
    rarest = np.where(combinations, label_counts, np.inf).argmin(axis=1)
    pool = np.where(combinations.any(axis=1), -1 - rarest, -1 - targets.shape[1])
    pooled = np.where(counts < FEWEST_ROWS_OF_A_COMBINATION, pool, np.arange(len(combinations)))
    return np.unique(pooled[places.reshape(-1)], return_inverse=True)[1].astype(np.int64)


def _choose_rows(strata: np.ndarray, sizes: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Return (N,) places in ``sizes``; place 0, train, takes what the others leave."""
    totals = np.bincount(strata)  # (S,)
    left = totals.copy()
    quotas = []
    for size in sizes[1:]:
        # One row of each class is for train while that is possible at all.
        all_but_one = np.maximum(left - 1, 0)
        spare = np.where(totals > MOST_ROWS_OF_A_RARE_CLASS, all_but_one, 0)
        quotas.append(_apportion(size, totals * (size / len(strata)), (spare, all_but_one, left), generator))
        left = left - quotas[-1]
    chosen = np.zeros(len(strata), dtype=np.int64)
    for stratum, rows in enumerate(_places_by_value(strata)):
        ends = np.cumsum([0, *(quota[stratum] for quota in quotas)])
        shuffled = generator.permutation(rows)
        for place, (start, end) in enumerate(pairwise(ends), start=1):
            chosen[shuffled[start:end]] = place
    return chosen


def _apportion(
    size: int, ideal: np.ndarray, limits: Sequence[np.ndarray], generator: np.random.Generator
) -> np.ndarray:
    """Divide ``size`` over strata by largest remainder from ``ideal`` (S,), which adds up to it; ties at random.

    Each of ``limits`` (S,) is the most that a stratum gives, and holds until nothing is left under it.
    """
    quota: np.ndarray = np.minimum(np.floor(ideal).astype(np.int64), limits[0])
    order = generator.permutation(len(ideal))
    for limit in limits:
        while quota.sum() < size and (quota < limit).any():
            ranked = order[np.argsort((quota - ideal)[order], kind="stable")]
            able = ranked[quota[ranked] < limit[ranked]]
            quota[able[: size - int(quota.sum())]] += 1
    return quota


def _places_by_value(values: np.ndarray) -> list[np.ndarray]:
    """Return for each of the numbers 0, 1, ... where it stands in ``values`` (N,), ascending."""
    order: np.ndarray = np.argsort(values, kind="stable")
    return np.split(order, np.cumsum(np.bincount(values))[:-1])


def _choose_groups(
    strata: np.ndarray, groups: Sequence[str], sizes: Sequence[int], generator: np.random.Generator
) -> np.ndarray:
    """Return (N,) places in ``sizes``: the largest group first, each to the split that most lacks its classes."""
    names, group_of_row = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    if len(names) < len(sizes):
        raise DataError(
            f"data.split.group has {len(names)} groups, too few for {len(sizes)} splits without sharing one; "
            "choose another column, or name given splits"
        )
    rows_of_group = _places_by_value(group_of_row)
    totals = np.bincount(strata)
    lacking = np.outer(np.asarray(sizes) / len(strata), totals)  # (splits, S) rows
    split_of_group = np.zeros(len(names), dtype=np.int64)
    for group in sorted(generator.permutation(len(names)), key=lambda group: -len(rows_of_group[group])):
        classes = strata[rows_of_group[group]]
        place = int((lacking[:, classes] / totals[classes]).sum(axis=1).argmax())
        split_of_group[group] = place
        np.subtract.at(lacking[place], classes, 1)
    _fill_empty(split_of_group, np.array([len(rows) for rows in rows_of_group]), len(sizes))
    return split_of_group[group_of_row]


def _fill_empty(split_of_group: np.ndarray, group_sizes: np.ndarray, num_splits: int) -> None:
    """Give each split without a group the smallest one of the split that has most; changes the array."""
    for place in range(num_splits):
        if not (split_of_group == place).any():
            donor = np.bincount(split_of_group, minlength=num_splits).argmax()
            candidates = np.flatnonzero(split_of_group == donor)
            split_of_group[candidates[group_sizes[candidates].argmin()]] = place
