"""The run directory: paths of all its files, and how a run is created, opened and found again.

runs/NAME/  recipe.yaml environment.json backbone.json data.json labels.json metrics.jsonl train.log status.json
            results.json  checkpoints/step-000500/  checkpoints/best-000500/  model/  model/adapter/  model/recommender/
            users/  report/  predictions/  evaluations/  seeds/seed-0/  .lock  .upload/
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftoolkit.errors import DataError, EnvironmentFault, RecipeError


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run. Make one with ``create`` (new) or ``open`` (existing)."""

    root: Path

    @classmethod
    def create(cls, recipe_name: str, exact: Path | None = None) -> "RunDir":
        """Make a new, empty run directory: ``exact``, or ``runs/NAME``, ``runs/NAME-2``, ... .

        A directory whose run failed before its first step counts as free: it is emptied and used again.

        Raises:
            RecipeError: ``exact`` exists and is neither empty nor such a failed start.
            EnvironmentFault: the directory cannot be made.
        """
        try:
            if exact is None:
                return cls(_first_free(Path("runs"), recipe_name))
            cls.check_free(exact)
            _discard_failed_start(exact)
            exact.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"cannot make the run directory {error.filename}: {error.strerror}") from error
        return cls(exact)

    @classmethod
    def check_free(cls, exact: Path) -> None:
        """Raise RecipeError if ``create`` would refuse this directory."""
        taken = exact.exists() and (not exact.is_dir() or any(exact.iterdir()))
        if taken and not cls(exact)._is_failed_start():
            raise RecipeError(f"{exact} exists already and runs are never overwritten; choose another --run-dir")

    @classmethod
    def open(cls, root: Path) -> "RunDir":
        """Return an existing run.

        Raises:
            DataError: ``root`` is not a run directory.
        """
        run = cls(root)
        if not run.recipe.is_file():
            raise DataError(f"{root} is not a run directory (no {run.recipe.name} in it); name a folder under runs/")
        return run

    @classmethod
    def to_resume(cls, recipe_name: str, exact: Path | None = None) -> "RunDir":
        """Return ``exact``, or the newest run of that name: of those that are not done, if there are any.

        Raises:
            RecipeError: there is none.
        """
        if exact is not None:
            if not (run := cls(exact)).recipe.is_file():
                raise RecipeError(f"there is no run in {exact} to resume; leave out --resume to start one")
            return run
        name = re.compile(re.escape(recipe_name) + r"(-[0-9]+)?")
        found = [cls(path.parent) for path in Path("runs").glob("*/recipe.yaml") if name.fullmatch(path.parent.name)]
        if not found:
            raise RecipeError(f"there is no run of {recipe_name} in runs/; leave out --resume to start one")
        return max(found, key=lambda run: (not run.is_done(), run.recipe.stat().st_mtime))

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def backbone(self) -> Path:
        return self.root / "backbone.json"

    @property
    def data(self) -> Path:
        return self.root / "data.json"

    @property
    def labels(self) -> Path:
        return self.root / "labels.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def adapter(self) -> Path:
        return self.model / "adapter"

    @property
    def adapter_base(self) -> Path:
        """What the adapter was trained on, where no Hub id names it."""
        return self.adapter / "base"

    @property
    def recommender(self) -> Path:
        """What a recommender has beside its item tower."""
        return self.model / "recommender"

    @property
    def users(self) -> Path:
        """What the log says of its users: personal data, so not in ``model/``."""
        return self.root / "users"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def learning_curve(self) -> Path:
        return self.report / "learning_curve.png"

    @property
    def seeds(self) -> Path:
        """Where a run of several seeds keeps one run for each."""
        return self.root / "seeds"

    def seed(self, number: int) -> "RunDir":
        return RunDir(self.seeds / f"seed-{number}")

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def evaluations(self) -> Path:
        """Figures that ``evaluate`` measured after the run."""
        return self.root / "evaluations"

    @property
    def tracking(self) -> Path:
        return self.root / "tracking"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def upload(self) -> Path:
        """Where the best model so far is put together for a push during training; removed after it."""
        return self.root / ".upload"

    def is_done(self) -> bool:
        """Return whether the run ended well."""
        return self.status.is_file() and read_json(self.status).get("state") == "done"

    def check_finished(self) -> None:
        """Raise DataError unless the run ended well and has a model of its own."""
        if seeds := sorted(self.seeds.glob("*")):
            raise DataError(f"{self.root} holds several seeds; name one of them, for example {seeds[0]}")
        status = read_json(self.status)
        if status.get("state") != "done":
            why = f" ({status['reason']})" if status.get("reason") else ""
            raise DataError(f"the run {self.root} is {status.get('state')}{why}; name one that is done")

    def _is_failed_start(self) -> bool:
        """Return whether a run failed here before its first step, so that there is nothing to lose."""
        early = self.recipe, self.environment, self.backbone, self.data, self.labels, self.log, self.status, self.lock
        if not self.status.is_file() or not set(self.root.iterdir()) <= set(early):
            return False
        with suppress(DataError):
            return read_json(self.status).get("state") == "failed"
        return False


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as ``write_text`` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises:
        EnvironmentFault: the disk is full or the folder is not writable.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):  # where the folder is a file, there is nothing to remove and no way to ask
            part.unlink()
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of one of the run's JSON files.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return content


def _first_free(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            _discard_failed_start(path)
            path.mkdir()  # fails when another process was faster, so two runs never share a directory
        except FileExistsError:
            number += 1
        else:
            return path


def _discard_failed_start(root: Path) -> None:
    if not RunDir(root)._is_failed_start():
        return
    aside = root.with_name(f".{root.name}.{os.getpid()}")
    root.rename(aside)
    if RunDir(aside)._is_failed_start():
        shutil.rmtree(aside)
    else:  # between the look and the move, another process began a run here
        aside.rename(root)
