"""A task with its data: ``contracts.Learner``, as the training loop sees it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from torch import nn

from hftoolkit.contracts import (
    Batch,
    CachesFeatures,
    Dataset,
    Emit,
    Examples,
    Infer,
    Joins,
    Metrics,
    StepOutput,
    Task,
    Tensors,
)
from hftoolkit.metrics.statistics import measure


class TaskLearner:
    """The rows of a data set as a task encodes them, and what the loop does with them."""

    def __init__(self, task: Task, dataset: Dataset[Any]) -> None:
        """Encode every split."""
        self.task = task
        self.raw: Mapping[str, Sequence[Any]] = dataset.splits
        self._examples: Mapping[str, Examples] = {
            name: self._encoded(name, dataset.row_numbers[name]) for name in dataset.splits
        }

    def examples(self, split: str) -> Examples:
        """Return the encoded examples of a split, or its cached features while ``cached_features`` is open."""
        return self._examples[split]

    def collate(self, examples: Sequence[Any], *, training: bool) -> Batch:
        """Return a batch of these examples."""
        return self.task.collate(examples, training=training)

    def loss(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the loss of a micro-batch, summed over what its mean is over."""
        return self.task.loss(model, batch)

    def forward(self, model: nn.Module, batch: Batch) -> Tensors:
        """Return what the plain model gives for a batch."""
        return self.task.forward(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> Sequence[Any]:
        """Return one output for each example of the batch."""
        return self.task.predict(model, batch)

    def metric_names(self) -> frozenset[str]:
        """Return the metrics that can be computed on the validation split."""
        return self.task.metric_names(self.raw["validation"])

    def evaluate(self, model: nn.Module, infer: Infer) -> Metrics:
        """Return the metrics of the model on the validation split, in the precision of the run."""
        return measure(self.task.score(self.outputs(model, infer, "validation"), self.raw["validation"]))

    def outputs(self, model: nn.Module, infer: Infer, split: str, *, full_precision: bool = False) -> list[Any]:
        """Return one output for each raw row of a split."""
        examples = self._examples[split]
        found = infer(model, examples, full_precision=full_precision)
        return joined(self.task, found, examples, self.raw[split])

    @contextmanager
    def cached_features(self, model: nn.Module, infer: Infer, emit: Emit) -> Iterator[None]:
        """Inside, a task that can do so runs its frozen backbone only once over each example."""
        if not isinstance(self.task, CachesFeatures):
            yield
            return
        whole = self._examples
        with self.task.cached_features(model, whole, infer, emit) as cached:
            self._examples = cached
            try:
                yield
            finally:
                self._examples = whole

    def _encoded(self, split: str, row_numbers: np.ndarray) -> Examples:
        raw = self.raw[split]
        examples = self.task.encode(raw)
        owners = np.arange(len(raw)) if examples.owners is None else examples.owners
        weights = self.task.sampling_weights(raw) if split == "train" else None
        return replace(
            examples,
            row_numbers=row_numbers[owners],
            sampling_weights=None if weights is None else weights[owners],
        )


def joined(task: Task, outputs: Sequence[Any], examples: Examples, raw: Sequence[Any]) -> list[Any]:
    """Return one output a raw row, those of its pieces put together where a row is encoded as several examples."""
    if examples.owners is None or not isinstance(task, Joins):
        assert len(outputs) == len(raw)
        return list(outputs)
    pieces = groupby(zip(examples.owners.tolist(), outputs, strict=True), key=lambda pair: pair[0])
    by_owner = {owner: [output for _, output in pairs] for owner, pairs in pieces}
    return [task.join(by_owner[place], row) for place, row in enumerate(raw)]
