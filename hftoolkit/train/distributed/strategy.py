"""How weights, gradients and moments lie in the ranks of a run: whole in each, or sharded over them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from hftoolkit.train.distributed.collectives import sum_gradients

NamedTensors = Iterable[tuple[str, torch.Tensor]]


class Strategy(Protocol):
    """What the training loop, its weights and its checkpoints ask of either way. All ranks call the same in order.

    Attributes:
        name: what messages and state files call it.
        is_sharded: ranks depend on each other within a forward and backward pass. So all run equally many of them, and
            none can do a step again alone.
    """

    name: ClassVar[str]
    is_sharded: ClassVar[bool]

    def to_train(self, source: nn.Module) -> nn.Module:
        """Return what the steps train for a model of the caller's: that itself, or a copy that may be sharded."""

    def place(self, model: nn.Module, device: torch.device) -> None:
        """Put a model, which is the same in all ranks, on the device, in place: all of it, or the shard of this rank.

        Raises:
            EnvironmentFault: it has no blocks of the classes that were named.
        """

    def reduce_gradients(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        """After the last backward pass of a step, let each gradient be the sum over all ranks."""

    def full_state(self, tensors: NamedTensors, *, keep: bool) -> dict[str, torch.Tensor]:
        """Return whole tensors, by name; with not ``keep``, help the other ranks to them and return none."""

    def shard_like(self, like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Return of a whole tensor, which all ranks have, what this rank keeps of one that lies as ``like`` does."""

    def materialized(self, own: NamedTensors, model: nn.Module, source: nn.Module) -> AbstractContextManager[nn.Module]:
        """Inside, have the model whole.

        Args:
            own: names and tensors of the model that training changes.
            model: as it was placed.
            source: the model of the caller's, which may serve for it.
        """

    def clear_errors(self) -> AbstractContextManager[None]:
        """Inside, turn what ends steps that ranks do together into an error that says what to do."""

    def describe(self, model: nn.Module) -> str | None:
        """Return in a sentence what is sharded."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Each rank has all of the model; gradients are added up once a step. So it is with one process, too."""

    name: ClassVar[str] = "whole models"
    is_sharded: ClassVar[bool] = False

    def to_train(self, source: nn.Module) -> nn.Module:
        """Return the model itself."""
        return source

    def place(self, model: nn.Module, device: torch.device) -> None:
        """Put the model on the device."""
        model.to(device)

    def reduce_gradients(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        """Add up the gradients of all ranks."""
        sum_gradients(parameters, device)

    def full_state(self, tensors: NamedTensors, *, keep: bool) -> dict[str, torch.Tensor]:
        """Return the tensors, without copying."""
        return dict(tensors) if keep else {}

    def shard_like(self, like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        return tensor

    @contextmanager
    def materialized(self, own: NamedTensors, model: nn.Module, source: nn.Module) -> Iterator[nn.Module]:
        """Give the model as it is."""
        yield model

    def clear_errors(self) -> AbstractContextManager[None]:
        """Let errors through; a step that fails in one rank can be done again."""
        return nullcontext()

    def describe(self, model: nn.Module) -> str | None:
        """Return None."""
        return None


WHOLE: Strategy = Whole()
