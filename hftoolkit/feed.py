"""The examples of each optimizer step, cut into what this process takes at a time."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hftoolkit.batching import epoch_plan
from hftoolkit.collectives import num_processes, process_index
from hftoolkit.contracts import Batch, Datasets, Rows
from hftoolkit.devices import make_loader
from hftoolkit.recipe import Train

ROWS_NAMED = 10


class StepData(NamedTuple):
    """What one optimizer step learns from."""

    indices: np.ndarray  # (N,) of all its examples
    micro_batches: list[Batch]  # of those that are this process's share
    num_idle: int  # so many of the last only keep all processes at the same number, and must not count


@dataclass(frozen=True, slots=True)
class Feed:
    """The training split, step by step; any step can be the first.

    Attributes:
        datasets: have the split.
        train: says how large steps and what they are made of are.
        in_lockstep: all processes get the same number of micro-batches in a step.
    """

    datasets: Datasets
    train: Train
    in_lockstep: bool = False

    @property
    def rows(self) -> Rows:
        return self.datasets.splits["train"]

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.train.batch_size)

    def longest(self, count: int) -> Batch:
        """Return a batch of the examples that take the most memory."""
        lengths = np.ones(len(self.rows)) if self.rows.lengths is None else self.rows.lengths
        return self.batch(np.argsort(-lengths, kind="stable")[:count].tolist())

    def batch(self, indices: Iterable[int]) -> Batch:
        """Return a batch of these examples."""
        return self.datasets.collate([self.rows.examples[index] for index in indices])

    def name_rows(self, indices: np.ndarray) -> str:
        """Return the first rows, as the source of the data numbers them, of those that a step learns from."""
        rows = self.rows.row_numbers[indices]
        return ", ".join(map(str, rows[:ROWS_NAMED])) + (", ..." if len(rows) > ROWS_NAMED else "")

    def steps_of(self, epoch: int, first: int, micro_batch_size: int) -> Iterator[StepData]:
        """Yield the data of the optimizer steps of an epoch, from the ``first`` on."""
        plan = epoch_plan(
            len(self.rows),
            batch_size=self.train.batch_size,
            seed=self.train.seed,
            epoch=epoch,
            lengths=self.rows.lengths if self.train.length_buckets else None,
            weights=self.rows.sampling_weights,
        )[first:]
        cut = [self._cut(step, micro_batch_size) for step in plan]
        flat = [micro for own, idle in cut for micro in (*own, *idle)]
        batches = iter(make_loader(self.rows, flat, self.datasets.collate, workers=self.train.num_workers))
        for indices, (own, idle) in zip(plan, cut, strict=True):
            yield StepData(indices, [next(batches) for _ in (*own, *idle)], len(idle))

    def _cut(self, step: np.ndarray, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the micro-batches of this process in a step, (N,), and those that make them as many as elsewhere."""
        own = micro_batches(step, size, process_index(), num_processes())
        if not self.in_lockstep:
            return own, []
        most = len(micro_batches(step, size, 0, num_processes()))  # the first process has the largest share
        return own, [step[:1]] * (most - len(own))


def micro_batches(step: np.ndarray, size: int, process: int, processes: int) -> list[np.ndarray]:
    """Return the share of one process in the examples of a step, (N,), in pieces; none where there are too few."""
    share = np.array_split(step, processes)[process]
    return [share[start : start + size] for start in range(0, len(share), size)]
