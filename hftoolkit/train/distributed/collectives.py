"""Collectives: what the ranks of a run tell each other. In a run of one, everything stays as it is and nothing waits.

Every process calls the same functions in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from hftoolkit.errors import EnvironmentFault

T = TypeVar("T")
BUCKET_ELEMENTS = 16 << 20  # summed at a time: large enough to use the network, small beside the model


def num_processes() -> int:
    """Return how many ranks work on the run."""
    return int(dist.get_world_size()) if dist.is_initialized() else 1


def process_index() -> int:
    """Return the rank of this process, from 0."""
    return int(dist.get_rank()) if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this is the process that writes and tells."""
    return process_index() == 0


def broadcast(value: T) -> T:
    """Return what rank 0 passed."""
    if num_processes() == 1:
        return value
    box = [value]
    with _peers():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather(value: T) -> list[T]:
    """Return what each rank passed, in their order."""
    if num_processes() == 1:
        return [value]
    box: list[Any] = [None] * num_processes()
    with _peers():
        dist.all_gather_object(box, value)
    return box


def all_reduce_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the sum over all ranks of each value."""
    if num_processes() == 1:
        return [float(value) for value in values]
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    with _peers():
        dist.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def sum_tensors(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, many at a time."""
    if num_processes() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        with _peers():
            dist.all_reduce(flat)
        for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def average_tensors(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its mean over all ranks."""
    if num_processes() > 1 and tensors:
        sum_tensors(tensors)
        torch._foreach_div_(tensors, num_processes())


def sum_gradients(parameters: Sequence[nn.Parameter], device: torch.device) -> None:
    """Add up the gradients of all ranks; one that had no examples, or did not use a layer, has none."""
    if num_processes() == 1:
        return
    uses = all_reduce_sum([parameter.grad is not None for parameter in parameters], device)
    for parameter, count in zip(parameters, uses, strict=True):
        if count and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sum_tensors([parameter.grad for parameter in parameters if parameter.grad is not None])


def broadcast_tensors(tensors: Mapping[str, torch.Tensor] | None, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the tensors that the main process passed, on the CPU, as all may not fit elsewhere; others pass None."""
    if num_processes() == 1:
        assert tensors is not None
        return dict(tensors)
    kinds = broadcast({name: (tensor.shape, tensor.dtype) for name, tensor in (tensors or {}).items()})
    shared = {}
    for name, (shape, dtype) in kinds.items():
        own = torch.empty(shape, dtype=dtype) if tensors is None else tensors[name]
        tensor = own.detach().to(device).contiguous()
        with _peers():
            dist.broadcast(tensor, src=0)
        shared[name] = tensor.cpu()
    return shared


def shut_down() -> None:
    """Leave the process group; nothing is exchanged after that."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(each.numel() for each in bucket) >= BUCKET_ELEMENTS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL alike
        raise _lost(error) from error


@contextmanager
def explained_loss_of_ranks() -> Iterator[None]:
    """Inside, where computation and exchanges are mixed, the error that says that a process is gone says it clearly."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise _lost(error) from error
        raise


def _lost(error: RuntimeError) -> EnvironmentFault:
    return EnvironmentFault(
        f"lost the other ranks of this run ({str(error).splitlines()[0]}); the first message of one of them "
        "says why, and the same command with --resume continues from the last checkpoint"
    )
