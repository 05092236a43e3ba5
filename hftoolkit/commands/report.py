"""What follows the export of a model: it is measured, drawn and described, and nothing of that can cost it.

``hftoolkit report`` does so again for a finished run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hftoolkit.commands.predict import load_run
from hftoolkit.commands.results import (
    measure_baselines,
    measured_rows,
    result_tables,
    with_extra_metrics,
    write_test_predictions,
)
from hftoolkit.commands.setup import prepare_extra_metrics
from hftoolkit.contracts import Dataset, Draws, Emit, HasBaselines, Task
from hftoolkit.errors import HFToolkitError
from hftoolkit.hub.card import write_card, write_plain_card
from hftoolkit.metrics.extra import ExtraMetric
from hftoolkit.metrics.statistics import Resamples, resample
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe import Recipe
from hftoolkit.runs.attempts import Attempts
from hftoolkit.runs.directory import RunDir, read_json, write_json
from hftoolkit.runs.figures import write_training_curve_png
from hftoolkit.runs.lifecycle import finished_run_lifecycle, with_recording, write_status
from hftoolkit.runs.resume import open_finished

MEASURES, EXTRA, BASELINES, RESULTS, PICTURES, CURVE, PREDICTIONS, TABLES, CARD = PARTS = (
    "test metrics",
    "extra metrics",
    "baselines",
    "results.json",
    "pictures",
    "learning curve",
    "test predictions",
    "closing tables",
    "model card",
)


@dataclass(frozen=True, slots=True)
class Exported:
    """A model that passed the gate, and what its report is made of.

    Attributes:
        model: on the CPU, as it was exported.
        outputs: in fp32, one for each row of the test split.
        results: what results.json holds already.
    """

    run: RunDir
    recipe: Recipe
    task: Task
    model: nn.Module
    dataset: Dataset[Any]
    outputs: Sequence[Any]
    weights: Weights
    results: Mapping[str, Any]

    @property
    def rows(self) -> Sequence[Any]:
        """The rows of the test split."""
        return self.dataset.splits["test"]


def report(folder: Path, *, emit: Emit, allow_code: bool = False) -> None:
    """Try again what failed in the report of a finished run, and draw, write and show again what is there.

    Raises:
        DataError: the run has no model, or its data changed since.
        HFToolkitError: a part failed again.
    """
    run = open_finished(folder)
    listen = with_recording(run, emit)
    predictor = load_run(folder, listen)
    extra = prepare_extra_metrics(predictor.recipe, allow_code=True) if allow_code else ()
    dataset, results = predictor.own_data(), read_json(run.results)
    with finished_run_lifecycle(run):
        outputs = predictor.outputs(dataset.splits["test"])
        exported = Exported(
            run, predictor.recipe, predictor.task, predictor.model, dataset, outputs, predictor.weights, results
        )
        attempts = make_report(exported, extra, listen)
        write_status(run, "done", exit_code=0, **attempts.ending())
    if attempts.failed:
        what = ", ".join(attempts.failed)
        raise HFToolkitError(f"failed again: {what}; the model is not affected, and {run.log} says why")


def make_report(exported: Exported, extra: Sequence[ExtraMetric], emit: Emit) -> Attempts:
    """Measure, draw and describe a model; return what was tried of it.

    Metrics and baselines that results.json has already are kept.
    """
    run, task = exported.run, exported.task
    attempts, results = Attempts(run, emit), dict(exported.results)
    _measure(exported, results, extra, attempts, emit)
    with attempts.at(RESULTS):
        write_results(run, results, attempts.failed)
    with attempts.at(PICTURES):
        run.report.mkdir(exist_ok=True)
        if isinstance(task, Draws):
            task.draw(exported.model, exported.outputs, exported.rows, report=run.report, model_folder=run.model)
    with attempts.at(CURVE):
        run.report.mkdir(exist_ok=True)
        _draw_learning_curve(exported)
    with attempts.at(PREDICTIONS):
        run.predictions.mkdir(exist_ok=True)
        numbers = exported.dataset.row_numbers["test"]
        write_test_predictions(task, exported.outputs, exported.rows, numbers, run.predictions / "test.csv")
    if "test" not in results:
        for part in (TABLES, CARD):
            attempts.skip(part, f"there are no {MEASURES}")
    else:
        with attempts.at(TABLES):
            title = f"Test split, {len(exported.rows)} examples, 95 % intervals"
            for table in result_tables(task, results, exported.outputs, exported.rows, title):
                emit(table)
        with attempts.at(CARD):
            write_card(run, exported.recipe, task, results, exported.dataset.summary, exported.weights.hub_id)
    if CARD in attempts.failed:
        with attempts.at(CARD):
            write_plain_card(run, exported.recipe)
    with attempts.at(RESULTS):
        write_results(run, results, attempts.failed)
    return attempts


def write_results(run: RunDir, results: Mapping[str, Any], failed: Mapping[str, str]) -> None:
    """Write results.json: what was measured, and why what is not there failed."""
    first = {name: results[name] for name in ("task", "test", "baselines") if name in results}
    rest = {name: value for name, value in results.items() if name != "failed"}
    write_json(run.results, {**first, **rest, **({"failed": dict(failed)} if failed else {})})


def _measure(
    exported: Exported, results: dict[str, Any], extra: Sequence[ExtraMetric], attempts: Attempts, emit: Emit
) -> None:
    """Add metrics of the test split and of the baselines to results, where they are not there yet."""
    task, settings, rows, seed = exported.task, exported.recipe.evaluation, exported.rows, exported.recipe.train.seed
    found: list[Resamples] = []
    with attempts.at(MEASURES):
        ours = resample(task.score(exported.outputs, rows), samples=settings.bootstrap_samples, seed=seed)
        results.setdefault("test", measured_rows(ours, task, rows))
        found.append(ours)
    if not found:
        for part in (BASELINES, *([EXTRA] if extra else [])):
            attempts.skip(part, f"there are no {MEASURES}")
        return
    with attempts.at(EXTRA):
        results["test"] = with_extra_metrics(results["test"], extra, task, exported.outputs, rows, emit)
    if not settings.baselines or not isinstance(task, HasBaselines):
        results.setdefault("baselines", {})
    if "baselines" not in results:
        with attempts.at(BASELINES):
            simple = task.baselines(exported.dataset.splits["train"], rows, seed)  # type: ignore[attr-defined]
            results["baselines"] = measure_baselines(
                found[0], simple, compared_by=task.compared_by, samples=settings.bootstrap_samples, seed=seed
            )


def _draw_learning_curve(exported: Exported) -> None:
    """Draw what metrics.jsonl says of the training."""
    lines = exported.run.metrics.read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    losses = [(event["step"], event["loss"]) for event in events if event["event"] == "step"]
    evaluations = [(event["step"], event["metrics"]) for event in events if event["event"] == "evaluation"]
    if losses and evaluations:
        settings = exported.recipe.evaluation
        lower = settings.best_by in settings.lower_is_better
        alike = [name for name in exported.task.headline if (name in settings.lower_is_better) == lower]
        write_training_curve_png(losses, evaluations, [settings.best_by, *alike], exported.run.learning_curve)
