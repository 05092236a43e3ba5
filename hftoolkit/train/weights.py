"""The weights of a run: what its steps train, the moving average of that, and what is evaluated and kept of it.

Each rank has them whole, or sharded, as the strategy of the run says.
"""

from collections.abc import Collection, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hftoolkit.errors import DataError
from hftoolkit.models.tuning import batch_norms
from hftoolkit.train.devices import Accelerator
from hftoolkit.train.distributed.collectives import average_tensors
from hftoolkit.train.distributed.strategy import WHOLE, Strategy
from hftoolkit.train.optim import clip_to_mean


@dataclass(slots=True)
class Weights:
    """What a run trains.

    Attributes:
        source: the model as the caller has it, whole; at the end it gets the best weights.
        model: what the steps train: the source, or, where that is sharded, a copy of it.
        average: the moving average of ``model``, where there is one, sharded likewise.
        trained: names of the parameters that the run trains; some may join later.
        strategy: how all of it lies in the ranks.
    """

    source: nn.Module
    model: nn.Module
    average: AveragedModel | None
    trained: frozenset[str]
    strategy: Strategy

    @classmethod
    def of(
        cls, source: nn.Module, device: torch.device, *, ema_decay: float | None, strategy: Strategy = WHOLE
    ) -> "Weights":
        """Place a model as the strategy says, and begin its average.

        Raises:
            EnvironmentFault: there are no blocks of the classes that were named.
        """
        model, average = strategy.to_train(source), None
        if ema_decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))  # type: ignore[no-untyped-call]
        for each in (model,) if average is None else (model, average.module):
            strategy.place(each, device)
        trained = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        return cls(source, model, average, trained, strategy)

    @property
    def eval_model(self) -> nn.Module:
        """What is evaluated and kept, sharded as it may be: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def materialized(self) -> AbstractContextManager[nn.Module]:
        """Give the ``eval_model``, whole; all ranks enter."""
        own = trained_state(self.eval_model, self.trained)
        return self.strategy.materialized(own.items(), self.eval_model, self.source)

    def clip_to_mean(self, optimizer: Any, accelerator: Accelerator, num_examples: float, max_norm: float) -> float:
        """Turn the gradients of all ranks into those of the mean over examples, clip them, return their norm.

        Args:
            optimizer: as it was prepared.
            accelerator: of this process.
            num_examples: of all ranks, over whose losses the gradients are sums.
            max_norm: of all gradients together; the norm that is returned is the one before.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.strategy.reduce_gradients(parameters, accelerator.device)
        accelerator.unscale_gradients(optimizer)
        return clip_to_mean(parameters, num_examples, max_norm)

    def finish_update(self, frozen: Collection[nn.Module]) -> None:
        """Give batch norms that are not ``frozen`` the mean of all ranks' statistics; let the average follow."""
        moving = (module for module in batch_norms(self.model) if module not in frozen)
        average_tensors([buffer for module in moving for buffer in module.buffers() if buffer.is_floating_point()])
        if self.average is not None:
            self.average.update_parameters(self.model)


def trained_state(model: nn.Module, parameters: Set[str]) -> dict[str, torch.Tensor]:
    """Return, by name and without copying, what training changes: these parameters and persistent buffers."""
    trained = {name: parameter.data for name, parameter in model.named_parameters() if name in parameters}
    buffers = dict(model.named_buffers())
    return trained | {name: value for name, value in model.state_dict().items() if name in buffers}


def load_trained(
    model: nn.Module, parameters: Set[str], state: Mapping[str, torch.Tensor], *, strategy: Strategy = WHOLE
) -> None:
    """Put what ``trained_state`` gave, whole, into the model.

    Raises:
        DataError: the names are not those of this model.
    """
    own = trained_state(model, parameters)
    if unknown := own.keys() ^ state.keys():
        raise DataError(f"the checkpoint is of another model; they differ in {', '.join(sorted(unknown)[:3])}")
    model.load_state_dict(
        {name: strategy.shard_like(own[name], tensor) for name, tensor in state.items()}, strict=False
    )
