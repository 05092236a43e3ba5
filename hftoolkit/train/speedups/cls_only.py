"""A last block that computes only what the head reads, where the head reads the first position alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hftoolkit.train.speedups.cpu import block_stack

# The first module after attention that treats each position by itself: in BERT and its relatives, in DistilBERT, in the
# vision transformers of timm and in those of transformers.
CUTS = ("attention.output", "sa_layer_norm", "norm2", "layernorm_after")
# Largest difference of logits, in fp32, between a whole last block and a shortened one.
TOLERANCE = 1e-4


@contextmanager
def cls_position_only(model: nn.Module, logits: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Inside, the last block goes on with its first position after attention, if the head reads no other.

    A classifier on a first token ([CLS]) needs the keys and values of all positions of its last block, but attention's
    output layer and the feed-forward layers of one: an eighth less work in six blocks. Logits and gradients stay the
    same; with dropout, other masks are drawn. The other positions leave the block as zeros, or, where the block adds
    its input to them, as values that mean nothing. Models whose blocks are laid out in another way, or whose head reads
    more, are left as they are.

    Args:
        model: it may be wrapped by peft.
        logits: runs the model on a few real examples, (B, C) float32.
    """
    stack = block_stack(model)
    block = stack[-1] if stack is not None else None
    cut = next((module for name, module in block.named_modules() if name in CUTS), None) if block else None
    if block is None or cut is None or not _can_be_shortened(model, block, cut, logits):
        yield
        return
    with _shortened(block, cut):
        yield


@contextmanager
def _shortened(block: nn.Module, cut: nn.Module) -> Iterator[None]:
    """Inside, the cut gets the first position alone, and what leaves the block is filled up with zeros."""
    whole = 0  # positions that go into the cut

    def shorten(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal whole
        whole = next(x.shape[1] for x in inputs if _is_sequence(x))
        return tuple(x[:, :1] if _is_sequence(x) else x for x in inputs)  # (B, L, H) -> (B, 1, H)

    def fill(_: nn.Module, __: Any, output: Any) -> Any:
        states = _states(output)
        return _with_states(output, nn.functional.pad(states, (0, 0, 0, whole - states.shape[1])))

    with cut.register_forward_pre_hook(shorten), block.register_forward_hook(fill):
        yield


def _states(output: Any) -> torch.Tensor:
    """Return the hidden states, (B, L, H), that a block gives alone or first of several."""
    states: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return states


def _with_states(output: Any, states: torch.Tensor) -> Any:
    return states if isinstance(output, torch.Tensor) else (states, *output[1:])


def _is_sequence(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 3


def _can_be_shortened(model: nn.Module, block: nn.Module, cut: nn.Module, logits: Callable[[], torch.Tensor]) -> bool:
    training = model.training
    model.eval()
    try:
        if not _reads_first_alone(block, logits):
            return False
        with torch.no_grad():
            whole = logits()
            with _shortened(block, cut):
                short = logits()
        return torch.allclose(short, whole, rtol=TOLERANCE, atol=TOLERANCE)
    except (RuntimeError, ValueError, LookupError):  # a block that cannot do with one position
        return False
    finally:
        model.train(training)


def _reads_first_alone(block: nn.Module, logits: Callable[[], torch.Tensor]) -> bool:
    """Return whether the gradient of the logits reaches the first position of the block's output and no other."""
    leaves: list[torch.Tensor] = []

    def detach(_: nn.Module, __: Any, output: Any) -> Any:
        leaves.append(_states(output).detach().requires_grad_())
        return _with_states(output, leaves[0])

    with block.register_forward_hook(detach):
        total = logits().sum()
    if len(leaves) != 1 or leaves[0].ndim != 3:
        return False
    (gradient_BLH,) = torch.autograd.grad(total, leaves, allow_unused=True)
    return gradient_BLH is not None and bool(gradient_BLH[:, 0].any()) and not bool(gradient_BLH[:, 1:].any())
