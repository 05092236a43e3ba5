"""Greedy episodes with fixed seeds in environments of their own: the only returns that are ever reported."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hftoolkit.errors import EnvironmentFault
from hftoolkit.rl.checked import missing_mask
from hftoolkit.rl.environments import observation_dtype
from hftoolkit.rl.exploration import allowed_at_random
from hftoolkit.rl.pixels import Env
from hftoolkit.seeding import derive_seed, kept_global_generators, numpy_generator

MAX_AT_ONCE = 50  # environments that are open together


class Policy(Protocol):
    """Chooses actions without exploring."""

    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Return the best action, (N,) int, for each observation, (N, ...), among those that masks, (N, A), allow."""
        ...


@dataclass(frozen=True, slots=True)
class Episodes:
    """How each episode went, in the order of the seeds."""

    returns: np.ndarray  # (E,) float64, undiscounted
    lengths: np.ndarray  # (E,) int, steps


def evaluate_policy(
    policy: Policy, make: Callable[[], Env], *, episodes: int, seed: int, look: Callable[[], None] = lambda: None
) -> Episodes:
    """Play episodes and return what they brought; equal seeds begin equal episodes.

    Args:
        policy: what is measured.
        make: returns a new environment; where it fails, those made before play all episodes.
        episodes: how many.
        seed: episode i begins with a seed made of this and i.
        look: called before each step.

    Raises:
        HFToolkitError: not even one environment can be made, or one fails.
    """
    with kept_global_generators():
        slots = [_Slot(make())]
        try:
            with suppress(EnvironmentFault):
                while len(slots) < min(episodes, MAX_AT_ONCE):
                    slots.append(_Slot(make()))
            return _play(policy, slots, episodes, seed, look)
        finally:
            for slot in slots:
                slot.env.close()


def _play(policy: Policy, slots: list["_Slot"], episodes: int, seed: int, look: Callable[[], None]) -> Episodes:
    """Play episodes in turn in whichever slot is free."""
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    waiting = iter(range(episodes))
    playing = [slot for slot in slots if slot.begin(next(waiting, None), seed)]
    while playing:
        look()
        masks = None if playing[0].mask is None else np.stack([_mask(slot) for slot in playing])
        actions = policy.act(np.stack([slot.observation for slot in playing]), masks)
        for slot, action in zip(playing, actions.tolist(), strict=True):
            reward, ended = slot.step(action)
            returns[slot.episode] += reward
            lengths[slot.episode] += 1
            if ended:
                slot.begin(next(waiting, None), seed)
        playing = [slot for slot in playing if slot.is_playing]
    return Episodes(returns, lengths)


def _mask(slot: "_Slot") -> np.ndarray:
    if slot.mask is None:
        raise missing_mask()
    return slot.mask


def watch(policy: Policy, env: Env, *, episodes: int, seed: int, look: Callable[[], None]) -> list[float]:
    """Play the first episodes of ``evaluate_policy`` again, one by one, and return what they brought.

    Args:
        policy: who plays.
        env: where.
        episodes: how many.
        seed: that of ``evaluate_policy``.
        look: called after every reset and step.
    """
    slot, returns = _Slot(env), []
    for episode in range(episodes):
        slot.begin(episode, seed)
        look()
        total, ended = 0.0, False
        while not ended:
            mask = None if slot.mask is None else slot.mask[None]
            reward, ended = slot.step(int(policy.act(slot.observation[None], mask)[0]))
            total += reward
            look()
        returns.append(total)
    return returns


class RandomPolicy:
    """Takes any allowed action: what every learner must beat.

    Args:
        num_actions: A.
        seed: of its choices.
    """

    def __init__(self, num_actions: int, seed: int) -> None:
        self._num_actions, self._generator = num_actions, numpy_generator(seed, "random policy")

    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Return random actions, (N,) int."""
        allowed = np.ones((len(observations), self._num_actions), bool) if masks is None else masks
        return allowed_at_random(allowed, self._generator)


class _Slot:
    """One environment and the episode in it."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self.dtype = observation_dtype(env.observation_space)
        self.episode = -1
        self.is_playing = False

    def begin(self, episode: int | None, seed: int) -> bool:
        """Begin an episode, or rest if there is none; return whether one began."""
        self.is_playing = episode is not None
        if episode is not None:
            self.episode = episode
            observation, info = self.env.reset(seed=derive_seed(seed, "evaluation", episode) % 2**31)
            self._see(observation, info)
        return self.is_playing

    def step(self, action: int) -> tuple[float, bool]:
        """Return the reward and whether the episode ended."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._see(observation, info)
        return float(reward), terminated or truncated

    def _see(self, observation: np.ndarray, info: dict[str, object]) -> None:
        self.observation = np.array(observation, self.dtype)
        mask = info.get("action_mask")
        self.mask = None if mask is None else np.asarray(mask).astype(bool)
