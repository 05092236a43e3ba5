"""The command line in Python: ``hftoolkit.finetune`` and the run that it returns."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hftoolkit.cli.options import commands_of
from hftoolkit.contracts import Event, Message
from hftoolkit.recipe import load_recipe, write_value

Resume = bool | Literal["auto"]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        root: its directory.
    """

    root: Path

    @property
    def model(self) -> Path:
        """The folder that plain libraries load."""
        return self.root / "model"

    @property
    def report(self) -> Path:
        """The folder of pictures."""
        return self.root / "report"

    @cached_property
    def results(self) -> dict[str, Any]:
        """The content of results.json: metrics with intervals, baselines, facts of the training."""
        content: dict[str, Any] = json.loads((self.root / "results.json").read_text(encoding="utf-8"))
        return content

    @cached_property
    def predictor(self) -> Any:
        """What ``hftoolkit.load`` gives for the run."""
        return load(self.root)

    def predict(self, rows: Any, **options: Any) -> Any:
        """Return the answer for each row, see ``Predictor.predict``."""
        return self.predictor.predict(rows, **options)


def load(source: str | Path) -> Any:
    """Do what ``hftoolkit.load`` does; what would be a warning of the command line is one of Python."""
    from hftoolkit.commands.load import load

    def warn(event: Event) -> None:
        if isinstance(event, Message) and event.level == "warning":
            warnings.warn(event.text, stacklevel=2)

    return load(source, warn)


def finetune(
    recipe: Path, changes: Mapping[str, Any], *, run_dir: Path | None, resume: Resume, allow_code: bool
) -> Run:
    """Train, export, check and measure a model; arguments and errors are those of ``hftoolkit.finetune``."""
    from hftoolkit.cli.render import render_events

    parsed = load_recipe(recipe, [f"{key}={write_value(value)}" for key, value in changes.items()])
    with render_events() as emit:
        where = commands_of(parsed).finetune(
            parsed, name=recipe.stem, run_dir=run_dir, emit=emit, resume=resume, allow_code=allow_code
        )
    assert where is not None, "several processes are started by a launcher, with the command line"
    return Run(where)
