"""Interactions of users in flat arrays (offsets, items, weights), and the cases of a split.

B users, N interactions, I items. What one user chose, oldest first, is a history.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import sparse


@dataclass(frozen=True, slots=True)
class Interactions:
    """The histories of B users, one after the other: the items of each, oldest first.

    Attributes:
        offsets: (B + 1,) int64; the entries of user b are ``offsets[b]`` to ``offsets[b + 1]``.
        items: (N,) int64 places in the catalogue.
        weights: (N,) float32, how much each entry counts.
    """

    offsets: np.ndarray
    items: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, lists: list[list[int]]) -> Self:
        """Return histories of equal weights from one list of items a user."""
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        items = np.array([item for each in lists for item in each], dtype=np.int64)
        return cls(offsets, items, np.ones(len(items), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """How many entries each user has, (B,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """The user of each entry, (N,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def ages(self) -> np.ndarray:
        """How many later entries its user has, for each entry, (N,)."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))

    def select(self, users: np.ndarray) -> Self:
        """Return the histories of these users, in this order."""
        lengths = self.lengths[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.offsets[:-1][users] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return type(self)(offsets, self.items[entries], self.weights[entries])

    def as_sets(self) -> list[set[int]]:
        """Return the items of each user."""
        return [set(items.tolist()) for items in np.split(self.items, self.offsets[1:-1])]

    def latest(self, count: int) -> Self:
        """Return the histories cut to their latest entries, at most ``count`` each."""
        kept = self.ages < count
        offsets = np.concatenate([[0], np.cumsum(np.minimum(self.lengths, count))]).astype(np.int64)
        return type(self)(offsets, self.items[kept], self.weights[kept])

    def within(self, num_items: int) -> Self:
        """Return the histories without the entries that are none of the first ``num_items`` items."""
        kept = self.items < num_items
        offsets = np.concatenate([[0], np.cumsum(kept)])[self.offsets]
        return type(self)(offsets, self.items[kept], self.weights[kept])

    def matrix(self, num_items: int, recency: float | None = None) -> sparse.csr_array:
        """Return the weights as a matrix, (B, I) float32; an item that occurs twice in a history adds up.

        Args:
            num_items: I.
            recency: an entry of age ``recency`` counts 1/e as much as the latest; None: all count alike.
        """
        weights = self.weights if recency is None else self.weights * np.exp(-self.ages / recency)
        cells = (weights.astype(np.float32), self.items, self.offsets)
        return sparse.csr_array(cells, shape=(len(self), num_items))


@dataclass(frozen=True, slots=True)
class Cases:
    """Users to recommend to, and what they then chose.

    Attributes:
        users: (B,) places among the user ids.
        histories: what is known of each; never recommended again.
        targets: what each chose then, at least one item.
        unseen: (B,) bool, users without a training interaction.
        candidates: (I,) bool, items that are ranked.
    """

    users: np.ndarray
    histories: Interactions
    targets: Interactions
    unseen: np.ndarray
    candidates: np.ndarray

    def __len__(self) -> int:
        return len(self.users)
