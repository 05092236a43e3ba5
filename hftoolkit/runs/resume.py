"""Resume a run: find it, and check that recipe, data and packages are those it began with."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from hftoolkit.contracts import Emit, Message
from hftoolkit.data.sources.resolve import FILE_ENDINGS
from hftoolkit.data.sources.sealing import check_seal
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
from hftoolkit.runs.extension import begin_extension, end_hand_over, extended_run, has_progress
from hftoolkit.runs.versions import changes, describe_environment

Resume = bool | Literal["auto"]  # start a run; go on with one that is there; what a scheduler can repeat


def open_run(recipe: AnyRecipe, name: str, exact: Path | None, *, resume: Resume, emit: Emit) -> RunDir:
    """Return the run directory of a command that trains.

    Args:
        recipe: of the command.
        name: of the run, where ``exact`` is None.
        exact: the directory.
        resume: False: a new one. True: see ``run_to_resume``. ``auto``: a new one if there is none of this recipe, else
            that one; it alone may be done, and then nothing is left to do.
        emit: is told of an unfinished run of the same recipe that a new one leaves as it is.

    Raises:
        RecipeError: the directory is taken, or there is nothing to resume.
        EnvironmentFault: the directory cannot be made.
    """
    if resume is True:
        run = run_to_resume(recipe, name, exact)
    elif resume == "auto" and (found := _run_of(recipe, name, exact)) is not None:
        run = _continued(recipe, found)
    else:
        run = RunDir.create(name, exact)
        if exact is None:
            _tell_of_unfinished(recipe, name, run, emit)
        return run
    extended = extended_run(run)
    return begin_extension(extended, recipe) if extended is not None and not run.recipe.is_file() else run


def run_to_resume(recipe: AnyRecipe, name: str, exact: Path | None) -> RunDir:
    """Return the run to resume: ``exact``, or the newest of that name, those that are not done first.

    A finished fine-tuning is extended when the recipe has more epochs than before, and nothing else differs. That is a
    run of its own in the finished one, whose directory need not be there yet. One whose report lacks something is
    reported again.

    Raises:
        RecipeError: there is no such run, it is done, or its recipe is another one.
        DataError: it is done, and the state that it could be resumed from was removed.
    """
    run = _continued(recipe, RunDir.to_resume(name, exact))
    if run.is_done() and not run.missing_parts():
        more = "" if recipe.extended_by is None else f"; a larger {recipe.extended_by} would extend it"
        begun = run.extension()
        if begun.recipe.is_file() and recipe.extended_by is not None:
            epochs = attrgetter(recipe.extended_by)(load_alike(begun.recipe, recipe))
            more = f"; its extension is not: add --set {recipe.extended_by}={epochs} to go on with that"
        raise RecipeError(f"the run {run.root} is done; there is nothing to resume{more}")
    return run


def _continued(recipe: AnyRecipe, run: RunDir) -> RunDir:
    """Return the run to go on with: the one that was found, its extension, or itself if it is done and stays so."""
    end_hand_over(run)
    before = load_alike(run.recipe, recipe)
    changed = differences(before, recipe, ignored=FREE_TO_CHANGE)
    if run.is_done():
        if not changed:
            return run
        if _is_longer(before, recipe):
            return _extension(recipe, run)
    if changed:
        raise RecipeError(
            f"cannot resume {run.root} with another recipe:\n  "
            + "\n  ".join(changed)
            + "\ntake these changes back, or leave out --resume to start another run"
        )
    return run


def _extension(recipe: AnyRecipe, run: RunDir) -> RunDir:
    """Return the extension of a finished run, begun or not; one of another recipe that made no step is removed."""
    begun = run.extension()
    if begun.recipe.is_file():
        changed = differences(load_alike(begun.recipe, recipe), recipe, ignored=FREE_TO_CHANGE)
        if not changed:
            return begun
        if has_progress(begun, run) or begun.is_at_work():
            raise RecipeError(
                f"{run.root} is being extended by another recipe:\n  "
                + "\n  ".join(changed)
                + f"\ntake these changes back, or remove {begun.root} to begin another extension"
            )
    shutil.rmtree(begun.root, ignore_errors=True)
    if not has_states(run.checkpoints) and not run.seeds.is_dir():
        raise DataError(f"{run.checkpoints} is gone, and with it what {run.root} could be extended from")
    return begun


def _run_of(recipe: AnyRecipe, name: str, exact: Path | None) -> RunDir | None:
    """Return the run that a repeated command is about; None if it is to be started."""
    if exact is not None:
        run = RunDir(exact)
        return run if run.recipe.is_file() and not run.is_failed_start() else None
    found = [run for run in RunDir.named(name) if _same_recipe(recipe, run.recipe)]
    found = found or [run for run in RunDir.named(name) if _same_recipe(recipe, run.recipe, True) and run.is_done()]
    return max(found, key=RunDir.urgency, default=None)


def _same_recipe(recipe: AnyRecipe, written: Path, or_longer: bool = False) -> bool:
    try:
        before = load_alike(written, recipe)
    except RecipeError:  # of another kind
        return False
    return not differences(before, recipe, ignored=FREE_TO_CHANGE) or (or_longer and _is_longer(before, recipe))


def _tell_of_unfinished(recipe: AnyRecipe, name: str, new: RunDir, emit: Emit) -> None:
    """Say that there is a run of the same recipe that could be resumed, since it may be what was meant."""
    others = [run for run in RunDir.named(name) if run != new and _same_recipe(recipe, run.recipe)]
    with suppress(DataError):  # of a damaged status.json, which is not what this command is about
        others = [run for run in others if not run.is_done() and not run.is_at_work()]
        for run in sorted(others, key=RunDir.urgency)[-1:]:
            text = (
                f"{run.root} is an unfinished run of this recipe and stays as it is; {new.root} is another one, from "
                f"the first step. To go on with {run.root} instead, stop this and add --resume --run-dir {run.root}"
            )
            emit(Message(text, "warning"))


def write_manifest(recipe: AnyRecipe, run: RunDir, emit: Emit) -> None:
    """Write recipe.yaml and environment.json before anything else; warn if a resumed run finds another environment."""
    write_text(run.recipe, dump_recipe(recipe))
    if extended := extended_run(run):
        emit(Message(f"extending {extended.root} in {run.root}; until that is done, {extended.root} stays as it is"))
    environment = describe_environment()
    if run.environment.is_file():
        changed = list(changes(read_json(run.environment), environment))
        if changed:
            text = f"since the run began, this changed: {', '.join(changed)}; results may differ in the last bits"
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
    end_hand_over(run)
    run.check_finished()
    return run


def check_model(run: RunDir, emit: Emit) -> None:
    """Check that the model of a finished run is, file by file, the one that passed its gate.

    Raises:
        DataError: the run is not done, or a file was changed, removed or added.
    """
    end_hand_over(run)
    run.check_finished()
    if not check_seal(run.model):
        text = f"there is no {run.model_hashes}, so {run.model} is not checked: runs of earlier versions have none"
        emit(Message(text, "warning"))
