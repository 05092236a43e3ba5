"""Fine-tune pretrained backbones from one recipe file and ship models that plain libraries load."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hftoolkit.commands.predict import Predictor
    from hftoolkit.recommend.predictor import RecommendationPredictor

__version__ = version("hftoolkit")


def load(run: str | Path) -> "Predictor | RecommendationPredictor":
    """Return a predictor for a finished run directory.

    Raises:
        DataError: the directory holds no finished model.
    """
    from hftoolkit.commands.predict import load_predictor
    from hftoolkit.recommend.predictor import is_recommender, load_recommender

    return load_recommender(Path(run)) if is_recommender(Path(run)) else load_predictor(Path(run))
