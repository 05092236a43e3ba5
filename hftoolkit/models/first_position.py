"""A last block that computes only what the head reads, where the head reads the first position alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hftoolkit.errors import RecipeError
from hftoolkit.models.backbones import encoder_layers

# The first module of a block that treats each position by itself, in BERT and its relatives and in DistilBERT.
CUTS = ("attention.output", "sa_layer_norm")
# Largest difference of logits, in fp32, between a whole last block and a shortened one.
TOLERANCE = 1e-4


@contextmanager
def first_position_only(model: nn.Module, logits: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Inside, the last block goes on with its first position after attention, if the head reads no other.

    A classifier on a first token ([CLS]) needs the keys and values of all positions of its last block, but attention's
    output layer and the feed-forward layers of one: an eighth less work in six blocks. Logits and gradients stay the
    same. Models whose blocks are laid out in another way, or whose head reads more, are left as they are.

    Args:
        model: it may be wrapped by peft.
        logits: runs the model on a few real examples, (B, C) float32.
    """
    block = _last_block(model)
    cut = next((module for name, module in block.named_modules() if name in CUTS), None) if block else None
    if block is None or cut is None or not _can_be_shortened(model, block, cut, logits):
        yield
        return
    with cut.register_forward_pre_hook(_shorten):
        yield


def _can_be_shortened(model: nn.Module, block: nn.Module, cut: nn.Module, logits: Callable[[], torch.Tensor]) -> bool:
    training = model.training
    model.eval()
    try:
        if not _reads_first_alone(block, logits):
            return False
        whole, _ = _run(block, logits)
        with cut.register_forward_pre_hook(_shorten):
            short, length = _run(block, logits)
        return length == 1 and torch.allclose(short, whole, rtol=TOLERANCE, atol=TOLERANCE)
    finally:
        model.train(training)


def _last_block(model: nn.Module) -> nn.Module | None:
    try:
        return encoder_layers(model)[1][-1]
    except RecipeError:  # no list of blocks
        return None


def _reads_first_alone(block: nn.Module, logits: Callable[[], torch.Tensor]) -> bool:
    """Return whether the gradient of the logits reaches the first position of the block's output and no other."""
    leaves: list[torch.Tensor] = []

    def detach(_: nn.Module, __: Any, output: Any) -> Any:
        states = output if isinstance(output, torch.Tensor) else output[0]
        leaves.append(states.detach().requires_grad_())
        return leaves[0] if isinstance(output, torch.Tensor) else (leaves[0], *output[1:])

    with block.register_forward_hook(detach):
        total = logits().sum()
    if len(leaves) != 1 or leaves[0].ndim != 3:
        return False
    (gradient_BLH,) = torch.autograd.grad(total, leaves, allow_unused=True)
    return gradient_BLH is not None and bool(gradient_BLH[:, 0].any()) and not bool(gradient_BLH[:, 1:].any())


def _run(block: nn.Module, logits: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return the logits and the number of positions that leave the block."""
    lengths: list[int] = []

    def measure(_: nn.Module, __: Any, output: Any) -> None:
        lengths.append((output if isinstance(output, torch.Tensor) else output[0]).shape[1])

    with block.register_forward_hook(measure), torch.no_grad():
        return logits(), lengths[0]


def _shorten(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cut what goes into a module, (B, L, H) each, to (B, 1, H)."""
    return tuple(x[:, :1] if isinstance(x, torch.Tensor) and x.ndim == 3 else x for x in inputs)
