"""Recommendations from a history: the scorers, the weights of their sum, and the catalogue; saved as plain files.

Shape suffixes: B users, I items, L entries of a history, P scorers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from hftoolkit.errors import DataError
from hftoolkit.models.folders import UNREADABLE
from hftoolkit.recommend.fusion_weights import standardize
from hftoolkit.recommend.interactions import Interactions
from hftoolkit.recommend.log import Catalogue
from hftoolkit.recommend.scorers import (
    AttributeOdds,
    Factors,
    FixedScores,
    GroupLifts,
    ItemToItem,
    Queries,
    Scorer,
    TextVectors,
)

FORMAT = 1
DESCRIPTION, ARRAYS = "recommender.json", "recommender.safetensors"
USERS, HISTORIES = "users.json", "histories.safetensors"
KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (TextVectors, FixedScores, ItemToItem, Factors, GroupLifts, AttributeOdds)
}


@dataclass(frozen=True, slots=True)
class Recommender:
    """What scores items for a history.

    Attributes:
        catalogue: I items, new ones at the end.
        scorers: what gives scores, by name.
        weights: (P,) of the scorers, in their order, on standardized scores.
        text_bias: (D,) what gives the bias of a text from its vector; None where texts have no bias.
    """

    catalogue: Catalogue
    scorers: Mapping[str, Scorer]
    weights: np.ndarray
    text_bias: np.ndarray | None = None

    @property
    def num_groups(self) -> int:
        """How many groups of users the scorers know."""
        groups = self.scorers.get("groups")
        return len(groups.lifts) if isinstance(groups, GroupLifts) else 0

    def scores(self, queries: Queries, allowed_BI: np.ndarray) -> np.ndarray:
        """Return the weighted sum of the standardized scores of all scorers, (B, I)."""
        result: np.ndarray = self.features(queries, allowed_BI) @ self.weights
        return result

    def features(self, queries: Queries, allowed_BI: np.ndarray) -> np.ndarray:
        """Return the standardized scores of each scorer, (B, I, P). What a scorer does not know is 0, its mean."""
        features_BIP = np.zeros((*allowed_BI.shape, len(self.scorers)), dtype=np.float32)
        for place, scorer in enumerate(self.scorers.values()):
            known = scorer.num_items
            scores_BI = scorer.scores(_known_to(scorer, queries))
            features_BIP[:, :known, place] = standardize(scores_BI, allowed_BI[:, :known])
        return features_BIP

    def influences(self, queries: Queries, allowed_I: np.ndarray, places: Sequence[int]) -> np.ndarray:
        """Return what each entry of one history adds to the scores of some items, (L, len(places)).

        Scorers whose scores are no sum over the history, such as popularity or iALS, add nothing here.
        """
        chosen, wanted = queries.histories.items, np.asarray(places, dtype=np.int64)
        total = np.zeros((len(chosen), len(wanted)))
        for weight, scorer in zip(self.weights, self.scorers.values(), strict=True):
            shares_LI = scorer.by_entry(_known_to(scorer, queries))
            if shares_LI is None:
                continue
            inside_LI = shares_LI[:, allowed_I[: scorer.num_items]]
            deviation = float(inside_LI.sum(axis=0).std())
            if deviation > 0:
                columns = np.flatnonzero(wanted < scorer.num_items)
                centred = shares_LI[:, wanted[columns]] - inside_LI.mean(axis=1, keepdims=True)
                total[np.ix_(chosen < scorer.num_items, columns)] += weight * centred / deviation
        return total

    def with_new_items(self, catalogue: Catalogue, outputs: np.ndarray) -> Self:
        """Return a recommender that knows more items, by their texts alone.

        Args:
            catalogue: the new items.
            outputs: (N, D + 1) what the tower gives for them.

        Raises:
            DataError: an id is known already, or no scorer reads texts.
        """
        repeated = sorted(set(catalogue.ids) & set(self.catalogue.ids))
        if repeated:
            raise DataError(f"{len(repeated)} new items are known already: {', '.join(repeated[:5])}; leave them out")
        text = self.scorers.get("text")
        if not isinstance(text, TextVectors):
            raise DataError("new items are known by their texts, and this run has no 'text' in fusion.parts")
        longer = replace(
            text,
            vectors=np.concatenate([text.vectors, outputs[:, :-1]]),
            biases=np.concatenate([text.biases, outputs[:, -1]]),
        )
        old = self.catalogue
        joined = Catalogue(old.ids + catalogue.ids, old.texts + catalogue.texts, old.titles + catalogue.titles)
        return replace(self, catalogue=joined, scorers=dict(self.scorers) | {"text": longer})

    def save(self, directory: Path) -> None:
        """Write ``recommender.json`` and ``recommender.safetensors``."""
        arrays: dict[str, np.ndarray] = {"weights": self.weights}
        if self.text_bias is not None:
            arrays["text_bias"] = self.text_bias
        described: dict[str, Any] = {}
        for name, scorer in self.scorers.items():
            settings = {field.name: getattr(scorer, field.name) for field in fields(scorer)}  # type: ignore[arg-type]
            arrays |= {f"{name}/{key}": value for key, value in settings.items() if isinstance(value, np.ndarray)}
            numbers = {key: value for key, value in settings.items() if not isinstance(value, np.ndarray)}
            described[name] = {"kind": type(scorer).__name__, **numbers}
        content = {
            "format": FORMAT,
            "parts": described,
            "items": {"ids": self.catalogue.ids, "texts": self.catalogue.texts, "titles": self.catalogue.titles},
        }
        directory.mkdir(parents=True, exist_ok=True)
        (directory / DESCRIPTION).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / ARRAYS)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: a file is missing or damaged, or of a later format.
        """
        try:
            content = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise DataError(f"{directory} has format {content['format']}, and this version reads {FORMAT}")
            arrays = load_file(directory / ARRAYS)
            scorers = {name: _scorer(name, described, arrays) for name, described in content["parts"].items()}
            items = {key: tuple(values) for key, values in content["items"].items()}
            return cls(Catalogue(**items), scorers, arrays["weights"], arrays.get("text_bias"))
        except UNREADABLE as error:
            raise DataError(f"cannot read the recommender in {directory}: {error}") from error


def _known_to(scorer: Scorer, queries: Queries) -> Queries:
    return replace(queries, histories=queries.histories.within(scorer.num_items))


def _scorer(name: str, described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Scorer:
    numbers = {key: value for key, value in described.items() if key != "kind"}
    own = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
    scorer: Scorer = KINDS[described["kind"]](**numbers, **own)
    return scorer


@dataclass(frozen=True, slots=True)
class KnownUsers:
    """Everything that a log says of its users, for recommending to them after a run. It holds personal data.

    Attributes:
        ids: U ids.
        histories: what each chose, oldest first.
        groups: (U, G) which groups each is in.
    """

    ids: tuple[str, ...]
    histories: Interactions
    groups: np.ndarray

    @classmethod
    def nobody(cls, num_groups: int) -> Self:
        """Return what is known where there is no log."""
        return cls((), Interactions.of([]), np.zeros((0, num_groups), dtype=np.float32))

    def save(self, directory: Path) -> None:
        """Write ``users.json`` and ``histories.safetensors``."""
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {
            "offsets": self.histories.offsets,
            "items": self.histories.items,
            "weights": self.histories.weights,
            "groups": self.groups,
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / HISTORIES)
        (directory / USERS).write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: a file is missing or damaged.
        """
        try:
            arrays = load_file(directory / HISTORIES)
            ids = tuple(json.loads((directory / USERS).read_text(encoding="utf-8")))
            histories = Interactions(arrays["offsets"], arrays["items"], arrays["weights"])
            return cls(ids, histories, arrays["groups"])
        except UNREADABLE as error:
            raise DataError(f"cannot read the users in {directory}: {error}") from error
