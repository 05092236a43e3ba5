"""Fine-tune pretrained backbones from one recipe file and ship models that plain libraries load.

Public are ``load`` and ``finetune``, and the exceptions in ``hftoolkit.errors``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from hftoolkit.cli.api import Run

__version__: str
__all__ = ["__version__", "finetune", "load"]


def __getattr__(name: str) -> str:
    """Return ``__version__``, looked up when it is asked for.

    The modules that takes would, with ``python -m hftoolkit``, be looked for in the current folder first.
    """
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("hftoolkit")


def load(source: str | Path) -> Any:
    """Return the predictor, recommender or policy of a finished run, of its ``model/`` folder, or of a Hub repository.

    Raises:
        DataError: there is no finished model of hftoolkit.
        EnvironmentFault: the Hub cannot be reached, or refuses.
    """
    from hftoolkit.cli.api import load

    return load(source)


def finetune(
    recipe: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    run_dir: str | Path | None = None,
    resume: "bool | Literal['auto']" = False,
    allow_code: bool = False,
) -> "Run":
    """Do what ``hftoolkit finetune RECIPE --set KEY=VALUE`` does, with the same messages; return the finished run.

    Args:
        recipe: a recipe file.
        changes: ``{"train.epochs": 2}``.
        run_dir: exactly where the run goes, or is. Default: runs/RECIPE, then runs/RECIPE-2, ...
        resume: resume the unfinished run of that recipe, or in that directory; ``"auto"``: start it if there is none,
            and return it if it is done.
        allow_code: run Python code that the recipe names (``evaluation.extra_metrics``).

    Raises:
        HFToolkitError: see ``hftoolkit.errors``.
    """
    from hftoolkit.cli.api import finetune

    where = None if run_dir is None else Path(run_dir)
    return finetune(Path(recipe), changes or {}, run_dir=where, resume=resume, allow_code=allow_code)
