"""What all classification tasks share: loss, metrics, calibration, baselines. B examples, C classes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Batch, Datasets, Emit, Infer, Metrics, Rows, StepOutput
from hftoolkit.data.image.splits import ImageSplits
from hftoolkit.data.texts import TextSplits
from hftoolkit.metrics.classification import classification_metrics
from hftoolkit.metrics.probabilities import fit_temperature, to_decisions, to_probabilities
from hftoolkit.models.backbones import Backbone, divide_logits
from hftoolkit.recipe import Classification
from hftoolkit.tasks.shared.losses import build_loss, sampling_weights


class ClassificationTask(ABC):
    """See ``contracts.Task``. Holds the splits; the model is passed to each method."""

    unit: str  # what an example is called: text, image
    auto_class: str  # of transformers, that loads the saved model

    def __init__(self, section: Classification, splits: TextSplits | ImageSplits, backbone: Backbone) -> None:
        self.labels = splits.labels
        self.targets = splits.targets
        self.row_numbers = splits.row_numbers
        self.summary = splits.summary
        self._section = section
        self._output_layers = backbone.output_layers
        self._loss = build_loss(
            splits.targets["train"],
            len(self.labels.names),
            imbalance=section.imbalance,
            strength=section.imbalance_strength,
            smoothing=section.label_smoothing,
        )

    @abstractmethod
    def datasets(self) -> Datasets:
        """Return the rows of each split and how to batch them."""

    @abstractmethod
    def predict_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits of a batch, (B, C)."""

    @abstractmethod
    def examples(self, split: str) -> Sequence[str]:
        """Return what stands for each example in a table of predictions."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what results.json says about how examples enter the model."""

    @abstractmethod
    def save(self, model: nn.Module, directory: Path) -> None:
        """Write a plain model with all that it needs to read raw examples."""

    @abstractmethod
    def gate_request(self, chosen: np.ndarray, folder: Path) -> dict[str, Any]:
        """Return validation rows as a process without hftoolkit reads them; large ones go into a file in ``folder``."""

    @abstractmethod
    def cached_features(self, model: nn.Module, infer: Infer, emit: Emit) -> AbstractContextManager[None]:
        """Inside, the frozen backbone is not run: the head gets features that were computed once.

        Where the head of an architecture needs more than was cached, the backbone runs in every step instead.
        """

    @abstractmethod
    def baselines(self, split: str, seed: int) -> dict[str, np.ndarray]:
        """Return the probabilities, (N, C), of simple models fitted on the training split."""

    def plain_logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits that the model alone gives, (B, C), without what is done around it."""
        return self.predict_step(model, batch)

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed loss of a batch."""
        losses_B = self._loss(self.predict_step(model, batch), batch["targets"])
        return StepOutput(losses_B.sum(), len(losses_B))

    def metric_names(self, split: str) -> frozenset[str]:
        """Return the metrics that the targets of a split allow."""
        targets = self.targets[split]
        flat = np.full((len(targets), len(self.labels.names)), 1 / len(self.labels.names))
        return frozenset(self.metrics(flat, split))

    def evaluate(self, model: nn.Module, infer: Infer, split: str) -> Metrics:
        """Return the metrics of the model on a split, in the precision of the run."""
        return self.metrics(self.to_probabilities(infer(model, self.datasets().splits[split])), split)

    def metrics(self, probabilities: np.ndarray, split: str) -> Metrics:
        """Return the metrics of given probabilities, (N, C), on a split."""
        return classification_metrics(
            probabilities, self.targets[split], self.labels.names, multi_label=self.labels.multi_label
        )

    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return softmax or, for multi-label, sigmoid of logits, (N, C)."""
        return to_probabilities(logits, self.labels.multi_label)

    def finish(self, model: nn.Module, infer: Infer) -> float:
        """Fit a temperature on the validation split (Guo et al. 2017), fold it into the output layers, and return it.

        It stays 1 where every validation row is right: any smaller one would then look better still.
        """
        logits = infer(model, self.datasets().splits["validation"], full_precision=True)
        targets = self.targets["validation"]
        decisions = to_decisions(self.to_probabilities(logits), self.labels.multi_label)
        if not self._section.calibrate or (decisions == targets).all():
            return 1.0
        temperature = fit_temperature(logits, targets, multi_label=self.labels.multi_label)
        divide_logits(model, self._output_layers, temperature)
        return temperature

    def make_rows(self, split: str, examples: Sequence[Any], lengths: np.ndarray | None) -> Rows:
        """Return the rows of a split, with the sampler's chances where the recipe wants them."""
        chances = None
        if split == "train" and self._section.imbalance == "sampler":
            chances = sampling_weights(self.targets[split], len(self.labels.names), self._section.imbalance_strength)
        return Rows(examples, lengths, self.row_numbers[split], chances)


def first_rows(rows: Rows, count: int) -> Rows:
    """Return the first ``count`` rows, or all if there are fewer."""
    examples = [rows.examples[index] for index in range(min(count, len(rows)))]
    return Rows(examples, None if rows.lengths is None else rows.lengths[:count], rows.row_numbers[:count])


def stack_targets(targets: Sequence[Any]) -> torch.Tensor:
    """Return the targets of a batch, (B,) or (B, C)."""
    return torch.as_tensor(np.stack(targets))
