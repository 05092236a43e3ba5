"""What predictors of all kinds of examples share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftoolkit.contracts import Emit
from hftoolkit.data.labels import LabelSet, check_same
from hftoolkit.metrics.probabilities import to_decisions
from hftoolkit.recipe import Recipe
from hftoolkit.runs.directory import RunDir, read_json
from hftoolkit.runs.resume import check_same_data

BATCH_SIZE = 64


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


class Predictor(ABC):
    """The model of a run, ready to predict. Make one with ``hftoolkit.load(run)``."""

    recipe: Recipe

    def __init__(self, run: RunDir, model: Any, emit: Emit) -> None:
        """Take the loaded ``model/`` and check that it has the classes in labels.json.

        Args:
            run: whose model it is.
            model: loaded.
            emit: is told how far predictions are.

        Raises:
            DataError: it holds other classes.
        """
        self._run = run
        self._emit = emit
        self.labels = LabelSet.from_json(read_json(run.labels))
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        check_same(self.labels, LabelSet.from_names(names, self.labels.multi_label), str(run.model))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device)

    @abstractmethod
    def predict(self, rows: Any) -> list[Prediction]:
        """Predict raw examples, in order."""

    @abstractmethod
    def predict_path(self, source: Path) -> tuple[list[str], list[Prediction]]:
        """Predict what is at a path, in its order; return also the name of each example (or none at all)."""

    @abstractmethod
    def probabilities(self, examples: Any) -> np.ndarray:
        """Return the probability of each class for each clean example, (N, C) float32, computed in fp32."""

    @abstractmethod
    def labelled(self, split: str, source: str | None) -> tuple[Any, np.ndarray]:
        """Return the clean examples and targets of a split of the run, or of all rows of another source.

        Raises:
            DataError: the run's data changed since, or the other source does not fit.
            RecipeError: there is no such split.
        """

    def named(self, probabilities: np.ndarray) -> list[Prediction]:
        """Return predictions for probabilities, (N, C)."""
        decisions = to_decisions(probabilities, self.labels.multi_label)
        return [
            Prediction(self._names(decision), dict(zip(self.labels.names, map(float, row), strict=True)))
            for decision, row in zip(decisions, probabilities, strict=True)
        ]

    def check_same_data(self, fingerprint: str) -> None:
        """Raise DataError if the splits of the recipe are no longer those of the run."""
        check_same_data(self._run, self.recipe.data.source, fingerprint)

    def _names(self, decision: Any) -> tuple[str, ...]:
        if self.labels.multi_label:
            return tuple(name for name, chosen in zip(self.labels.names, decision, strict=True) if chosen)
        return (self.labels.names[int(decision)],)


def prediction_columns(
    predictions: Sequence[Prediction], names: Sequence[str], examples: Sequence[str] = (), top_k: int | None = None
) -> dict[str, list[Any]]:
    """Return a table: 1-based row, label, and the probability of each class (None for skipped rows).

    Args:
        predictions: one a row.
        names: the classes.
        examples: the file name of each row, for a column of its own; none for rows without.
        top_k: columns ``top1``, ``p1``, ... of the most probable classes instead of one column a class.
    """
    columns: dict[str, list[Any]] = {"row": list(range(1, len(predictions) + 1))}
    if examples:
        columns["image"] = list(examples)
    columns["label"] = [prediction.label for prediction in predictions]
    if top_k is None:
        return columns | {f"p({name})": [p.probabilities.get(name) for p in predictions] for name in names}
    ranked = [sorted(p.probabilities.items(), key=lambda entry: -entry[1]) for p in predictions]
    for place in range(min(top_k, len(names))):
        columns[f"top{place + 1}"] = [row[place][0] if row else None for row in ranked]
        columns[f"p{place + 1}"] = [row[place][1] if row else None for row in ranked]
    return columns
