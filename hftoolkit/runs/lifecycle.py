"""The life of a run: its lock, status.json, signals, and the recording of its events."""

import errno
import fcntl
import json
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from hftoolkit.contracts import AgentProgress, Emit, Evaluated, Event, Message, StepDone, Table
from hftoolkit.contracts.names import visible
from hftoolkit.data.sources.sealing import sync, sync_folder
from hftoolkit.errors import EnvironmentFault, Interrupted
from hftoolkit.runs.directory import RunDir, write_json, write_text


@contextmanager
def run_lifecycle(run: RunDir) -> Iterator[dict[str, Any]]:
    """Keep others out of the run and its status.json true, whatever ends the work inside.

    System errors get their place in the exception tree. Yields what status.json is to say beside ``done``.

    Raises:
        EnvironmentFault: another process works on the run.
    """
    ending: dict[str, Any] = {}
    with locked(run):
        write_status(run, "running")
        try:
            with _termination_raises(run):
                yield ending
                _make_durable(run)
        except BaseException as error:
            known = _known(error, run)
            state = "interrupted" if isinstance(known, Interrupted) else "failed"
            with suppress(EnvironmentFault):  # of a full disk; what went wrong first is what the user is told
                write_status(run, state, exit_code=getattr(known, "exit_code", 1), reason=str(known))
            if known is error:
                raise
            raise known from error
        write_status(run, "done", exit_code=0, **ending)


@contextmanager
def finished_run_lifecycle(run: RunDir) -> Iterator[None]:
    """Keep others out of a finished run, which stays finished whatever ends the work inside.

    System errors get their place in the exception tree.

    Raises:
        EnvironmentFault: another process works on the run.
    """
    with locked(run):
        try:
            with _termination_raises(run):
                yield
        except BaseException as error:
            known = _known(error, run)
            if known is error:
                raise
            raise known from error


def write_status(run: RunDir, state: str, **details: str | int | list[str] | None) -> None:
    """Record ``running``, ``done``, ``interrupted`` or ``failed`` in status.json, with the time in UTC."""
    write_json(run.status, {"state": state, "time": _now(), **details})
    if state == "done":
        sync(run.status)
        sync(run.root)


def with_recording(run: RunDir, emit: Emit) -> Emit:
    """Return a function that passes an event on and records it."""

    def listen(event: Event) -> None:
        emit(event)
        record_event(run, event)

    return listen


def record_event(run: RunDir, event: Event) -> None:
    """Append an event to ``metrics.jsonl`` (numbers) or ``train.log`` (sentences and tables)."""
    match event:
        case StepDone() | Evaluated() | AgentProgress():
            kind = {StepDone: "step", Evaluated: "evaluation", AgentProgress: "progress"}[type(event)]
            _append(run.metrics, json.dumps({"event": kind, **_finite(asdict(event))}, allow_nan=False))
        case Message(text, level):
            _append(run.log, f"{_now()} {level}: {visible(text, lines=True)}")
        case Table(title, columns, rows):
            lines = [title, " | ".join(columns), *(" | ".join(row) for row in rows)]
            _append(run.log, "\n  ".join(map(visible, lines)))


def truncate_log(run: RunDir, step: int) -> None:
    """Drop from ``metrics.jsonl`` what a run that resumes at ``step`` will do again."""
    if not run.metrics.is_file():
        return
    # A line without its end was cut off by a kill.
    lines = run.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    write_text(run.metrics, "".join(kept))


def _make_durable(run: RunDir) -> None:
    """Wait until the disk has all that "done" promises, which a loss of power could take back otherwise."""
    if run.model.is_dir():
        sync_folder(run.model)
    for path in (run.model_hashes, run.results, run.recipe, run.labels):
        if path.exists():
            sync(path)


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the lock of the run, which the system takes back from a process that dies.

    A record lock, because processes that are forked to read data would inherit one of ``flock``, and outlive this one.
    """
    try:
        file = run.lock.open("a+")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {run.lock}: {error.strerror}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise EnvironmentFault(
                f"another process ({file.read().strip() or 'unknown'}) is at work on {run.root}; "
                "wait until it has ended, or stop it"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield


def _known(error: BaseException, run: RunDir) -> BaseException:
    match error:
        case KeyboardInterrupt():
            return Interrupted(_what_remains("interrupted", run), signal.SIGINT)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            where = error.filename or run.root
            return EnvironmentFault(f"the disk is full ({where}); free some space, and resume it with --resume")
        case OSError(errno=errno.EACCES | errno.EROFS):
            return EnvironmentFault(f"no permission to write {error.filename or run.root}")
        case _:
            return error


def _what_remains(how: str, run: RunDir) -> str:
    if run.is_done():
        return (
            f"{how}; the model in {run.root} is finished; for the rest of its report, type: hftoolkit report {run.root}"
        )
    return f"{how}; what was written is in {run.root}, and the same command with --resume continues from there"


@contextmanager
def _termination_raises(run: RunDir) -> Iterator[None]:
    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(_what_remains("terminated", run), number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put null for what JSON has no number for, such as the gradient norm of a step that fp16 skipped."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
