"""Predictions from a finished run, with plain libraries underneath."""

from pathlib import Path

from hftoolkit.errors import DataError
from hftoolkit.predictor.common import Prediction, Predictor
from hftoolkit.predictor.files import (
    as_csv,
    as_jsonl,
    check_output,
    prediction_columns,
    write_prediction_file,
)
from hftoolkit.predictor.images import ImagePredictor
from hftoolkit.predictor.texts import TextPredictor
from hftoolkit.recipe import ImageRecipe, TextRecipe, is_reinforcement_recipe, load_recipe
from hftoolkit.rundir import RunDir

__all__ = [
    "ImagePredictor",
    "Prediction",
    "Predictor",
    "TextPredictor",
    "as_csv",
    "as_jsonl",
    "check_output",
    "load_predictor",
    "prediction_columns",
    "write_prediction_file",
]


def load_predictor(path: Path) -> Predictor:
    """Return the predictor of a run directory.

    Raises:
        DataError: there is no run, it did not finish, or it holds another model than its labels.
    """
    run = RunDir.open(path)
    if is_reinforcement_recipe(run.recipe):
        raise DataError(f"{path} is a reinforcement-learning run; type: hftoolkit rl evaluate {path}")
    run.refuse_unfinished()
    match load_recipe(run.recipe):
        case TextRecipe() as recipe:
            return TextPredictor(run, recipe)
        case ImageRecipe() as recipe:
            return ImagePredictor(run, recipe)
        case other:
            raise AssertionError(type(other))
