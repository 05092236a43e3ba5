"""How good ranked lists are: every metric of recommendation, once, over all items, in blocks of users.

Shape suffixes: B users, I items, K places of a list, T targets of all users together.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hftoolkit import seeding
from hftoolkit.recommend.interactions import Cases, Interactions

NOBODY = -1  # a place of a list that no item could fill
BUCKETS = ("head", "middle", "tail")
PER_USER = ("hr", "recall", "ndcg", "mrr", "map")

UserMetrics = dict[str, np.ndarray]  # metric -> (B,), nan for users without targets


@dataclass(frozen=True, slots=True)
class RankedLists:
    """The lists of B users, and how good each is.

    Attributes:
        items_BK: best first; -1 where there are fewer than K items to recommend.
        values: metric -> (B,), nan for users without targets.
        found_T: (T,) bool, whether each target is in the list of its user.
    """

    items_BK: np.ndarray
    values: UserMetrics
    found_T: np.ndarray


def tie_order(num_items: int) -> np.ndarray:
    """Return the order, (I,), in which items of one score are listed: always the same, and unlike that of the table.

    Catalogues often begin with what is popular, so that their own order would be a hidden recommendation.
    """
    return seeding.numpy_generator("ties").permutation(num_items)


def mask_unwanted(scores_BI: np.ndarray, histories: Interactions, candidates_I: np.ndarray) -> None:
    """Set the scores of items in the history, and of those that are no candidates, to ``-inf``, in place."""
    scores_BI[histories.rows, histories.items] = -np.inf
    scores_BI[:, ~candidates_I] = -np.inf


def top_items(scores_BI: np.ndarray, count: int, order_I: np.ndarray) -> np.ndarray:
    """Return the items of the highest scores, best first, (B, count); -1 in place of items of score ``-inf``.

    Args:
        scores_BI: without nan.
        count: K; more than I items leave places empty.
        order_I: among equal scores, items come in this order.
    """
    assert not np.isnan(scores_BI).any()
    B, num_items = scores_BI.shape
    K = min(count, num_items)
    limit_B1 = np.partition(scores_BI, num_items - K, axis=1)[:, num_items - K, None]
    # K a user, or more where scores are equal.
    rows, items = np.nonzero((scores_BI >= limit_B1) & (scores_BI > -np.inf))
    places_I = np.empty(num_items, dtype=np.int64)
    places_I[order_I] = np.arange(num_items)
    best_first = np.lexsort((places_I[items], -scores_BI[rows, items], rows))
    rows, items = rows[best_first], items[best_first]
    ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
    listed_BK = np.full((B, count), NOBODY, dtype=np.int64)
    kept = ranks < K
    listed_BK[rows[kept], ranks[kept]] = items[kept]
    return listed_BK


def blocks(num_users: int, size: int) -> Iterator[np.ndarray]:
    """Yield the places of all users, at most ``size`` at a time."""
    for start in range(0, num_users, size):
        yield np.arange(start, min(start + size, num_users))


def rank(cases: Cases, scores: Callable[[np.ndarray], np.ndarray], *, cutoff: int, block_users: int) -> RankedLists:
    """Rank all candidates for each user, without the items of the history, and measure the lists.

    Args:
        cases: B users.
        scores: the scores, (b, I), of some of them, given by their places in ``cases``; may be overwritten.
        cutoff: K.
        block_users: how many users are ranked at a time.
    """
    order_I = tie_order(len(cases.candidates))
    lists = []
    for users in blocks(len(cases), block_users):
        scores_BI = scores(users)
        mask_unwanted(scores_BI, cases.histories.select(users), cases.candidates)
        lists.append(top_items(scores_BI, cutoff, order_I))
    items_BK = np.concatenate(lists)
    return RankedLists(items_BK, user_metrics(items_BK, cases.targets), found_targets(items_BK, cases.targets))


def user_metrics(items_BK: np.ndarray, targets: Interactions) -> UserMetrics:
    """Return the metrics of each list, (B,), nan for users without targets.

    ``hr`` is 1 if any target is listed; ``recall`` the share of the targets; ``ndcg`` with gain 1 for each target, over
    that of the best possible list; ``mrr`` one over the place of the first; ``map`` the mean precision at the places
    of the targets, over as many targets as fit.
    """
    K = items_BK.shape[1]
    hits_BK = _is_target(items_BK, targets)
    count_B = targets.lengths.astype(np.float64)
    fitting_B = np.minimum(count_B, K)
    discounts_K = 1 / np.log2(np.arange(2, K + 2))
    ideal_B = np.concatenate([[0.0], np.cumsum(discounts_K)])[fitting_B.astype(int)]
    precision_BK = np.cumsum(hits_BK, axis=1) / np.arange(1, K + 1)
    hit_B = hits_BK.any(axis=1)
    has_any_B = count_B > 0
    values = {
        "hr": hit_B.astype(np.float64),
        "recall": _divide(hits_BK.sum(axis=1), count_B),
        "ndcg": _divide(hits_BK @ discounts_K, ideal_B),
        "mrr": np.where(hit_B, 1 / (hits_BK.argmax(axis=1) + 1), 0.0),
        "map": _divide((precision_BK * hits_BK).sum(axis=1), fitting_B),
    }
    return {name: np.where(has_any_B, value_B, np.nan) for name, value_B in values.items()}


def found_targets(items_BK: np.ndarray, targets: Interactions) -> np.ndarray:
    """Return whether each target is in the list of its user, (T,) bool."""
    listed = items_BK[targets.rows] == targets.items[:, None]
    found: np.ndarray = listed.any(axis=1)
    return found


def summarize_lists(ranked: RankedLists, cases: Cases, popularity_I: np.ndarray) -> dict[str, float]:
    """Return the mean of each metric, and what concerns the lists as a whole.

    ``coverage`` is the share of the candidates that are in any list; ``gini`` how unequally often they are listed (0:
    all alike); ``novelty`` the mean of -log2 of an item's share of the training interactions (items without any count
    as one); ``recall/head`` ... the share of found targets among popular items, which have a third of all training
    interactions, the next, and the rest; ``ndcg/unseen`` that of users without training interactions.

    Args:
        ranked: lists for the cases.
        cases: B users.
        popularity_I: training interactions of each item.
    """
    listed = ranked.items_BK[ranked.items_BK != NOBODY]
    exposure = np.bincount(listed, minlength=len(popularity_I))[cases.candidates]
    share_I = np.maximum(popularity_I, 1) / max(popularity_I.sum(), 1)
    result = {name: _mean(values) for name, values in ranked.values.items()}
    result["coverage"] = float((exposure > 0).mean())
    result["gini"] = _gini(exposure)
    result["novelty"] = _mean(-np.log2(share_I[listed]))
    bucket_T = popularity_buckets(popularity_I)[cases.targets.items]
    for number, name in enumerate(BUCKETS):
        result[f"recall/{name}"] = _mean(ranked.found_T[bucket_T == number].astype(np.float64))
    for name in ("hr", "ndcg"):
        result[f"{name}/unseen"] = _mean(ranked.values[name][cases.unseen])
    return {name: value for name, value in result.items() if not np.isnan(value)}


def popularity_buckets(popularity_I: np.ndarray) -> np.ndarray:
    """Return 0, 1 or 2 for each item, (I,): those with the first third of all interactions, the second, the rest."""
    order = np.argsort(-popularity_I, kind="stable")
    before = np.cumsum(popularity_I[order]) - popularity_I[order]
    buckets = np.empty(len(order), dtype=np.int64)
    buckets[order] = np.minimum(3 * before // max(popularity_I.sum(), 1), 2)
    buckets[popularity_I == 0] = 2
    return buckets


def mean_values(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of each metric over the users that have targets."""
    return {name: _mean(each) for name, each in values.items()}


def _is_target(items_BK: np.ndarray, targets: Interactions) -> np.ndarray:
    """Return whether each listed item is a target of its user, (B, K) bool."""
    span = max(int(items_BK.max(initial=0)), int(targets.items.max(initial=0))) + 2
    listed = np.arange(len(items_BK))[:, None] * span + items_BK + 1  # NOBODY becomes 0, which is no target
    return np.isin(listed, targets.rows * span + targets.items + 1)


def _divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    quotients = np.zeros(len(numerators))
    np.divide(numerators, denominators, out=quotients, where=denominators > 0)
    return quotients


def _mean(values: np.ndarray) -> float:
    """Return the mean of what is not nan; nan if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _gini(counts: np.ndarray) -> float:
    """Return the Gini coefficient of non-negative counts."""
    total, size = counts.sum(), len(counts)
    if total == 0:
        return 0.0
    places = np.arange(1, size + 1)
    return float((2 * places - size - 1) @ np.sort(counts) / (size * total))
