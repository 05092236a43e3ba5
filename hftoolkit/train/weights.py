"""The weights of a run: what its steps train, the moving average of that, and what is judged and kept of it.

Each process has them whole; or FSDP2 divides them, which only this module and ``sharding`` know of.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hftoolkit.errors import DataError, EnvironmentFault, TrainingError
from hftoolkit.models.tuning import batch_norms
from hftoolkit.train.devices import Accelerator, is_out_of_memory
from hftoolkit.train.distributed.collectives import average_tensors, lost_peers_are_told, num_processes, sum_gradients
from hftoolkit.train.distributed.fsdp import Sharding, divide, laid_out_as, whole
from hftoolkit.train.optim import clip_to_mean
from hftoolkit.train.speedups.cpu import block_stacks


@dataclass(slots=True)
class Weights:
    """What a run trains.

    Attributes:
        given: the model as the caller has it, whole; at the end it gets the best weights.
        model: what the steps train: the given one, or, where that is divided, a copy of it.
        average: the moving average of ``model``, where there is one, divided likewise.
        trained: names of the parameters that the run trains; some may join later.
        sharding: what is divided; None: each process has all of it.
    """

    given: nn.Module
    model: nn.Module
    average: AveragedModel | None
    trained: frozenset[str]
    sharding: Sharding | None

    @classmethod
    def of(
        cls, given: nn.Module, device: torch.device, *, ema_decay: float | None, sharding: Sharding | None
    ) -> "Weights":
        """Put a model on the device, or divide a copy of it, and begin its average.

        Raises:
            EnvironmentFault: there are no blocks of the classes that were named.
        """
        model = given if sharding is None else copy.deepcopy(given)
        if sharding is None:
            model.to(device)
        average = None
        if ema_decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))  # type: ignore[no-untyped-call]
        if sharding is not None:
            for each in (model,) if average is None else (model, average.module):
                blocks = _blocks(each, sharding)
                divide(each, blocks, device, reshard_after_forward=sharding.reshard_after_forward)
        trained = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        return cls(given, model, average, trained, sharding)

    @property
    def judged(self) -> nn.Module:
        """What is evaluated and kept, divided as it may be: the average where there is one."""
        return self.model if self.average is None else self.average.module

    @contextmanager
    def put_together(self) -> Iterator[nn.Module]:
        """Give what is ``judged``, whole; all processes enter."""
        if self.sharding is None:
            yield self.judged
            return
        own = trained_state(self.given, self.trained)
        for name, tensor in trained_state(self.judged, self.trained).items():
            own[name].copy_(whole(tensor))
        try:
            yield self.given
        finally:
            self.given.cpu()  # during steps the device has room for other things

    def prepare(self, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> tuple[Any, Callable[..., Any]]:
        """Return the optimizer as it is to be used, and what adds the gradients of a loss to those of this process."""
        return accelerator.prepare_optimizer(optimizer), accelerator.backward

    def clip_to_mean(self, optimizer: Any, accelerator: Accelerator, num_examples: float, max_norm: float) -> float:
        """Turn the gradients of all processes into those of the mean over examples, clip them, return their norm.

        Args:
            optimizer: as it was prepared.
            accelerator: of this process.
            num_examples: of all processes, over whose losses the gradients are sums.
            max_norm: of all gradients together; the norm that is returned is the one before.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.sharding is None:  # FSDP2 added them up in the backward pass
            sum_gradients(parameters, accelerator.device)
        accelerator.unscale_gradients(optimizer)
        return clip_to_mean(parameters, num_examples, max_norm)

    def describe(self) -> str:
        """Return in words what is divided."""
        assert self.sharding is not None
        blocks = sum(isinstance(module, FSDPModule) for module in self.model.modules()) - 1
        return (
            f"{self.sharding.name} divides the model over {num_processes()} processes, {blocks} blocks one by one and "
            "the rest at once; if memory runs out in a step, the run ends, instead of going on in smaller pieces"
        )

    def finish_update(self, frozen: Collection[nn.Module]) -> None:
        """Give batch norms that are not ``frozen`` the mean of all processes' statistics; let the average follow."""
        moving = (module for module in batch_norms(self.model) if module not in frozen)
        average_tensors([buffer for module in moving for buffer in module.buffers() if buffer.is_floating_point()])
        if self.average is not None:
            self.average.update_parameters(self.model)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Inside, what ends the steps of divided processes is told clearly. None of them can do a step alone.

    Raises:
        TrainingError: memory ran out in this process, while others may be in the middle of a step.
        EnvironmentFault: another process ended.
    """
    try:
        with lost_peers_are_told():
            yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "out of memory; a divided step cannot be done again in smaller pieces, because the other processes are in "
            "the middle of it. Start a run with a smaller train.micro_batch_size, or with "
            "model.gradient_checkpointing: true, which costs time"
        ) from error


def trained_state(model: nn.Module, parameters: Set[str]) -> dict[str, torch.Tensor]:
    """Return, by name and without copying, what training changes: these parameters and persistent buffers."""
    trained = {name: parameter.data for name, parameter in model.named_parameters() if name in parameters}
    buffers = dict(model.named_buffers())
    return trained | {name: value for name, value in model.state_dict().items() if name in buffers}


def load_trained(model: nn.Module, parameters: Set[str], state: Mapping[str, torch.Tensor]) -> None:
    """Put what ``trained_state`` gave, whole, into the model.

    Raises:
        DataError: the names are not those of this model.
    """
    own = trained_state(model, parameters)
    if unknown := own.keys() ^ state.keys():
        raise DataError(f"the checkpoint is of another model; they differ in {', '.join(sorted(unknown)[:3])}")
    model.load_state_dict({name: laid_out_as(own[name], tensor) for name, tensor in state.items()}, strict=False)


def _blocks(model: nn.Module, sharding: Sharding) -> list[nn.Module]:
    """Return the modules that FSDP2 puts together one at a time, inner ones first."""
    if not sharding.by_blocks:
        return []
    inside = list(model.modules())[:0:-1]  # without the model itself
    found = {module for stack in block_stacks(model) for module in stack}
    if not sharding.block_classes:
        return [module for module in inside if module in found]
    classes = {type(module).__name__ for module in inside}
    if missing := set(sharding.block_classes) - classes:
        likely = sorted({type(module).__name__ for module in found})
        raise EnvironmentFault(
            f"fsdp_transformer_layer_cls_to_wrap: the model has no {', '.join(sorted(missing))}; leave the line out, "
            f"and the transformer blocks are found ({', '.join(likely) or 'there are none here'})"
        )
    return [module for module in inside if type(module).__name__ in sharding.block_classes]
