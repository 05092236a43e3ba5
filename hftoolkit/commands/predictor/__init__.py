"""Predictions from a finished run, with plain libraries underneath."""

from pathlib import Path

from hftoolkit.commands.predictor.common import Predictor
from hftoolkit.commands.predictor.images import ImagePredictor
from hftoolkit.commands.predictor.texts import TextPredictor
from hftoolkit.contracts import Emit
from hftoolkit.errors import DataError
from hftoolkit.recipe import ImageRecipe, RecommendationRecipe, TextRecipe, load_recipe
from hftoolkit.runs.resume import open_finished


def load_predictor(path: Path, emit: Emit = lambda _: None) -> Predictor:
    """Return the predictor of a classifier's run directory, which tells ``emit`` how far it is.

    Raises:
        DataError: there is no run, it did not finish, it holds another model than its labels, or it is no classifier.
    """
    run = open_finished(path)
    match load_recipe(run.recipe):
        case TextRecipe() as recipe:
            return TextPredictor(run, recipe, emit)
        case ImageRecipe() as recipe:
            return ImagePredictor(run, recipe, emit)
        case RecommendationRecipe():
            raise DataError(f"{path} is a recommender; type: hftoolkit recommend {path} --user ID")
        case other:
            raise AssertionError(type(other))
