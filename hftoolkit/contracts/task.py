"""What a task promises, and what the training loop asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from hftoolkit.contracts.events import Emit, Metrics, Table

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

Batch = Any  # a tree: dicts, lists and tuples with tensors at their leaves; moved to a device as a whole
Tensors = Mapping[str, "torch.Tensor"]
Columns = dict[str, list[Any]]  # a table: name -> one cell a row

RawT = TypeVar("RawT")


class Schema(Protocol):
    """What the data fixes once and for all, such as the classes. Kept in the run as labels.json."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        ...

    def describe(self) -> str:
        """Return it in words, for example ``classes: bad, good``."""
        ...

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Raise DataError unless a model's outputs have the names that this data gives them."""
        ...


@dataclass(frozen=True, slots=True)
class Dataset(Generic[RawT]):
    """Checked rows by split (``train``, ``validation``, ``test``).

    Attributes:
        splits: raw rows, each what a person would call an example, with its target.
        row_numbers: (N,) int64, 1-based rows of the source, for messages and predictions.
        schema: what the data fixes, such as the classes.
        summary: counts, fingerprint and warnings in plain JSON types; data.json of the run.
    """

    splits: Mapping[str, Sequence[RawT]]
    row_numbers: Mapping[str, np.ndarray]
    schema: Any
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded examples, as ``collate`` takes a list of them.

    Attributes:
        items: in the order of the raw rows.
        lengths: (N,) tokens of each, for length buckets; None where all have one size.
        owners: (N,) index of the raw row that each example is a piece of, ascending (windows of a long text, tiles);
            None: one example a row.
        sampling_weights: (N,) relative frequency of each in an epoch as long as the split; None shows each once.
        row_numbers: (N,) 1-based row of each in its source, for messages; None where there is no source.
        num_truncated: how many rows were cut to fit the model; None where nothing is ever cut.
        advice: where they are cut, and what would keep nearly all of them whole.
    """

    items: Sequence[Any]
    lengths: np.ndarray | None = None
    owners: np.ndarray | None = None
    sampling_weights: np.ndarray | None = None
    row_numbers: np.ndarray | None = None
    num_truncated: int | None = None
    advice: str = ""

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The loss of one micro-batch, as a sum, so that any accumulation gives the mean over the whole step.

    Attributes:
        loss_sum: scalar, summed over what ``weight`` counts.
        weight: what the mean is over: examples, tokens, boxes, pairs.
        num_examples: rows, for speed; known only after collating.
    """

    loss_sum: torch.Tensor
    weight: float
    num_examples: int


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What of a backbone is drawn anew for a task.

    Attributes:
        names: of the outputs, in order: classes, tags; for a single number, its name.
        problem_type: as a transformers configuration calls it; None where the head has only one use.
    """

    names: tuple[str, ...]
    problem_type: str | None = None


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a row cannot be used.

    Attributes:
        reason: one of few sentences, so that they can be counted.
        found: the cell to blame.
        name: what the row is called, where it has a name.
    """

    reason: str
    found: Any = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Labelled(Generic[RawT]):
    """The rows of a source with their targets, undivided.

    Attributes:
        rows: those that can be used, in order.
        bad: the others, by 1-based number.
        source: where they come from, for messages.
        allowed: the values of a target that are known; empty where any is allowed.
    """

    rows: Sequence[RawT]
    bad: Mapping[int, Unusable]
    source: str
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inputs(Generic[RawT]):
    """Rows without targets, to be predicted; opened some at a time, so that any number of them fits into memory.

    Attributes:
        num_rows: how many there are.
        read: returns rows ``start`` to ``stop``, each checked or with the reason why it cannot be used.
        chunk: how many to read at a time.
        columns: what is shown beside the predictions, such as the names of files.
        notes: returns what is to be said of the rows that were read.
        table: all columns of the table that the rows come from, which ``--keep`` may name; empty: there is none.
    """

    num_rows: int
    read: Callable[[int, int], Sequence[RawT | Unusable]]
    chunk: int
    columns: Columns = field(default_factory=dict)
    notes: Callable[[], list[str]] = list
    table: Columns = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PipelineCheck:
    """What transformers' pipeline of the exported folder must answer.

    Attributes:
        task: the pipeline's name.
        options: keyword arguments of the pipeline.
        inputs: what it is given.
        keys: what is compared of each answer.
        expected: returns, for a model, the values of these keys for each answer to each input.
    """

    task: str
    options: Mapping[str, Any]
    inputs: Sequence[str]
    keys: tuple[str, ...]
    expected: Callable[[nn.Module], list[Any]]


@dataclass(frozen=True, slots=True)
class GateInputs:
    """What a process without hftoolkit repeats: ``processor(**raw)`` gives ``tensors``, and the model on those ours.

    Attributes:
        tensors: keyword arguments of the model's forward pass.
        processor: class of transformers that loads the processor of the exported folder, such as ``AutoTokenizer``;
            None compares the tensors' predictions alone.
        raw: keyword arguments of the processor, in plain JSON types.
        pipeline: what a pipeline must answer; None asks none.
    """

    tensors: Tensors
    processor: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    pipeline: PipelineCheck | None = None


@dataclass(frozen=True, slots=True)
class CardText:
    """What a model card says that only the task knows.

    Attributes:
        title: its first line.
        usage: a snippet of plain libraries.
        limits: sentences.
        pictures: Markdown after the results.
    """

    title: str
    usage: str
    limits: tuple[str, ...]
    pictures: str = ""


class Infer(Protocol):
    """Run predictions over examples on the right device."""

    def __call__(
        self,
        model: nn.Module,
        examples: Examples,
        *,
        predict: Callable[[nn.Module, Batch], Sequence[Any]] | None = None,
        full_precision: bool = False,
    ) -> list[Any]:
        """Return what ``predict`` (default: that of the learner) gives for each example, in order."""
        ...


class Learner(Protocol):
    """What the training loop asks of a task with its data; nothing of devices, processes or precision.

    ``collate``, ``loss``, ``forward`` and ``predict`` are those of ``Task``.
    """

    def examples(self, split: str) -> Examples:
        """Return the encoded examples of ``train`` or ``validation``."""
        ...

    def collate(self, examples: Sequence[Any], *, training: bool) -> Batch: ...
    def loss(self, model: nn.Module, batch: Batch) -> StepOutput: ...
    def forward(self, model: nn.Module, batch: Batch) -> Tensors: ...
    def predict(self, model: nn.Module, batch: Batch) -> Sequence[Any]: ...

    def metric_names(self) -> frozenset[str]:
        """Return the metrics that can be computed on the validation split, before there is any prediction."""
        ...

    def evaluate(self, model: nn.Module, infer: Infer) -> Metrics:
        """Return the metrics of the model on the validation split, in the precision of the run."""
        ...


class Task(Protocol):
    """One kind of problem: from rows to a model that plain libraries load. See ``docs/architecture.md``.

    Knows nothing of devices, processes, precision, checkpoints, files of a run or the Hub. The recipe of the kind names
    its class; ``tasks.task_of`` imports it. What only some tasks can do is a protocol of its own, below.

    Attributes:
        unit: what a person calls an example.
        auto_class: class of transformers that loads the saved model.
        pipeline_tag: the Hub's name of the task.
        headline: metrics of tables and card, with the names that people read.
        compared_by: the metric of paired leads over baselines.
        no_answer: what ``hftoolkit.load(run).predict`` gives for a row that cannot be used.
    """

    unit: ClassVar[str]
    auto_class: ClassVar[str]
    pipeline_tag: ClassVar[str]
    headline: ClassVar[Mapping[str, str]]
    compared_by: ClassVar[str]
    no_answer: ClassVar[Any]

    @classmethod
    def read(cls, recipe: Any, source: Path, weights: Any, schema: Any, emit: Emit) -> Dataset[Any]:
        """Return the checked rows of a source, divided into splits.

        Args:
            recipe: of this kind.
            source: where ``data.source`` led to.
            weights: ``models.pretrained.Weights``, fetched only where reading depends on them (the size of images).
            schema: of the run that these rows are for; None finds it in the data.
            emit: is told what takes long.
        """
        ...

    @classmethod
    def read_labelled(cls, recipe: Any, source: Path, weights: Any, schema: Any) -> Labelled[Any]:
        """Return all rows of another source, undivided, with targets of a known schema; no bad row is an error."""
        ...

    @classmethod
    def schema_from_json(cls, stored: Mapping[str, Any]) -> Any:
        """Rebuild what ``Schema.to_json`` returned."""
        ...

    @classmethod
    def load(cls, recipe: Any, schema: Any, weights: Any) -> Any:
        """Return the ``models.backbones.Backbone`` with a head for the schema, from pretrained or saved weights."""
        ...

    @classmethod
    def build(cls, recipe: Any, schema: Any, base: Any, train: Sequence[Any] | None) -> Self:
        """Return the task; ``train`` are the training rows, where there are any, for what a loss takes from them."""
        ...

    def encode(self, raw: Sequence[Any]) -> Examples:
        """Return raw rows as the model reads them."""
        ...

    def sampling_weights(self, raw: Sequence[Any]) -> np.ndarray | None:
        """Return the relative frequency of each training row in an epoch, (N,); None shows each once."""
        ...

    def collate(self, examples: Sequence[Any], *, training: bool) -> Batch:
        """Return a batch of encoded examples."""
        ...

    def forward(self, model: nn.Module, batch: Batch) -> Tensors:
        """Return what the plain model gives for a batch, by the names of its library."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the loss of a micro-batch, summed over what its mean is over."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Sequence[Any]:
        """Return one output for each example of the batch, without tensors: what is scored, joined and answered."""
        ...

    def metric_names(self, raw: Sequence[Any]) -> frozenset[str]:
        """Return the metrics that can be computed on these rows, before there is any prediction."""
        ...

    def score(self, outputs: Sequence[Any], raw: Sequence[Any]) -> Any:
        """Return the ``metrics.statistics.RowStatistics`` of outputs, one a raw row."""
        ...

    def inputs(self, source: Any) -> Inputs[Any]:
        """Return rows to predict: a ``Path`` (file, folder, pattern), or rows as Python has them (``data.given``)."""
        ...

    def answers(self, outputs: Sequence[Any], raw: Sequence[Any]) -> list[Any]:
        """Return what ``hftoolkit.load(run).predict`` gives for each row."""
        ...

    def columns(self, answers: Sequence[Any]) -> Columns:
        """Return answers as a table."""
        ...

    def truth(self, raw: Sequence[Any]) -> Columns:
        """Return raw rows as a table: what was read, and the targets."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what results.json says about how examples enter the model."""
        ...

    def card(self, results: Mapping[str, Any]) -> CardText:
        """Return what the model card says of this model; ``results`` are empty while it is trained."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a plain model with all that it needs to read raw examples."""
        ...

    def gate_inputs(self, raw: Sequence[Any]) -> GateInputs:
        """Return these rows as a process without hftoolkit reads them."""
        ...


@runtime_checkable
class Calibrates(Protocol):
    """Changes the model after training by what the validation split shows."""

    def calibrate(self, model: nn.Module, outputs: Sequence[Any], raw: Sequence[Any]) -> dict[str, Any]:
        """Change the model; return what results.json says about it."""
        ...


@runtime_checkable
class Folds(Protocol):
    """Trains in another unit than the one that the exported model gives."""

    def fold(self, model: nn.Module) -> None:
        """Change the output layers of a trained model once, so that it gives the unit of the data."""
        ...


@runtime_checkable
class HasBaselines(Protocol):
    """Compares itself with simple models."""

    def baselines(self, train: Sequence[Any], raw: Sequence[Any], seed: int) -> Mapping[str, Any]:
        """Return, by name, the ``RowStatistics`` on ``raw`` of simple models that were fitted on ``train``."""
        ...


@runtime_checkable
class CachesFeatures(Protocol):
    """Can compute once what a linear probe reads of each example."""

    def cached_features(
        self, model: nn.Module, examples: Mapping[str, Examples], infer: Infer, emit: Emit
    ) -> AbstractContextManager[Mapping[str, Examples]]:
        """Return a context in which the frozen backbone is not run; it gives the examples to use inside."""
        ...


@runtime_checkable
class HasPairs(Protocol):
    """Can be measured by metrics that know nothing of it: ``evaluation.extra_metrics``."""

    def pairs(self, outputs: Sequence[Any], raw: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return predictions and references, one a row: a class, 0 or 1 for each class, a number, or tags of words."""
        ...


@runtime_checkable
class HasClasses(Protocol):
    """Has a score for each of its classes."""

    def unmeasured(self, raw: Sequence[Any]) -> list[str]:
        """Return the names of the classes that none of these rows has, so that their scores say nothing."""
        ...


@runtime_checkable
class Details(Protocol):
    """Has more to show than its headline metrics."""

    def details(self, measured: Mapping[str, Any], outputs: Sequence[Any], raw: Sequence[Any]) -> Iterable[Table]:
        """Return tables for the terminal, such as metrics by class."""
        ...


@runtime_checkable
class Draws(Protocol):
    """Draws pictures of its predictions."""

    def draw(
        self, model: nn.Module, outputs: Sequence[Any], raw: Sequence[Any], *, report: Path, model_folder: Path
    ) -> None:
        """Write pictures into the report; those that the card shows into the folder of the model."""
        ...


@runtime_checkable
class Joins(Protocol):
    """Puts the outputs of the pieces of one raw row together."""

    def join(self, outputs: Sequence[Any], raw: Any) -> Any:
        """Return the output of a raw row from those of its pieces, in order."""
        ...


@runtime_checkable
class Ranks(Protocol):
    """Can name its best answers instead of all."""

    def top_columns(self, answers: Sequence[Any], count: int) -> Columns:
        """Return a table of the ``count`` most probable answers of each row."""
        ...
