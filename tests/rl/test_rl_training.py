"""What surrounds an agent while it learns: interrupts, failures and advice, with an agent that only counts."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hftoolkit.contracts import Evaluated, Message
from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError, Interrupted, TrainingError
from hftoolkit.recipe import Interaction
from hftoolkit.rl.evaluation import Episodes
from hftoolkit.rl.training import Training
from hftoolkit.runs.checkpoint import newest_state


class Counter:
    """Step by step; fails where it is told to, before the step is counted or after."""

    def __init__(self, fails_at: int = 0, error: HFToolkitError | None = None, is_late: bool = False) -> None:
        self.step, self.fails_at, self.error, self.is_late = 0, fails_at, error, is_late

    def advance(self) -> None:
        fails = self.step == self.fails_at and self.error is not None
        self.step += not fails or self.is_late
        if fails:
            assert self.error is not None
            raise self.error

    def act(self, observations: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        raise AssertionError

    def report(self) -> dict[str, float]:
        return {}

    def advice(self) -> list[str]:
        return ["numbers are large"]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"nothing": np.zeros(1)}, {"step": self.step}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        self.step = values["step"]


def training(
    folder: Path,
    agent: Counter,
    *,
    points: int = 0,
    steps: int = 40,
    meanwhile: Callable[[int], None] = lambda step: None,
) -> tuple[Training, list[Any]]:
    """Return a training whose evaluations return the step they are at, after they did something meanwhile."""
    events: list[Any] = []

    def evaluate(look: Callable[[], None]) -> Episodes:
        meanwhile(agent.step)
        look()
        return Episodes(np.array([float(agent.step)]), np.array([1]))

    settings = Interaction(steps=steps, checkpoint_every=1000)
    made = Training(
        agent=agent, settings=settings, curve_points=points, evaluate=evaluate, checkpoints=folder, emit=events.append
    )
    return made, events


def saved_step(folder: Path) -> int | None:
    state = newest_state(folder, print)
    return None if state is None else state.step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_an_evaluation_is_obeyed_at_its_next_step_and_the_point_measured_on_resume(
    tmp_path: Path, number: int
) -> None:
    whole, _ = training(tmp_path / "whole", Counter(), points=4)
    whole.run()
    assert whole.curve == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]
    cut, _ = training(
        tmp_path / "cut",
        Counter(),
        points=4,
        meanwhile=lambda step: signal.raise_signal(number) if step == 20 else None,
    )
    with pytest.raises(Interrupted, match="at step 20"):
        cut.run()
    assert saved_step(tmp_path / "cut") == 20
    again, events = training(tmp_path / "cut", Counter(), points=4)
    assert again.resume()
    again.run()
    assert again.curve == whole.curve
    assert [event.step for event in events if isinstance(event, Evaluated)] == [20, 30, 40]


@pytest.mark.parametrize("error", [EnvironmentFault("it raised"), DataError("the reward is nan")])
def test_the_state_before_a_step_that_the_environment_failed_is_saved(tmp_path: Path, error: HFToolkitError) -> None:
    broken, _ = training(tmp_path, Counter(17, error))
    with pytest.raises(type(error), match=rf"{error}\. What was learned in 17 steps was saved; .* --resume"):
        broken.run()
    assert saved_step(tmp_path) == 17


def test_a_failed_evaluation_costs_no_step(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        raise EnvironmentFault("no licence")

    broken, _ = training(tmp_path, Counter(), points=2, meanwhile=fail)
    with pytest.raises(EnvironmentFault, match=r"no licence\. What was learned in 20 steps was saved"):
        broken.run()
    assert saved_step(tmp_path) == 20


def test_nothing_is_saved_where_nothing_was_learned_or_a_step_is_half_done(tmp_path: Path) -> None:
    for number, agent in enumerate((Counter(0, DataError("x")), Counter(5, TrainingError("x"), is_late=True))):
        broken, _ = training(tmp_path / str(number), agent)
        with pytest.raises(HFToolkitError, match=r"^x$"):
            broken.run()
        assert saved_step(tmp_path / str(number)) is None


def test_advice_is_given_once(tmp_path: Path) -> None:
    good, events = training(tmp_path, Counter())
    good.run()
    assert [event.text for event in events if isinstance(event, Message)] == ["numbers are large"]


def test_more_steps_extend_a_training_that_was_done(tmp_path: Path) -> None:
    training(tmp_path, Counter(), points=4)[0].run()
    longer, events = training(tmp_path, Counter(), points=4, steps=80)
    assert longer.resume() and longer.extended == [40]
    longer.run()
    assert longer.curve == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0), (60, 60.0), (80, 80.0)]
    assert any("extended from 40 to 80 steps" in event.text for event in events if isinstance(event, Message))
