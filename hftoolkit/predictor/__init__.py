"""Predictions from a finished run, with plain libraries underneath."""

from pathlib import Path

from hftoolkit.contracts import Emit
from hftoolkit.errors import DataError
from hftoolkit.predictor.common import Prediction, Predictor
from hftoolkit.predictor.files import (
    as_csv,
    as_jsonl,
    check_output,
    prediction_columns,
    write_or_format,
    write_prediction_file,
)
from hftoolkit.predictor.images import ImagePredictor
from hftoolkit.predictor.recommendations import RecommendationPredictor
from hftoolkit.predictor.texts import TextPredictor
from hftoolkit.recipe import ImageRecipe, RecommendationRecipe, TextRecipe, is_reinforcement_recipe, load_recipe
from hftoolkit.rundir import RunDir

__all__ = [
    "ImagePredictor",
    "Prediction",
    "Predictor",
    "RecommendationPredictor",
    "TextPredictor",
    "as_csv",
    "as_jsonl",
    "check_output",
    "is_recommender",
    "load_predictor",
    "load_recommender",
    "prediction_columns",
    "write_or_format",
    "write_prediction_file",
]


def load_predictor(path: Path, emit: Emit = lambda _: None) -> Predictor:
    """Return the predictor of a classifier's run directory, which tells ``emit`` how far it is.

    Raises:
        DataError: there is no run, it did not finish, it holds another model than its labels, or it is no classifier.
    """
    run = _finished(path)
    match load_recipe(run.recipe):
        case TextRecipe() as recipe:
            return TextPredictor(run, recipe, emit)
        case ImageRecipe() as recipe:
            return ImagePredictor(run, recipe, emit)
        case RecommendationRecipe():
            raise DataError(f"{path} is a recommender; type: hftoolkit recommend {path} --user ID")
        case other:
            raise AssertionError(type(other))


def load_recommender(path: Path) -> RecommendationPredictor:
    """Return the recommender of a run directory.

    Raises:
        DataError: there is no run, it did not finish, or it is no recommender.
    """
    run = _finished(path)
    recipe = load_recipe(run.recipe)
    if not isinstance(recipe, RecommendationRecipe):
        raise DataError(f"{path} is a run of {recipe.task.kind}, which recommends nothing; use hftoolkit predict")
    return RecommendationPredictor.open(run, recipe)


def is_recommender(path: Path) -> bool:
    """Return whether a run directory is that of a recommender; a folder that is no run is not."""
    recipe = RunDir(path).recipe
    return (
        recipe.is_file()
        and not is_reinforcement_recipe(recipe)
        and isinstance(load_recipe(recipe), RecommendationRecipe)
    )


def _finished(path: Path) -> RunDir:
    run = RunDir.open(path)
    if is_reinforcement_recipe(run.recipe):
        raise DataError(f"{path} is a reinforcement-learning run; type: hftoolkit rl evaluate {path}")
    run.refuse_unfinished()
    return run
