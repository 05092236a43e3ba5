"""What classifiers of any kind of example have in common: loss, metrics, calibration, answers. B examples, C classes.

A task holds a ``ClassHead``. Its outputs are logits, one (C,) float32 array an example.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Batch, Columns, Examples, HeadSpec, StepOutput, Table
from hftoolkit.contracts.names import listed, markdown, short
from hftoolkit.data.labels import LabelSet
from hftoolkit.metrics.classification import classification_statistics, confusion_matrix
from hftoolkit.metrics.probabilities import fit_temperature, to_decisions, to_probabilities
from hftoolkit.metrics.statistics import RowStatistics, measure
from hftoolkit.models.backbones import divide_logits
from hftoolkit.recipe import Classification
from hftoolkit.runs.figures import write_confusion_png, write_reliability_png
from hftoolkit.runs.tables import confusion_table, per_class_table
from hftoolkit.tasks.shared.losses import ClassificationLoss, build_loss, sampling_weights

HEADLINE = {"accuracy": "accuracy", "macro_f1": "macro-F1", "mcc": "MCC", "ece": "ECE"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one row.

    Attributes:
        labels: one class name, or any number of them for multi-label; none for a row that was skipped.
        probabilities: by class name; empty for a row that was skipped.
    """

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]

    @property
    def label(self) -> str:
        """The class name, or the names joined by ``|``."""
        return "|".join(self.labels)


NO_PREDICTION = Prediction((), {})


@dataclass(frozen=True, slots=True)
class CachedExample:
    """What a linear probe reads of an example."""

    features: np.ndarray
    target: Any


@dataclass(frozen=True, slots=True)
class ClassHead:
    """The classes of a task and what follows from them.

    Attributes:
        labels: the classes.
        section: ``task`` of the recipe.
        output_layers: names of the layers that give the logits.
        loss: None where there are no training rows.
    """

    labels: LabelSet
    section: Classification
    output_layers: tuple[str, ...]
    loss: ClassificationLoss | None

    @classmethod
    def of(
        cls, labels: LabelSet, section: Classification, output_layers: tuple[str, ...], train: Sequence[Any] | None
    ) -> "ClassHead":
        """Return a head whose loss is that of the training rows."""
        loss = None
        if train is not None:
            loss = build_loss(
                targets_of(train),
                len(labels.names),
                imbalance=section.imbalance,
                strength=section.imbalance_strength,
                smoothing=section.label_smoothing,
            )
        return cls(labels, section, output_layers, loss)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each example, (B,)."""
        assert self.loss is not None, "a task without training rows cannot be trained"
        return self.loss(logits, targets)

    def step(self, logits: torch.Tensor, batch: Batch) -> StepOutput:
        """Return the summed loss of a batch whose ``targets`` are (B,) or (B, C)."""
        return summed(self.losses(logits, batch["targets"]))

    def sampling_weights(self, raw: Sequence[Any]) -> np.ndarray | None:
        """Return the relative frequency of each row, (N,), where the recipe wants rare classes to be drawn more."""
        if self.section.imbalance != "sampler":
            return None
        return sampling_weights(targets_of(raw), len(self.labels.names), self.section.imbalance_strength)

    def probabilities(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return softmax or, for multi-label, sigmoid of logits, (N, C)."""
        return to_probabilities(np.stack(outputs), self.labels.multi_label)

    def statistics(self, probabilities: np.ndarray, raw: Sequence[Any]) -> RowStatistics:
        """Return the metrics of given probabilities, (N, C)."""
        return classification_statistics(
            probabilities, targets_of(raw), self.labels.names, multi_label=self.labels.multi_label
        )

    def pairs(self, outputs: Sequence[np.ndarray], raw: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return predicted and true classes by number; multi-label: 0 or 1 for each class."""
        decisions = to_decisions(self.probabilities(outputs), self.labels.multi_label)
        return decisions.tolist(), targets_of(raw).astype(np.int64).tolist()

    def metric_names(self, raw: Sequence[Any]) -> frozenset[str]:
        """Return the metrics that the targets of these rows allow."""
        flat = np.full((len(raw), len(self.labels.names)), 1 / len(self.labels.names))
        return frozenset(measure(self.statistics(flat, raw)))

    def calibrate(self, model: nn.Module, outputs: Sequence[np.ndarray], raw: Sequence[Any]) -> dict[str, Any]:
        """Fit a temperature (Guo et al. 2017), fold it into the output layers, and return it.

        It stays 1 where every row is right: any smaller one would then look better still.
        """
        targets = targets_of(raw)
        decisions = to_decisions(self.probabilities(outputs), self.labels.multi_label)
        if not self.section.calibrate or (decisions == targets).all():
            return {"temperature": 1.0}
        temperature = fit_temperature(np.stack(outputs), targets, multi_label=self.labels.multi_label)
        divide_logits(model, self.output_layers, temperature)
        return {"temperature": temperature}

    def answers(self, outputs: Sequence[np.ndarray]) -> list[Prediction]:
        """Return classes and probabilities for logits."""
        if len(outputs) == 0:
            return []
        probabilities = self.probabilities(outputs)
        decisions = to_decisions(probabilities, self.labels.multi_label)
        return [
            Prediction(self._names(decision), dict(zip(self.labels.names, map(float, row), strict=True)))
            for decision, row in zip(decisions, probabilities, strict=True)
        ]

    def columns(self, answers: Sequence[Prediction]) -> Columns:
        """Return a table: label, and the probability of each class (None for rows that were skipped)."""
        columns: Columns = {"label": [answer.label for answer in answers]}
        return columns | {f"p({name})": [p.probabilities.get(name) for p in answers] for name in self.labels.names}

    def top_columns(self, answers: Sequence[Prediction], count: int) -> Columns:
        """Return a table: label, then ``top1``, ``p1``, ... of the most probable classes."""
        columns: Columns = {"label": [answer.label for answer in answers]}
        ranked = [sorted(p.probabilities.items(), key=lambda entry: -entry[1]) for p in answers]
        for place in range(min(count, len(self.labels.names))):
            columns[f"top{place + 1}"] = [row[place][0] if row else None for row in ranked]
            columns[f"p{place + 1}"] = [row[place][1] if row else None for row in ranked]
        return columns

    def true_labels(self, raw: Sequence[Any]) -> list[str]:
        """Return the class names of the targets, joined by ``|`` for multi-label."""
        return ["|".join(self._names(target)) for target in targets_of(raw)]

    def details(
        self, measured: Mapping[str, Any], outputs: Sequence[np.ndarray], raw: Sequence[Any]
    ) -> Iterable[Table]:
        """Yield the metrics of each class and, for one label a row, the confusion matrix."""
        counts = self.counts(raw)
        yield per_class_table(measured["metrics"], measured["intervals"], self.labels.names, counts)
        if not self.labels.multi_label:
            matrix = confusion_matrix(self.probabilities(outputs), targets_of(raw))
            yield confusion_table(matrix, self.labels.names)

    def counts(self, raw: Sequence[Any]) -> list[int]:
        """Return how many of the rows each class has."""
        size = len(self.labels.names)
        targets = targets_of(raw)
        found = targets.sum(axis=0) if self.labels.multi_label else np.bincount(targets, minlength=size)
        return [int(count) for count in found]

    def unmeasured(self, raw: Sequence[Any]) -> list[str]:
        """Return the classes that none of the rows has."""
        return [name for name, count in zip(self.labels.names, self.counts(raw), strict=True) if not count]

    def draw(self, outputs: Sequence[np.ndarray], raw: Sequence[Any], report: Path) -> None:
        """Write the confusion matrix (one label a row) and the reliability diagram."""
        probabilities, targets = self.probabilities(outputs), targets_of(raw)
        if not self.labels.multi_label:
            matrix = confusion_matrix(probabilities, targets)
            write_confusion_png(matrix, self.labels.names, report / "confusion.png")
        write_reliability_png(probabilities, targets, report / "reliability.png")

    def limits(self, results: Mapping[str, Any], more: str) -> tuple[str, ...]:
        """Return what a card says of the limits of a classifier.

        Args:
            results: of the run.
            more: what was not tried, beside other domains.
        """
        return (
            *weakest_class(results["test"], "class"),
            f"Probabilities are calibrated on one validation split (temperature {results['temperature']:.3f}); other "
            f"data may need another. Nothing was tested on other domains{more}.",
        )

    def _names(self, decision: Any) -> tuple[str, ...]:
        if self.labels.multi_label:
            return tuple(name for name, chosen in zip(self.labels.names, decision, strict=True) if chosen)
        return (self.labels.names[int(decision)],)


def weakest_class(test: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """Return what a card says of the class (or another ``what``) with the lowest F1, and of those without test rows."""
    unmeasured = test.get("unmeasured", [])
    by_class = {key.removeprefix("f1/"): value for key, value in test["metrics"].items() if key.startswith("f1/")}
    by_class = {name: value for name, value in by_class.items() if name not in unmeasured}
    found = []
    if by_class:
        worst = min(by_class, key=lambda name: by_class[name])
        found.append(f"Weakest {what}: {markdown(short(worst))}, F1 {by_class[worst]:.3f}.")
    if unmeasured:
        found.append(f"Not measured, because no test rows have it: {markdown(listed(unmeasured))}.")
    return tuple(found)


def class_title(what: str, names: Sequence[str]) -> str:
    """Return the first line of a card: what the model is, and its classes, of many the first ones."""
    return f"{what}: {markdown(listed(names))}"


def class_head_spec(labels: LabelSet) -> HeadSpec:
    """Return the head of a classifier."""
    problem = "multi_label_classification" if labels.multi_label else "single_label_classification"
    return HeadSpec(labels.names, problem)


def targets_of(raw: Sequence[Any]) -> np.ndarray:
    """Return the targets of rows: (N,) int64 classes; multi-label: (N, C) float32 of 0 and 1."""
    return np.stack([row.target for row in raw])


def stack_targets(targets: Sequence[Any]) -> torch.Tensor:
    """Return the targets of a batch, (B,) or (B, C)."""
    return torch.as_tensor(np.stack(targets))


def summed(losses_B: torch.Tensor) -> StepOutput:
    """Return a step's loss from those of its examples."""
    return StepOutput(losses_B.sum(), len(losses_B), len(losses_B))


def to_rows(logits: torch.Tensor) -> list[np.ndarray]:
    """Return the logits of a batch as outputs, one (C,) float32 array an example."""
    return list(logits.float().cpu().numpy())


def cached_examples(features: Sequence[np.ndarray], whole: Examples) -> Examples:
    """Return examples of cached features with the targets, rows and weights of those that they were made of."""
    items = [CachedExample(found, item.target) for found, item in zip(features, whole.items, strict=True)]
    return Examples(items, sampling_weights=whole.sampling_weights, row_numbers=whole.row_numbers)


def first_examples(examples: Examples, count: int) -> Examples:
    """Return the first ``count`` examples, or all if there are fewer."""
    items = [examples.items[index] for index in range(min(count, len(examples)))]
    return Examples(items, None if examples.lengths is None else examples.lengths[:count])
