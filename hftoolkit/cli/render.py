"""How events look in a terminal or a log file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from hftoolkit.contracts import AgentProgress, Emit, Evaluated, Event, InferenceProgress, Message, StepDone, Table
from hftoolkit.contracts.names import visible

PLAIN_LINES = 20  # progress lines of a whole run where there is no terminal to draw a bar in
PLAIN_WIDTH = 500  # columns of a file or a pipe: wide enough to cut no table
QUICK = 2.0  # seconds; inference that takes no longer is not talked about
PLAIN_PAUSE = 60.0  # seconds between lines on inference where there is no terminal to draw a bar in


@contextmanager
def render_events(*, stderr: bool = False) -> Iterator[Emit]:
    """Yield a function that shows events: live bars in a terminal, lines elsewhere.

    Args:
        stderr: show them there, because standard output is for results.
    """
    console = Console(highlight=False, stderr=stderr)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    columns = (
        TextColumn("{task.fields[work]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Renderer(console, progress)


class _Renderer:
    """Show one event at a time."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._bar: TaskID | None = None
        self._lines = 0  # how many twentieths of the run have been shown where there is no bar
        self._inference_bar: TaskID | None = None
        self._quiet_until: float | None = None  # clock at which inference is next talked about; None: there is none

    def __call__(self, event: Event) -> None:
        match event:
            case Message(text, level):
                warning = Text("warning: ", style="yellow") if level == "warning" else Text()
                self._console.print(warning + Text(visible(text, lines=True)), soft_wrap=True)
            case Table():
                self._console.print(Text(visible(event.title)), _table(event), sep="\n")
            case Evaluated():
                self._console.print(Text(_evaluation(event)), soft_wrap=True)
            case StepDone():
                self._step(event, f"loss {event.loss:.4f}  {event.examples_per_second:.1f} examples/s")
            case InferenceProgress():
                self._inference(event)
            case AgentProgress():
                self._step(event, _progress(event))

    def _step(self, event: StepDone | AgentProgress, numbers: str) -> None:
        if self._console.is_terminal:
            if self._bar is None:
                self._bar = self._progress.add_task(numbers, total=event.total_steps, work="training")
            self._progress.update(self._bar, completed=event.step, description=numbers)
        elif event.step * PLAIN_LINES // event.total_steps != self._lines:
            self._lines = event.step * PLAIN_LINES // event.total_steps
            self._console.print(f"step {event.step}/{event.total_steps}  {numbers}")

    def _inference(self, event: InferenceProgress) -> None:
        now = time.monotonic()
        if self._quiet_until is None:
            self._quiet_until = now + (QUICK if self._console.is_terminal else PLAIN_PAUSE)
        if event.done == event.total:
            if self._inference_bar is not None:
                self._progress.remove_task(self._inference_bar)
                self._progress.refresh()
            self._inference_bar = self._quiet_until = None
        elif now >= self._quiet_until and self._console.is_terminal:
            if self._inference_bar is None:
                self._inference_bar = self._progress.add_task("examples", total=event.total, work="inference")
            self._progress.update(self._inference_bar, completed=event.done, total=event.total)
        elif now >= self._quiet_until:
            self._quiet_until = now + PLAIN_PAUSE
            self._console.print(f"inference: {event.done} of {event.total} examples")


def _table(table: Table) -> RichTable:
    drawn = RichTable()  # its own title would be wrapped to the width of the table
    for index, column in enumerate(table.columns):
        drawn.add_column(Text(visible(column)), justify="left" if index == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(visible(cell)) for cell in row))
    return drawn


def _progress(event: AgentProgress) -> str:
    shown = ("episode_return", "loss", "mean_value", "td_error", "epsilon")
    numbers = [f"{name} {event.metrics[name]:.4g}" for name in shown if name in event.metrics]
    return "  ".join([*numbers, f"{event.steps_per_second:.0f} steps/s"])


def _evaluation(event: Evaluated) -> str:
    shown = [f"{name} {value:.4f}" for name, value in event.metrics.items() if "/" not in name]
    name = "greedy episodes" if "mean_return" in event.metrics else "validation"
    return f"{name} at step {event.step}: {'  '.join(shown)}{'  (best so far)' if event.is_best else ''}"
