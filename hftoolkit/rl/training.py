"""What surrounds an agent while it learns: reports, the learning curve, checkpoints, interrupts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from hftoolkit.contracts import AgentProgress, Emit, Evaluated, Message
from hftoolkit.recipe import Interaction
from hftoolkit.rl.evaluation import Episodes, Policy
from hftoolkit.runs.checkpoint import newest_state, save_state
from hftoolkit.train.signals import deferred_signals, interrupted

REPORTS = 100  # of a whole run
LARGE_STATE_BYTES = 1 << 30  # of larger ones, with a replay memory of images, the disk keeps only the newest


class Agent(Policy, Protocol):
    """An agent that learns while it acts."""

    step: int  # environment steps done

    def advance(self) -> None:
        """Act once in every environment, and learn what is due."""
        ...

    def report(self) -> dict[str, float]:
        """Return means since the last report."""
        ...

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all that decides what comes next: arrays, and values that JSON can hold."""
        ...

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave."""
        ...


@dataclass(slots=True)
class Training:
    """One agent's way to its last step.

    Attributes:
        agent: learns.
        settings: how long, and when its state is saved.
        curve_points: evaluations during training.
        evaluate: plays the episodes of one of them.
        checkpoints: where its state is saved.
        emit: gets reports, evaluations and messages.
        seconds: spent learning so far.
        curve: (environment steps, mean return) of each evaluation so far.
    """

    agent: Agent
    settings: Interaction
    curve_points: int
    evaluate: Callable[[], Episodes]
    checkpoints: Path
    emit: Emit
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def run(self) -> None:
        """Learn until the last step.

        Raises:
            TrainingError: values or gradients are not finite, or diverge.
            Interrupted: SIGINT or SIGTERM arrived; the state was saved, and ``resume`` goes on from it.
        """
        with deferred_signals() as received:
            while self.agent.step < self.settings.steps:
                before, started = self.agent.step, time.perf_counter()
                self.agent.advance()
                self.seconds += time.perf_counter() - started
                if self._passed(before, REPORTS):
                    self._report()
                if self._passed(before, self.curve_points):
                    self._evaluate()
                every = self.settings.checkpoint_every
                if received or self.agent.step // every > before // every:
                    self._save()
                if received:
                    raise interrupted(received[0], self.agent.step)
            self._save()  # what follows can be interrupted, too
            if received:
                raise interrupted(received[0], self.agent.step)

    def resume(self) -> bool:
        """Go back to the newest whole checkpoint; return False if there never was one.

        Raises:
            DataError: all are damaged, or the environment cannot be brought back.
        """
        state = newest_state(self.checkpoints, lambda sentence: self.emit(Message(sentence, "warning")))
        if state is None:
            return False
        self.agent.restore({name: tensor.numpy() for name, tensor in state.tensors.items()}, state.values["agent"])
        self.seconds = state.values["seconds"]
        self.curve = [(step, value) for step, value in state.values["curve"]]
        self.emit(Message(f"resumed at step {self.agent.step} from {state.path}"))
        return True

    def _passed(self, before: int, times: int) -> bool:
        """Return whether one of so many points, evenly spaced over the run, lies in the last step."""
        return self.agent.step * times // self.settings.steps > before * times // self.settings.steps

    def _report(self) -> None:
        speed = self.agent.step / self.seconds
        self.emit(AgentProgress(self.agent.step, self.settings.steps, self.agent.report(), speed))

    def _evaluate(self) -> None:
        mean = float(self.evaluate().returns.mean())
        self.curve.append((self.agent.step, mean))
        self.emit(Evaluated(self.agent.step, {"mean_return": mean}))

    def _save(self) -> None:
        arrays, values = self.agent.state()
        save_state(
            self.checkpoints,
            step=self.agent.step,
            tensors={name: torch.from_numpy(array) for name, array in arrays.items()},
            values={"agent": values, "seconds": self.seconds, "curve": self.curve},
            keep=2 if sum(array.nbytes for array in arrays.values()) <= LARGE_STATE_BYTES else 1,
        )
