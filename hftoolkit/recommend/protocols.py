"""Which interactions are trained on, and which must be predicted from which: four protocols."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit import seeding
from hftoolkit.data.tables import read_table
from hftoolkit.errors import DataError
from hftoolkit.recipe import RankingProtocol, RecommendationData
from hftoolkit.recommend.interactions import Cases, Interactions
from hftoolkit.recommend.log import (
    Catalogue,
    Log,
    read_attributes,
    read_catalogue,
    read_groups_of_users,
    read_log,
)

# A training item, a validation target and a test target.
FEWEST_INTERACTIONS = 3


@dataclass(frozen=True, slots=True)
class RecommendationSplits:
    """A log divided by a protocol.

    Attributes:
        train: training interactions of the users that have some.
        train_users: (B,) their places among the user ids.
        train_items: items of the training interactions in order of time, whoever chose them.
        cases: ``validation`` and ``test``.
        everything: all interactions of all users, for recommending after the run.
        groups: (U, G) which groups each user is in; G is 0 without a table of users.
        attributes: (I, A) which attributes each item has; A may be 0.
        summary: counts, fingerprint and warnings, in plain JSON types.
    """

    catalogue: Catalogue
    user_ids: tuple[str, ...]
    train: Interactions
    train_users: np.ndarray
    train_items: np.ndarray
    cases: Mapping[str, Cases]
    everything: Interactions
    groups: np.ndarray
    attributes: np.ndarray
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Held:
    """What one split knows and must predict: masks over the log, (N,), and over the catalogue, (I,)."""

    history: np.ndarray
    target: np.ndarray
    candidates: np.ndarray


def load_recommendation_splits(
    interactions: Path, items: Path, users: Path | None, data: RecommendationData
) -> RecommendationSplits:
    """Read, check and divide.

    Raises:
        DataError: what is wrong with a table, or that nothing is left to train on or to test.
        RecipeError: the template does not fit the columns.
    """
    item_table = read_table(items, how=data.items.format, knobs="data.items.format")
    catalogue = read_catalogue(item_table, data.items)
    how = data.interactions.format
    table = read_table(interactions, how=how, knobs="data.interactions.format", keep_broken=True)
    log = read_log(table, data.interactions, catalogue, data.on_bad_rows)
    groups, unknown_users = np.zeros((len(log.user_ids), 0), dtype=np.float32), 0
    if users is not None and data.users is not None:
        user_table = read_table(users, how=data.users.format, knobs="data.users.format")
        groups, unknown_users = read_groups_of_users(user_table, data.users, log.user_ids)
    train, held = divide(log, data.split, len(catalogue))
    cases = {name: _cases(log, train, each) for name, each in held.items()}
    for name, each in cases.items():
        if not len(each):
            raise DataError(f"the protocol {data.split.protocol} leaves nobody for {name}; give more interactions")
    trained_users, histories = _by_user(log, train)
    by_time = np.lexsort((log.row_numbers, log.times))
    attributes = read_attributes(item_table, data.items)
    summary = _summary(log, catalogue, data.split, train, held, cases)
    summary |= {"rows_read": table.num_rows, "users_without_row": unknown_users}
    summary["fingerprint"] = _fingerprint(log, catalogue, {"groups": groups, "attributes": attributes}, train, held)
    summary["warnings"] = [*item_table.notes, *table.notes, *_warnings(summary, log, catalogue, data)]
    return RecommendationSplits(
        catalogue=catalogue,
        user_ids=log.user_ids,
        train=histories,
        train_users=trained_users,
        train_items=log.items[by_time][train[by_time]],
        cases=cases,
        everything=_of_all_users(log),
        groups=groups,
        attributes=attributes,
        summary=summary,
    )


def divide(log: Log, split: RankingProtocol, num_items: int) -> tuple[np.ndarray, dict[str, _Held]]:
    """Return the mask of training interactions, (N,), and what validation and test know and predict.

    Raises:
        DataError: nothing is left to train on.
    """
    everything = np.ones(num_items, dtype=bool)
    match split.protocol:
        case "leave-one-out":
            train, held = _leave_one_out(log, everything)
        case "time":
            train, held = _time_windows(log, split, everything)
        case "random":
            train, held = _random(log, split, everything)
        case "cold-items":
            train, held = _cold_items(log, split, num_items)
    if not train.any():
        raise DataError(f"the protocol {split.protocol} leaves no interaction to train on; give more of them")
    return train, held


def _leave_one_out(log: Log, everything: np.ndarray) -> tuple[np.ndarray, dict[str, _Held]]:
    age, count = _ages(log)
    enough = count >= FEWEST_INTERACTIONS
    held = {
        "validation": _Held(enough & (age >= 2), enough & (age == 1), everything),
        "test": _Held(enough & (age >= 1), enough & (age == 0), everything),
    }
    return ~enough | (age >= 2), held


def _time_windows(log: Log, split: RankingProtocol, everything: np.ndarray) -> tuple[np.ndarray, dict[str, _Held]]:
    cuts = np.quantile(log.times, [1 - split.validation - split.test, 1 - split.test])
    windows = {"validation": (cuts[0], cuts[1]), "test": (cuts[1], np.inf)}
    held = {}
    for name, (start, stop) in windows.items():
        before_end = log.times < stop
        last = before_end & np.append((np.diff(log.users) != 0) | ~before_end[1:], True)
        target = last & (log.times >= start)
        has_target = np.isin(log.users, log.users[target])
        held[name] = _Held(before_end & ~target & has_target, target, everything)
    return log.times < cuts[0], held


def _random(log: Log, split: RankingProtocol, everything: np.ndarray) -> tuple[np.ndarray, dict[str, _Held]]:
    generator = seeding.numpy_generator("interactions", split.seed)
    _, count = _ages(log)
    order = np.lexsort((generator.random(len(log)), log.users))
    place = np.empty(len(log), dtype=np.int64)
    place[order] = np.arange(len(log)) - np.searchsorted(log.users, log.users)  # random place within the user
    enough = count >= FEWEST_INTERACTIONS
    tested = np.maximum(1, np.floor(split.test * count))  # rounded down, as RecBole divides
    validated = np.maximum(1, np.floor(split.validation * count))
    test = enough & (place < tested)
    validation = enough & ~test & (place < tested + validated)
    train = ~test & ~validation
    return train, {
        "validation": _Held(train & enough, validation, everything),
        "test": _Held(~test & enough, test, everything),
    }


def _cold_items(log: Log, split: RankingProtocol, num_items: int) -> tuple[np.ndarray, dict[str, _Held]]:
    """Hide items; those of test are ``default_rng(seed).choice(I, n, replace=False)``, as published figures have it."""
    sizes = {
        name: max(1, round(share * num_items))
        for name, share in (("test", split.test), ("validation", split.validation))
    }
    hidden = {name: np.zeros(num_items, dtype=bool) for name in sizes}
    hidden["test"][seeding.plain_numpy_generator(split.seed).choice(num_items, sizes["test"], replace=False)] = True
    others = seeding.numpy_generator("cold", split.seed).permutation(np.flatnonzero(~hidden["test"]))
    hidden["validation"][others[: sizes["validation"]]] = True
    of = {name: mask[log.items] for name, mask in hidden.items()}
    train = ~of["test"] & ~of["validation"]
    return train, {
        "validation": _Held(train, of["validation"], hidden["validation"]),
        "test": _Held(~of["test"], of["test"], hidden["test"]),
    }


def _ages(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Return how many later interactions its user has, and how many in all, for each interaction, (N,)."""
    start, stop = (np.searchsorted(log.users, log.users, side=side) for side in ("left", "right"))
    return stop - 1 - np.arange(len(log)), stop - start


def _by_user(log: Log, mask: np.ndarray) -> tuple[np.ndarray, Interactions]:
    users, counts = np.unique(log.users[mask], return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return users, Interactions(offsets, log.items[mask], log.weights[mask])


def _of_all_users(log: Log) -> Interactions:
    counts = np.bincount(log.users, minlength=len(log.user_ids))
    return Interactions(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), log.items, log.weights)


def _cases(log: Log, train: np.ndarray, held: _Held) -> Cases:
    """Return the users that have both a history and a target."""
    users = np.intersect1d(log.users[held.history], log.users[held.target])
    chosen = np.isin(log.users, users)
    return Cases(
        users=users,
        histories=_by_user(log, held.history & chosen)[1],
        targets=_by_user(log, held.target & chosen)[1],
        unseen=~np.isin(users, log.users[train]),
        candidates=held.candidates,
    )


def _summary(
    log: Log,
    catalogue: Catalogue,
    split: RankingProtocol,
    train: np.ndarray,
    held: Mapping[str, _Held],
    cases: Mapping[str, Cases],
) -> dict[str, Any]:
    counts = np.bincount(log.users, minlength=len(log.user_ids))
    active = counts > 0
    same_time = np.append(False, (np.diff(log.users) == 0) & (np.diff(log.times) == 0))
    last = np.append(np.diff(log.users) != 0, True)
    trained = np.unique(log.items[train])
    return {
        "protocol": split.protocol,
        "sizes": {"train": int(train.sum())} | {name: len(each.targets.items) for name, each in cases.items()},
        "test_users": {name: len(each) for name, each in cases.items()},
        "unseen_users": {name: int(each.unseen.sum()) for name, each in cases.items()},
        "targets_without_history": {
            name: int(each.target.sum()) - len(cases[name].targets.items) for name, each in held.items()
        },
        "targets_not_in_training": {
            name: int((~np.isin(each.targets.items, trained)).sum()) for name, each in cases.items()
        },
        "users": int(active.sum()),
        "items": len(catalogue),
        "items_without_interaction": len(catalogue) - len(np.unique(log.items)),
        "interactions": len(log),
        "skipped": log.skipped,
        "below_minimum_value": log.below_minimum,
        "repeats": log.repeats,
        "users_with_one_interaction": int((counts == 1).sum()),
        "users_with_too_few_to_test": int((counts[active] < FEWEST_INTERACTIONS).sum()),
        "ties": {
            "interactions": float(same_time.mean()),  # share with the time of the one before, of the same user
            "last": float((same_time & last).sum() / active.sum()),  # share of users whose last two have one time
        },
    }


def _fingerprint(
    log: Log, catalogue: Catalogue, known: Mapping[str, np.ndarray], train: np.ndarray, held: Mapping[str, _Held]
) -> str:
    """Return the SHA-256 of who chose what in which order, and what of it each split knows and predicts.

    Args:
        log: who chose what.
        catalogue: the items.
        known: what else is known of users or items, by name, (rows, groups) of 0 and 1 each.
        train: mask of the training interactions, (N,).
        held: the other splits.
    """
    digest = hashlib.sha256()
    for ids in (log.user_ids, catalogue.ids, catalogue.texts):
        digest.update("\n".join(ids).encode() + b"\0")
    arrays = [log.users, log.items, log.row_numbers]
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    if (log.weights != 1).any():
        digest.update(b"weights" + np.ascontiguousarray(log.weights, dtype="<f4").tobytes())
    for name, membership in known.items():
        if membership.shape[1]:
            digest.update(f"{name} {membership.shape[1]}".encode() + np.packbits(membership.astype(bool)).tobytes())
    digest.update(np.packbits(train).tobytes())
    for each in held.values():
        for mask in (each.history, each.target, each.candidates):
            digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()


def _warnings(summary: Mapping[str, Any], log: Log, catalogue: Catalogue, data: RecommendationData) -> list[str]:
    """Return a sentence on each thing that a reader might not expect."""
    users = summary["users"]
    sentences = [
        (sum(log.skipped.values()), "rows are left out: " + ", ".join(f"{n} {why}" for why, n in log.skipped.items())),
        (log.below_minimum, f"rows have a value under {data.interactions.minimum_value} and are left out"),
        (log.repeats, "rows repeat an item of the same user; the latest time of each is kept"),
        (
            summary["users_with_too_few_to_test"] if data.split.protocol in ("leave-one-out", "random") else 0,
            f"of {users} users have fewer than {FEWEST_INTERACTIONS} interactions "
            f"({summary['users_with_one_interaction']} have one); they are trained on and not tested",
        ),
        (summary["items_without_interaction"], f"of {len(catalogue)} items have no interaction; only texts rank them"),
        (summary["users_without_row"], f"of {users} users are not in data.users and are in no group"),
    ]
    for name, count in summary["targets_without_history"].items():
        sentences.append((count, f"targets of {name} belong to users without any history, and are not tested"))
    for name, count in summary["targets_not_in_training"].items():
        if data.split.protocol != "cold-items":
            sentences.append((count, f"targets of {name} never occur in training; they stay, as likely misses"))
    return [f"{count} {sentence}" for count, sentence in sentences if count] + _tie_warning(summary, data)


def _tie_warning(summary: Mapping[str, Any], data: RecommendationData) -> list[str]:
    shares = summary["ties"]
    if data.interactions.columns.timestamp is None or not shares["interactions"]:
        return []
    return [
        f"{shares['interactions']:.0%} of the interactions have the time of the one before, and so have the last ones "
        f"of {shares['last']:.0%} of the users; the order of the file decides between them"
    ]
