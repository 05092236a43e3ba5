"""Recommendations from a finished run: for users of its log, for histories of anybody, and of new items."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from hftoolkit.contracts import Emit
from hftoolkit.data.labels import canonical_value
from hftoolkit.data.tables import read_table
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.recipe import RecommendationRecipe, load_recipe
from hftoolkit.recommend.index import index_queries, write_index
from hftoolkit.recommend.interactions import Interactions
from hftoolkit.recommend.log import Catalogue, read_catalogue, read_log
from hftoolkit.recommend.ranking import NOBODY, blocks, tie_order, top_items
from hftoolkit.recommend.recommender import KnownUsers, Recommender
from hftoolkit.recommend.scorers import Queries, TextVectors
from hftoolkit.recommend.tower import load_tower
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.resume import check_model, check_same_data, open_finished
from hftoolkit.tasks.shared.text_inputs import encode_texts, pad_tokens

BATCH_SIZE = 64
REASONS = 3  # items of the history that --explain names for each recommendation


@dataclass(frozen=True, slots=True)
class Recommended:
    """One recommendation.

    Attributes:
        item: its id.
        title: what a person reads of it.
        score: comparable within one list.
        parts: what each scorer adds to the score, by name; they sum to it.
        because: the items of the history that add most, and how much each does; empty unless asked for.
    """

    item: str
    title: str
    score: float
    parts: dict[str, float]
    because: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RecommendationPredictor:
    """The recommender of a run. Make one with ``hftoolkit.load(run)``."""

    model: Path
    recipe: RecommendationRecipe
    recommender: Recommender
    known: KnownUsers
    run: RunDir | None = None

    @classmethod
    def open(cls, run: RunDir, recipe: RecommendationRecipe) -> Self:
        """Load ``model/recommender/`` and the users of the run.

        Raises:
            DataError: something is missing or damaged.
        """
        return cls(run.model, recipe, Recommender.load(run.recommender), KnownUsers.load(run.users), run)

    @classmethod
    def of_model(cls, folder: Path, recipe: RecommendationRecipe) -> Self:
        """Load a model folder alone, as it is on the Hub: it knows no users, whose histories are personal data.

        Raises:
            DataError: something is missing or damaged.
        """
        recommender = Recommender.load(folder / RunDir(folder.parent).recommender.name)
        return cls(folder, recipe, recommender, KnownUsers.nobody(recommender.num_groups))

    @property
    def items(self) -> tuple[str, ...]:
        """The ids of all items, in the order of the catalogue."""
        return tuple(self.recommender.catalogue.ids)

    def check_same_data(self, fingerprint: str) -> None:
        """Raise DataError if the splits of the recipe are no longer those of the run."""
        assert self.run is not None, "the splits of a run are those that it wrote down"
        check_same_data(self.run, self.recipe.data.interactions.source, fingerprint)

    def with_new_items(self, table: Path) -> Self:
        """Return a predictor that recommends the items of a table as well, by their texts alone.

        Raises:
            DataError: the table lacks a column, or an item is known already.
        """
        catalogue = read_catalogue(read_table(table, how=self.recipe.data.items.format), self.recipe.data.items)
        return replace(self, recommender=self.recommender.with_new_items(catalogue, self._encode(catalogue)))

    def user(self, name: str) -> Queries:
        """Return what the log of the run says of a user.

        Raises:
            DataError: the log does not have that user.
        """
        if name not in self.known.ids:
            where = self.run.root if self.run else self.model
            raise DataError(f"there is no user {name!r} in the log of {where}; use --history for a new one")
        return self._of_users(np.array([self.known.ids.index(name)]))

    def history(self, items: Sequence[Any]) -> Queries:
        """Return a query for anybody who chose these items, named by id, oldest first.

        Raises:
            DataError: an item was not in the catalogue of the run.
        """
        place = {item: index for index, item in enumerate(self.recommender.catalogue.ids)}
        names = list(dict.fromkeys(map(canonical_value, items)))
        unknown = [name for name in names if name not in place]
        if unknown:
            raise DataError(f"{len(unknown)} items of the history are not known: {', '.join(unknown[:5])}")
        groups = np.zeros((1, self.known.groups.shape[1]), dtype=np.float32)
        return Queries(Interactions.of([[place[name] for name in names]]), groups)

    def recommend(
        self,
        queries: Queries,
        *,
        top_k: int = 10,
        include_seen: bool = False,
        candidates: Sequence[Any] | None = None,
        explain: bool = False,
    ) -> list[list[Recommended]]:
        """Return the best items for each query, best first; fewer than ``top_k`` where there are no more.

        Args:
            queries: from ``user`` or ``history``.
            top_k: length of each list.
            include_seen: also recommend what is in the history.
            candidates: ids of the only items to choose from. Default: all.
            explain: say which items of the history add most.

        Raises:
            DataError: a candidate is unknown.
        """
        allowed = self._allowed(queries, include_seen, candidates)
        features = self.recommender.features(queries, allowed)
        scores = np.where(allowed, features @ self.recommender.weights, -np.inf)
        lists = top_items(scores, top_k, tie_order(scores.shape[1]))
        return [
            self._named(queries, row, [int(place) for place in places if place != NOBODY], features, allowed, explain)
            for row, places in enumerate(lists)
        ]

    def export_index(self, path: Path | str, *, exact: bool = False) -> None:
        """Write the item vectors as a faiss index, which holds what the scorer ``text`` gives; see ``index_queries``.

        Raises:
            DataError: no scorer of the run reads texts.
            EnvironmentFault: faiss is not installed, or the files cannot be written.
        """
        write_index(self._text(), self.recommender.catalogue.ids, Path(path), exact=exact)

    def index_queries(self, queries: Queries) -> np.ndarray:
        """Return what to search such an index for, (B, D + 1), from ``user`` or ``history``; then leave out the seen.

        Raises:
            DataError: no scorer of the run reads texts.
        """
        return index_queries(self._text(), queries)

    def all_users(self, size: int) -> Iterator[tuple[list[str], Queries]]:
        """Yield the users of the log with what it says of them, ``size`` at a time."""
        for places in blocks(len(self.known.ids), size):
            yield [self.known.ids[place] for place in places], self._of_users(places)

    def users_of(self, table: Path, on_bad_rows: str = "error") -> tuple[list[str], Queries, dict[str, int]]:
        """Return the users of another table of interactions, the histories that it gives them, and what it left out.

        Args:
            table: a file like the log of the recipe.
            on_bad_rows: ``skip`` leaves out rows that cannot be used and counts them by reason, ``error`` refuses them.

        Raises:
            DataError: the table lacks a column, or rows cannot be used and are refused.
        """
        if not table.is_file():
            raise DataError(f"there is no file {table}; name a table of interactions, with users and items")
        data = self.recipe.data
        read = read_table(table, how=data.interactions.format, keep_broken=True)
        log = read_log(read, data.interactions, self.recommender.catalogue, on_bad_rows, "--on-bad-rows")
        counts = np.bincount(log.users, minlength=len(log.user_ids))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        groups = np.zeros((len(counts), self.known.groups.shape[1]), dtype=np.float32)
        return list(log.user_ids), Queries(Interactions(offsets, log.items, log.weights), groups), log.skipped

    def _text(self) -> TextVectors:
        scorer = self.recommender.scorers.get("text")
        if not isinstance(scorer, TextVectors):
            raise DataError("item vectors come from their texts, and this run has no 'text' in fusion.parts")
        return scorer

    def _of_users(self, places: np.ndarray) -> Queries:
        return Queries(self.known.histories.select(places), self.known.groups[places])

    def _allowed(self, queries: Queries, include_seen: bool, candidates: Sequence[Any] | None) -> np.ndarray:
        ids = self.recommender.catalogue.ids
        wanted = np.ones(len(ids), dtype=bool)
        if candidates is not None:
            names = set(map(canonical_value, candidates))
            unknown = sorted(names - set(ids))
            if unknown:
                raise DataError(f"{len(unknown)} candidates are not known: {', '.join(unknown[:5])}")
            wanted = np.array([name in names for name in ids])
        allowed = np.tile(wanted, (len(queries.histories), 1))
        if not include_seen:
            allowed[queries.histories.rows, queries.histories.items] = False
        return allowed

    def _named(
        self,
        queries: Queries,
        row: int,
        places: list[int],
        features: np.ndarray,
        allowed: np.ndarray,
        explain: bool,
    ) -> list[Recommended]:
        recommender, catalogue = self.recommender, self.recommender.catalogue
        one = Queries(queries.histories.select(np.array([row])), queries.groups[[row]])
        influences = recommender.influences(one, allowed[row], places) if explain else np.zeros((0, len(places)))
        found = []
        for column, place in enumerate(places):
            added = features[row, place] * recommender.weights
            strongest = np.argsort(-influences[:, column], kind="stable")[:REASONS]
            because = tuple(
                (catalogue.titles[one.histories.items[entry]], float(influences[entry, column]))
                for entry in strongest
                if influences[entry, column] > 0
            )
            parts = dict(zip(recommender.scorers, map(float, added), strict=True))
            found.append(Recommended(catalogue.ids[place], catalogue.titles[place], float(added.sum()), parts, because))
        return found

    def _encode(self, catalogue: Catalogue) -> np.ndarray:
        """Return the vector and the bias of each new item, (N, D + 1)."""
        bias = self.recommender.text_bias
        tower, tokenizer = load_tower(self.model, None if bias is None else torch.from_numpy(bias))
        token_ids, _ = encode_texts(tokenizer, catalogue.texts)
        outputs = []
        with torch.inference_mode():
            for places in blocks(len(token_ids), BATCH_SIZE):
                outputs.append(tower(**pad_tokens([token_ids[place] for place in places], tokenizer)).numpy())
        return np.concatenate(outputs)


def list_columns(users: Sequence[str], lists: Sequence[Sequence[Recommended]]) -> dict[str, list[Any]]:
    """Return a table with a row for each recommendation: user, rank, item, title, score."""
    rows = [
        (user, rank, each.item, each.title, round(each.score, 6))
        for user, found in zip(users, lists, strict=True)
        for rank, each in enumerate(found, start=1)
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 5
    return {
        name: list(column) for name, column in zip(("user", "rank", "item", "title", "score"), columns, strict=True)
    }


def read_candidates(path: Path) -> list[str]:
    """Return the ids in a file, one a line.

    Raises:
        RecipeError: there is no such file, or it is empty.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--candidates {path}: {error}; name a text file with an item id a line") from error
    if not names:
        raise RecipeError(f"--candidates {path} is empty; write an item id a line")
    return names


def load_recommender(path: Path, emit: Emit) -> RecommendationPredictor:
    """Return the recommender of a run directory.

    Raises:
        DataError: there is no run, it did not finish, its model is damaged, or it is no recommender.
    """
    run = open_finished(path)
    recipe = load_recipe(run.recipe)
    if not isinstance(recipe, RecommendationRecipe):
        raise DataError(f"{path} is a run of {recipe.task.kind}, which recommends nothing; use hftoolkit predict")
    check_model(run, emit)
    return RecommendationPredictor.open(run, recipe)
