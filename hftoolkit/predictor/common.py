"""What predictors of all kinds of examples share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftoolkit.contracts import Emit
from hftoolkit.data import LabelSet, check_same
from hftoolkit.errors import DataError
from hftoolkit.metrics.probabilities import to_decisions
from hftoolkit.recipe import Recipe
from hftoolkit.rundir import RunDir, read_json

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

    def refuse_changed(self, fingerprint: str) -> None:
        """Raise DataError if the splits of the recipe are no longer those of the run."""
        refuse_changed(self._run, self.recipe.data.source, fingerprint)

    def _names(self, decision: Any) -> tuple[str, ...]:
        if self.labels.multi_label:
            return tuple(name for name, chosen in zip(self.labels.names, decision, strict=True) if chosen)
        return (self.labels.names[int(decision)],)


def refuse_changed(run: RunDir, source: str, fingerprint: str) -> None:
    """Raise DataError if ``source`` no longer gives the splits that the run was trained on."""
    trained_on = read_json(run.data)["fingerprint"]
    if fingerprint != trained_on:
        raise DataError(
            f"{source} has changed since the run (fingerprint {fingerprint[:12]}, was {trained_on[:12]}), so its "
            "splits are others; use --data to measure on any table"
        )
