"""Types that cross layers. What a task promises the trainer, and what both report to the outside. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

Batch = dict[str, "torch.Tensor"]
Metrics = dict[str, float]
Emit = Callable[["Event"], None]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The loss of one micro-batch, as a sum, so that any accumulation gives the mean over the whole step."""

    loss_sum: torch.Tensor  # scalar, summed over examples
    num_examples: int  # known only after collating, e.g. interactions kept


@dataclass(frozen=True, slots=True)
class Rows:
    """One split as the trainer sees it: indexable examples, in the order of the data.

    Attributes:
        examples: what ``collate`` takes a list of.
        lengths: tokens of each example, for length buckets; None where examples have one size.
        row_numbers: 1-based row of each example in its source, for messages and predictions.
        sampling_weights: relative frequency of each example in an epoch as long as the split; None shows each once.
    """

    examples: Sequence[Any]
    lengths: np.ndarray | None  # (N,) int
    row_numbers: np.ndarray  # (N,) int
    sampling_weights: np.ndarray | None = None  # (N,) float

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, slots=True)
class Datasets:
    """Rows by split name (``train``, ``validation``, ``test``) and the function that makes a batch of examples."""

    splits: Mapping[str, Rows]
    collate: Callable[[list[Any]], Batch]


class Infer(Protocol):
    """Run predictions over rows on the right device."""

    def __call__(
        self,
        model: nn.Module,
        rows: Rows,
        *,
        step: Callable[[nn.Module, Batch], torch.Tensor] | None = None,
        full_precision: bool = False,
    ) -> np.ndarray:
        """Return the output of ``step`` (default: the task's ``predict_step``) for each row, float32, in order."""
        ...


class Task(Protocol):
    """Data, model, loss and metrics of one kind of problem; nothing of devices, processes or precision."""

    def datasets(self) -> Datasets:
        """Return the rows of each split and how to batch them."""
        ...

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the loss of a micro-batch, summed over its examples."""
        ...

    def predict_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return one output row for each example of the batch."""
        ...

    def metric_names(self, split: str) -> frozenset[str]:
        """Return the metrics that can be computed on a split, before there is any prediction."""
        ...

    def evaluate(self, model: nn.Module, infer: Infer, split: str) -> Metrics:
        """Return the metrics of the model on a split."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence for the user and the log."""

    text: str
    level: str = "info"  # info | warning


@dataclass(frozen=True, slots=True)
class Table:
    """A small table for the user and the log."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimizer step is done."""

    step: int
    total_steps: int
    loss: float  # mean over the examples of the step
    gradient_norm: float  # before clipping
    learning_rate: float  # of the first parameter group
    examples_per_second: float  # training time only, since the start


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation split, or a policy, was evaluated after ``step``."""

    step: int
    metrics: Metrics
    is_best: bool = field(default=False)


@dataclass(frozen=True, slots=True)
class InferenceProgress:
    """The model has gone over ``done`` of ``total`` examples without training.

    The last of a series has as many of both, unless it is stopped; where memory ran out, one begins again.
    """

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class AgentProgress:
    """How learning by acting goes, after ``step`` steps of the environment."""

    step: int
    total_steps: int
    metrics: Metrics  # means since the last report
    steps_per_second: float  # learning time only, since the start


Event = Message | Table | StepDone | Evaluated | InferenceProgress | AgentProgress
