"""Fine-tune pretrained backbones from one recipe file and ship models that plain libraries load."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hftoolkit.predictor import Predictor

__version__ = version("hftoolkit")


def load(run: str | Path) -> "Predictor":
    """Return a predictor for a finished run directory.

    Raises:
        DataError: the directory holds no finished model.
    """
    from hftoolkit.predictor import load_predictor

    return load_predictor(Path(run))
