"""Resume a run: find it, and check that recipe, data and packages are those it began with."""

import json
import os
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from hftoolkit.contracts import Emit, Message
from hftoolkit.data.sources.resolve import FILE_ENDINGS
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.recipe import (
    FREE_TO_CHANGE,
    AnyRecipe,
    differences,
    dump_recipe,
    is_reinforcement_recipe,
    load_alike,
)
from hftoolkit.runs.checkpoint import has_states
from hftoolkit.runs.directory import RunDir, read_json, write_json, write_text
from hftoolkit.runs.versions import describe_environment


def open_run(recipe: AnyRecipe, name: str, exact: Path | None, *, resume: bool) -> RunDir:
    """Return a new run directory, or with ``resume`` that of an earlier run, see ``run_to_resume``."""
    return run_to_resume(recipe, name, exact) if resume else RunDir.create(name, exact)


def run_to_resume(recipe: AnyRecipe, name: str, exact: Path | None) -> RunDir:
    """Return the run to resume: ``exact``, or the newest of that name, those that are not done first.

    A finished fine-tuning is extended when the recipe has more epochs than before, and nothing else differs.

    Raises:
        RecipeError: there is no such run, it is done, or its recipe is another one.
        DataError: it is done, and the state that it could be resumed from was removed.
    """
    run = RunDir.to_resume(name, exact)
    before = load_alike(run.recipe, recipe)
    changed = differences(before, recipe, ignored=FREE_TO_CHANGE)
    if run.is_done():
        if _is_longer(before, recipe):
            if not has_states(run.checkpoints):
                raise DataError(f"{run.checkpoints} is gone, and with it what {run.root} could be extended from")
            return run
        if not changed:
            more = "" if recipe.extended_by is None else f"; a larger {recipe.extended_by} would extend it"
            raise RecipeError(f"the run {run.root} is done; there is nothing to resume{more}")
    if changed:
        raise RecipeError(
            f"cannot resume {run.root} with another recipe:\n  "
            + "\n  ".join(changed)
            + "\ntake these changes back, or leave out --resume to start another run"
        )
    return run


def write_manifest(recipe: AnyRecipe, run: RunDir, emit: Emit) -> None:
    """Write recipe.yaml and environment.json before anything else; warn if a resumed run finds other packages."""
    write_text(run.recipe, dump_recipe(recipe))
    environment = describe_environment()
    if run.environment.is_file():
        before, now = read_json(run.environment)["packages"], environment["packages"]
        changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
        if changed:
            text = f"packages changed since the run began, so results may differ in the last bit: {', '.join(changed)}"
            emit(Message(text, "warning"))
        if not has_states(run.checkpoints) and not run.seeds.is_dir():
            emit(Message("the run has no checkpoint yet; it begins at its first step"))
    write_json(run.environment, environment | {"folder": os.getcwd()})


def check_unchanged(path: Path, content: Mapping[str, Any], what: str) -> None:
    """Write what the run is made from, or compare it with what was written before the run was interrupted.

    Raises:
        DataError: it changed.
    """
    if path.is_file() and read_json(path) != json.loads(json.dumps(content)):
        raise DataError(
            f"{what} changed since the run began (see {path}), and a run resumes only with the same ones; bring back "
            "those of before, or leave out --resume to start another run"
        )
    write_json(path, content)


def _is_longer(before: AnyRecipe, recipe: AnyRecipe) -> bool:
    knob = recipe.extended_by
    if knob is None or attrgetter(knob)(recipe) <= attrgetter(knob)(before):
        return False
    return not differences(before, recipe, ignored=(*FREE_TO_CHANGE, knob))


def check_same_data(run: RunDir, source: str, fingerprint: str) -> None:
    """Raise DataError if ``source`` no longer gives the splits that the run was trained on."""
    trained_on = read_json(run.data)["fingerprint"]
    if fingerprint != trained_on:
        raise DataError(
            f"{source} has changed since the run (fingerprint {fingerprint[:12]}, was {trained_on[:12]}), so its "
            "splits are others; use --data to measure on any table"
        )


def meant_path(run: RunDir, address: str, advice: str | None = None) -> str:
    """Return an address of a run's recipe; a relative path from the folder that it was meant from.

    Args:
        run: that was trained with the recipe, perhaps in another folder than the current one.
        address: a path, or anything else, which is returned as it is.
        advice: what to do where it is gone; None returns the address also then.

    Raises:
        DataError: it is a relative path, and nothing is there any more.
    """
    folder = read_json(run.environment).get("folder") if run.environment.is_file() else None
    path = Path(os.path.expanduser(address))
    if folder is None or path.is_absolute() or ":" in address:
        return address
    if (Path(folder) / path).exists():
        return str(Path(folder) / path)
    if advice is not None and not path.exists() and (address.startswith(".") or address.lower().endswith(FILE_ENDINGS)):
        raise DataError(
            f"there is no {address} in {folder}, where the run was trained, and none in {Path.cwd()}; {advice}"
        )
    return address


def open_finished(path: Path) -> RunDir:
    """Return the run directory of a finished run of ``finetune``.

    Raises:
        DataError: there is no run, it did not finish, or it is one of reinforcement learning.
    """
    run = RunDir.open(path)
    if is_reinforcement_recipe(run.recipe):
        raise DataError(f"{path} is a reinforcement-learning run; type: hftoolkit rl evaluate {path}")
    run.check_finished()
    return run
