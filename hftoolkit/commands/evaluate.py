"""``evaluate``: measure the model of a finished run again."""

from pathlib import Path
from typing import Any

from hftoolkit.commands.predict import load_run
from hftoolkit.commands.results import measured_rows, result_tables, with_extra_metrics
from hftoolkit.commands.setup import prepare_extra_metrics
from hftoolkit.contracts import Emit
from hftoolkit.metrics.statistics import resample


def evaluate(folder: Path, *, split: str, source: str | None, emit: Emit, allow_code: bool = False) -> dict[str, Any]:
    """Measure the saved model of a run again, on one of its splits or on all rows of another source.

    Raises:
        DataError: the run has no model, its data changed since, or the other source does not fit.
        RecipeError: there is no such split, or the recipe names metrics whose code must not run.
    """
    predictor = load_run(folder, emit)
    extra = prepare_extra_metrics(predictor.recipe, allow_code=allow_code)
    recipe, rows = predictor.recipe, predictor.labelled(split, source)
    outputs = predictor.outputs(rows)
    statistics = predictor.task.score(outputs, rows)
    resamples = resample(statistics, samples=recipe.evaluation.bootstrap_samples, seed=recipe.train.seed)
    found = measured_rows(resamples, predictor.task, rows)
    found = with_extra_metrics(found, extra, predictor.task, outputs, rows, emit)
    title = f"{folder} on {source or split}, {len(rows)} examples"
    for table in result_tables(predictor.task, {"test": found, "baselines": {}}, outputs, rows, title):
        emit(table)
    return found
