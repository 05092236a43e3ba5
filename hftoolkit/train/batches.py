"""Which examples form which optimizer step, and what of it this process takes at a time.

The order is a pure function of the seed and the epoch, so that any step can be found again.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from hftoolkit.contracts import Batch, Examples, Learner
from hftoolkit.recipe import Train
from hftoolkit.seeding import numpy_generator
from hftoolkit.train.devices import make_loader
from hftoolkit.train.distributed.collectives import num_processes, process_index

ROWS_NAMED = 10
# Batches sorted by length at a time: large enough that texts in a batch are alike, small enough to stay random.
BUCKET_BATCHES = 64


class StepData(NamedTuple):
    """What one optimizer step learns from."""

    indices: np.ndarray  # (N,) of all its examples
    micro_batches: list[Batch]  # of those that are this process's share
    num_padding: int  # so many of the last only give all ranks the same number, and must not count


@dataclass(frozen=True, slots=True)
class TrainBatches:
    """The training split, step by step; any step can be the first.

    Attributes:
        learner: has the split.
        train: says how large steps and what they are made of are.
        equal_micro_batches: all ranks get the same number of micro-batches in a step.
    """

    learner: Learner
    train: Train
    equal_micro_batches: bool = False

    @property
    def examples(self) -> Examples:
        return self.learner.examples("train")

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.examples) / self.train.batch_size)

    def longest(self, count: int) -> Batch:
        """Return a batch of the examples that take the most memory."""
        lengths = np.ones(len(self.examples)) if self.examples.lengths is None else self.examples.lengths
        return self.batch(np.argsort(-lengths, kind="stable")[:count].tolist())

    def batch(self, indices: Iterable[int]) -> Batch:
        """Return a batch of these examples."""
        return self.learner.collate([self.examples.items[index] for index in indices], training=True)

    def name_rows(self, indices: np.ndarray) -> str:
        """Return the first rows, as the source of the data numbers them, of those that a step learns from."""
        assert self.examples.row_numbers is not None
        rows = list(dict.fromkeys(self.examples.row_numbers[indices].tolist()))
        return ", ".join(map(str, rows[:ROWS_NAMED])) + (", ..." if len(rows) > ROWS_NAMED else "")

    def steps(self, epoch: int, first: int, micro_batch_size: int) -> Iterator[StepData]:
        """Yield the data of the optimizer steps of an epoch, from the ``first`` on."""
        plan = epoch_plan(
            len(self.examples),
            batch_size=self.train.batch_size,
            seed=self.train.seed,
            epoch=epoch,
            lengths=self.examples.lengths if self.train.length_buckets else None,
            weights=self.examples.sampling_weights,
        )[first:]
        cut = [self._cut(step, micro_batch_size) for step in plan]
        flat = [micro for own, idle in cut for micro in (*own, *idle)]
        collate = partial(self.learner.collate, training=True)
        batches = iter(make_loader(self.examples, flat, collate, workers=self.train.num_workers))
        for indices, (own, idle) in zip(plan, cut, strict=True):
            yield StepData(indices, [next(batches) for _ in (*own, *idle)], len(idle))

    def _cut(self, step: np.ndarray, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the micro-batches of this process in a step, (N,), and those that make them as many as elsewhere."""
        own = micro_batches(step, size, process_index(), num_processes())
        if not self.equal_micro_batches:
            return own, []
        most = len(micro_batches(step, size, 0, num_processes()))  # the first process has the largest share
        return own, [step[:1]] * (most - len(own))


def micro_batches(step: np.ndarray, size: int, process: int, processes: int) -> list[np.ndarray]:
    """Return the share of one process in the examples of a step, (N,), in pieces; none where there are too few."""
    return _pieces(np.array_split(step, processes)[process], size)


def epoch_plan(
    num_examples: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    lengths: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return the example indices of each optimizer step of an epoch.

    Args:
        num_examples: N; the batches hold N indices together, and only one batch may be short.
        batch_size: examples of an optimizer step, over all processes.
        seed: ``train.seed``.
        epoch: 0 for the first.
        lengths: (N,) tokens; examples of similar length then share a batch.
        weights: (N,) relative frequencies; an index then occurs as often as its share of N says, rounded up or down
            by chance, instead of once.
    """
    generator = numpy_generator("order", seed, epoch)
    if weights is None:
        order = generator.permutation(num_examples)
    else:
        order = generator.permutation(_resampled(weights, generator))
    if lengths is None:
        return _pieces(order, batch_size)
    batches: list[np.ndarray] = []
    for pool in _pieces(order, batch_size * BUCKET_BATCHES):
        batches += _pieces(pool[np.argsort(lengths[pool], kind="stable")], batch_size)
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_plan(num_examples: int, *, batch_size: int, lengths: np.ndarray | None) -> list[np.ndarray]:
    """Return all indices once, longest first, so that memory that does not suffice shows at once."""
    order = np.arange(num_examples) if lengths is None else np.argsort(-lengths, kind="stable")
    return _pieces(order, batch_size)


def evaluation_steps(steps_per_epoch: int, times_per_epoch: int) -> frozenset[int]:
    """Return the 1-based steps of an epoch after which to evaluate; the last is always among them."""
    return frozenset(-(-steps_per_epoch * (i + 1) // times_per_epoch) for i in range(times_per_epoch))


def _resampled(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return N indices by systematic resampling (Kitagawa 1996).

    Independent draws would leave out many rows of a class that is to be seen twice: one in seven.
    """
    order = generator.permutation(len(weights))
    expected = np.cumsum(weights[order]) * (len(weights) / weights.sum())
    expected[-1] = len(weights)
    counts = np.diff(np.floor(expected + generator.random()), prepend=0)
    return np.repeat(order, counts.astype(np.int64))


def _pieces(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
