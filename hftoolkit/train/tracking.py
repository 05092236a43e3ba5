"""Optional trackers, none by default: TensorBoard and Weights & Biases, through Accelerate."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from hftoolkit.contracts import AgentProgress, Emit, Evaluated, Event, StepDone
from hftoolkit.errors import EnvironmentFault
from hftoolkit.runs.directory import RunDir


@contextmanager
def tracked(names: Sequence[str], run: RunDir, emit: Emit) -> Iterator[Emit]:
    """Yield an ``emit`` that also sends numbers to the trackers of these names, which are closed at the end.

    Raises:
        EnvironmentFault: the package of a tracker is not installed.
    """
    trackers = [_start_tracker(name, run) for name in names]

    def listen(event: Event) -> None:
        emit(event)
        match event:
            case StepDone():
                values = {"loss": event.loss, "gradient_norm": event.gradient_norm, "lr": event.learning_rate}
            case Evaluated():
                values = {f"validation/{name}": value for name, value in event.metrics.items()}
            case AgentProgress():
                values = event.metrics
            case _:
                return
        for tracker in trackers:
            tracker.log(values, step=event.step)

    try:
        yield listen
    finally:
        for tracker in trackers:
            tracker.finish()


def _start_tracker(name: str, run: RunDir) -> GeneralTracker:
    package = {"tensorboard": "tensorboard", "wandb": "wandb"}[name]
    if importlib.util.find_spec(package) is None:
        raise EnvironmentFault(
            f"train.trackers names {name}, which is not installed: pip install 'hftoolkit[trackers]'"
        )
    run.tracking.mkdir(parents=True, exist_ok=True)
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = TensorBoardTracker(run.root.name, logging_dir=run.tracking)
    else:
        # Without a mode of the user's own, offline: it asks for no account and sends nothing.
        mode = os.environ.get("WANDB_MODE", "offline")
        tracker = WandBTracker("hftoolkit", dir=run.tracking, name=run.root.name, mode=mode)
    tracker.start()
    return tracker
