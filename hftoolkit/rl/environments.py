"""Environments as the agents see them: made from a recipe, stepped together, and reset by us alone."""

import copy
import importlib
import multiprocessing
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError, RecipeError
from hftoolkit.recipe import Environment, check_code_allowed
from hftoolkit.rl.checked import MASK, Checked, ignored_masks, missing_mask, raised
from hftoolkit.rl.pixels import Env, is_large_image, pixel_frames
from hftoolkit.seeding import derive_seed

_TRANSLATION = "hftoolkit.translation"  # in an environment's metadata, which vector environments hand on


@dataclass(frozen=True, slots=True)
class Translation:
    """What a plain program does with an environment's own observations and actions to use a policy that was learned.

    Attributes:
        mask: Python that gives the action mask, from env, observation and info; None where all actions are allowed.
        key: of a dict observation, under which the rest stands once the mask is taken out; None for no such dict.
        num_states: S, where states are numbered (Discrete) and the policy sees one-hot vectors; None elsewhere.
        first_state: the number of the first one.
        flatten: what makes a vector of the observation: nothing has to; an array's flatten; gymnasium's for its space.
        first_action: the number of the first action; those of the policy begin at 0.
    """

    mask: str | None = None
    key: str | None = None
    num_states: int | None = None
    first_state: int = 0
    flatten: Literal["no", "array", "space"] = "no"
    first_action: int = 0


def register(section: Environment, *, allow_code: bool) -> None:
    """Import the module that registers the environment, if the recipe names one.

    Raises:
        RecipeError: running its code was not allowed.
        EnvironmentFault: it cannot be imported.
    """
    if section.module is None:
        return
    check_code_allowed("environment.module", section.module, allow_code=allow_code)
    try:
        importlib.import_module(section.module)
    except ImportError as error:
        raise EnvironmentFault(
            f"environment.module: {section.module} cannot be imported ({error}); run where it lies, or install it"
        ) from error
    except Exception as error:
        raise raised(f"environment.module: importing {section.module}", error) from error


def make_environment(section: Environment, render_mode: str | None = None) -> Env:
    """Return one environment with actions 0 to A - 1, whose observations are vectors of numbers or stacks of frames.

    Args:
        section: what the recipe says of it.
        render_mode: ``rgb_array`` for videos, ``human`` for a window.

    Raises:
        RecipeError: there is no such id, an option is unknown, or its actions or observations do not suit.
        EnvironmentFault: a package that it needs is missing.
    """
    if section.pixels is not None and section.pixels.origin == "render":
        render_mode = render_mode or "rgb_array"
    env = _made(section, render_mode)
    actions = _actions(env, section.id)
    env = _checked(env, section.id)
    translation = _translation(env, actions)
    env = _with_actions_from_zero(env, actions)
    env = pixel_frames(env, section.pixels) if section.pixels is not None else _as_vector(env, section.id)
    env.metadata = {**env.metadata, _TRANSLATION: translation}
    return env


def _made(section: Environment, render_mode: str | None) -> Env:
    # An environment of one's own need not know how to draw.
    drawing = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gymnasium.make(
            section.id,
            **drawing,
            max_episode_steps=section.max_episode_steps,
            disable_env_checker=True,  # it warns, and takes a sixth of the time of a step
            **copy.deepcopy(section.options),  # environments may change lists and mappings that they are given
        )
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvironmentFault(f"environment.id: {section.id}: {error}") from error
    except gymnasium.error.Error as error:
        raise RecipeError(f"environment.id: {error}; an id of your own needs environment.module") from error
    except Exception as error:
        if section.options and isinstance(error, TypeError | ValueError | KeyError | AssertionError):
            raise RecipeError(f"environment.options: {section.id} does not take them: {error}") from error
        raise raised(f"environment.id: making {section.id}", error) from error


def check_environment(section: Environment) -> tuple[str, ...]:
    """Make the environment once, begin two episodes with one seed, and return sentences to warn the user with.

    Raises:
        RecipeError: its episodes have no time limit, so that a policy which walks in circles would play for ever.
        HFToolkitError: as ``make_environment``, or it does not keep gymnasium's promises.
    """
    env = make_environment(section)
    try:
        if env.spec is None or env.spec.max_episode_steps is None:
            raise RecipeError(f"environment.max_episode_steps: {section.id} has no time limit of its own; give one")
        first, second = _beginning(env), _beginning(env)
    finally:
        env.close()
    found = [
        f"environment.id: {section.id} gives info[{name!r}], and only info['action_mask'] is obeyed; rename it if it "
        "says which actions are allowed"
        for name in first[0]
    ]
    if not all(np.array_equal(one, other) for one, other in zip(first[1], second[1], strict=True)):
        found.append(
            f"environment.id: two episodes of {section.id} that began with one seed differ, so runs of it can neither "
            "be repeated nor resumed exactly; draw from self.np_random, which super().reset(seed=seed) seeds"
        )
    return tuple(found)


def _beginning(env: Env) -> tuple[list[str], list[Any]]:
    """Return names in info that look like masks, and what the first step of an episode shows and brings."""
    assert isinstance(env.action_space, spaces.Discrete)
    observation, info = env.reset(seed=0)
    action = int(np.argmax(info.get(MASK, [1])))
    following, reward, *_ = env.step(action)
    return ignored_masks(info, int(env.action_space.n)), [np.array(observation), np.array(following), reward]


def _actions(env: Env, name: str) -> spaces.Discrete:
    space = getattr(env, "action_space", None)
    if not isinstance(space, spaces.Discrete):
        raise RecipeError(f"environment.id: {name} has the actions {space}; a finite set of them (Discrete) is needed")
    if not isinstance(getattr(env, "observation_space", None), spaces.Space):
        raise RecipeError(f"environment.id: {name} has no observation_space; give it one of gymnasium.spaces")
    return space


def _checked(env: Env, name: str) -> Env:
    """Hold the environment to its promises, below the time limit, which would stumble over what is wrong."""
    limit = next((each for each in _layers(env) if isinstance(each, gymnasium.wrappers.TimeLimit)), None)
    if limit is None:
        return Checked(env, name)
    limit.env = Checked(limit.env, name)
    return env


def _translation(env: Env, actions: spaces.Discrete) -> Translation:
    space = env.observation_space
    is_array = isinstance(space, spaces.Box | spaces.MultiBinary)
    is_numbered = isinstance(space, spaces.Discrete)
    return Translation(
        key=next(each.key for each in _layers(env) if isinstance(each, Checked)),
        num_states=int(space.n) if isinstance(space, spaces.Discrete) else None,
        first_state=int(space.start) if isinstance(space, spaces.Discrete) else 0,
        flatten=("array" if len(space.shape or ()) > 1 else "no") if is_array or is_numbered else "space",
        first_action=int(actions.start),
    )


def _with_actions_from_zero(env: Env, actions: spaces.Discrete) -> Env:
    start = int(actions.start)
    if start == 0:
        return env
    shifted = spaces.Discrete(int(actions.n))
    return gymnasium.wrappers.TransformAction(env, lambda action: action + start, shifted)


def _layers(env: Env) -> Iterator[Env]:
    """Return an environment and all that it wraps, the outermost first."""
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def _as_vector(env: Env, name: str) -> Env:
    """Flatten whatever is not a vector yet; numbered states become one-hot vectors."""
    space = env.observation_space
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and is_large_image(space.shape):
        raise RecipeError(
            f"environment.id: {name} shows images of shape {space.shape}; add environment.pixels, and an encoder that "
            "sees them (algorithm.network: {encoder: nature-cnn})"
        )
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return env
    try:
        flat = gymnasium.wrappers.FlattenObservation(env)
    except NotImplementedError as error:
        raise RecipeError(f"environment.id: {name} has observations without a fixed size: {space}") from error
    if not isinstance(flat.observation_space, spaces.Box):
        raise RecipeError(f"environment.id: {name} has observations without a fixed size: {space}")
    return flat


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of N environments gave.

    Attributes:
        rewards: (N,) float32, scaled and clipped as the recipe says.
        terminated: (N,) bool: the episode reached its end, nothing follows.
        truncated: (N,) bool: it was cut off; what would have followed still has value.
        next_observations: (N, ...), of the last step of the episode also where the next one begins already.
        next_masks: (N, A) bool, the actions allowed there; None where all always are.
        finished: (return of the rewards as they came, length in steps) of each episode that ended.
    """

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observations: np.ndarray
    next_masks: np.ndarray | None
    finished: tuple[tuple[float, int], ...]


@dataclass(slots=True)
class _Episode:
    """One running episode; its seed and actions are enough to come back to where it is."""

    number: int = 0
    actions: list[int] = field(default_factory=list)
    total_reward: float = 0.0


class Environments:
    """N copies of an environment in lockstep.

    gymnasium's vector environments reset themselves in the step after the end of an episode, which then ignores its
    action. Here that is switched off, so that every step is a real one and every episode begins with a seed of its own.

    Attributes:
        observations: (N, ...), what the agent sees now.
        masks: (N, A) bool, the actions allowed now; None where all always are.
        num_states: S, where states are numbered (Discrete) and so observations are one-hot vectors; None elsewhere.
        translation: from the environment's own observations and actions to these.
        returns: (number, lowest, highest) of the episodes that ended so far.
    """

    def __init__(self, section: Environment, *, seed: int) -> None:
        self._vector = _vectorized(section)
        self._seed, self._shaping = seed, section.reward
        self._episodes = [_Episode() for _ in range(section.num_envs)]
        self.num_envs = section.num_envs
        assert isinstance(self._vector.single_action_space, spaces.Discrete)
        self.num_actions = int(self._vector.single_action_space.n)
        self.observation_space = self._vector.single_observation_space
        self._dtype = observation_dtype(self.observation_space)
        self.masks: np.ndarray | None = None
        self.returns: tuple[int, float, float] = (0, np.inf, -np.inf)
        with _quiet():
            observations, infos = self._vector.reset(seed=self._episode_seeds())
        self.observations = self._own(observations)
        self.masks = self._masks(infos, np.ones(self.num_envs, dtype=bool))
        vector: Any = self._vector  # the annotation of VectorEnv forgets call
        translation: Translation = vector.metadata[_TRANSLATION]
        self.translation = replace(translation, mask=vector.call("mask_source")[0])
        self.num_states = translation.num_states

    def step(self, actions: np.ndarray) -> Step:
        """Take one action in each environment, (N,) int, and begin anew where the episode ended.

        Raises:
            HFToolkitError: an environment raised, or gave what cannot be learned from; all is as before the step.
        """
        before = self.observations, self.masks, self.returns, list(self._episodes)
        totals = [episode.total_reward for episode in self._episodes]
        with _quiet():
            observations, rewards, terminated, truncated, infos = self._vector.step(actions)
        next_observations = self._own(observations)
        next_masks = self._masks(infos, np.ones(self.num_envs, dtype=bool))
        rewards, ended = rewards.astype(np.float32), terminated | truncated
        for episode, action, reward in zip(self._episodes, actions.tolist(), rewards.tolist(), strict=True):
            episode.actions.append(action)
            episode.total_reward += reward
        over = [self._episodes[index] for index in np.flatnonzero(ended)]
        finished = tuple((episode.total_reward, len(episode.actions)) for episode in over)
        self.observations, self.masks = next_observations, next_masks
        for value, _ in finished:
            number, lowest, highest = self.returns
            self.returns = number + 1, min(lowest, value), max(highest, value)
        # Termination wins where the time limit falls on the last step: there is nothing left to bootstrap from.
        result = Step(
            self._shaped(rewards),
            terminated.copy(),
            truncated & ~terminated,
            next_observations,
            next_masks,
            finished,
        )
        if ended.any():
            try:
                self._begin(ended)
            except HFToolkitError:
                self.observations, self.masks, self.returns, self._episodes = before
                for episode, total in zip(self._episodes, totals, strict=True):
                    episode.actions.pop()
                    episode.total_reward = total
                raise
        return result

    def _shaped(self, rewards: np.ndarray) -> np.ndarray:
        """Return rewards, (N,) float32, scaled and clipped for learning."""
        if self._shaping is None:
            return rewards
        scaled = rewards * np.float32(self._shaping.scale)
        clip = self._shaping.clip
        return scaled if clip is None else np.clip(scaled, -clip, clip).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` needs, as plain numbers."""
        return {
            "episodes": [
                {"number": episode.number, "actions": episode.actions, "total_reward": episode.total_reward}
                for episode in self._episodes
            ],
            "returns": self.returns if self.returns[0] else None,  # JSON has no infinity
        }

    def restore(self, state: Mapping[str, Any], observations: np.ndarray) -> None:
        """Come back to a state by taking the same actions again from the same seeds.

        Args:
            state: from ``state``.
            observations: (N, ...), what the agent saw in that state.

        Raises:
            DataError: the same actions lead elsewhere, so this environment depends on more than its seed.
        """
        self._episodes = [_Episode(**episode) for episode in state["episodes"]]
        number, lowest, highest = state.get("returns") or (0, np.inf, -np.inf)
        self.returns = number, lowest, highest
        histories = [list(episode.actions) for episode in self._episodes]
        longest = max(map(len, histories))
        self._reset(np.ones(self.num_envs, dtype=bool))
        begins = longest - np.array([len(history) for history in histories])
        for time in range(longest):
            # Shorter episodes begin later, so that all arrive together; until then they do anything that is allowed.
            if time > 0 and (begins == time).any():
                self._reset(begins == time)
            actions = np.zeros(self.num_envs, np.int64) if self.masks is None else self.masks.argmax(axis=1)
            for index in np.flatnonzero(begins <= time).tolist():
                actions[index] = histories[index][time - longest]
            with _quiet():
                stepped, _, terminated, truncated, infos = self._vector.step(actions)
            self.observations = self._own(stepped)
            self.masks = self._masks(infos, np.ones(self.num_envs, dtype=bool))
            ended = terminated | truncated
            if (ended & (begins <= time)).any():
                raise _elsewhere()
            if ended.any():
                self._reset(ended)
        if longest and (begins == longest).any():
            self._reset(begins == longest)
        if not np.array_equal(self.observations, observations):
            raise _elsewhere()

    def close(self) -> None:
        """Free windows and processes."""
        self._vector.close()

    def _begin(self, ended: np.ndarray) -> None:
        for index in np.flatnonzero(ended):
            self._episodes[index] = _Episode(self._episodes[index].number + 1)
        self._reset(ended)

    def _reset(self, which: np.ndarray) -> None:
        with _quiet():
            observations, infos = self._vector.reset(seed=self._episode_seeds(), options={"reset_mask": which})
        self.observations = np.where(_broadcast(which, self.observations), self._own(observations), self.observations)
        self.masks = self._masks(infos, which)

    def _episode_seeds(self) -> Any:  # a list, which the annotation of VectorEnv.reset forgets
        return [
            derive_seed(self._seed, "environment", index, episode.number) % 2**31
            for index, episode in enumerate(self._episodes)
        ]

    def _own(self, observations: Any) -> np.ndarray:
        return np.array(observations, dtype=self._dtype)  # a copy: gymnasium writes the next one into the same memory

    def _masks(self, infos: Mapping[str, Any], which: np.ndarray) -> np.ndarray | None:
        """Return the masks with new rows for the environments in ``which``."""
        if "action_mask" not in infos:
            if self.masks is not None:
                raise missing_mask()
            return None
        masks = np.ones((self.num_envs, self.num_actions), dtype=bool) if self.masks is None else self.masks.copy()
        masks[which] = np.asarray(infos["action_mask"])[which].astype(bool)
        return masks


def observation_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """Return how observations are kept: images stay uint8, all else is float32."""
    is_image = space.dtype == np.uint8 and len(space.shape or ()) > 1
    return np.dtype(np.uint8 if is_image else np.float32)


def _elsewhere() -> DataError:
    return DataError(
        "cannot resume: after the same actions from the same seed this environment is in another state, so it "
        "depends on more than its seed; train again from the start, and if it draws from numpy.random while it is "
        "stepped, with environment.num_envs: 1 or vectorization: async"
    )


def _broadcast(flags: np.ndarray, like: np.ndarray) -> np.ndarray:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _make_in_worker(section: Environment) -> Env:
    """Make an environment in a process of its own, which no signal to the whole group stops before the agent is saved.

    It ends with the agent: by command, and where that is killed, because the pipe closes.
    """
    if multiprocessing.parent_process() is not None:  # gymnasium also makes one here, to look at its spaces
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        register(section, allow_code=True)  # it was allowed; a process that was not forked has not imported it yet
    return make_environment(section)


def _vectorized(section: Environment) -> VectorEnv[Any, Any, Any]:
    try:
        if section.vectorization == "async":
            in_workers = [partial(_make_in_worker, section)] * section.num_envs
            return AsyncVectorEnv(in_workers, autoreset_mode=AutoresetMode.DISABLED)
        makers = [partial(make_environment, section)] * section.num_envs
        return SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    except EnvironmentFault as error:
        if section.num_envs == 1:
            raise
        raise EnvironmentFault(
            f"{error}; one copy could be made and {section.num_envs} not: set environment.num_envs=1 if it allows one"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep gymnasium from printing tracebacks of its workers: what went wrong is raised here, in one sentence."""
    level = gymnasium.logger.min_level
    gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    try:
        yield
    finally:
        gymnasium.logger.min_level = level
