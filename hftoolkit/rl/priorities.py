"""Proportional prioritized replay (Schaul et al. 2016): a sum tree in which a draw takes log2(n) vectorized steps."""

from collections.abc import Mapping

import numpy as np

SMALLEST_ERROR = 1e-6  # added to every error, so that nothing is never drawn again


class SumTree:
    """Priorities by index, and draws of indices in proportion to them.

    Args:
        capacity: indices are less than this.
        exponent: alpha; an index with error e has priority (|e| + 1e-6) ** alpha.
    """

    def __init__(self, capacity: int, exponent: float) -> None:
        self._leaves = 1 << max(1, (capacity - 1).bit_length())
        self._sums = np.zeros(2 * self._leaves)  # node i has the children 2i and 2i + 1; index p is node leaves + p
        self._exponent = exponent
        self._largest = 1.0

    def add_row(self, new: np.ndarray, gone: np.ndarray) -> None:
        """Give new indices the largest priority so far, and those that are gone none."""
        self._set(new, np.full(len(new), self._largest))
        self._set(gone, np.zeros(len(gone)))

    def update(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """Set the priorities of indices, (B,), from their temporal-difference errors, (B,)."""
        priorities = (np.abs(errors.astype(np.float64)) + SMALLEST_ERROR) ** self._exponent
        self._largest = max(self._largest, float(priorities.max()))
        self._set(indices, priorities)

    def sample(
        self, count: int, generator: np.random.Generator, importance_exponent: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one index from each of ``count`` equal shares of the sum of priorities.

        Returns:
            indices: (B,) int64.
            weights: (B,) float32, probability ** -beta, divided by the largest of them.
        """
        targets = (np.arange(count) + generator.random(count)) * self._sums[1] / count
        nodes = np.ones(count, np.int64)
        while nodes[0] < self._leaves:
            left = self._sums[2 * nodes]
            # Rounding may leave a target just above the sum of a node; a child without priority is never taken.
            right = (targets >= left) & (self._sums[2 * nodes + 1] > 0)
            targets = np.where(right, targets - left, targets)
            nodes = 2 * nodes + right
        weights = (self._sums[nodes] / self._sums[1]) ** -importance_exponent
        return nodes - self._leaves, (weights / weights.max()).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """Return the priorities as arrays."""
        leaves = self._sums[self._leaves :]
        return {"leaves": np.trim_zeros(leaves, "b"), "largest": np.array(self._largest)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what ``state`` gave."""
        self._largest = float(arrays["largest"])
        if self._sums[1] > 0:
            self._sums[:] = 0
        self._set(np.arange(len(arrays["leaves"])), arrays["leaves"])

    def _set(self, indices: np.ndarray, priorities: np.ndarray) -> None:
        nodes = indices + self._leaves
        self._sums[nodes] = priorities
        while nodes.size and nodes[0] > 1:
            nodes = nodes // 2  # brothers meet here and do the same twice, which is quicker than to find them
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]
