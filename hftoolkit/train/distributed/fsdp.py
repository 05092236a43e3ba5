"""A model divided over the processes of a run by FSDP2, and the way between whole and divided tensors.

Each process keeps a part of every parameter, and with it of its gradient and of its moments. A unit of modules is put
together before it computes, in every process, so all of them must run the same number of forward and backward passes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True, slots=True)
class Sharding:
    """How FSDP2 is to divide a model.

    Attributes:
        by_blocks: put together one transformer block at a time; otherwise the whole model.
        block_classes: names of the classes that count as such blocks; none: those that are found.
        reshard_after_forward: divide a block again after its forward pass, and put it together anew for the backward.
    """

    by_blocks: bool
    block_classes: tuple[str, ...] = ()
    reshard_after_forward: bool = True

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return "FSDP2"


def divide(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, *, reshard_after_forward: bool) -> None:
    """Divide a model, which is the same in all processes, in place; its parts move to the device.

    Args:
        model: gets gradients that are sums over all processes.
        blocks: modules that are put together one at a time, inner ones first; what is in none is one unit.
        device: of this process.
        reshard_after_forward: see ``Sharding``.
    """
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh)
    for unit in (*blocks, model):
        assert isinstance(unit, FSDPModule)
        # Gradients are of sums of losses, and divided once by the examples of the step. gloo can only sum, too.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a divided tensor put together, on the CPU, in all processes, which must all ask; any other as it is."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Iterable[tuple[str, torch.Tensor]], *, keep: bool) -> dict[str, torch.Tensor]:
    """Return tensors ``whole``, one after the other, so that a process that does not ``keep`` them never holds all."""
    kept = {}
    for name, tensor in tensors:
        put_together = whole(tensor)
        if keep:
            kept[name] = put_together
    return kept


def laid_out_as(model: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor divided as ``model`` is, which takes no exchange; or itself, if that is not divided."""
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
