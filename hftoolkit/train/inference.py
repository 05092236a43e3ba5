"""Predictions over many rows, on the device at hand."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Batch, Emit, InferenceProgress, Message, Rows, Task
from hftoolkit.errors import TrainingError
from hftoolkit.train.batches import evaluation_plan
from hftoolkit.train.devices import Accelerator, is_out_of_memory, make_loader, to_device
from hftoolkit.train.distributed.collectives import all_gather, num_processes, process_index

INFERENCE_BATCH = 64  # examples; no gradients are kept, so this needs less memory than a training batch


class StopRequested(Exception):
    """A signal asked for the end of the run while predictions were made."""


class Stopped:
    """The answer of a process that got a signal."""


class OutOfMemory:
    """The answer of a process whose memory did not suffice."""


@dataclass(slots=True)
class Inference:
    """Run a task's predictions over rows, in order, without gradients. Satisfies ``contracts.Infer``.

    Several ranks each predict a share of the batches, and all get the predictions for all rows. The batches are
    those of one process, so that the numbers are the same.

    Attributes:
        task: gives the collate function, and what is predicted.
        accelerator: device and precision.
        emit: is told how far predictions are, and when memory was short.
        signals: those that arrived; any ends a call.
        batch_size: examples of a forward pass; halved when memory runs out.
    """

    task: Task
    accelerator: Accelerator
    emit: Emit = field(default=lambda _: None)
    signals: Sequence[int] = ()
    batch_size: int = INFERENCE_BATCH

    def __call__(
        self,
        model: nn.Module,
        rows: Rows,
        *,
        step: Callable[[nn.Module, Batch], torch.Tensor] | None = None,
        full_precision: bool = False,
    ) -> np.ndarray:
        """Return the output of ``step`` (default: the task's ``predict_step``) for each row, (N, ...) float32.

        Args:
            model: put in eval mode for the time of the call.
            rows: what to run over.
            step: maps a batch to one output row for each of its examples.
            full_precision: compute in fp32 whatever the recipe's precision.

        Raises:
            StopRequested: a signal arrived in any process.
            TrainingError: memory does not suffice for a batch of one.
        """
        step = step or self.task.predict_step
        model.to(self.accelerator.device)
        while True:
            plan = evaluation_plan(len(rows), batch_size=self.batch_size, lengths=rows.lengths)
            shares = [plan[first :: num_processes()] for first in range(num_processes())]
            answers = all_gather(self._predict(model, rows, shares[process_index()], step, full_precision))
            if any(isinstance(answer, Stopped) for answer in answers):
                raise StopRequested
            outputs = [output for answer in answers if isinstance(answer, list) for output in answer]
            if len(outputs) == len(plan):
                break
            self._halve()
        indices = np.concatenate([batch for share in shares for batch in share])
        assert len(indices) == sum(map(len, outputs)) == len(rows)
        result = np.empty((len(rows), *outputs[0].shape[1:]), dtype=np.float32)
        result[indices] = np.concatenate(outputs)
        return result

    def _predict(
        self,
        model: nn.Module,
        rows: Rows,
        plan: list[np.ndarray],
        step: Callable[[nn.Module, Batch], torch.Tensor],
        full_precision: bool,
    ) -> "list[np.ndarray] | Stopped | OutOfMemory":
        """Return the outputs for each batch of the plan, or why there are none."""
        outputs: list[np.ndarray] = []
        done, share = 0, sum(map(len, plan))
        with _eval_mode(model), torch.inference_mode():
            try:
                for batch in make_loader(rows, plan, self.task.datasets().collate, workers=0):
                    if self.signals:
                        return Stopped()
                    with nullcontext() if full_precision else self.accelerator.autocast():
                        output = step(model, to_device(batch, self.accelerator.device))
                    outputs.append(output.float().cpu().numpy())
                    done += len(output)
                    self.emit(InferenceProgress(len(rows) * done // share, len(rows)))
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
