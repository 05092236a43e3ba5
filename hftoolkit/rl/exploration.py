"""Random actions: which environments take one now, and for how long."""

from collections.abc import Mapping

import numpy as np

MOST_REPEATS = 100  # of one random action; an unbounded draw could be longer than a whole run


class EpsilonGreedy:
    """Epsilon-greedy for N environments that decide independently, or epsilon-z-greedy.

    Args:
        num_envs: N.
        num_actions: A.
        generator: where chance comes from.
        repeat_exponent: mu; a random action is taken k times in a row with a probability proportional to k^-mu (Dabney
            et al. 2021, "Temporally-extended epsilon-greedy exploration"). None takes it once.
    """

    def __init__(
        self, num_envs: int, num_actions: int, generator: np.random.Generator, *, repeat_exponent: float | None
    ) -> None:
        self._num_envs, self._num_actions, self._generator = num_envs, num_actions, generator
        self._repeat_exponent = repeat_exponent
        self._repeated = np.zeros(num_envs, np.int64)  # the action that is being repeated
        self._left = np.zeros(num_envs, np.int64)  # how often it still comes

    def draw(self, epsilon: float, masks: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return a random allowed action for each environment, (N,) int, and whether to take it, (N,) bool.

        Args:
            epsilon: probability that an environment begins to act at random.
            masks: (N, A) bool, the actions allowed now; None where all always are.
        """
        begins = self._generator.random(self._num_envs) < epsilon
        actions = self._allowed_actions(masks)
        if self._repeat_exponent is None:
            return actions, begins
        goes_on = self._left > 0
        if masks is not None:
            goes_on &= masks[np.arange(self._num_envs), self._repeated]
        times = np.minimum(self._generator.zipf(self._repeat_exponent, self._num_envs), MOST_REPEATS)
        self._repeated = np.where(goes_on, self._repeated, actions)
        self._left = np.where(goes_on, self._left, np.where(begins, times, 0))
        takes = self._left > 0
        self._left -= takes
        return self._repeated, takes

    def stop(self, ended: np.ndarray) -> None:
        """Repeat nothing further where an episode ended, (N,) bool."""
        self._left[ended] = 0

    def state(self) -> dict[str, np.ndarray]:
        """Return what is being repeated; ``restore`` takes it back."""
        return {"repeated": self._repeated, "left": self._left}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what ``state`` gave."""
        self._repeated, self._left = arrays["repeated"].copy(), arrays["left"].copy()

    def _allowed_actions(self, masks: np.ndarray | None) -> np.ndarray:
        if masks is None:
            return self._generator.integers(0, self._num_actions, self._num_envs)
        return allowed_at_random(masks, self._generator)


def allowed_at_random(masks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return for each row of masks, (N, A) bool, one of the allowed actions, (N,) int, all equally likely."""
    actions: np.ndarray = (generator.random(masks.shape) + masks).argmax(axis=1)
    return actions
