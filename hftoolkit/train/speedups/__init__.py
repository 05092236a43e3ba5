"""What lets training steps compute less, or in better ways, for the same gradients: all of it at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from hftoolkit.train.speedups.batch_halves import batch_halves_in_threads
from hftoolkit.train.speedups.cls_only import cls_position_only
from hftoolkit.train.speedups.cpu import faster_steps


@contextmanager
def speedups(model: nn.Module, logits: Callable[[], torch.Tensor], device: torch.device) -> Iterator[None]:
    """Inside, training steps of the model are faster.

    Args:
        model: on the device; it may be wrapped by peft.
        logits: runs the model on a few real examples, (B, C) float32.
        device: some of what is done is for CPUs alone.
    """
    on_cpu = device.type == "cpu"
    with (
        faster_steps(model) if on_cpu else nullcontext(),
        cls_position_only(model, logits),
        batch_halves_in_threads(model, logits) if on_cpu else nullcontext(),
    ):
        yield
