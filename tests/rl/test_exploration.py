"""Random actions: how often, which, and how long they are repeated."""

import itertools

import numpy as np
import pytest

from hftoolkit.rl import exploration
from hftoolkit.rl.exploration import EpsilonGreedy


def begin(repeat_exponent: float | None, num_envs: int = 1, num_actions: int = 1000) -> EpsilonGreedy:
    generator = np.random.default_rng(0)
    return EpsilonGreedy(num_envs, num_actions, generator, repeat_exponent=repeat_exponent)


def test_without_an_exponent_every_random_action_is_drawn_anew() -> None:
    explorer = begin(None, num_envs=500)
    drawn = [explorer.draw(0.3, None) for _ in range(100)]
    assert np.mean([takes.mean() for _, takes in drawn]) == pytest.approx(0.3, abs=0.01)
    same = np.mean([(a == b).mean() for (a, _), (b, _) in itertools.pairwise(drawn)])
    assert same == pytest.approx(1 / 1000, abs=1e-3)


def test_random_actions_last_as_long_as_a_power_law_says() -> None:
    """With a thousand actions and no greedy ones between, a run of equal actions is one draw."""
    explorer = begin(2.0)
    actions = [int(explorer.draw(1.0, None)[0][0]) for _ in range(30_000)]
    lengths = np.array([len(list(run)) for _, run in itertools.groupby(actions)])
    numbers = np.arange(1, 10_000)
    shares = numbers**-2.0 / (numbers**-2.0).sum()
    for length in (1, 2, 3):
        assert (lengths == length).mean() == pytest.approx(shares[length - 1], abs=0.02)
    # Two draws of the same action in a row would make a longer run, but that is rare.
    assert (lengths > exploration.MOST_REPEATS).mean() < 0.001
    assert (lengths == exploration.MOST_REPEATS).mean() == pytest.approx(shares[99:].sum(), abs=0.005)


def test_an_environment_repeats_its_action_and_leaves_the_others_alone() -> None:
    explorer = begin(1.5, num_envs=4)
    before_actions, before_left = None, np.zeros(4, int)
    for _ in range(500):
        actions, takes = explorer.draw(0.2, None)
        if before_actions is not None:
            goes_on = before_left > 0
            assert takes[goes_on].all() and (actions[goes_on] == before_actions[goes_on]).all()
        before_actions, before_left = actions.copy(), explorer.state()["left"].copy()


@pytest.mark.parametrize("exponent", [None, 1.5])
def test_epsilon_0_never_explores(exponent: float | None) -> None:
    explorer = begin(exponent, num_envs=8)
    assert not any(explorer.draw(0.0, None)[1].any() for _ in range(50))


def test_the_end_of_an_episode_ends_a_repetition_there_alone() -> None:
    explorer = begin(1.01, num_envs=2)  # nearly every draw is long
    while not (explorer.state()["left"] > 5).all():
        explorer.draw(1.0, None)
    explorer.stop(np.array([True, False]))
    _, takes = explorer.draw(0.0, None)
    assert takes.tolist() == [False, True]


def test_a_repetition_ends_where_its_action_is_forbidden() -> None:
    explorer = begin(1.01, num_envs=1, num_actions=3)
    while explorer.state()["left"][0] < 5:
        actions, _ = explorer.draw(1.0, None)
    forbidden = np.arange(3)[None] != actions[:, None]
    for _ in range(20):
        other, takes = explorer.draw(1.0, forbidden)
        assert takes.all() and other[0] != actions[0]


def test_masked_draws_are_uniform_over_what_is_allowed() -> None:
    explorer = begin(None, num_envs=3, num_actions=4)
    masks = np.array([[True, False, True, True], [False, True, False, False], [True, True, False, False]])
    counts = np.zeros((3, 4))
    for _ in range(6000):
        counts[np.arange(3), explorer.draw(1.0, masks)[0]] += 1
    np.testing.assert_allclose(counts / 6000, masks / masks.sum(axis=1, keepdims=True), atol=0.03)
