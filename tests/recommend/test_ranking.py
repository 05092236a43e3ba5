"""Ranking metrics against definitions written out user by user, with ties, empty users and items nobody may get."""

import math

import numpy as np
import pytest

from hftoolkit.metrics.statistics import mean_intervals
from hftoolkit.recommend.interactions import Cases, Interactions
from hftoolkit.recommend.ranking import (
    found_targets,
    popularity_buckets,
    rank,
    summarize_lists,
    tie_order,
    top_items,
    user_metrics,
)

pytestmark = pytest.mark.smoke

K = 4


def by_hand(listed: list[int], targets: set[int]) -> dict[str, float]:
    """The metrics of one list, as the textbooks define them."""
    if not targets:
        return dict.fromkeys(("hr", "recall", "ndcg", "mrr", "map"), math.nan)
    hits = [item in targets for item in listed]
    gains = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
    best = sum(1 / math.log2(place + 2) for place in range(min(len(targets), K)))
    precisions = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
    return {
        "hr": float(any(hits)),
        "recall": sum(hits) / len(targets),
        "ndcg": gains / best,
        "mrr": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        "map": sum(precisions) / min(len(targets), K),
    }


def sorted_by_hand(scores: np.ndarray, order: np.ndarray) -> list[int]:
    place = {item: index for index, item in enumerate(order.tolist())}
    allowed = [item for item in range(len(scores)) if scores[item] > -np.inf]
    return sorted(allowed, key=lambda item: (-scores[item], place[item]))[:K]


def random_cases(seed: int, num_users: int = 23, num_items: int = 17) -> tuple[np.ndarray, Cases]:
    """Scores with many ties; some users have no target, one has seen nearly everything."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, size=(num_users, num_items)).astype(np.float32)
    seen, wanted = [], []
    for user in range(num_users):
        shuffled = generator.permutation(num_items).tolist()
        known = num_items - 2 if user == 0 else int(generator.integers(0, 6))
        seen.append(shuffled[:known])
        wanted.append(shuffled[known : known + int(generator.integers(0, 7))])
    candidates = generator.random(num_items) < 0.8
    unseen = generator.random(num_users) < 0.3
    return scores, Cases(np.arange(num_users), Interactions.of(seen), Interactions.of(wanted), unseen, candidates)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("block", [1, 5, 100])
def test_lists_and_metrics_are_those_of_the_definitions(seed: int, block: int) -> None:
    scores, cases = random_cases(seed)
    ranked = rank(cases, lambda users: scores[users].copy(), cutoff=K, block_users=block)
    order = tie_order(scores.shape[1])
    seen, wanted = cases.histories.as_sets(), cases.targets.as_sets()
    for user, row in enumerate(scores):
        row = row.copy()
        row[list(seen[user])] = -np.inf
        row[~cases.candidates] = -np.inf
        expected = sorted_by_hand(row, order)
        assert ranked.items_BK[user].tolist() == expected + [-1] * (K - len(expected))
        for name, value in by_hand(expected, wanted[user]).items():
            assert ranked.values[name][user] == pytest.approx(value, nan_ok=True), (user, name)


def test_every_user_gets_a_list_that_is_as_long_as_asked_also_with_fewer_items() -> None:
    scores = np.array([[1.0, 3.0, -np.inf]], dtype=np.float32)
    assert top_items(scores, 5, np.arange(3)).tolist() == [[1, 0, -1, -1, -1]]


def test_ties_follow_the_given_order_and_no_item_of_a_higher_score_is_lost() -> None:
    scores = np.array([[2.0, 1.0, 1.0, 1.0, 3.0]], dtype=np.float32)
    assert top_items(scores, 3, np.array([3, 2, 1, 0, 4])).tolist() == [[4, 0, 3]]


def test_the_order_of_ties_is_always_the_same_and_not_that_of_the_table() -> None:
    order = tie_order(100)
    assert sorted(order) == list(range(100))
    assert (order == tie_order(100)).all()
    assert (order != np.arange(100)).any()


def test_sums_over_lists_are_those_of_the_definitions() -> None:
    scores, cases = random_cases(3)
    ranked = rank(cases, lambda users: scores[users].copy(), cutoff=K, block_users=9)
    popularity = np.array([50, 0, 9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2])
    found = summarize_lists(ranked, cases, popularity)
    lists = [[item for item in row if item >= 0] for row in ranked.items_BK.tolist()]
    shown = [item for row in lists for item in row]
    candidates = np.flatnonzero(cases.candidates).tolist()
    counts = [shown.count(item) for item in candidates]
    gaps = sum(abs(a - b) for a in counts for b in counts)
    assert found["coverage"] == pytest.approx(len(set(shown)) / len(candidates))
    assert found["gini"] == pytest.approx(gaps / (2 * len(counts) * sum(counts)))
    total = popularity.sum()
    assert found["novelty"] == pytest.approx(np.mean([-math.log2(max(popularity[i], 1) / total) for i in shown]))
    buckets = popularity_buckets(popularity)
    for number, name in enumerate(("head", "middle", "tail")):
        pairs = [
            (item in lists[user])
            for user, wanted in enumerate(cases.targets.as_sets())
            for item in wanted
            if buckets[item] == number
        ]
        assert found[f"recall/{name}"] == pytest.approx(np.mean(pairs))
    rows = [by_hand(lists[user], cases.targets.as_sets()[user])["ndcg"] for user in np.flatnonzero(cases.unseen)]
    assert found["ndcg/unseen"] == pytest.approx(np.nanmean(rows))


def test_the_buckets_hold_a_third_of_the_interactions_each() -> None:
    assert popularity_buckets(np.array([1, 30, 10, 10, 9, 0])).tolist() == [2, 0, 1, 2, 2, 2]


def test_targets_are_found_for_their_own_user_only() -> None:
    targets = Interactions.of([[1, 2], [], [5]])
    items = np.array([[2, 5], [1, 2], [0, 1]])
    assert found_targets(items, targets).tolist() == [False, True, False]
    assert user_metrics(items, targets)["recall"].tolist()[::2] == [0.5, 0.0]


def test_the_interval_of_a_mean_covers_it_and_a_paired_one_is_narrower() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(400)
    better = base + 0.05 + 0.01 * generator.standard_normal(400)
    arrays = {"a": base, "b": better, "lead": better - base}
    found = mean_intervals(arrays, samples=500, seed=0)
    error = base.std() / 20
    assert found["a"][0] == pytest.approx(base.mean() - 1.96 * error, abs=0.01)
    assert found["a"][1] == pytest.approx(base.mean() + 1.96 * error, abs=0.01)
    assert 0.045 < found["lead"][0] < 0.05 < found["lead"][1] < 0.055
    assert mean_intervals({"a": np.full(3, np.nan)}, samples=100, seed=0) == {}
