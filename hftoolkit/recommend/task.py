"""Recommendation: which items go with a history of others. The tower reads items; a user is a mean of them.

Shape suffixes: B users, L entries of a history, I items of the catalogue, C items of a step, D width of the vectors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Batch, Examples, Infer, Metrics, StepOutput, Tensors
from hftoolkit.errors import RecipeError
from hftoolkit.recipe import RankingEvaluation, RecommendationTask
from hftoolkit.recommend.interactions import Interactions
from hftoolkit.recommend.losses import (
    StepItems,
    draw_evenly,
    draw_targets,
    pair_loss,
    sample_negatives,
    softmax_loss,
    trained_evenly,
    within,
)
from hftoolkit.recommend.protocols import RecommendationSplits
from hftoolkit.recommend.ranking import PER_USER, RankedLists, mean_values, rank
from hftoolkit.recommend.scorers import Queries, Scorer, TextVectors
from hftoolkit.recommend.tower import ItemTower
from hftoolkit.tasks.shared.class_head import to_rows
from hftoolkit.tasks.shared.text_inputs import encode_texts, pad_tokens

ENCODED_AT_ONCE = 256  # texts of similar length in one forward pass
MOST_TRAINED_ITEMS = 5_000  # that a softmax over the whole catalogue encodes in every step
MOST_FROZEN_ITEMS = 20_000
PADDING = -1


@dataclass(frozen=True, slots=True)
class UserExample:
    """A user of the training split, by place."""

    place: int


@dataclass(frozen=True, slots=True)
class ItemExample:
    """An item, by its place in the catalogue."""

    place: int


class RecommendationTower:
    """See ``contracts.Learner``: the training and evaluation of the item tower alone."""

    def __init__(
        self,
        section: RecommendationTask,
        splits: RecommendationSplits,
        tokenizer: Any,
        evaluation: RankingEvaluation,
        *,
        frozen: bool,
    ) -> None:
        """Tokenize the catalogue.

        Args:
            section: objective and loss.
            splits: the data.
            tokenizer: of the encoder.
            evaluation: how lists are measured.
            frozen: the encoder is not trained, so that ``cached_pooling`` will be used.

        Raises:
            RecipeError: the catalogue is too large for a softmax over all of it.
        """
        self.splits = splits
        self._section = section
        self._tokenizer = tokenizer
        self._evaluation = evaluation
        self._token_ids, self.token_counts = encode_texts(tokenizer, splits.catalogue.texts)
        users = np.flatnonzero(splits.train.lengths > 1)  # one item leaves nothing to predict from
        self._histories = splits.train.select(users).latest(section.max_history)
        lengths = np.array([len(ids) for ids in self._token_ids])
        places = np.tile(np.arange(len(users)), section.draws_per_epoch)
        self._users = Examples([UserExample(place) for place in places], row_numbers=users[places])
        self._items = Examples([ItemExample(place) for place in range(len(lengths))], lengths)
        counts = np.bincount(splits.train.items, minlength=len(splits.catalogue))
        self._shares = torch.from_numpy(counts / counts.sum())
        self._trained_items = torch.from_numpy(np.flatnonzero(counts))
        self._pooled: torch.Tensor | None = None  # (I, H) while ``cached_pooling`` is open
        most = MOST_FROZEN_ITEMS if frozen else MOST_TRAINED_ITEMS
        encoded = min(section.items_per_step or len(self._trained_items), len(self._trained_items))
        if section.loss == "softmax" and encoded > most:
            raise RecipeError(
                f"task.loss: softmax over {encoded} items in every step; at most {most} are possible with a "
                f"{'frozen' if frozen else 'trained'} encoder. Set task.items_per_step, or use sampled-softmax"
            )

    def examples(self, split: str) -> Examples:
        """Return the users that are trained on; nothing else is split by rows."""
        assert split == "train", split
        return self._users

    def loss(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the loss of a batch of users, summed; each item is encoded once."""
        items, history, weights = self._items_of_step(batch["history"], batch["weights"])
        drawn = draw_targets(history, weights, self._section.objective, self._section.recency)
        outputs = self._encode(model, items.places.tolist())  # (C, D + 1)
        vectors_CD, bias_C = outputs[:, :-1], outputs[:, -1]
        users_BD = items.spread(drawn, drawn.inputs) @ vectors_CD
        logits_BC = users_BD @ vectors_CD.T / self._section.temperature + bias_C
        loss = pair_loss if self._section.loss == "bpr" else softmax_loss
        return StepOutput(loss(logits_BC, drawn, items), len(logits_BC), len(logits_BC))

    def forward(self, model: nn.Module, batch: Batch) -> Tensors:
        """Return the vector and the bias of each item, (N, D + 1); of users, those of the latest item of each."""
        return {"vectors": self._encode(model, batch["latest"].tolist())}

    def predict(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Return the same as arrays, (D + 1,) float32 each."""
        return to_rows(self.forward(model, batch)["vectors"])

    def _pool(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Return the pooled output of the encoder for each item, (N, H)."""
        assert isinstance(model, ItemTower)
        tokens = pad_tokens([self._token_ids[place] for place in batch["latest"].tolist()], self._tokenizer)
        return to_rows(model.pooled(**_moved(tokens, batch["latest"].device)))

    def metric_names(self) -> frozenset[str]:
        """Return the metrics of ranked lists."""
        return frozenset(PER_USER)

    def evaluate(self, model: nn.Module, infer: Infer) -> Metrics:
        """Return the metrics of the tower alone on validation, in the precision of the run."""
        return mean_values(self.rank(self.text_scorer(model, infer), "validation").values)

    def text_scorer(self, model: nn.Module, infer: Infer, *, full_precision: bool = False) -> TextVectors:
        """Return the vectors of all items as a scorer."""
        return self.scorer_of(np.stack(infer(model, self._items, full_precision=full_precision)))

    def scorer_of(self, outputs: np.ndarray) -> TextVectors:
        """Return what a tower gives for all items, (I, D + 1), as a scorer."""
        return TextVectors(
            vectors=np.ascontiguousarray(outputs[:, :-1]),
            biases=np.ascontiguousarray(outputs[:, -1]),
            temperature=self._section.temperature,
            recency=self._section.recency or 0.0,
        )

    def pooled(self, model: nn.Module, infer: Infer) -> torch.Tensor:
        """Return the pooled outputs of the encoder for all items, (I, H) fp32."""
        return torch.from_numpy(np.stack(infer(model, self._items, predict=self._pool, full_precision=True)))

    @property
    def trained_items(self) -> torch.Tensor:
        """The items that occur in training, (N,)."""
        return self._trained_items

    def rank(self, scorer: Scorer, split: str) -> RankedLists:
        """Rank all candidates of a split by one scorer."""
        cases = self.splits.cases[split]
        return rank(
            cases,
            lambda users: scorer.scores(Queries.of(cases, users, self.splits.groups)),
            cutoff=self._evaluation.cutoff,
            block_users=self._evaluation.block_users,
        )

    @contextmanager
    def cached_pooling(self, pooled: torch.Tensor) -> Iterator[None]:
        """Inside, the frozen encoder is not run: what it gives, (I, H), was computed once."""
        self._pooled = pooled
        try:
            yield
        finally:
            self._pooled = None

    def _items_of_step(
        self, history: torch.Tensor, weights: torch.Tensor
    ) -> tuple[StepItems, torch.Tensor, torch.Tensor]:
        """Return the items to encode, and the histories that can be learned from with them, (b, L)."""
        if self._section.loss == "softmax":
            items = draw_evenly(self._trained_items, len(self._shares), self._section.items_per_step)
            return items, *within(history, weights, items)
        uniform = self._section.loss == "bpr"
        chances = trained_evenly(self._shares) if uniform else self._shares
        return sample_negatives(history, chances, self._section.negatives), history, weights

    def _encode(self, model: nn.Module, places: Sequence[int]) -> torch.Tensor:
        """Return the vector and the bias of items, (C, D + 1), texts of similar length at a time."""
        device = next(model.parameters()).device
        if self._pooled is not None:
            assert isinstance(model, ItemTower)
            return model.head(self._pooled[list(places)].to(device))
        order = sorted(range(len(places)), key=lambda index: len(self._token_ids[places[index]]))
        outputs = []
        for start in range(0, len(order), ENCODED_AT_ONCE):
            chunk = [self._token_ids[places[index]] for index in order[start : start + ENCODED_AT_ONCE]]
            outputs.append(model(**_moved(pad_tokens(chunk, self._tokenizer, multiple_of=1), device)))
        back = torch.empty(len(order), dtype=torch.long, device=device)
        back[torch.tensor(order, device=device)] = torch.arange(len(order), device=device)
        return torch.cat(outputs)[back]

    def collate(self, examples: Sequence[UserExample | ItemExample], *, training: bool) -> Batch:
        """Return ``latest`` items, (B,); of users also ``history`` and ``weights``, (B, L), see ``pad_histories``."""
        places = np.array([example.place for example in examples])
        if isinstance(examples[0], ItemExample):
            return {"latest": torch.from_numpy(places)}
        history, weights = pad_histories(self._histories.select(places))
        return {"latest": history[:, -1], "history": history, "weights": weights}


def pad_histories(histories: Interactions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return items and weights, (B, L), aligned at the right; -1 and 0 where a history is shorter than the longest."""
    longest = int(histories.lengths.max())
    items = np.full((len(histories), longest), PADDING, dtype=np.int64)
    weights = np.zeros((len(histories), longest), dtype=np.float32)
    rows, columns = histories.rows, longest - 1 - histories.ages
    items[rows, columns] = histories.items
    weights[rows, columns] = histories.weights
    return torch.from_numpy(items), torch.from_numpy(weights)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
