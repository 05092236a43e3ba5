"""``hftoolkit.load``: the one public door to what was trained, a run here or a model on the Hub."""

from importlib import import_module
from pathlib import Path
from typing import Any

from hftoolkit.contracts import Emit
from hftoolkit.data.sources.resolve import resolve_model
from hftoolkit.data.sources.sealing import check_model_folder
from hftoolkit.errors import DataError
from hftoolkit.export.manifest import Manifest
from hftoolkit.recipe import load_any_recipe
from hftoolkit.runs.directory import RunDir


def load(source: str | Path, emit: Emit = lambda _: None) -> Any:
    """Return the predictor, recommender or policy of a finished run, of its ``model/`` folder, or of a Hub repository.

    Raises:
        DataError: there is no finished model of hftoolkit.
        EnvironmentFault: the Hub cannot be reached, or refuses.
    """
    folder = Path(source)
    if RunDir(folder).recipe.is_file():
        return import_module(load_any_recipe(RunDir(folder).recipe).commands).load_run(folder, emit)
    if not folder.is_dir():
        folder = resolve_model(str(source)).path
    if not Manifest.path(folder).is_file():
        raise DataError(
            f"{source} is neither a run directory nor a model of hftoolkit (no {Manifest.path(folder).name} in it); "
            "plain transformers, timm or sentence-transformers may load it"
        )
    check_model_folder(folder)
    manifest = Manifest.read(folder)
    return import_module(manifest.recipe.commands).load_model(folder, manifest, emit)
