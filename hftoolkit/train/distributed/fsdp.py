"""FSDP2: a model sharded over the ranks of a run, and the way between whole and sharded tensors.

Each rank keeps a shard of every parameter, and with it of its gradient and of its moments. A block of modules is put
together before it computes, in every rank, so all of them must run the same number of forward and backward passes.

The way to disk and back is not that of torch.distributed.checkpoint.state_dict, for exact resume: that refuses an
optimizer that has no state yet of parameters that join later, and gives moments another memory layout than weights.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hftoolkit.errors import EnvironmentFault, TrainingError
from hftoolkit.train.devices import is_out_of_memory
from hftoolkit.train.distributed.collectives import explained_loss_of_ranks, num_processes
from hftoolkit.train.distributed.strategy import NamedTensors
from hftoolkit.train.speedups.cpu import block_stacks


@dataclass(frozen=True, slots=True)
class Fsdp:
    """How FSDP2 is to shard a model. A ``Strategy``.

    The model that a run was given stays whole, on the host, and a copy of it is sharded.

    Attributes:
        by_blocks: put together one transformer block at a time; otherwise the whole model.
        block_classes: names of the classes that count as such blocks; none: those that are found.
        reshard_after_forward: shard a block again after its forward pass, and put it together anew for the backward.
    """

    name: ClassVar[str] = "FSDP2"
    is_sharded: ClassVar[bool] = True
    by_blocks: bool
    block_classes: tuple[str, ...] = ()
    reshard_after_forward: bool = True

    def to_train(self, source: nn.Module) -> nn.Module:
        """Return a copy."""
        return copy.deepcopy(source)

    def place(self, model: nn.Module, device: torch.device) -> None:
        """Shard the model; its gradients are then sums over all ranks.

        Raises:
            EnvironmentFault: it has no blocks of the classes that were named.
        """
        shard(model, self._blocks(model), device, reshard_after_forward=self.reshard_after_forward)

    def reduce_gradients(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        """Do nothing: each backward pass added them up."""

    def full_state(self, tensors: NamedTensors, *, keep: bool) -> dict[str, torch.Tensor]:
        """Return whole tensors, put together one after the other, so that a rank that keeps none never holds all."""
        kept = {}
        for name, tensor in tensors:
            whole = full_tensor(tensor)
            if keep:
                kept[name] = whole
        return kept

    def shard_like(self, like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Return a whole tensor sharded as ``like`` is, which takes no exchange; or itself, if that is not sharded."""
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    @contextmanager
    def materialized(self, own: NamedTensors, model: nn.Module, source: nn.Module) -> Iterator[nn.Module]:
        """Put the model together in ``source``, one tensor at a time."""
        places = dict(source.named_parameters()) | dict(source.named_buffers())
        for name, tensor in own:
            places[name].data.copy_(full_tensor(tensor))
        try:
            yield source
        finally:
            source.cpu()  # during steps the device has room for other things

    @contextmanager
    def clear_errors(self) -> Iterator[None]:
        """Inside, say clearly what ends the steps of all ranks. None of them can do a step alone.

        Raises:
            TrainingError: memory ran out in this rank, while others may be in the middle of a step.
            EnvironmentFault: another rank ended.
        """
        try:
            with explained_loss_of_ranks():
                yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                "out of memory; a sharded step cannot be done again in smaller micro-batches, because the other ranks "
                "are in the middle of it. Start a run with a smaller train.micro_batch_size, or with "
                "model.gradient_checkpointing: true, which costs time"
            ) from error

    def describe(self, model: nn.Module) -> str | None:
        """Return over how many ranks, and in what pieces, the model is sharded."""
        blocks = sum(isinstance(module, FSDPModule) for module in model.modules()) - 1
        return (
            f"model sharded over {num_processes()} ranks by {self.name}, {blocks} blocks one by one and the rest at "
            "once; if memory runs out in a step, the run ends, instead of trying smaller micro-batches"
        )

    def _blocks(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules that are put together one at a time, inner ones first."""
        if not self.by_blocks:
            return []
        inside = list(model.modules())[:0:-1]  # without the model itself
        found = {module for stack in block_stacks(model) for module in stack}
        if not self.block_classes:
            return [module for module in inside if module in found]
        classes = {type(module).__name__ for module in inside}
        if missing := set(self.block_classes) - classes:
            likely = sorted({type(module).__name__ for module in found})
            raise EnvironmentFault(
                f"fsdp_transformer_layer_cls_to_wrap: the model has no {', '.join(sorted(missing))}; leave the line "
                f"out, and the transformer blocks are found ({', '.join(likely) or 'there are none here'})"
            )
        return [module for module in inside if type(module).__name__ in self.block_classes]


def shard(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, *, reshard_after_forward: bool) -> None:
    """Shard a model, which is the same in all ranks, in place; its shards move to the device.

    Args:
        model: gets gradients that are sums over all ranks.
        blocks: modules that are put together one at a time, inner ones first; what is in none is one unit.
        device: of this rank.
        reshard_after_forward: see ``Fsdp``.
    """
    mesh = init_device_mesh(device.type, (num_processes(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh)
    for unit in (*blocks, model):
        assert isinstance(unit, FSDPModule)
        # Gradients are of sums of losses, and divided once by the examples of the step. gloo can only sum, too.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor put together, on the CPU, in all ranks, which must all ask; any other as it is."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
