"""Running means of whatever an agent wants to report."""

from collections.abc import Mapping, Sequence
from typing import Any


class RunningMeans:
    """Sums by name; ``pop`` returns their means and begins anew."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: float) -> None:
        """Count one value for each name."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """Return the mean of each name that was counted since the last time."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, tuple[float, int]]:
        """Return sum and count by name, for ``restore``."""
        return {name: (total, self._counts[name]) for name, total in self._sums.items()}

    def restore(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Take back what ``state`` gave."""
        self._sums = {name: total for name, (total, _) in state.items()}
        self._counts = {name: count for name, (_, count) in state.items()}
