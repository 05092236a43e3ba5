"""What happens in a run, as it is reported: the terminal, train.log, metrics.jsonl and trackers read these."""

from collections.abc import Callable
from dataclasses import dataclass

Metrics = dict[str, float]


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
    is_best: bool = False


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
Emit = Callable[[Event], None]
