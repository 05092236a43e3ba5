"""More epochs for a finished run, made in a folder of its own: until they are done, the run stays what it was.

``RUN/extension`` begins with links to the checkpoints of the finished run, and is a run directory like any other. When
it is done, its files take the places of those of the run, one rename each. Who opens the run next ends what a kill cut.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from hftoolkit.errors import EnvironmentFault
from hftoolkit.recipe import AnyRecipe, dump_recipe
from hftoolkit.runs.directory import EXTENSION, RunDir, write_text
from hftoolkit.runs.lifecycle import locked


def begin_extension(run: RunDir, recipe: AnyRecipe) -> RunDir:
    """Make the run in which a finished one gets more epochs, and return it.

    Raises:
        EnvironmentFault: its folder cannot be made.
    """
    part = run.root / f".{EXTENSION}.{os.getpid()}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for path in (run.environment, run.backbone, run.data, run.labels, run.revisions, run.metrics, run.log):
            if path.is_file():
                shutil.copy2(path, part)
        for folder in (run.tracking, run.checkpoints, run.seeds):
            if folder.is_dir():
                shutil.copytree(folder, part / folder.name, copy_function=_copy)
        write_text(part / run.recipe.name, dump_recipe(recipe))
        os.rename(part, run.extension().root)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise EnvironmentFault(f"cannot make {run.extension().root}, to extend {run.root}: {error.strerror}") from error
    return run.extension()


def extended_run(run: RunDir) -> RunDir | None:
    """Return the finished run whose extension ``run`` is; None for any other run."""
    around = RunDir(run.root.parent)
    return around if run.root.name == EXTENSION and around.recipe.is_file() else None


def has_progress(extension: RunDir, run: RunDir) -> bool:
    """Return whether an extension saved a state that the finished run has not."""
    known, found = (
        {path.relative_to(each.root) for path in each.root.rglob("checkpoints/step-*")} for each in (run, extension)
    )
    return not found <= known


def hand_over(run: RunDir) -> RunDir:
    """Return the run with the files of ``run``: if that is a done extension, they go to the run that it extends."""
    extended = extended_run(run)
    if extended is None:
        return run
    end_hand_over(extended)
    return extended


def end_hand_over(run: RunDir) -> None:
    """If the run has an extension that is done, put its files in the places of those of the run.

    Raises:
        EnvironmentFault: another process does so, or the files cannot be moved.
    """
    done = run.extension()
    if not done.is_done() or done.is_at_work():
        return
    try:
        with locked(done):
            # status.json goes last: while it is there, the next process knows that this is to be ended.
            names = sorted(path.name for path in done.root.iterdir() if path not in (done.status, done.lock))
            for name in [*names, done.status.name]:
                _replace(done.root / name, run.root / name)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot put {done.root} in place of what {run.root} held: {error.strerror} ({error.filename}); both are "
            "complete, and the next command on the run tries again"
        ) from error
    shutil.rmtree(done.root, ignore_errors=True)


def _replace(new: Path, old: Path) -> None:
    aside = old.with_name(f".{old.name}-old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.is_dir():
        os.replace(old, aside)
    os.replace(new, old)
    shutil.rmtree(aside, ignore_errors=True)


def _copy(source: str, target: str) -> None:
    """Copy a file; of a checkpoint, which nobody changes, give it another name instead, if the disk knows links."""
    if "checkpoints" in Path(source).parts[-3:]:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
