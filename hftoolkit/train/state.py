"""The state of a training run: what of it decides what comes next, when it goes to disk, and the way back.

Adam's moments, like the weights, keep their layout in memory: an optimizer that walks through both at once needs that.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hftoolkit.contracts import Message
from hftoolkit.errors import DataError, EnvironmentFault
from hftoolkit.runs.checkpoint import Checkpoint, load_weights, newest_state, save_best, save_state
from hftoolkit.train.distributed.collectives import broadcast, broadcast_tensors, is_main
from hftoolkit.train.distributed.strategy import Strategy
from hftoolkit.train.weights import Weights, load_trained, trained_state

MODEL, AVERAGE, OPTIMIZER, AVERAGED_STEPS = "model", "average", "optimizer", "averaged_steps"
# Where the recipe does not say how often: about once a minute, and for at most a hundredth of the time.
SAVE_SECONDS, SAVE_SHARE = 60.0, 0.01


@dataclass(slots=True)
class TrainState:
    """How far a run is: what a checkpoint holds beside tensors.

    Attributes:
        epochs: of the recipe that the last step followed.
        micro_batch_size: examples of a forward pass of one process, as it is in force.
        processes: number of ranks. It and ``divided_by`` keep the names that files have.
        divided_by: what shards weights, gradients or moments over these ranks; None: nothing.
        step: optimizer steps done.
        examples: that these steps saw.
        seconds: that these steps took, without evaluation.
        evaluated_at: the step of the last evaluation.
        evaluations_since_best: without a better one.
        extensions: step, epochs before and epochs after, of each time the finished run was given more epochs.
    """

    epochs: int
    micro_batch_size: int
    processes: int
    divided_by: str | None = None
    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    evaluated_at: int = 0
    evaluations_since_best: int = 0
    extensions: list[tuple[int, int, int]] = field(default_factory=list)

    def adapt_to(self, fresh: "TrainState", total_steps: int) -> list[Message]:
        """Adapt to what the resuming process was started with, and say what that means."""
        messages = [Message(f"resumed after step {self.step} of {total_steps}")]
        if self.epochs != fresh.epochs:
            self.extensions.append((self.step, self.epochs, fresh.epochs))
            messages.append(
                Message(
                    f"extended from {self.epochs} to {fresh.epochs} epochs: from here on the learning rate is that of "
                    f"a run of {fresh.epochs} epochs at this step"
                )
            )
            self.epochs, self.evaluations_since_best = fresh.epochs, 0
        changed = []
        if self.processes != fresh.processes:
            changed.append(f"{fresh.processes} instead of {self.processes} ranks")
            self.processes, self.micro_batch_size = fresh.processes, fresh.micro_batch_size
        if self.divided_by != fresh.divided_by:
            changed.append(f"with {fresh.divided_by}" if fresh.divided_by else f"without {self.divided_by}")
            self.divided_by = fresh.divided_by
        if changed:
            what = ", ".join(changed)
            messages.append(Message(f"{what}: the run resumes, but will not be equal to the last bit", "warning"))
        return messages


@dataclass(frozen=True, slots=True)
class FitResult:
    """How training ended. The model that was trained now has the best weights."""

    progress: TrainState
    best: Checkpoint
    peak_memory_bytes: int  # of the device; of the whole process on CPUs

    def facts(self, unit: str) -> dict[str, Any]:
        """Return what results.json tells of the training; ``unit``: the plural of what an example is."""
        done = self.progress
        keys = ("step", "epochs", "to_epochs")
        extensions = [dict(zip(keys, each, strict=True)) for each in done.extensions]
        return {
            "seconds": done.seconds,
            f"{unit}_per_second": done.examples / done.seconds,
            "epochs": done.epochs,
            "steps": done.step,
            **({"extensions": extensions} if extensions else {}),
            "best_step": self.best.step,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


@dataclass(slots=True)
class Checkpointer:
    """Saves the state of a run and brings it back. Of several ranks, rank 0 alone reads and writes.

    Attributes:
        folder: of all checkpoints of the run.
        weights: what the run trains.
        optimizer: of these weights.
        scaler: of fp16 gradients, where there is one.
        every: optimizer steps between saves; None: by the clock.
        device: of this process.
    """

    folder: Path
    weights: Weights
    optimizer: Any
    scaler: Any
    every: int | None
    device: torch.device
    _next_save: float = field(init=False, default_factory=lambda: time.monotonic() + SAVE_SECONDS)
    _saved_at: int = field(init=False, default=0)  # the step of the newest state on disk

    def is_due(self, step: int, *, now: bool) -> bool:
        """Return whether the state after this step is to be saved, at the latest ``now``; never one that is saved."""
        due = time.monotonic() >= self._next_save if self.every is None else step % self.every == 0
        return step != self._saved_at and (due or now)

    def save(self, progress: TrainState, best: Checkpoint | None) -> None:
        """Write the state.

        Raises:
            EnvironmentFault: it could not be written; the one before is untouched.
        """
        start = time.monotonic()
        tensors = self.weights.strategy.full_state(self._tensors(), keep=is_main())
        if is_main():
            values = {"progress": asdict(progress), "scaler": None if self.scaler is None else self.scaler.state_dict()}
            save_state(self.folder, step=progress.step, tensors=tensors, values=values, best=best)
        now, self._saved_at = time.monotonic(), progress.step
        self._next_save = now + max(SAVE_SECONDS, (now - start) / SAVE_SHARE)

    def save_best(self, model: nn.Module, step: int, metrics: Mapping[str, float]) -> Checkpoint:
        """Write the weights, whole, that were evaluated as the best so far: those of the model or of its average."""
        best = None
        if is_main():
            state = trained_state(model, self.weights.trained)
            best = save_best(self.folder, step=step, weights=state, metrics=metrics)
        best = broadcast(best)
        assert best is not None
        return best

    def load_best(self, best: Checkpoint) -> None:
        """Put the best weights into the model that the run was given."""
        state = broadcast_tensors(load_weights(best.path) if is_main() else None, self.device)
        load_trained(self.weights.source, self.weights.trained, state)

    def restore(self, warn: Callable[[str], None]) -> tuple[TrainState, Checkpoint | None] | None:
        """Bring back the newest whole state, or return None if none was ever saved.

        Raises:
            DataError: all are damaged, or of another model, or of another version of hftoolkit.
            EnvironmentFault: the disk has no room for what the run will write.
        """
        state = None
        if is_main():
            self._check_room()
            state = newest_state(self.folder, warn)
        facts = broadcast(None if state is None else (state.values, state.best))
        if facts is None:  # each process should have drawn the same first weights; now it surely has them
            first = trained_state(self.weights.source, self.weights.trained) if is_main() else None
            first = broadcast_tensors(first, self.device)
            load_trained(self.weights.model, self.weights.trained, first, strategy=self.weights.strategy)
            return None
        values, best = facts
        self._load(broadcast_tensors(None if state is None else state.tensors, self.device))
        if self.scaler is not None:
            self.scaler.load_state_dict(values["scaler"])
        try:
            progress = TrainState(**values["progress"])
        except TypeError as error:
            raise DataError(
                f"the checkpoints in {self.folder} were written by another version of hftoolkit ({error}); resume with "
                "that version, or start a new run"
            ) from error
        self._saved_at = progress.step
        return progress, best

    def _check_room(self) -> None:
        """Raise EnvironmentFault if the disk has no room for the checkpoints and the model that the run will write."""
        trained = sum(map(_num_bytes, trained_state(self.weights.source, self.weights.trained).values()))
        state = trained * (3 if self.weights.average is None else 4)  # Adam keeps two moments of each weight
        # Two states and their best weights stay while a third is written.
        checkpoints = 3 * (state + trained)
        model = sum(map(_num_bytes, self.weights.source.parameters()))
        there = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        needed, free = checkpoints + model - there, shutil.disk_usage(self.folder.parent).free
        if needed > free:
            raise EnvironmentFault(
                f"the run needs {needed / 1e6:,.0f} MB more in {self.folder.parent} (checkpoints up to "
                f"{checkpoints / 1e6:,.0f} MB, the model {model / 1e6:,.0f} MB), and {free / 1e6:,.0f} MB are free; "
                "make room, or name a folder on a larger disk with --run-dir"
            )

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``part/name`` and tensor, without copying; the optimizer has none of parameters that join later."""
        model, average, trained = self.weights.model, self.weights.average, self.weights.trained
        for name, tensor in trained_state(model, trained).items():
            yield f"{MODEL}/{name}", tensor
        names = {parameter: name for name, parameter in model.named_parameters()}
        for parameter, slots in self.optimizer.state.items():
            for slot, tensor in slots.items():
                yield f"{OPTIMIZER}/{slot}/{names[parameter]}", tensor
        if average is not None:
            for name, tensor in trained_state(average.module, trained).items():
                yield f"{AVERAGE}/{name}", tensor
            yield f"{AVERAGED_STEPS}/", average.n_averaged

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        model, average, trained = self.weights.model, self.weights.average, self.weights.trained
        parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        strategy = self.weights.strategy
        load_trained(model, trained, parts[MODEL], strategy=strategy)
        parameters = dict(model.named_parameters())
        states: dict[nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in parts[OPTIMIZER].items():
            slot, _, name = key.partition("/")
            states[parameters[name]][slot] = tensor
        for parameter, slots in states.items():
            own = {slot: _in_place_of(parameter, tensor, strategy) for slot, tensor in slots.items()}
            self.optimizer.state[parameter].update(own)
        if average is not None:
            load_trained(average.module, trained, parts[AVERAGE], strategy=strategy)
            average.n_averaged.copy_(parts[AVERAGED_STEPS][""])


def _in_place_of(parameter: nn.Parameter, tensor: torch.Tensor, strategy: Strategy) -> torch.Tensor:
    """Return an entry of the optimizer's state of a parameter, where and as the optimizer wants it."""
    if tensor.shape == parameter.shape:
        return torch.empty_like(parameter).copy_(strategy.shard_like(parameter, tensor))
    return torch.empty_like(tensor, device=parameter.device).copy_(tensor)  # a count of steps


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
