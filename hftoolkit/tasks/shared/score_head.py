"""What tasks that predict a number have in common: loss, unit, metrics. B examples.

A model is trained on the number less its mean, in units of its standard deviation (of the training rows). ``fold`` puts
both into the output layers, so that plain transformers gives the number itself. Outputs are numbers in their own unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hftoolkit.contracts import Batch, Columns, HeadSpec, StepOutput
from hftoolkit.errors import DataError
from hftoolkit.metrics.regression import regression_statistics
from hftoolkit.metrics.statistics import RowStatistics, measure
from hftoolkit.models.backbones import is_under
from hftoolkit.runs.figures import write_scatter_png

HEADLINE = {"rmse": "RMSE", "mae": "MAE", "r2": "R2", "pearson": "Pearson", "spearman": "Spearman"}
LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}


@dataclass(frozen=True, slots=True)
class Score:
    """The number that a data set asks for.

    Attributes:
        name: of its column.
        mean: over the training rows.
        std: standard deviation over the training rows.
    """

    name: str
    mean: float
    std: float

    @classmethod
    def of(cls, name: str, targets: np.ndarray) -> Self:
        """Return what training rows say of the number.

        Raises:
            DataError: it is the same in all of them.
        """
        std = float(targets.std())
        if std == 0:
            raise DataError(f"all {len(targets)} training rows have the same {name}, {targets[0]:g}; check the column")
        return cls(name, float(targets.mean()), std)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Rebuild what ``to_json`` returned.

        Raises:
            DataError: something else was stored.
        """
        try:
            return cls(str(stored["name"]), float(stored["mean"]), float(stored["std"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no stored number ({error!r}); copy labels.json from the run again") from error

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"name": self.name, "mean": self.mean, "std": self.std}

    def describe(self) -> str:
        """Return the number in words."""
        return f"{self.name}: mean {self.mean:.4g}, standard deviation {self.std:.4g}"

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Raise DataError unless the model in ``where`` has this one output."""
        if tuple(names) != (self.name,):
            raise DataError(f"{where} gives {', '.join(names)}, and the run learned {self.name}")

    @property
    def head(self) -> HeadSpec:
        """The head of a model that gives it."""
        return HeadSpec((self.name,), "regression")


def targets_of(rows: Sequence[Any]) -> np.ndarray:
    """Return the numbers of rows, (N,) float64."""
    return np.array([row.target for row in rows])


def with_targets(batch: Batch, examples: Sequence[Any]) -> Batch:
    """Return a batch with the ``targets`` of its examples, (B,) float32, where they are known."""
    if examples[0].target is None:
        return batch
    return batch | {"targets": torch.tensor([example.target for example in examples], dtype=torch.float32)}


@dataclass(slots=True)
class ScoreHead:
    """The number and what follows from it.

    Attributes:
        score: the number.
        loss: name of the loss.
        output_layers: names of the layers that give it.
        folded: whether the model gives the number in its own unit.
    """

    score: Score
    loss: str
    output_layers: tuple[str, ...]
    folded: bool

    @classmethod
    def of(cls, score: Score, loss: str, base: Any, *, is_trained: bool) -> "ScoreHead":
        """Return a head; where an output layer has no bias, the mean cannot be folded in, and is not taken off.

        A head that gives the number already, as that of an earlier run does, is brought to the unit of training.
        """
        layers = [base.model.get_submodule(name) for name in base.output_layers]
        if any(getattr(layer, "bias", None) is None for layer in layers):
            score = replace(score, mean=0.0)
        if base.has_trained_head:
            with torch.no_grad():
                for layer in layers:
                    layer.weight.div_(score.std)
                    if layer.bias is not None:
                        layer.bias.sub_(score.mean).div_(score.std)
        return cls(score, loss, base.output_layers, folded=is_trained)

    def fold(self, model: nn.Module) -> None:
        """Let the model give the number in its own unit, once and for all."""
        if self.folded:
            return
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and is_under(name, self.output_layers):
                    parameter.mul_(self.score.std)
                    if name.endswith("bias"):
                        parameter.add_(self.score.mean)
        self.folded = True

    def step(self, outputs: torch.Tensor, batch: Batch) -> StepOutput:
        """Return the summed loss of outputs, (B, 1), in standard deviations; ``targets`` are (B,) float32."""
        assert not self.folded, "a folded model is not trained further"
        targets_B = (batch["targets"] - self.score.mean) / self.score.std
        loss = LOSSES[self.loss](outputs.float().squeeze(-1), targets_B, reduction="sum")
        return StepOutput(loss, len(targets_B), len(targets_B))

    def to_numbers(self, outputs: torch.Tensor) -> list[float]:
        """Return the numbers, in their own unit, of outputs, (B, 1)."""
        values: np.ndarray = outputs.float().squeeze(-1).cpu().numpy().astype(np.float64)
        if not self.folded:
            values = values * self.score.std + self.score.mean
        return list(map(float, values))

    def statistics(self, outputs: Sequence[float], raw: Sequence[Any]) -> RowStatistics:
        """Return the metrics of numbers."""
        return regression_statistics(np.array(outputs), targets_of(raw))

    def metric_names(self, raw: Sequence[Any]) -> frozenset[str]:
        """Return the metrics that the targets of rows allow, whatever is predicted."""
        varied = [float(row.target or 0) + index % 2 for index, row in enumerate(raw)]
        return frozenset(measure(self.statistics(varied, raw)))

    def draw(self, outputs: Sequence[float], raw: Sequence[Any], report: Path) -> None:
        """Write predicted against true numbers."""
        truth = targets_of(raw)
        write_scatter_png(truth, np.array(outputs), self.score.name, report / "predicted.png")

    def pairs(self, outputs: Sequence[float], raw: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return predicted and true numbers."""
        return list(outputs), [row.target for row in raw]

    def baselines(
        self, targets: np.ndarray, raw: Sequence[Any], fitted: Mapping[str, np.ndarray]
    ) -> dict[str, RowStatistics]:
        """Return the metrics of the mean of the training targets, (N,), and of numbers that other models gave."""
        found = {"mean": np.full(len(raw), targets.mean()), **fitted}
        return {name: self.statistics(numbers.tolist(), raw) for name, numbers in found.items()}

    def columns(self, answers: Sequence[Any]) -> Columns:
        """Return the numbers as a table; None for rows that were skipped."""
        return {self.score.name: list(answers)}

    def limits(self, results: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what a card says of the limits."""
        return (
            f"Trained on values with mean {self.score.mean:.4g} and standard deviation {self.score.std:.4g}; far "
            "beyond them it was never measured.",
            f"Half of the variance explained would be R2 .5; here it is {results['test']['metrics'].get('r2', 0):.3f}.",
        )
