"""Environments stepped together, brought back to where they were, and played in: against plain loops over gymnasium."""

import json
import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from hftoolkit.errors import DataError, EnvironmentFault, RecipeError
from hftoolkit.recipe import Environment
from hftoolkit.rl import evaluation
from hftoolkit.rl.environments import Environments, Step, make_environment, register
from hftoolkit.rl.evaluation import RandomPolicy, evaluate_policy, watch
from hftoolkit.rl.replay import ReplayBuffer
from hftoolkit.seeding import derive_seed


class Counting(gymnasium.Env[np.ndarray, int]):
    """Show (episode, step, code): the number of the episode is chance, and all else follows from it and the actions.

    Args:
        masked: forbid one action, and raise if it is taken nevertheless.
        shortest: steps of the shortest episode; the longest has six more.
    """

    observation_space = spaces.Box(0, 1e6, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, masked: bool = False, shortest: int = 1, render_mode: str | None = None) -> None:
        self.masked, self.shortest = masked, shortest

    @staticmethod
    def follow(observation: np.ndarray, action: int) -> np.ndarray:
        episode, step, code = observation.astype(int).tolist()
        return np.array((episode, step + 1, (code * 5 + action + 1) % 97), np.float32)

    @staticmethod
    def reward(observation: np.ndarray, action: int) -> float:
        return float(observation[2]) + action / 4

    @staticmethod
    def length(episode: int) -> int:
        return 1 + episode % 7

    @staticmethod
    def mask(observation: np.ndarray) -> np.ndarray:
        return np.arange(3) != int(observation.sum()) % 3

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        episode = int(self.np_random.integers(100_000))
        self.seen = np.array((episode, 0, episode % 97), np.float32)
        return self.seen, self.info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.masked and not self.mask(self.seen)[action]:
            raise AssertionError("a forbidden action was taken")
        reward = self.reward(self.seen, action)
        self.seen = self.follow(self.seen, action)
        episode, step, _ = self.seen.astype(int).tolist()
        over = step == self.length(episode) + self.shortest - 1
        return self.seen, reward, over and episode % 2 == 0, over and episode % 2 == 1, self.info()

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.mask(self.seen).astype(np.int8)} if self.masked else {}


class Odd(Counting):
    """Give masks for a while only."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(masked=True)
        self.count = 0

    def info(self) -> dict[str, Any]:
        self.count += 1
        return super().info() if self.count < 10 else {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.masked = False
        result = super().step(action)
        self.masked = True
        return *result[:4], self.info()


class Moody(gymnasium.Env[np.ndarray, int]):
    """Depend on how many there were before: in what they show, or in when they end."""

    observation_space = spaces.Box(0, 1e6, (1,), np.float32)
    action_space = spaces.Discrete(2)
    made = 0

    def __init__(self, shows: bool = True, render_mode: str | None = None) -> None:
        Moody.made += 1
        self.shows, self.number = shows, Moody.made

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        shown = self.time * self.number if self.shows else 0
        return np.float32([shown]), 0.0, not self.shows and self.time * self.number > 20, False, {}


class Shaped(gymnasium.Env[Any, int]):
    """Whatever spaces a test gives it; the reward is the action that arrives."""

    def __init__(self, observations: Any = None, actions: Any = None) -> None:
        self.observation_space = observations or spaces.Box(0, 1, (2,), np.float32)
        self.action_space = actions or spaces.Discrete(2)
        self.observation_space.seed(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in self.action_space
        return self.observation_space.sample(), float(action), False, False, {}


WORLDS = (Counting, Odd, Moody)


@pytest.fixture(autouse=True)
def worlds() -> Iterator[None]:
    before = dict(gymnasium.registry)
    for world in WORLDS:
        gymnasium.register(f"{world.__name__}-v0", world)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def counting(seed: int = 0, **knobs: Any) -> Environments:
    names = {"num_envs": 3} | {name: knobs.pop(name) for name in tuple(knobs) if name in Environment.model_fields}
    return Environments(Environment(id="Counting-v0", options=knobs, **names), seed=seed)


def any_actions(environments: Environments, generator: np.random.Generator) -> np.ndarray:
    lots = generator.random((environments.num_envs, environments.num_actions))
    actions: np.ndarray = (lots if environments.masks is None else lots + environments.masks).argmax(axis=1)
    return actions


def test_no_step_that_ignores_its_action_is_remembered() -> None:
    environments = counting(num_envs=4)
    example = environments.observations[0]
    replay = ReplayBuffer(10_000, 4, frame=example, stack=None, num_actions=None, n_steps=1, discount=0.5)
    generator = np.random.default_rng(0)
    for _ in range(250):
        observations, actions = environments.observations, any_actions(environments, generator)
        replay.add(observations, None, actions, environments.step(actions))
    drawn = replay.sample(20_000, generator)
    _, firsts = np.unique(drawn.indices, return_index=True)
    assert len(firsts) == len(replay) == 1000
    ends = set()
    for number in firsts:
        seen, action = drawn.observations[number], int(drawn.actions[number])
        episode, step = int(seen[0]), int(seen[1])
        assert drawn.returns[number] == Counting.reward(seen, action)
        terminated = step + 1 == Counting.length(episode) and episode % 2 == 0
        assert drawn.discounts[number] == (0 if terminated else 0.5)
        if not terminated:
            np.testing.assert_array_equal(drawn.next_observations[number], Counting.follow(seen, action))
        if step + 1 == Counting.length(episode):
            ends.add((Counting.length(episode), terminated))
    assert len(ends) == 14  # episodes of 1 to 7 steps, cut off and terminated


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_gymnasium_resets_nothing_by_itself(vectorization: str) -> None:
    environments = counting(num_envs=1, vectorization=vectorization)
    assert environments._vector.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    environments.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("masked", [False, True], ids=["all-allowed", "masked"])
def test_each_environment_is_a_plain_loop_with_a_seed_for_each_episode(vectorization: str, masked: bool) -> None:
    environments = counting(seed=5, vectorization=vectorization, masked=masked)
    generator = np.random.default_rng(1)
    taken, steps, begun = [], [], [(environments.observations, environments.masks)]
    for _ in range(60):
        taken.append(any_actions(environments, generator))
        steps.append(environments.step(taken[-1]))
        begun.append((environments.observations, environments.masks))
    environments.close()
    finished: list[list[tuple[float, int]]] = [[] for _ in steps]
    for index in range(3):
        env = Counting(masked=masked)
        number, total, length = 0, 0.0, 0
        observation, info = env.reset(seed=derive_seed(5, "environment", index, number) % 2**31)
        for time, (actions, step) in enumerate(zip(taken, steps, strict=True)):
            assert_shows(begun[time], index, observation, info)
            observation, reward, terminated, truncated, info = env.step(int(actions[index]))
            total, length = total + reward, length + 1
            gave = (step.rewards[index], step.terminated[index], step.truncated[index])
            assert gave == (reward, terminated, truncated)
            assert_shows((step.next_observations, step.next_masks), index, observation, info)
            if terminated or truncated:
                finished[time].append((total, length))
                number, total, length = number + 1, 0.0, 0
                observation, info = env.reset(seed=derive_seed(5, "environment", index, number) % 2**31)
        assert_shows(begun[-1], index, observation, info)
        assert number > 8
    assert [list(step.finished) for step in steps] == finished


def assert_shows(shown: tuple[np.ndarray, Any], index: int, observation: np.ndarray, info: dict[str, Any]) -> None:
    np.testing.assert_array_equal(shown[0][index], observation)
    if "action_mask" in info:
        np.testing.assert_array_equal(shown[1][index], info["action_mask"].astype(bool))
    else:
        assert shown[1] is None


def test_steps_that_were_returned_never_change() -> None:
    environments = counting(masked=True)
    generator = np.random.default_rng(0)
    kept, copies = [], []
    for _ in range(20):
        step = environments.step(any_actions(environments, generator))
        arrays = [step.rewards, step.terminated, step.truncated, step.next_observations, step.next_masks]
        kept += [*arrays, environments.observations, environments.masks]
        copies += [np.copy(array) for array in kept[-7:]]
    for array, copied in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copied)


def test_an_end_on_the_last_step_that_is_allowed_is_a_termination() -> None:
    environments = counting(num_envs=8, max_episode_steps=1)
    met = set()
    for _ in range(60):
        episodes = environments.observations[:, 0].astype(int).tolist()
        step = environments.step(np.zeros(8, int))
        for index, episode in enumerate(episodes):
            terminated = episode % 14 == 0  # one step, and an even number
            assert (step.terminated[index], step.truncated[index]) == (terminated, not terminated)
            met.add(terminated)
    assert met == {False, True}


def test_equal_seeds_give_equal_episodes_and_others_give_others() -> None:
    one, two, three = (counting(seed=seed).observations for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert len({*one[:, 0], *three[:, 0]}) == 6


def plays_on_equally(one: Environments, two: Environments, steps: int) -> bool:
    generator = np.random.default_rng(9)
    for _ in range(steps):
        actions = any_actions(one, generator)
        first, second = one.step(actions), two.step(actions)
        for name in Step.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.masks, two.masks)
    return one.state() == two.state()


@pytest.mark.parametrize("others", [False, True], ids=["new", "the-same"])
def test_cartpole_comes_back_to_where_it_was_also_where_an_episode_has_just_begun(others: bool) -> None:
    section = Environment(id="CartPole-v1", num_envs=4)
    one, generator = Environments(section, seed=3), np.random.default_rng(0)
    lengths = set()
    for _ in range(12):
        state = json.loads(json.dumps(one.state()))
        lengths |= {len(episode["actions"]) for episode in state["episodes"]}
        two = Environments(section, seed=3)
        if others:  # it need not be new
            for _ in range(25):
                two.step(any_actions(two, generator))
        two.restore(state, one.observations.copy())
        np.testing.assert_array_equal(one.observations, two.observations)
        assert plays_on_equally(one, two, 7)
        while not any(not episode["actions"] for episode in one.state()["episodes"]):
            one.step(any_actions(one, generator))
    assert 0 in lengths and max(lengths) > 20


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("masked", [False, True], ids=["all-allowed", "masked"])
def test_episodes_of_all_lengths_and_their_masks_come_back(vectorization: str, masked: bool) -> None:
    one = counting(masked=masked, vectorization=vectorization)
    two = counting(masked=masked, vectorization=vectorization)
    generator, met = np.random.default_rng(0), set()
    for _ in range(25):
        state = one.state()
        met.add(tuple(len(episode["actions"]) for episode in state["episodes"]))
        two.restore(json.loads(json.dumps(state)), one.observations.copy())
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.masks, two.masks)
        one.step(any_actions(one, generator))
    one.close()
    two.close()
    assert len(met) > 10


def test_what_was_restored_is_not_tied_to_the_state_it_came_from() -> None:
    one, two = counting(shortest=20), counting(shortest=20)
    one.step(np.zeros(3, int))
    state = json.loads(json.dumps(one.state()))
    two.restore(state, one.observations)
    assert plays_on_equally(one, two, 80)


@pytest.mark.parametrize("shows", [True, False], ids=["shows-something-else", "ends-earlier"])
def test_an_environment_that_depends_on_more_than_its_seed_does_not_come_back(shows: bool) -> None:
    Moody.made = 0
    section = Environment(id="Moody-v0", num_envs=1, options={"shows": shows})
    one = Environments(section, seed=0)
    for _ in range(15):
        one.step(np.zeros(1, int))
    with pytest.raises(DataError, match=r"cannot resume: .* depends on more than its seed; train again from the start"):
        Environments(section, seed=0).restore(one.state(), one.observations)


def test_another_seed_does_not_come_back() -> None:
    one = counting(seed=0)
    with pytest.raises(DataError, match="cannot resume"):
        counting(seed=1).restore(one.state(), one.observations)


def test_masks_that_stop_coming_are_an_error() -> None:
    environments = Environments(Environment(id="Odd-v0"), seed=0)
    with pytest.raises(DataError, match=r"stopped giving info\['action_mask'\]; give it at every reset and step"):
        for _ in range(20):
            environments.step(np.zeros(1, int))


@pytest.mark.parametrize("start", [1, -2, 0])
def test_actions_are_counted_from_zero_wherever_the_environment_begins(start: int) -> None:
    gymnasium.register("Shaped-v0", partial(Shaped, actions=spaces.Discrete(3, start=start)))
    environments = Environments(Environment(id="Shaped-v0", num_envs=3), seed=0)
    assert environments.num_actions == 3
    np.testing.assert_array_equal(environments.step(np.arange(3)).rewards, np.arange(3) + start)


def test_other_actions_than_a_finite_set_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"environment\.id: Pendulum-v1 has the actions Box.*\(Discrete\) is needed"):
        make_environment(Environment(id="Pendulum-v1"))


def test_an_unknown_id_is_answered_with_the_closest_one() -> None:
    with pytest.raises(RecipeError, match=r"environment\.id: .*CartPol.*CartPole.*environment\.module"):
        make_environment(Environment(id="CartPol-v1"))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"environment\.options: CartPole-v1 does not take them: .*gravitation"):
        make_environment(Environment(id="CartPole-v1", options={"gravitation": 9.81}))


def test_options_and_the_time_limit_reach_the_environment() -> None:
    environments = counting(num_envs=1, shortest=50, max_episode_steps=4)
    ends = [bool(environments.step(np.zeros(1, int)).truncated[0]) for _ in range(8)]
    assert ends == [False, False, False, True] * 2
    assert len(counting(num_envs=2).step(np.zeros(2, int)).rewards) == 2


@pytest.mark.parametrize("shape", [(60, 80, 3), (84, 84), (4, 84, 84), (4, 84, 84, 3)])
def test_images_need_the_section_on_pixels(shape: tuple[int, ...]) -> None:
    gymnasium.register("Shaped-v0", partial(Shaped, observations=spaces.Box(0, 255, shape, np.uint8)))
    with pytest.raises(RecipeError, match=r"Shaped-v0 shows images of shape .*; add environment\.pixels"):
        make_environment(Environment(id="Shaped-v0"))


@pytest.mark.parametrize(
    "space",
    [spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Box(0, 1, (2,)), None)],
    ids=["sequence", "graph"],
)
def test_observations_without_a_fixed_size_are_refused(space: Any) -> None:
    gymnasium.register("Shaped-v0", partial(Shaped, observations=space))
    with pytest.raises(RecipeError, match="Shaped-v0 has observations without a fixed size"):
        make_environment(Environment(id="Shaped-v0"))


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Box(-1, 1, (4,), np.float64), 4),
        (spaces.Box(0, 255, (6,), np.uint8), 6),  # for example the memory of a game console
        (spaces.Box(-1, 1, (2, 3), np.float32), 6),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), 147),  # cells of a grid, as codes
        (spaces.MultiBinary(5), 5),
        (spaces.MultiDiscrete([2, 3]), 5),
        (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0, 1, (2,))}), 5),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2, 2)))), 6),
    ],
    ids=str,
)
def test_all_else_becomes_a_vector_of_numbers(space: Any, size: int) -> None:
    gymnasium.register("Shaped-v0", partial(Shaped, observations=space))
    environments = Environments(Environment(id="Shaped-v0", num_envs=2), seed=0)
    step = environments.step(np.zeros(2, int))
    for shown in (environments.observations, step.next_observations):
        assert shown.shape == (2, size) and shown.dtype == np.float32
    assert environments.num_states is None
    played = evaluate_policy(
        Frozen(np.float32),
        lambda: make_environment(Environment(id="Shaped-v0", max_episode_steps=2)),
        episodes=1,
        seed=0,
    )
    assert played.lengths.tolist() == [2]


class Frozen:
    """Always does the same, and looks at the type of what it sees."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def act(self, observations: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        assert observations.dtype == self.dtype
        return np.ones(len(observations), int)


def test_numbered_states_become_one_hot_vectors_and_their_number_is_known() -> None:
    gymnasium.register("Shaped-v0", partial(Shaped, observations=spaces.Discrete(5, start=2)))
    environments = Environments(Environment(id="Shaped-v0", num_envs=50), seed=0)
    assert environments.num_states == 5 and environments.observations.dtype == np.float32
    met = {tuple(row) for row in environments.step(np.zeros(50, int)).next_observations.tolist()}
    assert met <= set(map(tuple, np.eye(5).tolist())) and len(met) > 0


def test_code_runs_only_if_it_was_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_world.py").write_text("import gymnasium\ngymnasium.register('Mine-v0', 'my_world:Mine')\n")
    section = Environment(id="Mine-v0", module="my_world")
    with pytest.raises(RecipeError, match=r"my_world is Python code .* add --allow-code"):
        register(section, allow_code=False)
    assert "my_world" not in sys.modules and "Mine-v0" not in gymnasium.registry
    register(section, allow_code=True)
    assert "Mine-v0" in gymnasium.registry
    del sys.modules["my_world"]
    with pytest.raises(EnvironmentFault, match=r"environment\.module: no_world cannot be imported"):
        register(Environment(id="Mine-v0", module="no_world"), allow_code=True)
    register(Environment(id="CartPole-v1"), allow_code=False)
    (tmp_path / "bad_world.py").write_text("1 / 0\n")
    with pytest.raises(
        EnvironmentFault, match=r"importing bad_world raised ZeroDivisionError: .* \(bad_world.py, line 1"
    ):
        register(Environment(id="Mine-v0", module="bad_world"), allow_code=True)


class Digits:
    """A policy that looks at each observation by itself, and keeps to the masks; it notes how many it saw at once."""

    def __init__(self) -> None:
        self.at_once: list[int] = []

    def act(self, observations: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        self.at_once.append(len(observations))
        values = np.stack([(observations[:, 2] * prime) % 11 for prime in (2, 3, 7)], axis=1)
        actions: np.ndarray = np.where(True if masks is None else masks, values, -1).argmax(axis=1)
        return actions


def played_one_by_one(episodes: int, seed: int, masked: bool) -> tuple[list[float], list[int]]:
    returns, lengths, policy = [], [], Digits()
    for episode in range(episodes):
        env = Counting(masked=masked)
        observation, info = env.reset(seed=derive_seed(seed, "evaluation", episode) % 2**31)
        total, length, over = 0.0, 0, False
        while not over:
            masks = info["action_mask"][None].astype(bool) if masked else None
            action = int(policy.act(observation[None], masks)[0])
            observation, reward, terminated, truncated, info = env.step(action)
            total, length, over = total + reward, length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    return returns, lengths


@pytest.mark.parametrize("masked", [False, True], ids=["all-allowed", "masked"])
@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_an_evaluation_is_a_plain_loop_however_many_environments_are_open(
    at_once: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "MAX_AT_ONCE", at_once)
    made: list[Counting] = []

    def make() -> Counting:
        made.append(Counting(masked=masked))
        return made[-1]

    policy = Digits()
    for episodes in (1, 20, 60):
        made.clear()
        policy.at_once.clear()
        played = evaluate_policy(policy, make, episodes=episodes, seed=4)
        returns, lengths = played_one_by_one(episodes, 4, masked)
        np.testing.assert_array_equal(played.returns, returns)
        np.testing.assert_array_equal(played.lengths, lengths)
        assert len(made) == max(policy.at_once) == min(episodes, at_once)
    again = evaluate_policy(policy, make, episodes=60, seed=4)
    np.testing.assert_array_equal(again.returns, returns)
    assert not np.array_equal(evaluate_policy(policy, make, episodes=60, seed=5).returns, returns)


@pytest.mark.parametrize("masked", [False, True], ids=["all-allowed", "masked"])
def test_watching_shows_the_first_episodes_of_the_evaluation(masked: bool) -> None:
    looks: list[int] = []
    shown = watch(Digits(), Counting(masked=masked), episodes=6, seed=4, look=lambda: looks.append(1))
    returns, lengths = played_one_by_one(6, 4, masked)
    assert shown == returns and len(looks) == sum(lengths) + 6


def test_random_actions_are_uniform_over_what_is_allowed_and_have_a_seed() -> None:
    masks = np.tile([[1, 0, 1], [0, 1, 0]], (3000, 1)).astype(bool)
    nothing = np.zeros((6000, 1))
    free, masked = RandomPolicy(3, 0).act(nothing, None), RandomPolicy(3, 0).act(nothing, masks)
    np.testing.assert_allclose(np.bincount(free) / 6000, 1 / 3, atol=0.03)
    np.testing.assert_allclose(np.bincount(masked) / 6000, [0.25, 0.5, 0.25], atol=0.02)
    assert masks[np.arange(6000), masked].all()
    np.testing.assert_array_equal(free, RandomPolicy(3, 0).act(nothing, None))
    assert not np.array_equal(free, RandomPolicy(3, 1).act(nothing, None))


def test_an_evaluation_plays_in_as_many_copies_as_can_be_made() -> None:
    made: list[Counting] = []

    def make() -> Counting:
        if len(made) == 2:
            raise EnvironmentFault("no more licences")
        made.append(Counting())
        return made[-1]

    returns, _ = played_one_by_one(20, 4, masked=False)
    np.testing.assert_array_equal(evaluate_policy(Digits(), make, episodes=20, seed=4).returns, returns)
    with pytest.raises(EnvironmentFault, match="no more licences"):
        evaluate_policy(Digits(), make, episodes=20, seed=4)


def test_an_evaluation_leaves_the_global_generators_as_they_were() -> None:
    def draws(*, evaluates: bool) -> list[float]:
        environments = Environments(Environment(id="Counting-v0"), seed=0)
        if evaluates:
            make = partial(make_environment, Environment(id="Counting-v0"))
            evaluate_policy(Digits(), make, episodes=3, seed=0)
        environments.close()
        return [float(np.random.random()), random.random()]

    assert draws(evaluates=True) == draws(evaluates=False)
