"""Pushes of the best model so far while training goes on: in a process of its own, one at a time, in no hurry.

The training process only links the best weights, which takes no time, and starts the other one; that makes a model of
them and pushes it (``hftoolkit.commands.upload``). It ends when the training process does, whatever ends that.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

from hftoolkit.contracts import Emit, Evaluated, Event, Message, StepDone
from hftoolkit.data.sources.address import without_secrets
from hftoolkit.recipe import ClassifierHub
from hftoolkit.runs.checkpoint import best_at
from hftoolkit.runs.directory import RunDir

MODULE = "hftoolkit.commands.upload"
LINKED, ERRORS = "best", "errors.txt"  # in the folder of an upload: the weights, and what the process says
LOWEST_PRIORITY = 19
FINAL_WAIT_SECONDS = 600.0  # for the last upload, when the run is over
# The upload is no rank of the training, and leaves GPUs, whose memory the training needs, alone.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# It has the token, so modules that happen to lie in the current folder are not to be imported in place of real ones.
BACKGROUND_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",
}


class BackgroundPushes:
    """Hears the events of a run and pushes its best model so far, as ``hub.push_every`` says.

    Around the work of a run it is a context: if that fails, an upload on its way is stopped at once.
    """

    def __init__(self, hub: ClassifierHub | None, run: RunDir, emit: Emit) -> None:
        self._every = None if hub is None or hub.push_every == "never" else hub.push_every
        self._run = run
        self._emit = emit
        self._process: subprocess.Popen[bytes] | None = None
        self._step = 0  # of the upload on its way
        self._waiting: int | None = None  # step of the best weights that were not pushed yet
        self._counted_from: int | None = None  # step of the last start of an upload, or of this process

    def __enter__(self) -> "BackgroundPushes":
        shutil.rmtree(self._run.upload, ignore_errors=True)  # of a process that was killed
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._stop()

    def listen(self, event: Event) -> None:
        """Pass an event on; where an upload is due, start it. Nothing is waited for."""
        self._emit(event)
        if self._every is None or not isinstance(event, StepDone | Evaluated):
            return
        if self._counted_from is None:
            self._counted_from = event.step - 1
        if isinstance(event, Evaluated) and event.is_best:
            self._waiting = event.step  # newer weights take the place of those that wait
        if self._process is not None and self._process.poll() is not None:
            self._on_exit(self._process.returncode)
        is_free = self._process is None and event.step - self._counted_from >= self._every
        if is_free and self._waiting is not None:
            self._counted_from, self._step, self._waiting = event.step, self._waiting, None
            self._start()

    def finish(self) -> None:
        """Wait for the upload on its way, if there is one, so that it cannot follow the finished model."""
        if self._process is None:
            return
        self._emit(Message(f"waiting for the push of the best model so far, of step {self._step}, to end"))
        try:
            self._on_exit(self._process.wait(FINAL_WAIT_SECONDS))
        except subprocess.TimeoutExpired:
            self._warn(f"it took over {FINAL_WAIT_SECONDS:.0f} s more and was stopped")
        finally:
            self._stop()

    def _start(self) -> None:
        folder = self._run.upload
        command = [sys.executable, "-m", MODULE, str(self._run.root), str(os.getpid())]
        try:
            (folder / LINKED).mkdir(parents=True)
            # Links, because training removes the weights when it has better ones, and copies would take time.
            for file in best_at(self._run.checkpoints, self._step).iterdir():
                os.link(file, folder / LINKED / file.name)
            with (folder / ERRORS).open("wb") as errors:
                # A process group of its own, so that Ctrl-C reaches only the training process, which stops this one.
                self._process = subprocess.Popen(
                    command,
                    env=background_env(os.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    process_group=0,
                )
            os.setpriority(os.PRIO_PROCESS, self._process.pid, LOWEST_PRIORITY)
        except OSError as error:
            self._warn(f"it could not be started ({error.strerror})")
            self._stop()

    def _on_exit(self, code: int) -> None:
        if code == 0:
            self._emit(Message(f"hub: the best model so far, of step {self._step}, was pushed"))
        else:
            said = ""
            with suppress(OSError):
                said = (self._run.upload / ERRORS).read_text(encoding="utf-8", errors="replace").strip()
            self._warn(without_secrets(said.splitlines()[-1]) if said else f"exit code {code}")
        self._stop()

    def _warn(self, reason: str) -> None:
        text = f"the push of the best model so far, of step {self._step}, failed: {reason}"
        self._emit(Message(text, "warning"))

    def _stop(self) -> None:
        """End the process, if it lives, and remove what it worked on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._run.upload, ignore_errors=True)


def background_env(environment: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables for a background process: no rank, no GPU, one thread."""
    return {name: value for name, value in environment.items() if name not in LAUNCHER_VARIABLES} | BACKGROUND_VARIABLES
