"""Processes that are forked here and talk over gloo as under torchrun, and what they do together."""

import json
import multiprocessing
import os
import signal
import socket
import time
import traceback
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from doubles.toy_training import Attempt, ToyTask, stop_after, toy_model
from hftoolkit.errors import Interrupted
from hftoolkit.train.distributed.collectives import is_main, process_index, shut_down
from hftoolkit.train.distributed.launch import join_processes

PATIENCE_SECONDS = 180
STOP_SECONDS = 40  # until the last process is gone after one died


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def member(function, index, count, port, out, arguments):
    """Be one of ``count`` processes; leave what the function returns in ``out``."""
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the tests before, which were one process
    try:
        join_processes()
        torch.save(function(*arguments), f"{out}-{index}.pt")
        shut_down()
    except BaseException:
        Path(f"{out}-{index}.err").write_text(traceback.format_exc())
        raise


class Group:
    """Processes that work on one thing."""

    def __init__(self, folder, function, *arguments, count=2):
        context, port = multiprocessing.get_context("fork"), free_port()
        self.out = folder / f"answer-{port}"
        self.processes = [
            context.Process(target=member, args=(function, index, count, port, str(self.out), arguments))
            for index in range(count)
        ]
        for process in self.processes:
            process.start()

    def answers(self):
        for process in self.processes:
            process.join(PATIENCE_SECONDS)
        errors = [Path(f"{self.out}-{index}.err") for index in range(len(self.processes))]
        assert not any(path.exists() for path in errors), [path.read_text() for path in errors if path.exists()]
        return [torch.load(f"{self.out}-{i}.pt", weights_only=False) for i in range(len(self.processes))]


def together(folder, function, *arguments, count=2):
    """Return what each of ``count`` processes returned."""
    return Group(folder, function, *arguments, count=count).answers()


def attempt_in(folder, task=None, model=None):
    """Return an attempt at the run of all processes, which only the main one records."""
    attempt = Attempt(folder / "run", task, model)
    if not is_main():
        attempt.listen = attempt.events.append
    return attempt


def trained(folder, layers, knobs):
    """Train a toy model; return what this process has at the end."""
    attempt = attempt_in(folder, model=toy_model(**layers))
    fitted = attempt.fit(**knobs)
    return {
        "weights": attempt.weights,
        "best": dict(fitted.best.metrics),
        "step": fitted.progress.step,
        "examples": fitted.progress.examples,
        "drawn": attempt.task.drawn,
    }


def interrupted(folder, step, knobs, only):
    """Train until this step; the processes in ``only`` get a signal then."""
    attempt = attempt_in(folder, model=toy_model(0.5, batch_norm=True))
    tell, stop = attempt.listen, stop_after(step)
    attempt.listen = lambda event: (tell(event), stop(event) if process_index() in only else None)
    with pytest.raises(Interrupted) as caught:
        attempt.fit(**knobs)
    return caught.value.exit_code, str(caught.value)


def slow(folder):
    """Train for a long time."""
    task = ToyTask(disturb=lambda _, loss_sum: (time.sleep(0.02), loss_sum)[1])
    attempt = attempt_in(folder, task, toy_model(0.5))
    attempt.fit(epochs=1000, checkpoint_every=5)


def kill_one(group, victim, folder):
    """Kill a process of a group that has saved a state, and assert that the other ends and says why."""
    start = time.monotonic()
    while not list(folder.glob("run/checkpoints/step-*")):
        assert time.monotonic() - start < PATIENCE_SECONDS
        time.sleep(0.05)
    os.kill(group.processes[victim].pid, signal.SIGKILL)
    start = time.monotonic()
    for process in group.processes:
        process.join(STOP_SECONDS)
        assert not process.is_alive() and time.monotonic() - start < STOP_SECONDS
    (report,) = folder.glob("answer-*.err")
    assert "EnvironmentFault: lost the other ranks of this run" in report.read_text()


class ShortMemory(ToyTask):
    """The second process has room for two rows."""

    def loss(self, model, batch):
        if process_index() == 1 and len(batch["x"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(model, batch)


def events_close(left, right):
    events = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (left, right)]
    for one, other in zip(*events, strict=True):
        one, other = (each | each.get("metrics", {}) for each in (one, other))
        for key in one.keys() - {"event", "metrics", "examples_per_second"}:
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), key
    return len(events[0]) > 6
