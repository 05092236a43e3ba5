"""What the process of a background push does: make a model of the best weights so far, and push it.

``hub.background`` starts it: ``python -m hftoolkit.commands.upload RUN PROCESS``. It reads the run and changes nothing
of it.
"""

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import torch

from hftoolkit.contracts import Folds
from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError
from hftoolkit.export.manifest import Manifest
from hftoolkit.hub.background import LINKED
from hftoolkit.hub.card import public_recipe, write_unfinished_card
from hftoolkit.hub.push import push_unfinished
from hftoolkit.models.lora import is_lora, merge
from hftoolkit.models.pretrained import Weights
from hftoolkit.models.tuning import apply_tuning
from hftoolkit.recipe import Recipe, load_recipe
from hftoolkit.runs.checkpoint import read_best
from hftoolkit.runs.directory import RunDir, read_json
from hftoolkit.runs.revisions import as_begun
from hftoolkit.tasks import task_of
from hftoolkit.train.weights import load_trained

ROOM_FOR_STATES = 2  # of the training, which must not run out of disk because of an upload


def main(folder: str, parent: str) -> None:
    """Push the weights that were linked for it; say on stderr, in one line, why that failed."""
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    torch.set_num_threads(1)
    try:
        push_best(RunDir.open(Path(folder)))
    except HFToolkitError as error:
        sys.exit(str(error))


def push_best(run: RunDir) -> None:
    """Make a plain model of the best weights so far, and push it.

    Raises:
        HFToolkitError: why that cannot be done; the run is as it was.
    """
    recipe = load_recipe(run.recipe)
    assert isinstance(recipe, Recipe) and recipe.hub is not None
    best, state = read_best(run.upload / LINKED)
    shutil.rmtree(run.upload / LINKED)  # which may take a moment, if the training has no use for them any more
    weights, kind = Weights(as_begun(recipe, run).model), task_of(recipe)
    if read_json(run.backbone) != weights.origin:
        raise DataError("the pretrained weights changed since the run began")
    schema = kind.schema_from_json(read_json(run.labels))
    base = kind.load(recipe, schema, weights)
    task = kind.build(recipe, schema, base, None)
    model = apply_tuning(base, recipe.tuning).model
    load_trained(model, {name for name, p in model.named_parameters() if p.requires_grad}, state)
    if isinstance(task, Folds):
        task.fold(model)
    if is_lora(model):
        model = merge(model)
    _check_room(run, model, state)
    folder = run.upload / run.model.name
    try:
        folder.mkdir()
        task.save(model.eval(), folder)
        Manifest(public_recipe(recipe), schema.to_json()).write(folder)
        write_unfinished_card(folder, recipe, task, read_json(run.data), weights.hub_id, best)
        push_unfinished(folder, recipe.hub, step=best.step, emit=lambda _: None)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_room(run: RunDir, model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Raise EnvironmentFault unless the disk has room for the model beside what training will write meanwhile."""
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    states = ROOM_FOR_STATES * 5 * sum(tensor.nbytes for tensor in state.values())  # weights, average, moments; best
    free = shutil.disk_usage(run.root).free
    if free < size + states:
        raise EnvironmentFault(f"the disk has {free / 1e6:,.0f} MB left, and the run itself may need them")


def _end_with(parent: int) -> None:
    """End this process when the one that trains has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
