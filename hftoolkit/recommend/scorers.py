"""Scorers, which give items scores: the text tower's vectors, models of ids in closed form, and counts.

``fusion.parts`` of a recipe names them. A scorer is plain arrays and numbers, so that it can be saved as they are.
Whatever it knows of a user is the history, which need not be one that it was fitted on (``recommend.fitting``).

Shape suffixes: B users, I items, N entries of histories, D dimensions, G groups of users, A attributes of items.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from scipy import sparse

from hftoolkit.recommend.factors import solve_factors
from hftoolkit.recommend.interactions import Cases, Interactions

ATTRIBUTE_PRIOR = 10.0  # interactions as everybody's that are added to a history


@dataclass(frozen=True, slots=True)
class Queries:
    """Users to score items for.

    Attributes:
        histories: what each chose, oldest first.
        groups: (B, G) 0 and 1, which groups of users each belongs to; G may be 0.
    """

    histories: Interactions
    groups: np.ndarray

    @classmethod
    def of(cls, cases: Cases, places: np.ndarray, groups: np.ndarray) -> Self:
        """Return what is known of some users of ``cases``; ``groups``, (U, G), are those of all user ids."""
        return cls(cases.histories.select(places), groups[cases.users[places]])


class Scorer(Protocol):
    """What gives items scores. A dataclass of float32 arrays and numbers."""

    @property
    def num_items(self) -> int:
        """How many items it knows: the first I of a catalogue. Histories hold no others."""
        ...

    def scores(self, queries: Queries) -> np.ndarray:
        """Return a score for each item, (B, I) float32, higher is better, in an array of the caller's own."""
        ...

    def by_entry(self, queries: Queries) -> np.ndarray | None:
        """Return what each entry of one user's history adds to the scores, (N, I); None if they are no such sum."""
        ...


@dataclass(frozen=True, slots=True)
class TextVectors:
    """Items and users as vectors: a user is the mean of the items in the history."""

    vectors: np.ndarray  # (I, D), of length 1
    biases: np.ndarray  # (I,)
    temperature: float
    recency: float  # 0: all entries count alike

    @property
    def num_items(self) -> int:
        return len(self.vectors)

    def scores(self, queries: Queries) -> np.ndarray:
        users_BD = user_means(queries.histories, self.recency or None, len(self.vectors)) @ self.vectors
        result: np.ndarray = users_BD @ self.vectors.T / np.float32(self.temperature) + self.biases
        return result

    def by_entry(self, queries: Queries) -> np.ndarray | None:
        items = queries.histories.items
        shares_N = user_means(queries.histories, self.recency or None, len(self.vectors)).toarray()[0, items]
        result: np.ndarray = shares_N[:, None] * self.vectors[items] @ self.vectors.T / np.float32(self.temperature)
        return result


@dataclass(frozen=True, slots=True)
class FixedScores:
    """The same scores for everybody."""

    values: np.ndarray  # (I,)

    @property
    def num_items(self) -> int:
        return len(self.values)

    def scores(self, queries: Queries) -> np.ndarray:
        return np.tile(self.values, (len(queries.histories), 1))

    def by_entry(self, queries: Queries) -> np.ndarray | None:
        return None


@dataclass(frozen=True, slots=True)
class ItemToItem:
    """Each item of the history gives scores to others, which are summed."""

    weights: np.ndarray  # (I, I), from item of the history to scored item
    recency: float  # 0: all entries count alike

    @property
    def num_items(self) -> int:
        return len(self.weights)

    def scores(self, queries: Queries) -> np.ndarray:
        result: np.ndarray = queries.histories.matrix(len(self.weights), self.recency or None) @ self.weights
        return result

    def by_entry(self, queries: Queries) -> np.ndarray | None:
        items = queries.histories.items
        counts_N = queries.histories.matrix(len(self.weights), self.recency or None).toarray()[0, items]
        result: np.ndarray = counts_N[:, None] * self.weights[items]
        return result


@dataclass(frozen=True, slots=True)
class Factors:
    """Matrix factorization; the factors of a user are solved for from the history (Hu, Koren and Volinsky 2008)."""

    items: np.ndarray  # (I, D)
    regularization: float
    confidence: float

    @property
    def num_items(self) -> int:
        return len(self.items)

    def scores(self, queries: Queries) -> np.ndarray:
        users_BD = solve_factors(queries.histories, self.items, self.regularization, self.confidence)
        result: np.ndarray = users_BD @ self.items.T
        return result

    def by_entry(self, queries: Queries) -> np.ndarray | None:
        return None


@dataclass(frozen=True, slots=True)
class GroupLifts:
    """How much more often the groups of a user choose an item than all users do."""

    lifts: np.ndarray  # (G, I), logarithms

    @property
    def num_items(self) -> int:
        return int(self.lifts.shape[1])

    def scores(self, queries: Queries) -> np.ndarray:
        result: np.ndarray = queries.groups @ self.lifts
        return result

    def by_entry(self, queries: Queries) -> np.ndarray | None:
        return None


@dataclass(frozen=True, slots=True)
class AttributeOdds:
    """How much more often an item's attributes occur in a history than in the catalogue (naive Bayes).

    The shares of a history are drawn to those of all interactions, so that a short one says little.
    """

    attributes: np.ndarray  # (I, A) 0 and 1
    chosen: np.ndarray  # (A,) share of all interactions that are with items that have it
    offered: np.ndarray  # (A,) share of the items that have it

    @property
    def num_items(self) -> int:
        return len(self.attributes)

    def scores(self, queries: Queries) -> np.ndarray:
        matrix = queries.histories.matrix(len(self.attributes))
        totals_B1 = np.asarray(matrix.sum(axis=1)).reshape(-1, 1)
        shares_BA = (matrix @ self.attributes + ATTRIBUTE_PRIOR * self.chosen) / (totals_B1 + ATTRIBUTE_PRIOR)
        result: np.ndarray = np.log(shares_BA / self.offered) @ self.attributes.T
        return result

    def by_entry(self, queries: Queries) -> np.ndarray | None:
        return None


def user_means(histories: Interactions, recency: float | None, num_items: int) -> sparse.csr_array:
    """Return the share of each item in a user's vector, (B, I) float32; rows of empty histories are zero."""
    matrix = histories.matrix(num_items, recency)
    totals_B = np.asarray(matrix.sum(axis=1)).ravel()
    scale_B = np.divide(1.0, totals_B, out=np.zeros(len(totals_B)), where=totals_B > 0)
    return sparse.csr_array(sparse.diags_array(scale_B.astype(np.float32)) @ matrix)
