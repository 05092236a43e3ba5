"""What makes training steps on CPUs faster. Knows modules of torch, not models."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Smaller tables are zeroed faster than their rows are gathered.
MIN_ELEMENTS = 1 << 20
# The numbers of glibc's malloc.h; 32 MiB is the largest threshold that it takes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD, TRIM_THRESHOLD = 32 << 20, 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: the page faults of taking it anew from the kernel cost time in every step."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)


@contextmanager
def faster_steps(model: nn.Module) -> Iterator[None]:
    """Inside, training steps of the model on CPUs are faster: all of this module at once."""
    keep_freed_memory()
    with low_precision_stream(model), row_gradients(model):
        yield


@contextmanager
def low_precision_stream(model: nn.Module) -> Iterator[None]:
    """Inside, what goes into the blocks is cast to the type of autocast, and with it all that is added to it later.

    Autocast leaves the sums around each block in fp32, with a cast before and after every linear layer between them.
    The cast is behind the embeddings of texts, and before the first of a stack of blocks for images. Outside of
    autocast, and for models of other kinds, nothing changes.
    """
    embeddings, stack = _embedding_block(model), block_stack(model)
    if embeddings is not None:
        handle = embeddings.register_forward_hook(lambda _, __, output: _cast(output))
    elif stack is not None:
        handle = stack[0].register_forward_pre_hook(lambda _, inputs: tuple(map(_cast, inputs)))
    else:
        yield
        return
    with handle:
        yield


def block_stack(model: nn.Module) -> nn.ModuleList | nn.Sequential | None:
    """Return the longest list of transformer blocks, which are modules of one class, or None if there is none."""
    return max(block_stacks(model), key=len, default=None)


def block_stacks(model: nn.Module) -> list[nn.ModuleList | nn.Sequential]:
    """Return all lists of transformer blocks; of a hierarchical model, its stages too."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 0 and _are_blocks(list(module))
    ]


def _are_blocks(modules: list[nn.Module]) -> bool:
    """Return whether modules are of one class, made of several, with linear layers and layer norms among them."""
    inside = list(modules[0].modules())
    has_both = all(any(isinstance(module, kind) for module in inside) for kind in (nn.Linear, nn.LayerNorm))
    return has_both and len({type(module) for module in modules}) == 1


@contextmanager
def row_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, the gradient of a large embedding table is collected from the rows that a batch uses.

    Otherwise every backward pass allocates and zeroes one of the size of the table. Here the pass gives rows, which
    are added into a dense gradient whose memory stays; the values are the same.
    """
    tables = _large_tables(model)
    weights: list[Any] = [table.weight for table in tables]
    handles = [weight.register_post_accumulate_grad_hook(_Densify(weight)) for weight in weights]
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table, handle in zip(tables, handles, strict=True):
            table.sparse = False
            handle.remove()


class _Densify:
    """Hook that turns the row gradient of a weight into a dense one, always in the same memory."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._dense = torch.zeros_like(weight, requires_grad=False)

    def __call__(self, weight: torch.Tensor) -> None:
        rows = weight.grad
        if rows is not None and rows.is_sparse:  # from the second micro-batch on, rows were added to the dense one
            weight.grad = self._dense.zero_().index_add_(0, rows._indices()[0], rows._values())


def _cast(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and torch.is_autocast_enabled("cpu"):
        return value.to(torch.get_autocast_dtype("cpu"))
    return value


def _embedding_block(model: nn.Module) -> nn.Module | None:
    """Return the module that turns tokens into vectors: around the largest table, but below the list of blocks."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    tables = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    if not tables:
        return None
    largest = max(tables, key=lambda name: modules[name].get_parameter("weight").numel())
    around = modules[largest.rpartition(".")[0]]
    holds_blocks = any(isinstance(module, nn.ModuleList) for module in around.modules())
    return modules[largest] if holds_blocks else around


def _large_tables(model: nn.Module) -> list[nn.Embedding]:
    """Return trainable tables, without those whose weights a second module uses: its gradients are dense."""
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and module.weight.requires_grad
        and module.weight.numel() >= MIN_ELEMENTS
        and users[id(module.weight)] == 1
        and not module.scale_grad_by_freq
    ]
