"""Environments as people write them: what keeps gymnasium's promises is passed on, all else refused in one sentence."""

import random
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError, RecipeError
from hftoolkit.recipe import Environment
from hftoolkit.rl.checked import Checked, misfit
from hftoolkit.rl.environments import Environments, check_environment, make_environment


class World(gymnasium.Env[Any, int]):
    """Ten steps; action 1 brings 1. Tests replace its parts."""

    observation_space: Any = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def see(self) -> Any:
        return np.array([self.time / 10, 1.0], np.float32)

    def info(self) -> dict[str, Any]:
        return {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.see(), self.info()

    def step(self, action: int) -> Any:
        self.time += 1
        return self.see(), float(action == 1), self.time >= 10, False, self.info()


def world(**parts: Any) -> Checked:
    return Checked(type("World", (World,), parts)(), "World-v0")


def play(env: Checked, steps: int = 10) -> list[Any]:
    return [env.reset(seed=0), *(env.step(1) for _ in range(steps))]


def old_step(self: Any, action: int) -> Any:
    observation, reward, done, _, info = World.step(self, action)
    return observation, reward, done, info


def with_reward(reward: Any) -> Callable[[Any, int], Any]:
    return lambda self, action: (self.see(), reward, False, False, {})


def old_reset(self: Any, *, seed: Any = None, options: Any = None) -> Any:
    return World.reset(self, seed=seed)[0]


def masks(mask: Any) -> dict[str, Any]:
    return {"info": lambda self: {"action_mask": mask}}


SPACE = {"observation_space": spaces.Box(0, 255, (2,), np.uint8)}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"reset": old_reset},
            r"reset\(\) returned ndarray \(2,\), as in the old gym API; return \(observation, info\)",
        ),
        ({"reset": lambda self: (self.see(), {})}, r"does not take seed and options .* def reset\(self, \*, seed=None"),
        ({"reset": lambda self, seed=None: (0, {})}, r"does not take seed and options .*'options'"),
        (
            {"step": old_step},
            r"step\(\) returned 4 values; return \(observation, reward, terminated, truncated, info\)",
        ),
        ({"step": lambda self, action: None}, r"step\(\) returned None"),
        ({"step": lambda self, action: (self.see(), 0.0, "no", False, {})}, "terminated = 'no'; return True or False"),
        ({"step": with_reward(np.nan)}, "the reward is nan after step 1 of an episode; return a finite number"),
        ({"step": with_reward(1e39)}, "the reward is 1e\\+39 after step 1"),
        ({"step": with_reward(None)}, "the reward is None after step 1 of an episode; return one number"),
        ({"step": with_reward([1.0, 2.0])}, r"the reward is \[1.0, 2.0\] after step 1"),
        ({"see": lambda self: np.zeros(3)}, r"observation of reset\(\) has the shape \(3,\), and .* says \(2,\)"),
        ({"see": lambda self: [1.0, [2.0]]}, "made of lists of several lengths"),
        ({"see": lambda self: ["a", "b"]}, "is of type <U1, and observation_space says float32; give numbers"),
        (
            {"see": lambda self: np.float64([np.nan if self.time == 2 else 0, 1])},
            r"observation of step\(\) is not finite in 32 bits, \[nan, 1.0\], after step 2 of an episode",
        ),
        ({"see": lambda self: np.float64([1e300, 1])}, r"not finite in 32 bits, \[1e\+300, 1.0\]"),
        (SPACE | {"see": lambda self: np.float32([0.5, 1])}, "is of type float32, and observation_space says uint8"),
        (
            SPACE | {"see": lambda self: np.array([300, 1])},
            "has values from 1 to 300, and observation_space says uint8",
        ),
        (masks([1, 1]), r"mask has the shape \(2,\), and there are 3 actions; give one number an action"),
        (masks([[1], [1, 1]]), r"mask has the shape \(\)"),
        (masks([0, 0, 0]), "mask allows no action at the start of an episode, and the episode goes on"),
        (masks([0, -1e9, 0]), r"mask is \[0.0, -1000000000.0, 0.0\]; give 1 where"),
        (masks(["a", "b", "c"]), "give 1 where an action is allowed"),
        (
            {"info": lambda self: {"action_mask": [1, 1, 0]} if self.time else {}},
            r"reset\(\) does not; give it at every",
        ),
        ({"info": lambda self: {} if self.time == 3 else {"action_mask": [1, 1, 0]}}, "stopped giving info"),
    ],
)
def test_what_breaks_a_promise_is_refused_in_one_sentence(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        play(world(**parts))
    assert str(error.value).startswith(("environment.id: World-v0: ", "the environment stopped giving"))


@pytest.mark.parametrize(
    ("space", "observation", "said"),
    [
        (spaces.Discrete(3, start=1), 0, "is 0, and observation_space says a whole number 1 to 3"),
        (spaces.Discrete(3), 3, "0 to 2"),
        (spaces.Discrete(3), 1.0, "0 to 2"),
        (spaces.Discrete(3), None, "0 to 2"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], "MultiDiscrete"),
        (spaces.Dict(a=spaces.Discrete(2)), {"b": 1}, "is a dict of b, and observation_space is a dict of a"),
        (spaces.Dict(a=spaces.Discrete(2)), {"a": 7}, "in its part 'a' is 7"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (1,), "is 1 values, and .* tuple of 2"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (1, 2), "in its part '1' is 2"),
    ],
)
def test_every_kind_of_space_knows_what_is_not_in_it(space: Any, observation: Any, said: str) -> None:
    import re

    assert re.search(said, misfit(space, observation) or "")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(4),
        spaces.Box(0, 255, (2, 2), np.uint8),
        spaces.Box(-1, 1, (3,), np.float64),
        spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,))),
        spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2))),
    ],
    ids=str,
)
def test_what_is_in_a_space_passes(space: Any) -> None:
    space.seed(0)
    assert [misfit(space, space.sample()) for _ in range(20)] == [None] * 20


def test_bounds_and_types_of_floats_are_no_promise() -> None:
    assert misfit(World.observation_space, [99, -99.0]) is None
    assert misfit(World.observation_space, np.float64([0.1, 99])) is None


@pytest.mark.parametrize("mask", [[1, 1, 0], (True, True, False), np.array([1, 1, 0], np.int8), np.float32([1, 1, 0])])
@pytest.mark.parametrize("how", ["info", "method", "observation", "observation of several"])
def test_a_mask_is_obeyed_wherever_it_comes_from(mask: Any, how: str) -> None:
    spaces_of = {"observation": World.observation_space, "action_mask": spaces.Box(0, 1, (3,), np.float32)}
    shown: Callable[[Any], Any] = lambda self: {"observation": World.see(self), "action_mask": mask}  # noqa: E731
    more: Callable[[Any], Any] = lambda self: shown(self) | {"goal": 1}  # noqa: E731
    parts: dict[str, tuple[dict[str, Any], str]] = {
        "info": (masks(mask), 'info["action_mask"]'),
        "method": ({"action_masks": lambda self: mask}, "env.unwrapped.action_masks()"),
        "observation": ({"observation_space": spaces.Dict(spaces_of), "see": shown}, 'observation["action_mask"]'),
        "observation of several": (
            {"observation_space": spaces.Dict(spaces_of | {"goal": spaces.Discrete(2)}), "see": more},
            'observation["action_mask"]',
        ),
    }
    env = world(**parts[how][0])
    given = play(env)
    for each in given:
        np.testing.assert_array_equal(each[-1]["action_mask"], [True, True, False])
        assert each[-1]["action_mask"].dtype == bool
    assert env.mask_source == parts[how][1]
    if how == "observation":
        assert env.observation_space == World.observation_space and env.key == "observation"
        np.testing.assert_array_equal(given[1][0], np.float32([0.1, 1]))
    if how == "observation of several":
        assert set(given[1][0]) == {"observation", "goal"} and env.key is None


def test_a_method_that_needs_the_state_is_no_mask() -> None:
    assert play(world(action_mask=lambda self, state: [1, 0, 0]))[0][1] == {}


def test_nothing_need_be_allowed_where_nothing_follows() -> None:
    env = world(info=lambda self: {"action_mask": [0, 0, 0] if self.time == 10 else [1, 1, 1]})
    assert play(env)[-1][-1]["action_mask"].tolist() == [False] * 3
    env = world(info=lambda self: {} if self.time == 10 else {"action_mask": [1, 1, 1]})
    assert play(env)[-1][-1]["action_mask"].tolist() == [True] * 3


def test_an_observation_that_is_nothing_but_a_mask_is_refused() -> None:
    with pytest.raises(RecipeError, match="shows nothing but action_mask"):
        world(observation_space=spaces.Dict(action_mask=spaces.MultiBinary(3)))


def test_what_an_environment_raises_is_told_with_its_line() -> None:
    def lose(self: Any, action: int) -> Any:
        raise OSError("simulator lost the connection")

    with pytest.raises(
        EnvironmentFault,
        match=r"World-v0: step\(\) raised OSError: simulator lost the connection \(test_rl_checked.py, line \d+\)",
    ):
        play(world(step=lose))


def test_equal_seeds_give_equal_draws_from_the_global_generators() -> None:
    def see(self: Any) -> Any:
        return np.float32([np.random.randn(), random.random()])

    env = world(see=see)
    first, again = play(env), play(env)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    assert len({each[0][0] for each in first}) == 11


@pytest.fixture
def registered(request: pytest.FixtureRequest) -> Any:
    names = []

    def register(**parts: Any) -> Environment:
        names.append(f"World{len(names)}-v0")
        gymnasium.register(names[-1], type("World", (World,), parts), max_episode_steps=50)
        return Environment(id=names[-1])

    yield register
    for name in names:
        del gymnasium.registry[name]


def test_two_episodes_of_one_seed_that_differ_are_warned_of(registered: Any) -> None:
    own = np.random.default_rng(0)
    assert check_environment(registered()) == ()
    (said,) = check_environment(registered(see=lambda self: own.random(2, np.float32)))
    assert "began with one seed differ" in said and "self.np_random" in said


def test_masks_of_other_names_are_warned_of(registered: Any) -> None:
    (said,) = check_environment(registered(info=lambda self: {"legal_actions": [1, 1, 0], "mask_of_what": 3}))
    assert "gives info['legal_actions'], and only info['action_mask'] is obeyed" in said


def test_the_time_limit_does_not_stumble_over_the_old_api(registered: Any) -> None:
    with pytest.raises(DataError, match="4 values"):
        check_environment(registered(step=old_step))


def test_an_environment_without_an_observation_space_is_refused(registered: Any) -> None:
    with pytest.raises(RecipeError, match="no observation_space"):
        make_environment(registered(observation_space=None))


def test_lists_among_options_are_the_environments_own(registered: Any) -> None:
    def init(self: Any, roads: list[str], config: dict[str, Any]) -> None:
        assert (roads, config) == (["ab", "c"], {"lanes": [3, {"width": 2.5}]})
        roads.clear()
        config.clear()

    section = registered(__init__=init)
    section = Environment(id=section.id, options={"roads": ["ab", "c"], "config": {"lanes": [3, {"width": 2.5}]}})
    for _ in range(2):
        make_environment(section)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_step_that_fails_changes_nothing_of_what_is_remembered(registered: Any, vectorization: str) -> None:
    def reset(self: Any, *, seed: Any = None, options: Any = None) -> Any:
        self.episodes = getattr(self, "episodes", 0) + 1
        if self.episodes == 3:
            raise RuntimeError("no third episode")
        return World.reset(self, seed=seed)

    section = registered(reset=reset)
    environments = Environments(Environment(id=section.id, num_envs=2, vectorization=vectorization), seed=0)
    for _ in range(19):
        environments.step(np.ones(2, int))
    before, seen = environments.state(), environments.observations.copy()
    with pytest.raises(HFToolkitError, match="RuntimeError: no third episode"):
        environments.step(np.ones(2, int))
    assert environments.state() == before and [len(each["actions"]) for each in before["episodes"]] == [9, 9]
    np.testing.assert_array_equal(environments.observations, seen)
    environments.close()


def test_rewards_are_scaled_and_cut_for_learning_and_reported_as_they_came(registered: Any) -> None:
    section = registered(step=lambda self, action: (self.see(), 1000.0 * (action - 1), action == 2, False, {}))
    shaped = {"num_envs": 3, "reward": {"scale": 0.002, "clip": 1.5}}
    step = Environments(Environment(id=section.id, **shaped), seed=0).step(np.arange(3))
    assert step.rewards.tolist() == [-1.5, 0.0, 1.5] and step.rewards.dtype == np.float32
    assert step.finished == ((1000.0, 1),)
