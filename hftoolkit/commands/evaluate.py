"""``evaluate``: measure the model of a finished run again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hftoolkit.commands.predict import BadRowsOption, Predictor, load_run
from hftoolkit.commands.results import measured_rows, result_tables, with_extra_metrics
from hftoolkit.commands.setup import prepare_extra_metrics
from hftoolkit.contracts import Emit
from hftoolkit.errors import RecipeError
from hftoolkit.metrics.statistics import resample
from hftoolkit.recipe import Recipe
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.evaluations import keep_evaluation
from hftoolkit.runs.resume import meant_path


def evaluate(
    folder: Path,
    *,
    split: str,
    source: str | None,
    emit: Emit,
    allow_code: bool = False,
    on_bad_rows: BadRowsOption = "skip",
) -> dict[str, Any]:
    """Measure the saved model of a run again, on one of its splits or on all rows of another source.

    The figures are also written into the run, evaluations/NAME.json.

    Args:
        folder: of the run.
        split: of the run; ignored with ``source``.
        source: another table or folder.
        emit: gets the tables, and a warning of rows that are left out.
        allow_code: run the code of ``evaluation.extra_metrics``.
        on_bad_rows: whether rows of ``source`` that cannot be used are left out, or refused.

    Raises:
        DataError: the run has no model, its data changed since, or the other source does not fit.
        RecipeError: there is no such split, or the recipe names metrics whose code must not run.
    """
    predictor, run = load_run(folder, emit), RunDir(folder)
    extra = prepare_extra_metrics(_with_meant_modules(predictor.recipe, run), allow_code=allow_code)
    rows, facts = predictor.labelled(source, on_bad_rows) if source is not None else _own_rows(predictor, split)
    recipe, outputs = predictor.recipe, predictor.outputs(rows)
    statistics = predictor.task.score(outputs, rows)
    resamples = resample(statistics, samples=recipe.evaluation.bootstrap_samples, seed=recipe.train.seed)
    found = measured_rows(resamples, predictor.task, rows)
    found = with_extra_metrics(found, extra, predictor.task, outputs, rows, emit)
    title = f"{folder} on {source or split}, {len(rows)} examples"
    for table in result_tables(predictor.task, {"test": found, "baselines": {}}, outputs, rows, title):
        emit(table)
    keep_evaluation(run, facts, found, emit)
    return found


def _own_rows(predictor: Predictor, split: str) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the rows of a split of the run, and which these are."""
    splits = predictor.own_data().splits
    if split not in splits:
        raise RecipeError(f"--split {split}: the splits of this run are {', '.join(splits)}")
    return splits[split], {"split": split}


def _with_meant_modules(recipe: Recipe, run: RunDir) -> Recipe:
    """Return the recipe with metric modules where they were when the run was trained."""
    modules = tuple(meant_path(run, address) for address in recipe.evaluation.extra_metrics)
    evaluation = recipe.evaluation.model_copy(update={"extra_metrics": modules})
    return recipe.model_copy(update={"evaluation": evaluation})
