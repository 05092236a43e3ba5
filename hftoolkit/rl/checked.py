"""Environments as they come, held to gymnasium's API, to the spaces they declare, and to numbers that can be learned.

Whatever is wrong is refused in one sentence, with what to write instead. Action masks may come in three ways, and leave
here in one: ``info["action_mask"]``, (A,) bool.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError, RecipeError
from hftoolkit.seeding import seed_global_generators

MASK = "action_mask"
MASK_METHODS = ("action_masks", "action_mask", "valid_action_mask")  # the first one is that of sb3-contrib
LOOKS_LIKE_A_MASK = ("mask", "legal", "valid_act", "avail")
OLD_RESET = re.compile("unexpected keyword argument '(seed|options)'")
LARGEST = float(np.finfo(np.float32).max)


class Checked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Pass on what reset and step return, if it is what gymnasium and the spaces promise.

    A mask in a dict observation is taken out of it; what is left is the observation. numpy's and Python's global
    generators are seeded with each episode, because environments draw from them.

    Args:
        env: with a finite set of actions.
        name: its id.

    Attributes:
        mask_source: Python that gives the mask, from env, observation and info; None if there is none, or no reset yet.
        key: under which the observation stands beside a mask; None where it is not such a dict.

    Raises:
        RecipeError: it has no spaces of gymnasium, or its observation is nothing but a mask.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        self._name, self._steps, self._was_reset = name, 0, False
        self.mask_source: str | None = None
        self.key: str | None = None
        self._mask_method: str | None = None
        self._declared: spaces.Space[Any] = env.observation_space
        if isinstance(self._declared, spaces.Dict) and MASK in self._declared.spaces:
            self.observation_space = self._without_mask(self._declared)
            rest = [name for name in self._declared.spaces if name != MASK]
            self.key = rest[0] if len(rest) == 1 else None
            self.mask_source = f'observation["{MASK}"]'

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return (observation, info) of a new episode.

        Raises:
            DataError: this is not what gymnasium promises.
            EnvironmentFault: the environment raised.
        """
        self._steps = 0
        if seed is not None:
            seed_global_generators(seed)
        try:
            returned = self._called("reset()", lambda: self.env.reset(seed=seed, options=options))
        except EnvironmentFault as error:
            if OLD_RESET.search(str(error.__cause__)):
                raise self._wrong(
                    f"its reset() does not take seed and options ({error.__cause__}), as in the old gym API; write "
                    "def reset(self, *, seed=None, options=None), and super().reset(seed=seed) in it"
                ) from error
            raise
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
            raise self._wrong(
                f"its reset() returned {_kind(returned)}, as in the old gym API; return (observation, info), where "
                "info may be {}"
            )
        observation, info = returned
        if not self._was_reset:
            self._was_reset = True
            self.mask_source = self.mask_source or self._found_mask_source(info)
        return self._passed_on("reset()", observation, info, is_over=False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return (observation, reward, terminated, truncated, info).

        Raises:
            DataError: this is not what gymnasium promises.
            EnvironmentFault: the environment raised.
        """
        self._steps += 1
        returned = self._called("step()", lambda: self.env.step(action))
        if not (isinstance(returned, tuple) and len(returned) == 5 and isinstance(returned[4], Mapping)):
            raise self._wrong(
                f"its step() returned {_kind(returned)}; return (observation, reward, terminated, truncated, info): "
                "terminated where nothing follows, truncated where the episode is cut off, instead of the old done"
            )
        observation, reward, terminated, truncated, info = returned
        flags = tuple(self._flag(name, v) for name, v in (("terminated", terminated), ("truncated", truncated)))
        observation, info = self._passed_on("step()", observation, info, is_over=any(flags))
        return observation, self._number(reward), *flags, info

    def _called(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except HFToolkitError:
            raise
        except Exception as error:
            raise raised(f"environment.id: {self._name}: {what}", error) from error

    def _passed_on(self, what: str, observation: Any, info: Mapping[str, Any], *, is_over: bool) -> tuple[Any, Any]:
        problem = misfit(self._declared, observation)
        if problem is not None:
            raise self._wrong(f"the observation of {what} {problem}{self._when()}")
        found = {**info}
        mask = self._mask(observation, found, is_over=is_over)
        if mask is not None:
            found[MASK] = mask
        if self._declared is not self.observation_space:
            kept = {name: value for name, value in observation.items() if name != MASK}
            observation = kept if len(kept) > 1 else next(iter(kept.values()))
        return _in_the_type_of(self.observation_space, observation), found

    def _mask(self, observation: Any, info: Mapping[str, Any], *, is_over: bool) -> np.ndarray | None:
        """Return what is allowed now, (A,) bool; None where all always is."""
        assert isinstance(self.action_space, spaces.Discrete)
        given = info.get(MASK)
        if self.mask_source is None:
            if given is not None:
                raise self._wrong(f"step() gives info['{MASK}'] and reset() does not; give it at every reset and step")
            return None
        if self.mask_source.startswith("observation"):
            given = observation[MASK]
        elif self.mask_source.startswith("env"):
            assert self._mask_method is not None
            given = self._called(self._mask_method, getattr(self.unwrapped, self._mask_method))
        elif given is None and is_over:  # nothing follows
            return np.ones(int(self.action_space.n), dtype=bool)
        elif given is None:
            raise missing_mask()
        mask = self._as_mask(given, int(self.action_space.n))
        if not mask.any() and not is_over:
            raise self._wrong(
                f"the action mask allows no action{self._when()}, and the episode goes on; allow one, or return "
                "terminated=True"
            )
        return mask

    def _as_mask(self, given: Any, num_actions: int) -> np.ndarray:
        try:
            array = np.asarray(given)
        except ValueError:  # lists of lists of several lengths
            array = np.asarray(None)
        if array.shape != (num_actions,):
            raise self._wrong(
                f"the action mask has the shape {array.shape}, and there are {num_actions} actions; give one number an "
                f"action, 1 if it is allowed and 0 if not"
            )
        if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise self._wrong(f"the action mask is {array.tolist()}; give 1 where an action is allowed and 0 where not")
        mask: np.ndarray = array.astype(bool)
        return mask

    def _found_mask_source(self, info: Mapping[str, Any]) -> str | None:
        if info.get(MASK) is not None:
            return f'info["{MASK}"]'
        for name in MASK_METHODS:
            method = getattr(self.unwrapped, name, None)
            if callable(method) and all(_is_optional(each) for each in inspect.signature(method).parameters.values()):
                self._mask_method = name
                return f"env.unwrapped.{name}()"
        return None

    def _without_mask(self, space: spaces.Dict) -> spaces.Space[Any]:
        rest = {name: each for name, each in space.spaces.items() if name != MASK}
        if not rest:
            raise RecipeError(f"environment.id: {self._name} shows nothing but {MASK}; add what the agent can see")
        return spaces.Dict(rest) if len(rest) > 1 else next(iter(rest.values()))

    def _flag(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool | np.bool_ | int | np.integer | np.ndarray) or np.size(value) != 1:
            raise self._wrong(f"step() returned {name} = {value!r}; return True or False")
        return bool(value)

    def _number(self, reward: Any) -> float:
        if np.size(reward) != 1 or np.asarray(reward).dtype.kind not in "biuf":
            raise self._wrong(f"the reward is {reward!r}{self._when()}; return one number")
        number = float(np.asarray(reward).item())
        if not abs(number) <= LARGEST:  # neither is nan
            raise self._wrong(f"the reward is {number}{self._when()}; return a finite number")
        return number

    def _when(self) -> str:
        return f" after step {self._steps} of an episode" if self._steps else " at the start of an episode"

    def _wrong(self, what: str) -> DataError:
        return DataError(f"environment.id: {self._name}: {what}")


def raised(where: str, error: Exception) -> EnvironmentFault:
    """Return the error that tells what code of the user raised, and in which line."""
    frames = traceback.extract_tb(error.__traceback__)
    line = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return EnvironmentFault(f"{where} raised {type(error).__name__}: {error}{line}")


def missing_mask() -> DataError:
    """Return the error of an environment that masked actions before and does not any more."""
    return DataError("the environment stopped giving info['action_mask']; give it at every reset and step")


def ignored_masks(info: Mapping[str, Any], num_actions: int) -> list[str]:
    """Return the names in info that look like masks of actions and are obeyed by nobody."""
    names = [name for name in info if name != MASK and not name.startswith("_")]
    named = [name for name in names if any(word in name.lower() for word in LOOKS_LIKE_A_MASK)]
    return [name for name in named if isinstance(info[name], list | np.ndarray) and len(info[name]) == num_actions]


def misfit(space: spaces.Space[Any], observation: Any) -> str | None:
    """Return what keeps an observation from being one of a space, or None; bounds are not looked at.

    The answer follows "the observation" in a sentence.
    """
    match space:
        case spaces.Box() | spaces.MultiBinary() | spaces.MultiDiscrete():
            return _misfit_of_array(space, observation)
        case spaces.Discrete():
            first, last = int(space.start), int(space.start + space.n - 1)
            whole = np.ndim(observation) == 0 and np.asarray(observation).dtype.kind in "iub"
            fits = whole and first <= int(observation) <= last
            return None if fits else f"is {observation!r}, and observation_space says a whole number {first} to {last}"
        case spaces.Dict():
            if not isinstance(observation, Mapping) or observation.keys() != space.spaces.keys():
                return f"is {_kind(observation)}, and observation_space is a dict of {', '.join(space.spaces)}"
            parts = [(name, each, observation[name]) for name, each in space.spaces.items()]
        case spaces.Tuple():
            if not isinstance(observation, tuple | list) or len(observation) != len(space.spaces):
                return f"is {_kind(observation)}, and observation_space is a tuple of {len(space.spaces)}"
            parts = [(str(n), each, observation[n]) for n, each in enumerate(space.spaces)]
        case _:
            return None
    problems = ((name, misfit(each, value)) for name, each, value in parts)
    return next((f"in its part {name!r} {problem}" for name, problem in problems if problem is not None), None)


def _misfit_of_array(space: spaces.Space[Any], observation: Any) -> str | None:
    try:
        array = np.asarray(observation)
    except ValueError:  # lists of lists of several lengths
        return "is made of lists of several lengths; make an array of it"
    assert space.shape is not None and space.dtype is not None
    if array.shape != space.shape:
        return f"has the shape {array.shape}, and observation_space says {space.shape}; change one of them"
    if array.dtype.kind not in "biuf":
        return f"is of type {array.dtype}, and observation_space says {space.dtype}; give numbers"
    if space.dtype.kind in "iu":
        if array.dtype.kind == "f":
            return f"is of type {array.dtype}, and observation_space says {space.dtype}; change one of them"
        limits = np.iinfo(space.dtype)
        if array.dtype != space.dtype and array.size and (array.min() < limits.min or array.max() > limits.max):
            return f"has values from {array.min()} to {array.max()}, and observation_space says {space.dtype}"
        return _misfit_of_choices(space, array)
    with np.errstate(over="ignore"):
        kept = array.astype(np.float32, copy=False)
    return None if np.isfinite(kept).all() else f"is not finite in 32 bits, {_excerpt(array)},"


def _misfit_of_choices(space: spaces.Space[Any], array: np.ndarray) -> str | None:
    """Return what is wrong with choices that become one-hot vectors."""
    if (
        isinstance(space, spaces.MultiDiscrete)
        and not ((array >= space.start) & (array < space.start + space.nvec)).all()
    ):
        return f"is {array.tolist()}, and observation_space is {space}"
    return None


def _in_the_type_of(space: spaces.Space[Any], observation: Any) -> Any:
    """Return whole numbers in the type that the space says, so that gymnasium puts several environments together."""
    if not isinstance(space, spaces.Box):
        return observation
    array = np.asarray(observation)
    return array.astype(space.dtype) if space.dtype.kind in "iu" and array.dtype != space.dtype else array


def _is_optional(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty or parameter.kind in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}"
    return "None" if value is None else f"{type(value).__name__} {np.shape(value)}" if np.ndim(value) else repr(value)


def _excerpt(array: np.ndarray) -> str:
    flat = array.ravel().tolist()
    return f"{flat[:8]}"[:-1] + (", ...]" if len(flat) > 8 else "]")
