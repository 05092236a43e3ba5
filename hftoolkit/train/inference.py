"""Predictions over many rows, on the device at hand."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Batch, Emit, Examples, InferenceProgress, Message
from hftoolkit.errors import TrainingError
from hftoolkit.train.batches import evaluation_plan
from hftoolkit.train.devices import Accelerator, is_out_of_memory, make_loader, to_device
from hftoolkit.train.distributed.collectives import all_gather, num_processes, process_index

INFERENCE_BATCH = 64  # examples; no gradients are kept, so this needs less memory than a training batch


class Predicts(Protocol):
    """What inference asks of a task or a learner."""

    def collate(self, examples: Sequence[Any], *, training: bool) -> Batch:
        """Return a batch of these examples."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Sequence[Any]:
        """Return one output for each example of the batch."""
        ...


class StopRequested(Exception):
    """A signal asked for the end of the run while predictions were made."""


class Stopped:
    """The answer of a process that got a signal."""


class OutOfMemory:
    """The answer of a process whose memory did not suffice."""


@dataclass(slots=True)
class Inference:
    """Run predictions over examples, in order, without gradients. Satisfies ``contracts.Infer``.

    Several ranks each predict a share of the batches, and all get the predictions for all examples. The batches are
    those of one process, so that the numbers are the same.

    Attributes:
        learner: gives the collate function, and what is predicted; a task without data will do.
        accelerator: device and precision.
        emit: is told how far predictions are, and when memory was short.
        signals: those that arrived; any ends a call.
        batch_size: examples of a forward pass; halved when memory runs out.
    """

    learner: Predicts
    accelerator: Accelerator
    emit: Emit = field(default=lambda _: None)
    signals: Sequence[int] = ()
    batch_size: int = INFERENCE_BATCH

    def __call__(
        self,
        model: nn.Module,
        examples: Examples,
        *,
        predict: Callable[[nn.Module, Batch], Sequence[Any]] | None = None,
        full_precision: bool = False,
    ) -> list[Any]:
        """Return what ``predict`` (default: that of the learner) gives for each example.

        Args:
            model: put in eval mode for the time of the call.
            examples: what to run over.
            predict: maps a batch to one output for each of its examples, without tensors.
            full_precision: compute in fp32 whatever the recipe's precision.

        Raises:
            StopRequested: a signal arrived in any process.
            TrainingError: memory does not suffice for a batch of one.
        """
        predict = predict or self.learner.predict
        model.to(self.accelerator.device)
        while True:
            plan = evaluation_plan(len(examples), batch_size=self.batch_size, lengths=examples.lengths)
            shares = [plan[first :: num_processes()] for first in range(num_processes())]
            answers = all_gather(self._predict(model, examples, shares[process_index()], predict, full_precision))
            if any(isinstance(answer, Stopped) for answer in answers):
                raise StopRequested
            outputs = [output for answer in answers if isinstance(answer, list) for output in answer]
            if len(outputs) == len(plan):
                break
            self._halve()
        indices = [index for share in shares for batch in share for index in batch.tolist()]
        found = dict(zip(indices, chain.from_iterable(outputs), strict=True))
        assert len(found) == len(examples)
        return [found[index] for index in range(len(examples))]

    def _predict(
        self,
        model: nn.Module,
        examples: Examples,
        plan: list[np.ndarray],
        predict: Callable[[nn.Module, Batch], Sequence[Any]],
        full_precision: bool,
    ) -> "list[Sequence[Any]] | Stopped | OutOfMemory":
        """Return the outputs for each batch of the plan, or why there are none."""
        outputs: list[Sequence[Any]] = []
        collate = partial(self.learner.collate, training=False)
        done, share = 0, sum(map(len, plan))
        with _eval_mode(model), torch.inference_mode():
            try:
                for batch in make_loader(examples, plan, collate, workers=0):
                    if self.signals:
                        return Stopped()
                    with nullcontext() if full_precision else self.accelerator.autocast():
                        outputs.append(predict(model, to_device(batch, self.accelerator.device)))
                    done += len(outputs[-1])
                    self.emit(InferenceProgress(len(examples) * done // share, len(examples)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return OutOfMemory()
        return outputs

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise TrainingError(
                "out of memory while predicting a single example; a smaller model.max_length or model.image_size "
                "needs less"
            )
        self.batch_size //= 2
        self.emit(
            Message(f"out of memory while predicting; from now on {self.batch_size} examples at a time", "warning")
        )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
