import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftoolkit.train.batches import BUCKET_BATCHES, epoch_plan, evaluation_plan, evaluation_steps

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def lengths_or_none(draw):
    count = draw(st.integers(1, 300))
    lengths = draw(st.none() | st.lists(st.integers(1, 500), min_size=count, max_size=count).map(np.array))
    return count, lengths


def flat(plan):
    return np.concatenate(plan).tolist()


def padding(plan, lengths):
    """Return the share of tokens that only fill batches up."""
    cells = sum(len(batch) * lengths[batch].max() for batch in plan)
    return 1 - sum(lengths[batch].sum() for batch in plan) / cells


@given(rows=lengths_or_none(), batch_size=st.integers(1, 40), seed=SEEDS, epoch=st.integers(0, 50))
@settings(max_examples=80, deadline=None)
def test_an_epoch_holds_every_example_once_in_full_batches_but_one(rows, batch_size, seed, epoch):
    num_examples, lengths = rows
    plan = epoch_plan(num_examples, batch_size=batch_size, seed=seed, epoch=epoch, lengths=lengths)
    assert sorted(flat(plan)) == list(range(num_examples))
    assert len(plan) == math.ceil(num_examples / batch_size)
    assert sorted(map(len, plan))[1:] == [batch_size] * (len(plan) - 1)
    assert all(batch.size for batch in plan)


@given(rows=lengths_or_none(), weighted=st.booleans(), seed=SEEDS, epoch=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_a_plan_depends_on_its_arguments_alone(rows, weighted, seed, epoch):
    num_examples, lengths = rows
    weights = np.arange(1.0, num_examples + 1) if weighted else None

    def plan():
        return epoch_plan(num_examples, batch_size=8, seed=seed, epoch=epoch, lengths=lengths, weights=weights)

    first = plan()
    np.random.seed(epoch)
    np.random.rand(3)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in plan()]


@given(seed=SEEDS, epoch=st.integers(0, 50), bucketed=st.booleans())
@settings(max_examples=40, deadline=None)
def test_another_epoch_and_another_seed_have_another_order(seed, epoch, bucketed):
    lengths = np.arange(100) % 7 if bucketed else None

    def order(seed, epoch):
        return tuple(flat(epoch_plan(100, batch_size=8, seed=seed, epoch=epoch, lengths=lengths)))

    assert len({order(seed, epoch), order(seed, epoch + 1), order(seed + 1, epoch), order(seed + 1, epoch + 1)}) == 4


def test_batches_by_length_have_much_less_padding():
    lengths = np.random.default_rng(0).integers(1, 200, size=2000)
    random = epoch_plan(2000, batch_size=16, seed=0, epoch=0)
    bucketed = epoch_plan(2000, batch_size=16, seed=0, epoch=0, lengths=lengths)
    assert padding(random, lengths) > 0.4
    assert padding(bucketed, lengths) < 0.05


def test_batches_by_length_come_in_random_order():
    lengths = np.arange(1, 1001)
    plan = epoch_plan(1000, batch_size=10, seed=0, epoch=0, lengths=lengths)
    longest = np.array([lengths[batch].max() for batch in plan])
    assert abs(np.corrcoef(longest, np.arange(len(plan)))[0, 1]) < 0.3


def test_who_shares_a_batch_changes_by_epoch_although_lengths_do_not():
    count = 4 * BUCKET_BATCHES * 4
    lengths = np.arange(count)

    def companions(epoch):
        return {
            frozenset(batch.tolist()) for batch in epoch_plan(count, batch_size=4, seed=0, epoch=epoch, lengths=lengths)
        }

    assert len(companions(0) & companions(1)) < 10


def test_rare_rows_are_drawn_as_often_as_their_weight_says():
    weights = np.where(np.arange(1000) < 50, 19.0, 1.0)  # 5 % of the rows, half of the weight
    draws = np.concatenate(
        [flat(epoch_plan(1000, batch_size=16, seed=0, epoch=epoch, weights=weights)) for epoch in range(20)]
    )
    assert len(draws) == 20_000
    assert (draws < 50).mean() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(20_000))
    counts = np.bincount(draws, minlength=1000)
    assert counts[:50].mean() == pytest.approx(200, rel=0.05)
    assert counts[50:].mean() == pytest.approx(20_000 * 0.5 / 950, rel=0.05)


@given(seed=SEEDS, epoch=st.integers(0, 50), strength=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_each_example_occurs_as_often_as_its_weight_says_but_for_rounding(seed, epoch, strength):
    weights = np.repeat([0.8, 0.15, 0.05], [400, 75, 25]) ** -strength
    order = flat(epoch_plan(500, batch_size=16, seed=seed, epoch=epoch, weights=weights))
    expected = 500 * weights / weights.sum()
    counts = np.bincount(order, minlength=500)
    assert len(order) == 500
    assert (counts >= np.floor(expected - 1e-9)).all() and (counts <= np.ceil(expected + 1e-9)).all()


def test_what_is_rounded_up_differs_from_epoch_to_epoch():
    weights = np.repeat([1.0, 3.0], [300, 100])  # two thirds of an occurrence each, and two
    plans = [epoch_plan(400, batch_size=16, seed=0, epoch=epoch, weights=weights) for epoch in range(60)]
    counts = np.mean([np.bincount(flat(plan), minlength=400) for plan in plans], axis=0)
    assert np.abs(counts[:300] - 2 / 3).max() < 0.3 and (counts[300:] == 2).all()


def test_weights_and_lengths_work_together():
    lengths, weights = np.arange(1, 201), np.where(np.arange(200) < 10, 1.0, 0.0)
    plan = epoch_plan(200, batch_size=16, seed=0, epoch=0, lengths=lengths, weights=weights)
    assert sum(map(len, plan)) == 200
    assert set(flat(plan)) <= set(range(10))
    assert all((np.diff(lengths[batch]) >= 0).all() for batch in plan)


@given(rows=lengths_or_none(), batch_size=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_an_evaluation_covers_every_example_once_longest_first(rows, batch_size):
    num_examples, lengths = rows
    plan = evaluation_plan(num_examples, batch_size=batch_size, lengths=lengths)
    assert sorted(flat(plan)) == list(range(num_examples))
    assert [len(batch) for batch in plan[:-1]] == [batch_size] * (len(plan) - 1)
    if lengths is None:
        assert flat(plan) == list(range(num_examples))
    else:
        assert (np.diff(lengths[flat(plan)]) <= 0).all()


@pytest.mark.parametrize(
    ("steps_per_epoch", "times_per_epoch", "expected"),
    [(10, 1, {10}), (10, 2, {5, 10}), (5, 2, {3, 5}), (10, 3, {4, 7, 10}), (3, 3, {1, 2, 3}), (3, 1000, {1, 2, 3})],
)
def test_evaluations_fall_on_evenly_spaced_steps(steps_per_epoch, times_per_epoch, expected):
    assert evaluation_steps(steps_per_epoch, times_per_epoch) == expected


@given(steps_per_epoch=st.integers(1, 300), times_per_epoch=st.integers(1, 1000))
@settings(max_examples=100, deadline=None)
def test_the_last_step_of_an_epoch_is_evaluated_and_none_is_missed(steps_per_epoch, times_per_epoch):
    steps = sorted(evaluation_steps(steps_per_epoch, times_per_epoch))
    assert steps[-1] == steps_per_epoch and steps[0] >= 1
    assert len(steps) == min(steps_per_epoch, times_per_epoch)
    gaps = np.diff([0, *steps])
    assert gaps.max() - gaps.min() <= 1
