"""What follows the export of a model, and must not cost it: each failure is a warning, and is recorded."""

import shlex
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from hftoolkit.contracts import Emit, Message
from hftoolkit.errors import EnvironmentFault, HFToolkitError, Interrupted
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.lifecycle import record_event

LONGEST_REASON = 300  # characters; the log has all


def complete_report(run: RunDir, report: Callable[[], None], emit: Emit) -> None:
    """Make the report of a finished run again if it lacks a part; else say that a command has nothing to do."""
    if run.missing_parts():
        report()
    else:
        emit(Message(f"the run {run.root} is done; there is nothing to do"))


class Attempts:
    """Parts of a report that are tried one by one.

    Attributes:
        failed: why, by part.
    """

    def __init__(self, run: RunDir, emit: Emit) -> None:
        self.failed: dict[str, str] = {}
        self._run = run
        self._emit = emit

    @contextmanager
    def at(self, part: str) -> Iterator[None]:
        """Do a part inside; where it fails, say so, keep the traceback in train.log, and go on after it."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, a trained model is worth more
            self._record(part, error)

    def skip(self, part: str, reason: str) -> None:
        """Record that a part could not be tried."""
        self.failed[part] = reason

    def ending(self) -> dict[str, list[str]]:
        """Return what status.json says of the parts that failed."""
        return {"without": list(self.failed)} if self.failed else {}

    def warn_of_missing(self) -> None:
        """Say how the run ends, where a part failed."""
        if self.failed:
            text = f"done, without {', '.join(self.failed)}: the model is exported and checked, and {self._run.log} "
            again = f"says what failed; to try that again, type: hftoolkit report {shlex.quote(str(self._run.root))}"
            self._emit(Message(text + again, "warning"))

    def _record(self, part: str, error: Exception) -> None:
        said = " ".join(str(error).split())
        reason = said if isinstance(error, HFToolkitError) else f"{type(error).__name__}: {said}"
        self.failed[part] = reason[:LONGEST_REASON]
        with suppress(EnvironmentFault):  # of a full disk, which may be what the part failed of
            record_event(self._run, Message("".join(traceback.format_exception(error)).rstrip(), "error"))
        with suppress(EnvironmentFault):
            self._emit(Message(f"{part}: failed ({self.failed[part]}); the trained model is not affected", "warning"))
