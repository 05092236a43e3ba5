"""The replay memory: every observation is kept once, and transitions are put together when they are drawn.

Row ``t`` of the ring holds what N environments saw and did in one step. The observation that follows is that of row
``t + 1``, unless the episode was cut off there: then row ``t + 1`` shows the next episode, and the last observation is
kept aside.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.errors import RecipeError
from hftoolkit.rl.environments import Step
from hftoolkit.rl.priorities import SumTree


@dataclass(frozen=True, slots=True)
class Transitions:
    """B transitions over up to n steps.

    Attributes:
        observations: (B, ...).
        actions: (B,) int64.
        returns: (B,) float32, the rewards of k steps, each weighted by gamma to the power of its distance.
        discounts: (B,) float32, gamma to the power of k; 0 where the episode terminated within them.
        next_observations: (B, ...), k steps later.
        next_masks: (B, A) bool, the actions allowed there; None where all always are.
        weights: (B,) float32, importance weights of prioritized replay; None for uniform replay.
        indices: (B,) int64, by which they are known to ``ReplayBuffer.set_priorities``.
    """

    observations: np.ndarray
    actions: np.ndarray
    returns: np.ndarray
    discounts: np.ndarray
    next_observations: np.ndarray
    next_masks: np.ndarray | None
    weights: np.ndarray | None
    indices: np.ndarray


BYTES_BESIDE_FRAMES = 8 + 4 + 1 + 1 + 8  # action, reward, two ends and age of a transition
MAX_AT_ONCE = 1024  # transitions that are put together; of four frames of 84 x 84, 58 MB
USABLE_MEMORY = 0.9  # of the machine's; the rest is for networks, environments and others


def check_fits(transitions: int, bytes_each: int, memory: int) -> None:
    """Refuse a replay memory that this machine has no room for.

    Args:
        transitions: how many it is to hold.
        bytes_each: what one of them takes.
        memory: of the machine, in bytes.

    Raises:
        RecipeError: it does not fit.
    """
    if transitions * bytes_each <= USABLE_MEMORY * memory:
        return
    most = int(USABLE_MEMORY * memory) // bytes_each
    digits = 10 ** max(0, len(str(most)) - 2)
    raise RecipeError(
        f"algorithm.replay_size: {transitions:,} transitions of {bytes_each:,} bytes take "
        f"{transitions * bytes_each / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f} GiB of memory; "
        f"set algorithm.replay_size={most // digits * digits} or less"
    )


def machine_memory() -> int:
    """Return how many bytes of memory there are: those of the machine, or of a container that has fewer."""
    limits = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    texts = [path.read_text(encoding="ascii").strip() for path in limits if path.is_file()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *map(int, filter(str.isdigit, texts))])


class ReplayBuffer:
    """The latest transitions of N environments.

    Args:
        capacity: transitions, over all environments.
        num_envs: N.
        frame: an example of what is kept of an observation, for shape and type.
        stack: latest frames that make an observation; None where the frame is the observation.
        num_actions: A, if the environment masks actions, else None.
        n_steps: rewards summed before the value estimate takes over.
        discount: gamma.
        priority_exponent: alpha of prioritized replay; None draws uniformly.

    Raises:
        RecipeError: it would not fit into the memory of this machine.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        *,
        frame: np.ndarray,
        stack: int | None,
        num_actions: int | None,
        n_steps: int,
        discount: float,
        priority_exponent: float | None = None,
    ) -> None:
        # The row after the newest holds the observation that followed it, so it is no transition any more. The oldest
        # stack - 1 rows lack the frames before them.
        self._margin = (stack or 1) - 1
        self._rows = max(1, capacity // num_envs) + 1 + self._margin
        shape = (self._rows, num_envs)
        bytes_each = frame.nbytes + BYTES_BESIDE_FRAMES + (num_actions or 0) + (0 if priority_exponent is None else 32)
        check_fits(self._rows * num_envs, bytes_each, machine_memory())
        self._frames = np.zeros((*shape, *frame.shape), frame.dtype)
        self._actions = np.zeros(shape, np.int64)
        self._rewards = np.zeros(shape, np.float32)
        self._terminated = np.zeros(shape, bool)
        self._truncated = np.zeros(shape, bool)
        self._ages = np.zeros(shape, np.int64)  # steps since the episode began
        self._masks = None if num_actions is None else np.ones((*shape, num_actions), bool)
        self._final_frames: dict[tuple[int, int], np.ndarray] = {}  # (row, environment) of a truncated end
        self._final_masks: dict[tuple[int, int], np.ndarray] = {}
        self._num_envs, self._stack, self._n_steps, self._discount = num_envs, stack, n_steps, discount
        self._head = 0  # the row that is written next
        self._size = 0  # rows that hold transitions
        self._priorities = None if priority_exponent is None else SumTree(self._rows * num_envs, priority_exponent)

    def __len__(self) -> int:
        """Return the number of transitions that can be drawn."""
        return (self._size - self._first()) * self._num_envs

    def add(self, observations: np.ndarray, masks: np.ndarray | None, actions: np.ndarray, step: Step) -> None:
        """Remember one step of all environments.

        Args:
            observations: (N, ...), what the agent saw before the step.
            masks: (N, A) bool, what was allowed there.
            actions: (N,) int.
            step: what came of it.
        """
        row, following = self._head, (self._head + 1) % self._rows
        self._forget(row)
        self._frames[row] = self._newest(observations)
        self._frames[following] = self._newest(step.next_observations)
        self._actions[row], self._rewards[row] = actions, step.rewards
        self._terminated[row], self._truncated[row] = step.terminated, step.truncated
        before = (row - 1) % self._rows
        if self._size:
            self._ages[row] = np.where(self._terminated[before] | self._truncated[before], 0, self._ages[before] + 1)
        if self._masks is not None:
            assert masks is not None and step.next_masks is not None
            self._masks[row], self._masks[following] = masks, step.next_masks
        for index in np.flatnonzero(step.truncated).tolist():
            self._final_frames[row, index] = self._newest(step.next_observations)[index].copy()
            if step.next_masks is not None:
                self._final_masks[row, index] = step.next_masks[index]
        self._head = following
        self._size = min(self._size + 1, self._rows - 1)
        if self._priorities is not None:
            self._priorities.add_row(self._indices(np.array(row)), self._indices(self._undrawable()))

    def sample(self, count: int, generator: np.random.Generator, importance_exponent: float = 1.0) -> Transitions:
        """Draw transitions with replacement.

        Args:
            count: B.
            generator: where chance comes from.
            importance_exponent: beta of prioritized replay.
        """
        if self._priorities is None:
            ranks = generator.integers(self._first(), self._size, count)  # 0: the oldest row
            rows = (self._head - self._size + ranks) % self._rows
            return self._transitions(rows, generator.integers(0, self._num_envs, count), None)
        indices, weights = self._priorities.sample(count, generator, importance_exponent)
        return self._transitions(indices // self._num_envs, indices % self._num_envs, weights)

    def batches(
        self, number: int, count: int, generator: np.random.Generator, importance_exponent: float = 1.0
    ) -> Iterator[Transitions]:
        """Draw batches one after the other, each of ``count``; without priorities, many are put together in one go."""
        at_once = 1 if self._priorities is not None else max(1, MAX_AT_ONCE // count)
        for begin in range(0, number, at_once):
            drawn = self.sample(min(at_once, number - begin) * count, generator, importance_exponent)
            for start in range(0, len(drawn.actions), count):
                yield _part(drawn, slice(start, start + count))

    def set_priorities(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """Give drawn transitions the priority of their new temporal-difference errors, (B,)."""
        assert self._priorities is not None
        self._priorities.update(indices, errors)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that was seen as arrays; ``restore`` of a replay of the same shape takes them back."""
        keys = np.array(sorted(self._final_frames), np.int64).reshape(-1, 2)
        # Until the ring is full, it is filled from its first row to the one that is written next.
        rows = self._rows if self._size == self._rows - 1 else self._head + 1
        arrays = {
            "frames": self._frames[:rows],
            "actions": self._actions[:rows],
            "rewards": self._rewards[:rows],
            "terminated": self._terminated[:rows],
            "truncated": self._truncated[:rows],
            "ages": self._ages[:rows],
            "final_keys": keys,
            "head_and_size": np.array((self._head, self._size)),
        }
        if len(keys):
            arrays["final_frames"] = np.stack([self._final_frames[row, env] for row, env in keys.tolist()])
        if self._masks is not None:
            arrays["masks"] = self._masks[:rows]
            if len(keys):
                arrays["final_masks"] = np.stack([self._final_masks[row, env] for row, env in keys.tolist()])
        if self._priorities is not None:
            arrays |= {f"priorities.{name}": array for name, array in self._priorities.state().items()}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what ``state`` gave."""
        for name in ("frames", "actions", "rewards", "terminated", "truncated", "ages"):
            getattr(self, f"_{name}")[: len(arrays[name])] = arrays[name]
        self._head, self._size = map(int, arrays["head_and_size"])
        keys = [(row, env) for row, env in arrays["final_keys"].tolist()]
        self._final_frames = {key: arrays["final_frames"][index] for index, key in enumerate(keys)}
        if self._masks is not None:
            self._masks[: len(arrays["masks"])] = arrays["masks"]
            self._final_masks = {key: arrays["final_masks"][index] for index, key in enumerate(keys)}
        if self._priorities is not None:
            self._priorities.restore({name: arrays[f"priorities.{name}"] for name in self._priorities.state()})

    def _transitions(self, rows: np.ndarray, envs: np.ndarray, weights: np.ndarray | None) -> Transitions:
        newest = (self._head - 1) % self._rows
        returns, discounts = np.zeros(len(rows), np.float32), np.ones(len(rows), np.float32)
        last = rows.copy()  # the row whose step ends the window
        going = np.ones(len(rows), bool)
        for distance in range(self._n_steps):
            current = (rows + distance) % self._rows
            returns += np.where(going, discounts * self._rewards[current, envs], 0)
            discounts = np.where(going, discounts * np.float32(self._discount), discounts)
            last = np.where(going, current, last)
            # A window ends with its episode, and at the newest step, where the rest is not known yet.
            going &= ~(self._terminated[current, envs] | self._truncated[current, envs] | (current == newest))
        terminated = self._terminated[last, envs]
        return Transitions(
            observations=self._observations(rows, envs, self._ages[rows, envs]),
            actions=self._actions[rows, envs],
            returns=returns,
            discounts=np.where(terminated, np.float32(0), discounts),
            next_observations=self._next_observations(last, envs),
            next_masks=self._next_masks(last, envs, terminated),
            weights=weights,
            indices=rows * self._num_envs + envs,
        )

    def _observations(self, rows: np.ndarray, envs: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """Return frames, or stacks of them; an episode's first frame stands for those before it."""
        if self._stack is None:
            frames: np.ndarray = self._frames[rows, envs]
            return frames
        back = np.minimum(np.arange(self._stack - 1, -1, -1)[None, :], ages[:, None])  # (B, stack)
        stacks: np.ndarray = self._frames[(rows[:, None] - back) % self._rows, envs[:, None]]
        return stacks

    def _next_observations(self, last: np.ndarray, envs: np.ndarray) -> np.ndarray:
        observations = self._observations((last + 1) % self._rows, envs, self._ages[last, envs] + 1)
        for index in np.flatnonzero(self._truncated[last, envs]).tolist():
            final = self._final_frames[int(last[index]), int(envs[index])]
            if self._stack is None:
                observations[index] = final
            else:
                observations[index, -1] = final
        return observations

    def _next_masks(self, last: np.ndarray, envs: np.ndarray, terminated: np.ndarray) -> np.ndarray | None:
        if self._masks is None:
            return None
        masks: np.ndarray = self._masks[(last + 1) % self._rows, envs]
        for index in np.flatnonzero(self._truncated[last, envs]).tolist():
            masks[index] = self._final_masks[int(last[index]), int(envs[index])]
        masks[terminated] = True  # nothing follows, and an environment may say that nothing is allowed there
        return masks

    def _newest(self, observations: np.ndarray) -> np.ndarray:
        return observations if self._stack is None else observations[:, -1]

    def _first(self) -> int:
        """Return the rank of the oldest row that can be drawn."""
        return max(0, self._size - (self._rows - 1 - self._margin))

    def _undrawable(self) -> np.ndarray:
        """Return the rows that hold no complete transition: the next one, and those that lack older frames."""
        oldest: np.ndarray = (self._head - self._size + np.arange(self._first())) % self._rows
        return np.append(oldest, self._head)

    def _indices(self, rows: np.ndarray) -> np.ndarray:
        indices: np.ndarray = (rows.reshape(-1, 1) * self._num_envs + np.arange(self._num_envs)).ravel()
        return indices

    def _forget(self, row: int) -> None:
        for index in np.flatnonzero(self._truncated[row]).tolist():
            self._final_frames.pop((row, index), None)
            self._final_masks.pop((row, index), None)


def _part(drawn: Transitions, which: slice) -> Transitions:
    columns = {each.name: getattr(drawn, each.name) for each in fields(drawn)}
    cut: dict[str, Any] = {name: None if column is None else column[which] for name, column in columns.items()}
    return Transitions(**cut)
