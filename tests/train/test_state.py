"""When the state of a run goes to disk."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hftoolkit.train import state as train_state
from hftoolkit.train.state import SAVE_SECONDS, SAVE_SHARE, Checkpointer


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(train_state, "time", clock)
    return clock


def checkpointer(every: int | None) -> Checkpointer:
    nothing: Any = None
    return Checkpointer(Path("unused"), nothing, nothing, nothing, every, torch.device("cpu"))


def test_a_state_is_due_at_each_multiple_of_the_steps_and_at_no_other() -> None:
    saver = checkpointer(3)
    assert [step for step in range(1, 10) if saver.is_due(step, now=False)] == [3, 6, 9]
    assert all(saver.is_due(step, now=True) for step in range(1, 10))
    saver._saved_at = 6
    assert not saver.is_due(6, now=False) and not saver.is_due(6, now=True)
    assert saver.is_due(9, now=False) and not saver.is_due(7, now=False)


def test_without_a_number_of_steps_a_state_is_due_when_its_time_has_come_and_never_twice(clock: Clock) -> None:
    saver = checkpointer(None)
    assert not saver.is_due(1, now=False) and saver.is_due(1, now=True)
    clock.now += SAVE_SECONDS - 1
    assert not saver.is_due(2, now=False)
    clock.now += 1
    assert saver.is_due(2, now=False)
    saver._saved_at = 2
    assert not saver.is_due(2, now=False) and not saver.is_due(2, now=True)


@pytest.mark.parametrize(("seconds", "pause"), [(0.1, SAVE_SECONDS), (5.0, 5.0 / SAVE_SHARE)])
def test_saving_takes_at_most_a_hundredth_of_the_time(
    seconds: float, pause: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, written = checkpointer(None), []

    def write(*_: Any, step: int, **__: Any) -> None:
        clock.now += seconds
        written.append(step)

    monkeypatch.setattr(train_state, "save_state", write)
    monkeypatch.setattr(Checkpointer, "_tensors", lambda self: iter(()))
    saver.weights = type("Whole", (), {"strategy": type("S", (), {"full_state": lambda *_, keep: {}})()})()  # type: ignore[assignment]
    progress = train_state.TrainState(epochs=1, micro_batch_size=1, processes=1, step=7)
    saver.save(progress, None)
    assert written == [7] and not saver.is_due(7, now=True)
    clock.now += pause - 0.5
    assert not saver.is_due(8, now=False)
    clock.now += 0.6
    assert saver.is_due(8, now=False)
