"""The run directory: paths of all its files, and how a run is created, opened and found again.

runs/NAME/  recipe.yaml environment.json backbone.json data.json labels.json metrics.jsonl train.log status.json
            results.json  checkpoints/step-000500/  checkpoints/best-000500/  model/  model/adapter/  model/recommender/
            model.sha256  revisions.json  users/  report/  predictions/  evaluations/  seeds/seed-0/  extension/  .lock
            .upload/
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftoolkit.data.sources.sealing import MODEL_HASHES
from hftoolkit.errors import DataError, EnvironmentFault, RecipeError

PART = ".part"  # at the end of the name of a file that is being written
EXTENSION = "extension"


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
            _empty_failed_start(cls(exact))
            exact.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(f"cannot make the run directory {error.filename}: {error.strerror}") from error
        return cls(exact)

    @classmethod
    def check_free(cls, exact: Path) -> None:
        """Raise RecipeError if ``create`` would refuse this directory."""
        run = cls(exact)
        if exact.is_symlink() and not exact.exists():
            raise RecipeError(f"{exact} is a link to {os.readlink(exact)}, which is not there; make that folder first")
        if not exact.exists() or (exact.is_dir() and not run._entries()) or run.is_failed_start():
            return
        advice = f"{exact} exists already and runs are never overwritten; choose another --run-dir"
        with suppress(DataError):  # of a damaged status.json
            if run.recipe.is_file() and not run.is_done():
                advice += ", or add --resume to go on with the unfinished run in it"
        raise RecipeError(advice)

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
        found = cls.named(recipe_name)
        if not found:
            raise RecipeError(f"there is no run of {recipe_name} in runs/; leave out --resume to start one")
        return max(found, key=cls.urgency)

    @classmethod
    def named(cls, recipe_name: str) -> list["RunDir"]:
        """Return all runs of a recipe in ``runs/``: NAME, NAME-2, ... ."""
        name = re.compile(re.escape(recipe_name) + r"(-[0-9]+)?")
        return [cls(path.parent) for path in Path("runs").glob("*/recipe.yaml") if name.fullmatch(path.parent.name)]

    def urgency(self) -> tuple[bool, float]:
        """Return what is larger the more there is to go on with: unfinished work first, then the newest."""
        return not self.is_done() or self.extension().recipe.is_file(), self.recipe.stat().st_mtime

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
    def model_hashes(self) -> Path:
        """The hash of each file of ``model/``, as ``sha256sum --check`` reads them."""
        return self.root / MODEL_HASHES

    @property
    def revisions(self) -> Path:
        """The commit of each Hub address that the recipe does not pin."""
        return self.root / "revisions.json"

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

    def extension(self) -> "RunDir":
        """The run of more epochs that takes the place of this finished one when it is done."""
        return RunDir(self.root / EXTENSION)

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

    def missing_parts(self) -> list[str]:
        """Return what the report of a finished run lacks, because it failed or was stopped."""
        return list(read_json(self.status).get("without", [])) if self.is_done() else []

    def check_finished(self) -> None:
        """Raise DataError unless the run ended well and has a model of its own."""
        if seeds := sorted(self.seeds.glob("*")):
            raise DataError(f"{self.root} holds several seeds; name one of them, for example {seeds[0]}")
        status = read_json(self.status)
        if status.get("state") != "done":
            why = f" ({status['reason']})" if status.get("reason") else ""
            raise DataError(f"the run {self.root} is {status.get('state')}{why}; name one that is done")

    def is_failed_start(self) -> bool:
        """Return whether a run ended here before its first step, and no process is at work: nothing would be lost."""
        return self._has_nothing_to_lose() and not self.is_at_work()

    def is_at_work(self) -> bool:
        """Return whether a process holds the lock of the run; not to be asked by that process, which would lose it."""
        try:
            file = self.lock.open("r+")
        except FileNotFoundError:
            return False
        except PermissionError:  # of another account
            return True
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def _has_nothing_to_lose(self) -> bool:
        """Return whether all that is here was written by a run before its first step, and it failed or was killed."""
        first = {self.lock.name, self.status.name, self.status.name + PART, self.recipe.name + PART}
        written = self.recipe, self.environment, self.backbone, self.data, self.labels, self.revisions, self.log
        found = self._entries()
        if self.lock.name in found <= first:  # killed before recipe.yaml was written
            return True
        if not self.status.is_file() or not found <= first | {path.name for path in written}:
            return False
        with suppress(DataError):
            return read_json(self.status).get("state") == "failed"
        return False

    def _entries(self) -> set[str]:
        """Return the names of what is in the directory, but for what a file system puts into its top folder."""
        return {path.name for path in self.root.iterdir()} - {"lost+found"} if self.root.is_dir() else set()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as ``write_text`` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises:
        EnvironmentFault: the disk is full or the folder is not writable.
    """
    part = path.with_name(path.name + PART)
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"cannot read {path}: it holds no JSON object")
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
    """Remove a failed start in ``runs/``, whose name only one process can then take."""
    if root.is_symlink() or root.is_mount() or not RunDir(root).is_failed_start():
        return
    aside = root.with_name(f".{root.name}.{os.getpid()}")
    root.rename(aside)
    if RunDir(aside).is_failed_start():
        shutil.rmtree(aside)
    else:  # between the look and the move, another process began a run here
        aside.rename(root)


def _empty_failed_start(run: RunDir) -> None:
    """Remove what a failed start left, but not its directory: that may be a link, a mount point or the current one."""
    if not run.is_failed_start():
        return
    with run.lock.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # since the look, another process began a run here; it has the lock, and this one will be told
            return
        if run._has_nothing_to_lose():
            for name in run._entries() - {run.lock.name}:
                (run.root / name).unlink(missing_ok=True)
            run.lock.unlink(missing_ok=True)
