"""ZeRO of DeepSpeed: each process keeps the moments, and in stage 2 the gradients, of its part of the weights alone.

The weights themselves stay whole in all processes, and the update is that of whole models. Batch size, accumulation,
clipping, learning rates and precision are the recipe's. DeepSpeed's own checkpoints, which are pickle, are not used.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from hftoolkit.errors import EnvironmentFault
from hftoolkit.train.distributed.collectives import BUCKET_ELEMENTS, sum_tensors, summed
from hftoolkit.train.distributed.fsdp import Sharding

COUNT = "step"  # the one entry of AdamW's state that is no tensor of the size of a parameter


@dataclass(frozen=True, slots=True)
class Zero:
    """How DeepSpeed is to divide a run.

    Attributes:
        stage: 1 divides the moments, 2 the gradients too.
    """

    stage: int

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return f"DeepSpeed ZeRO {self.stage}"


Division: TypeAlias = Sharding | Zero


def require_deepspeed() -> None:
    """Raise EnvironmentFault if DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise EnvironmentFault("distributed_type: DEEPSPEED needs DeepSpeed: pip install 'hftoolkit[zero]'")


class ZeroOptimizer:
    """An optimizer that does its work for the part of the weights that falls to this process.

    Args:
        model: on the device, the same in all processes; what it trains moves to other memory.
        optimizer: of the model.
        zero: what is divided.
        device: of this process.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, zero: Zero, device: torch.device) -> None:
        import deepspeed

        if device.type == "cpu":
            # Otherwise it looks for a compiler, to build an exchange that is not used here and ends at one machine.
            deepspeed.ops.__compatible_ops__ = {}
        for parameter in model.parameters():  # it cannot send those that are channels last
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # must be there, and is not used
            "managed_gradient_accumulation": False,
            "gradient_allreduce_op": "sum",
            "gradient_clipping": 0.0,  # it would clip
            "zero_optimization": {
                "stage": zero.stage,
                "reduce_bucket_size": BUCKET_ELEMENTS,
                "allgather_bucket_size": BUCKET_ELEMENTS,
                "compute_grad_norm": False,
            },
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
        self.backward: Callable[[torch.Tensor], Any] = engine.backward
        self._divided = engine.optimizer
        self._stage, self._device = zero.stage, device

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups with their learning rates."""
        return list(self._divided.param_groups)

    def clip_to_mean(self, num_examples: float, max_norm: float) -> float:
        """Add up the gradients of all processes, turn them into those of the mean, clip them; return their norm.

        Args:
            num_examples: of all processes, over which the gradients are sums.
            max_norm: of all gradients together; the norm that is returned is the one before.
        """
        if self._stage == 1:
            self._divided.set_gradient_accumulation_boundary(True)
            self._divided.reduce_gradients()
        else:  # they were added up in each backward pass
            self._divided.finalize_gradient_accumulation_boundary()
        own = [gradient for gradients in self._divided.averaged_gradients.values() for gradient in gradients]
        (square,) = summed([float(nn.utils.get_total_norm(own)) ** 2], self._device)
        norm = math.sqrt(square) / num_examples
        torch._foreach_mul_(own, min(1.0, max_norm / (norm + 1e-6)) / num_examples)
        return norm

    def step(self) -> None:
        """Update the own part of the weights, and get the other parts from the other processes."""
        self._divided.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._divided.zero_grad()

    def gathered(self) -> Iterator[tuple[nn.Parameter, dict[str, torch.Tensor]]]:
        """Yield each parameter and its state, put together, on the CPU; all processes must go through all of it."""
        for part, members in self._groups():
            state = self._divided.state[part]
            for parameter in members:
                yield parameter, {slot: _put_together(parameter, state[slot], slot) for slot in sorted(state)}

    def take_back(self, states: Mapping[nn.Parameter, Mapping[str, torch.Tensor]]) -> None:
        """Keep the own part of whole states, and of the weights that the model has now."""
        for part, members in self._groups():
            own: dict[str, torch.Tensor] = {}
            for parameter in members:
                for slot, tensor in states.get(parameter, {}).items():
                    if slot == COUNT:
                        own[slot] = tensor.to(self._device, copy=True)
                        continue
                    kept = own.setdefault(slot, torch.zeros_like(part))
                    if (fragment := parameter._hp_mapping) is not None:
                        _of(kept, fragment.hp_fragment_address).copy_(_of(tensor, fragment.lp_fragment_address))
            self._divided.state[part] = own
        self._divided.refresh_fp32_params()

    def _groups(self) -> Iterator[tuple[torch.Tensor, list[Any]]]:
        """Yield the own part, (N,), and all parameters of each group."""
        yield from zip(self._divided.single_partition_of_fp32_groups, self._divided.bit16_groups, strict=True)


def _put_together(parameter: Any, own: torch.Tensor, slot: str) -> torch.Tensor:
    """Return an entry of the state of a parameter, of which this process has what it keeps of the group.

    DeepSpeed's ``safe_get_full_optimizer_state`` would do that, but finds the state of the first group alone.
    """
    if slot == COUNT:
        return own.to("cpu", copy=True)  # each parameter of the group gets its own
    whole = torch.zeros(parameter.numel(), dtype=own.dtype, device=own.device)
    if (fragment := parameter._hp_mapping) is not None:
        _of(whole, fragment.lp_fragment_address).copy_(_of(own, fragment.hp_fragment_address))
    sum_tensors([whole])
    return whole.view(parameter.shape).cpu()


def _of(tensor: torch.Tensor, address: Any) -> torch.Tensor:
    return tensor.reshape(-1).narrow(0, address.start, address.numel)
