"""Signals that wait for the step in progress."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hftoolkit.errors import Interrupted


@contextmanager
def deferred_signals(*, second_stops: bool = True) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in progress can end; a second one stops at once if it may."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield received
        return

    def handle(number: int, _: FrameType | None) -> None:
        if received and second_stops:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupted(signal_number: int, step: int) -> Interrupted:
    """Return what to raise once the state after a step is on disk."""
    name = signal.Signals(signal_number).name
    return Interrupted(
        f"{name} at step {step}; everything was saved, and the same command with --resume continues there",
        signal_number,
    )
