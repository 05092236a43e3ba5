"""Predictions over many rows, on the device at hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hftoolkit.batching import evaluation_plan
from hftoolkit.contracts import Batch, Rows, Task
from hftoolkit.devices import Accelerator, make_loader, to_device

INFERENCE_BATCH = 64  # examples; no gradients are kept, so this needs less memory than a training batch


@dataclass(frozen=True, slots=True)
class Inference:
    """Run a task's predictions over rows, in order, without gradients. Satisfies ``contracts.Infer``."""

    task: Task
    accelerator: Accelerator

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
        """
        step = step or self.task.predict_step
        model.to(self.accelerator.device)
        plan = evaluation_plan(len(rows), batch_size=INFERENCE_BATCH, lengths=rows.lengths)
        loader = make_loader(rows, plan, self.task.datasets().collate, workers=0)
        outputs: list[np.ndarray] = []
        with _eval_mode(model), torch.inference_mode():
            for batch in loader:
                with nullcontext() if full_precision else self.accelerator.autocast():
                    output = step(model, to_device(batch, self.accelerator.device))
                outputs.append(output.float().cpu().numpy())
        result = np.empty((len(rows), *outputs[0].shape[1:]), dtype=np.float32)
        result[np.concatenate(plan)] = np.concatenate(outputs)
        return result


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
