"""What surrounds an agent while it learns: reports, the learning curve, checkpoints, interrupts."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from hftoolkit.contracts import AgentProgress, Emit, Evaluated, Message
from hftoolkit.errors import HFToolkitError, Interrupted
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

    def advice(self) -> list[str]:
        """Return what the user should know of what it saw so far, a sentence each."""
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
        evaluate: plays the episodes of one of them, and calls what it is given before each step.
        checkpoints: where its state is saved.
        emit: gets reports, evaluations and messages.
        seconds: spent learning so far.
        curve: (environment steps, mean return) of each evaluation so far.
        extended: steps after which the run was done and got more of them.
    """

    agent: Agent
    settings: Interaction
    curve_points: int
    evaluate: Callable[[Callable[[], None]], Episodes]
    checkpoints: Path
    emit: Emit
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    extended: list[int] = field(default_factory=list)
    _advised: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Learn until the last step.

        Raises:
            TrainingError: values or gradients are not finite, or diverge.
            Interrupted: SIGINT or SIGTERM arrived; the state was saved, and ``resume`` goes on from it.
            HFToolkitError: the environment failed; the state before the step that failed was saved.
        """
        with deferred_signals() as received:
            self._evaluate_if_due(received)  # an evaluation that was interrupted is done again
            while self.agent.step < self.settings.steps:
                before, started = self.agent.step, time.perf_counter()
                with self._saved_if_it_fails():
                    self.agent.advance()
                self.seconds += time.perf_counter() - started
                if self.agent.step * REPORTS // self.settings.steps > before * REPORTS // self.settings.steps:
                    self._report()
                self._evaluate_if_due(received)
                every = self.settings.checkpoint_every
                if self.agent.step // every > before // every:
                    self._save()
                self._stop_if_asked(received)
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
        self.extended = list(state.values.get("extended", []))
        self.emit(Message(f"resumed at step {self.agent.step} from {state.path}"))
        total = state.values.get("total_steps", self.settings.steps)
        if total < self.settings.steps:
            self.extended.append(self.agent.step)
            self.emit(
                Message(
                    f"extended from {total} to {self.settings.steps} steps: from here on exploration and learning rate "
                    f"are those of a run of {self.settings.steps} steps"
                )
            )
        return True

    def _evaluate_if_due(self, received: Sequence[int]) -> None:
        """Evaluate if one of the points of the learning curve, evenly spaced over the run, lies after the last one."""
        last = self.curve[-1][0] if self.curve else 0
        steps, points = self.settings.steps, self.curve_points
        if self.agent.step * points // steps <= last * points // steps:
            return
        with self._saved_if_it_fails():
            mean = float(self.evaluate(lambda: self._stop_if_asked(received)).returns.mean())
        self.curve.append((self.agent.step, mean))
        self.emit(Evaluated(self.agent.step, {"mean_return": mean}))

    def _stop_if_asked(self, received: Sequence[int]) -> None:
        if received:
            self._save()
            raise interrupted(received[0], self.agent.step)

    @contextmanager
    def _saved_if_it_fails(self) -> Iterator[None]:
        """Save what was learned so far where the environment fails, which leaves the agent as it was before."""
        step = self.agent.step
        try:
            yield
        except Interrupted:
            raise
        except HFToolkitError as error:
            if step == 0 or self.agent.step != step:  # nothing was learned; or an update failed, halfway through a step
                raise
            self._save()
            raise type(error)(
                f"{error}. What was learned in {step} steps was saved; once that is mended, the same command with "
                "--resume continues from there"
            ) from error

    def _report(self) -> None:
        speed = self.agent.step / self.seconds
        self.emit(AgentProgress(self.agent.step, self.settings.steps, self.agent.report(), speed))
        for sentence in self.agent.advice():
            if sentence not in self._advised:
                self._advised.add(sentence)
                self.emit(Message(sentence, "warning"))

    def _save(self) -> None:
        arrays, values = self.agent.state()
        save_state(
            self.checkpoints,
            step=self.agent.step,
            tensors={name: torch.from_numpy(array) for name, array in arrays.items()},
            values={
                "agent": values,
                "seconds": self.seconds,
                "curve": self.curve,
                "total_steps": self.settings.steps,
                "extended": self.extended,
            },
            keep=2 if sum(array.nbytes for array in arrays.values()) <= LARGE_STATE_BYTES else 1,
        )
