"""The replay memory against lists of all that ever happened, and prioritized drawing against plain sums."""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hftoolkit.errors import RecipeError
from hftoolkit.rl.environments import Step
from hftoolkit.rl.priorities import SMALLEST_ERROR, SumTree
from hftoolkit.rl.replay import ReplayBuffer, check_fits, machine_memory

NUM_ACTIONS = 3
DISCOUNT = 0.9


@dataclass
class Moment:
    """What one environment saw and did in one step."""

    observation: np.ndarray
    mask: np.ndarray
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_observation: np.ndarray
    next_mask: np.ndarray


@dataclass
class Stream:
    """Environments that end at random, cut off, terminated or both, and a list of everything they ever showed.

    Every frame is (environment, a number of its own, how far the episode is), so a frame tells where it comes from.
    """

    num_envs: int
    stack: int | None = None
    masked: bool = False
    seed: int = 0
    longest: int = 6  # steps of an episode
    history: list[list[Moment]] = field(default_factory=list)  # [environment][time]

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)
        self.serial = 0
        self.history = [[] for _ in range(self.num_envs)]
        self.frames: list[list[np.ndarray]] = [[] for _ in range(self.num_envs)]  # of each running episode
        self.left = [0] * self.num_envs
        self.masks = self.new_masks()
        for index in range(self.num_envs):
            self.begin(index)

    def new_masks(self) -> np.ndarray:
        masks = self.generator.random((self.num_envs, NUM_ACTIONS)) < 0.5
        masks[np.arange(self.num_envs), self.generator.integers(NUM_ACTIONS, size=self.num_envs)] = True
        return masks

    def begin(self, index: int) -> None:
        self.frames[index] = [self.frame(index, 0)]
        self.left[index] = int(self.generator.integers(1, self.longest + 1))

    def frame(self, index: int, age: int) -> np.ndarray:
        self.serial += 1
        return np.array((index, self.serial, age), np.float32)

    def observation(self, index: int) -> np.ndarray:
        frames = self.frames[index]
        if self.stack is None:
            return frames[-1]
        return np.stack([frames[max(0, len(frames) - 1 - back)] for back in reversed(range(self.stack))])

    def replay(self, capacity: int, n_steps: int, **knobs: Any) -> ReplayBuffer:
        return ReplayBuffer(
            capacity,
            self.num_envs,
            frame=self.frames[0][0],
            stack=self.stack,
            num_actions=NUM_ACTIONS if self.masked else None,
            n_steps=n_steps,
            discount=DISCOUNT,
            **knobs,
        )

    def feed(self, *replays: ReplayBuffer) -> None:
        """Take one step, and let replay memories remember it."""
        everywhere = range(self.num_envs)
        observations, masks = np.stack([self.observation(index) for index in everywhere]), self.masks
        actions = self.generator.integers(0, NUM_ACTIONS, self.num_envs)
        rewards = self.generator.normal(size=self.num_envs).astype(np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        for index in everywhere:
            self.frames[index].append(self.frame(index, len(self.frames[index])))
            self.left[index] -= 1
            if self.left[index] == 0:
                terminated[index], truncated[index] = ((1, 0), (0, 1), (1, 1))[self.generator.integers(3)]
        following, next_masks = np.stack([self.observation(index) for index in everywhere]), self.new_masks()
        step = Step(rewards, terminated, truncated, following.copy(), next_masks.copy() if self.masked else None, ())
        for replay in replays:
            replay.add(observations, masks if self.masked else None, actions, step)
        step.next_observations[:] = -1  # what was remembered must not be a view of it
        self.masks = next_masks.copy()
        for index in everywhere:
            self.history[index].append(
                Moment(
                    observations[index],
                    masks[index],
                    int(actions[index]),
                    float(rewards[index]),
                    bool(terminated[index]),
                    bool(truncated[index]),
                    following[index],
                    next_masks[index],
                )
            )
            if terminated[index] or truncated[index]:
                self.begin(index)
                self.masks[index] = self.new_masks()[index]

    def where(self, observation: np.ndarray) -> tuple[int, int]:
        """Return environment and time of an observation."""
        newest = observation if self.stack is None else observation[-1]
        index = int(newest[0])
        times = [time for time, moment in enumerate(self.history[index]) if self.newest(moment)[1] == newest[1]]
        assert len(times) == 1
        return index, times[0]

    def newest(self, moment: Moment) -> np.ndarray:
        return moment.observation if self.stack is None else moment.observation[-1]

    def expected(self, index: int, time: int, n_steps: int) -> tuple[float, float, Moment]:
        """Return what n steps bring, what weight the rest has, and the last of these steps."""
        window = []
        for moment in self.history[index][time : time + n_steps]:
            window.append(moment)
            if moment.terminated or moment.truncated:
                break
        reward = sum(DISCOUNT**distance * moment.reward for distance, moment in enumerate(window))
        return reward, 0.0 if window[-1].terminated else DISCOUNT ** len(window), window[-1]


def assert_equals_brute_force(
    replay: ReplayBuffer, stream: Stream, capacity: int, n_steps: int
) -> tuple[int, int, int]:
    """Compare everything that can be drawn; return how many windows were shortened by each of three things."""
    time_now = len(stream.history[0])
    newest = range(max(0, time_now - capacity // stream.num_envs), time_now)
    drawable = {(index, time) for index in range(stream.num_envs) for time in newest}
    assert len(replay) == len(drawable)
    drawn = replay.sample(40 * len(drawable), np.random.default_rng(time_now))  # missing one: less than 1e-15
    assert drawn.weights is None or len(drawn.weights) == len(drawn.actions)
    _, firsts = np.unique(drawn.indices, return_index=True)
    found, shortened = set(), [0, 0, 0]
    for number in firsts:
        index, time = stream.where(drawn.observations[number])
        found.add((index, time))
        moment = stream.history[index][time]
        returns, discount, last = stream.expected(index, time, n_steps)
        np.testing.assert_array_equal(drawn.observations[number], moment.observation)
        assert drawn.actions[number] == moment.action
        assert drawn.returns[number] == pytest.approx(returns, abs=1e-6)
        assert drawn.discounts[number] == pytest.approx(discount, abs=1e-6)
        if not last.terminated:
            np.testing.assert_array_equal(drawn.next_observations[number], last.next_observation)
        if stream.masked:
            assert drawn.next_masks is not None
            np.testing.assert_array_equal(drawn.next_masks[number], True if last.terminated else last.next_mask)
        else:
            assert drawn.next_masks is None
        shortened[0] += last.terminated
        shortened[1] += last.truncated and not last.terminated
        shortened[2] += not (last.terminated or last.truncated) and time + n_steps > time_now
    assert found == drawable
    return shortened[0], shortened[1], shortened[2]


@pytest.mark.parametrize("masked", [False, True], ids=["all-allowed", "masked"])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
@pytest.mark.parametrize("stack", [None, 1, 4])
@pytest.mark.parametrize(("num_envs", "capacity"), [(1, 6), (1, 17), (3, 29)])
def test_every_drawable_transition_is_what_a_list_of_everything_gives(
    num_envs: int, capacity: int, stack: int | None, n_steps: int, masked: bool
) -> None:
    stream = Stream(num_envs, stack, masked, seed=n_steps)
    replay = stream.replay(capacity, n_steps)
    counted = np.zeros(3, int)
    for time in range(1, 101):  # the ring is overwritten several times
        stream.feed(replay)
        if time <= 12 or time % 9 == 0:
            counted += assert_equals_brute_force(replay, stream, capacity, n_steps)
    assert (counted[:2] > 5).all()  # ends that were met: terminated, cut off
    assert counted[2] > 5 or n_steps == 1  # the newest step


@pytest.mark.parametrize("stack", [None, 4])
def test_prioritized_replay_holds_the_same_transitions(stack: int | None) -> None:
    stream = Stream(3, stack, masked=True)
    replay = stream.replay(20, 3, priority_exponent=0.7)
    generator = np.random.default_rng(0)
    for time in range(1, 81):
        stream.feed(replay)
        if time <= 12 or time % 9 == 0:
            assert_equals_brute_force(replay, stream, 20, 3)
            drawn = replay.sample(5, generator)
            replay.set_priorities(drawn.indices, generator.uniform(0.5, 1, 5))


def test_an_episode_that_is_longer_than_the_memory_keeps_its_stacks() -> None:
    stream = Stream(2, stack=4, longest=1)
    stream.longest = 200
    replay = stream.replay(10, 3)
    for _ in range(60):
        stream.feed(replay)
    assert_equals_brute_force(replay, stream, 10, 3)


def test_a_cut_off_window_bootstraps_from_the_last_observation_and_not_from_the_next_episode() -> None:
    # One environment, three steps: the second is the last of an episode that is cut off.
    replay = ReplayBuffer(10, 1, frame=np.zeros(1, np.float32), stack=None, num_actions=None, n_steps=2, discount=0.5)
    steps = [(0.0, 1.0, False, 1.0), (1.0, 2.0, True, 2.0), (50.0, 4.0, False, 51.0)]
    for seen, reward, truncated, following in steps:
        step = Step(np.float32([reward]), np.array([False]), np.array([truncated]), np.float32([[following]]), None, ())
        replay.add(np.float32([[seen]]), None, np.array([0]), step)
    drawn = replay.sample(200, np.random.default_rng(0))
    rows = {
        (float(o[0]), float(r), float(d), float(n[0]))
        for o, r, d, n in zip(drawn.observations, drawn.returns, drawn.discounts, drawn.next_observations, strict=True)
    }
    assert rows == {(0.0, 2.0, 0.25, 2.0), (1.0, 2.0, 0.5, 2.0), (50.0, 4.0, 0.5, 51.0)}


@pytest.mark.parametrize("stack", [None, 4])
@pytest.mark.parametrize("steps", [4, 50])
def test_uniform_replay_draws_every_transition_equally_often(stack: int | None, steps: int) -> None:
    stream = Stream(2, stack)
    replay = stream.replay(24, 3)
    for _ in range(steps):
        stream.feed(replay)
    drawn = replay.sample(24_000, np.random.default_rng(7))
    _, counts = np.unique(drawn.indices, return_counts=True)
    assert len(counts) == len(replay) == min(24, 2 * steps)
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("stack", [None, 4])
def test_a_restored_replay_goes_on_as_the_first_one(stack: int | None) -> None:
    stream = Stream(2, stack, masked=True)
    first = stream.replay(16, 3, priority_exponent=0.5)
    generator = np.random.default_rng(0)
    for _ in range(30):
        stream.feed(first)
        drawn = first.sample(3, generator)
        first.set_priorities(drawn.indices, generator.normal(size=3))
    second = stream.replay(16, 3, priority_exponent=0.5)
    second.restore({name: array.copy() for name, array in first.state().items()})
    for _ in range(30):
        one, two = (replay.sample(8, np.random.default_rng(1), 0.4) for replay in (first, second))
        for name in ("observations", "actions", "returns", "discounts", "next_observations", "next_masks", "weights"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        for replay in (first, second):
            replay.set_priorities(one.indices, np.linspace(0.1, 0.9, 8))
        stream.feed(first, second)
    assert first.state().keys() == second.state().keys()
    for name, array in first.state().items():
        np.testing.assert_array_equal(array, second.state()[name])


def set_priority(tree: SumTree, index: int, priority: float) -> None:
    """With exponent 1, an error a little below the priority gives it."""
    tree.update(np.array([index]), np.array([priority - SMALLEST_ERROR]))


@pytest.mark.parametrize("capacity", [1, 2, 3, 8, 13, 100])
def test_the_sum_tree_knows_the_sum_of_all_priorities(capacity: int) -> None:
    tree, plain = SumTree(capacity, 0.6), np.zeros(capacity)
    generator = np.random.default_rng(capacity)
    largest = 1.0
    for _ in range(30):
        indices = generator.choice(capacity, size=generator.integers(1, capacity + 1), replace=False)
        errors = generator.normal(scale=3, size=len(indices))
        tree.update(indices, errors)
        plain[indices] = (np.abs(errors) + 1e-6) ** 0.6
        largest = max(largest, plain.max())
        new, gone = generator.permutation(capacity)[: capacity // 4], generator.permutation(capacity)[:1]
        tree.add_row(new, gone)
        plain[new] = largest
        plain[gone] = 0
        leaves = np.zeros(capacity)
        kept = tree.state()["leaves"]
        leaves[: len(kept)] = kept
        np.testing.assert_allclose(leaves, plain, rtol=1e-12)
        assert tree._sums[1] == pytest.approx(plain.sum())


def test_the_last_error_of_a_place_that_was_drawn_twice_counts_and_once_only() -> None:
    tree = SumTree(4, 1.0)
    tree.update(np.array([2, 2, 1]), np.array([5.0, 3.0, 1.0]))
    np.testing.assert_allclose(tree.state()["leaves"], [0, 1, 3], atol=1e-5)
    assert tree._sums[1] == pytest.approx(4, abs=1e-5)


def test_places_are_drawn_in_proportion_to_their_priorities_and_never_without_one() -> None:
    priorities = np.array([0.0, 1.0, 0.0, 5.0, 0.25, 0.0, 2.0, 0.0, 0.5, 0.0, 0.0])
    tree = SumTree(len(priorities), 1.0)
    for index in np.flatnonzero(priorities).tolist():
        set_priority(tree, index, priorities[index])
    generator = np.random.default_rng(0)
    # One at a time, because the shares of one call make their draws more even than chance.
    draws = np.concatenate([tree.sample(1, generator, 1.0)[0] for _ in range(8000)])
    counts = np.bincount(draws, minlength=len(priorities))
    assert not counts[priorities == 0].any()
    wanted = priorities[priorities > 0] / priorities.sum() * len(draws)
    assert stats.chisquare(counts[priorities > 0], wanted).pvalue > 0.001


def test_one_call_takes_one_place_from_each_equal_share_of_the_priorities() -> None:
    tree = SumTree(4, 1.0)
    for index, priority in enumerate((1.0, 2.0, 4.0, 1.0)):
        set_priority(tree, index, priority)
    for seed in range(50):
        indices, _ = tree.sample(8, np.random.default_rng(seed), 1.0)
        np.testing.assert_array_equal(indices, [0, 1, 1, 2, 2, 2, 2, 3])


def test_draws_at_the_very_edges_never_find_a_place_without_priority() -> None:
    class Edges:
        """A generator that only gives 0, or the largest number below 1."""

        def __init__(self, value: float) -> None:
            self.value = value

        def random(self, count: int) -> np.ndarray:
            return np.full(count, self.value)

    tree = SumTree(8, 1.0)
    generator = np.random.default_rng(0)
    for index in (1, 2, 5):
        set_priority(tree, index, float(generator.random()) * 1e-3 + 0.1)
    for value in (0.0, np.nextafter(1, 0)):
        for count in (1, 3, 7, 1000):
            indices, weights = tree.sample(count, Edges(value), 1.0)  # type: ignore[arg-type]
            assert set(indices.tolist()) <= {1, 2, 5} and np.isfinite(weights).all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_are_the_inverse_probabilities_to_the_power_of_beta(beta: float) -> None:
    priorities = np.array([1.0, 5.0, 0.25, 2.0, 0.5])
    tree = SumTree(len(priorities), 1.0)
    for index, priority in enumerate(priorities.tolist()):
        set_priority(tree, index, priority)
    indices, weights = tree.sample(64, np.random.default_rng(0), beta)
    probabilities = priorities / priorities.sum()
    wanted = (1 / (len(priorities) * probabilities[indices])) ** beta
    assert len(set(indices.tolist())) == 5
    np.testing.assert_allclose(weights, wanted / wanted.max(), rtol=1e-5)


def test_alpha_is_the_power_of_the_error_that_makes_the_priority() -> None:
    tree = SumTree(2, 0.5)
    tree.update(np.array([0, 1]), np.array([-4.0, 9.0]))
    np.testing.assert_allclose(tree.state()["leaves"], [2, 3], atol=1e-5)


def test_new_transitions_get_the_largest_priority_so_far() -> None:
    stream = Stream(2)
    replay = stream.replay(8, 1, priority_exponent=1.0)
    generator = np.random.default_rng(0)
    stream.feed(replay)
    assert replay.state()["priorities.leaves"].max() == 1
    replay.set_priorities(np.array([0, 1]), np.array([7.0, 0.1]))
    replay.set_priorities(np.array([0]), np.array([0.5]))  # the largest is remembered, not looked up
    stream.feed(replay)
    leaves = replay.state()["priorities.leaves"]
    np.testing.assert_allclose(leaves[:4], [0.5, 0.1, 7, 7], atol=1e-5)
    drawn = replay.sample(1000, generator)
    assert np.isin(drawn.indices, [2, 3]).mean() == pytest.approx(14 / 14.6, abs=0.01)


def test_the_memory_draws_in_proportion_to_errors_and_weighs_by_the_number_of_transitions() -> None:
    stream = Stream(2, stack=4)
    replay = stream.replay(12, 1, priority_exponent=1.0)
    for _ in range(40):
        stream.feed(replay)
    indices = np.unique(replay.sample(2000, np.random.default_rng(0)).indices)
    assert len(indices) == len(replay) == 12
    errors = np.linspace(0.1, 2, 12)
    replay.set_priorities(indices, errors)
    generator = np.random.default_rng(1)
    draws = np.concatenate([replay.sample(1, generator).indices for _ in range(4000)])
    counts = np.array([(draws == index).sum() for index in indices])
    assert stats.chisquare(counts, errors / errors.sum() * len(draws)).pvalue > 0.001
    drawn = replay.sample(300, generator, 0.5)
    probabilities = (errors / errors.sum())[np.searchsorted(indices, drawn.indices)]
    wanted = (12 * probabilities) ** -0.5
    assert drawn.weights is not None
    np.testing.assert_allclose(drawn.weights, wanted / wanted.max(), rtol=1e-4)


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 7, 400])
def test_a_state_holds_what_was_seen_and_not_the_empty_ring(steps: int, prioritized: bool) -> None:
    exponent = 0.6 if prioritized else None

    def replay() -> ReplayBuffer:
        return ReplayBuffer(
            300, 2, frame=np.zeros(3, np.float32), stack=None, num_actions=2, n_steps=3, discount=0.9,
            priority_exponent=exponent,
        )  # fmt: skip

    whole, generator = replay(), np.random.default_rng(steps)
    for number in range(steps):
        ends = generator.random(2) < 0.1
        mask, rewards = np.ones((2, 2), bool), generator.random(2).astype(np.float32)
        seen, following = generator.random((2, 2, 3)).astype(np.float32)
        whole.add(seen, mask, np.zeros(2, int), Step(rewards, ends & (number % 2 == 0), ends & (number % 2 == 1),
                                                     following, mask, ()))  # fmt: skip
    state = {name: array.copy() for name, array in whole.state().items()}
    rows = min(steps, 150) + 1
    assert len(state["frames"]) == len(state["masks"]) == rows
    if prioritized:
        assert len(state["priorities.leaves"]) <= 2 * rows
    again = replay()
    again.restore(state)
    if steps:
        one, other = (each.sample(50, np.random.default_rng(1)) for each in (whole, again))
        for name in ("observations", "returns", "discounts", "next_observations", "indices"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_a_memory_that_does_not_fit_is_refused_with_its_size_and_the_largest_that_does() -> None:
    check_fits(900, 100, 100_000)
    said = (
        r"replay_size: 40,000,000 transitions of 7,079 bytes take 263\.7 GiB, and this machine has 23\.0 GiB of "
        r"memory; set algorithm\.replay_size=3100000 or less"
    )
    with pytest.raises(RecipeError, match=said):
        check_fits(40_000_000, 7079, 23 << 30)
    assert 2**28 < machine_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with pytest.raises(RecipeError, match=r"algorithm\.replay_size"):
        ReplayBuffer(10**9, 1, frame=np.zeros((84, 84), np.uint8), stack=4, num_actions=None, n_steps=1, discount=1)
