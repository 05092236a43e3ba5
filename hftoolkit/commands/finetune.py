"""The composition root: what each command does, from the recipe to the run directory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftoolkit.commands.job import Job, join, prepare, train
from hftoolkit.commands.predictor import load_predictor
from hftoolkit.commands.predictor.common import prediction_columns
from hftoolkit.contracts import Emit, Event, Message
from hftoolkit.export.gate import GateReport, GateRows, export_model
from hftoolkit.hub.background import BackgroundPushes
from hftoolkit.hub.card import hub_id, write_card
from hftoolkit.hub.push import publish
from hftoolkit.hub.repository import announce
from hftoolkit.metrics.bootstrap import bootstrap_intervals, paired_difference
from hftoolkit.metrics.classification import classification_metrics, confusion_matrix
from hftoolkit.metrics.probabilities import to_decisions
from hftoolkit.recipe import Recipe
from hftoolkit.runs.checkpoint import prune
from hftoolkit.runs.directory import RunDir, recorded, write_json
from hftoolkit.runs.prediction_tables import check_output, write_or_format
from hftoolkit.runs.report import (
    confusion_table,
    overlay,
    per_class_table,
    results_table,
    worst_first,
    write_confusion_png,
    write_image_grid,
    write_predictions,
    write_reliability_png,
)
from hftoolkit.runs.resume import check_unchanged, new_run_or_old, write_origin
from hftoolkit.tasks.classification import ClassificationTask
from hftoolkit.tasks.image_classification import ImageClassificationTask
from hftoolkit.train.distributed.collectives import broadcast, is_main, shut_down
from hftoolkit.train.distributed.strategy import Strategy
from hftoolkit.train.loop import one_step
from hftoolkit.train.state import FitResult

GATE_ROWS = 64
WORST_SHOWN = 24
SAMPLES_SHOWN = 12


def finetune(recipe: Recipe, *, name: str, run_dir: Path | None, emit: Emit, resume: bool = False) -> Path | None:
    """Train, export, check and measure a model.

    Args:
        recipe: what to do.
        name: run name, used when ``run_dir`` is None.
        run_dir: exactly where the run goes, or is.
        emit: gets everything a user or a log wants to see.
        resume: go on with the run of that name or directory, from its newest checkpoint.

    Returns:
        The run directory; None in the processes that only help the main one.

    Raises:
        HFToolkitError: see ``errors``; status.json says what happened.
    """
    strategy = join(recipe)
    if not is_main():
        _help(recipe, RunDir(broadcast(Path())), strategy)
        return None
    run = new_run_or_old(recipe, name, run_dir, resume=resume)
    listen = run.recording(emit)
    pushes = BackgroundPushes(recipe.hub, run, listen)
    with recorded(run), pushes:
        write_origin(recipe, run, listen)
        announce(recipe.hub, create=True, emit=listen)
        broadcast(run.root)
        job = prepare(recipe, listen)
        check_unchanged(run.data, job.task.summary, "the data")
        check_unchanged(run.labels, job.task.labels.to_json(), "the classes")
        check_unchanged(run.backbone, job.origin, "the pretrained weights")
        broadcast("prepared")
        fitted, temperature, test = _fit(recipe, job, run, strategy, pushes.listen)
        gate = _export(recipe, job, run)
        listen(Message(f"reloaded {run.model} in a fresh process without hftoolkit: same predictions"))
        results = measure(recipe, job, test) | _training_facts(job, fitted, temperature, gate)
        write_json(run.results, results)
        _report(run, job.task, test, results, listen)
        if isinstance(job.task, ImageClassificationTask):
            _picture_report(run, job.task, job.tuned.model, test)
        write_card(run, recipe, results, job.task.summary, hub_id(recipe.model, job.weights))
        prune(run.checkpoints, keep=1)  # from which a larger train.epochs goes on
    pushes.finish()
    publish(recipe.hub, run, emit=listen)
    return run.root


def _help(recipe: Recipe, run: RunDir, strategy: Strategy) -> None:
    """Do the part of one process in a run that the main one leads."""
    broadcast("prepared")  # the main process has filled the caches, and found what is wrong
    _fit(recipe, prepare(recipe, _keep_silent), run, strategy, _keep_silent)


def _fit(recipe: Recipe, job: Job, run: RunDir, strategy: Strategy, emit: Emit) -> tuple[FitResult, float, np.ndarray]:
    """Do what takes all processes: train, fit the temperature, predict the test split."""
    fitted = train(recipe, job, run, emit=emit, strategy=strategy)
    emit(Message("best weights loaded; predicting validation and test in fp32, for calibration and results"))
    temperature = job.task.finish(job.tuned.model, job.infer)
    test = job.probabilities("test")
    shut_down()
    return fitted, temperature, test


def _keep_silent(event: Event) -> None:
    """Take an event that the main process tells."""


def rehearse(recipe: Recipe, *, run_dir: Path | None, emit: Emit) -> float:
    """Do all that precedes training and one real optimizer step; write nothing; return the loss of the step."""
    strategy = join(recipe)
    if run_dir is not None:
        RunDir.refuse_taken(run_dir)
    emit = emit if is_main() else _keep_silent
    if is_main():
        announce(recipe.hub, create=False, emit=emit)
    job = prepare(recipe, emit)
    with job.probe(recipe, emit):
        return one_step(
            job.task,
            job.tuned,
            train=recipe.train,
            evaluation=recipe.evaluation,
            accelerator=job.infer.accelerator,
            strategy=strategy,
        )


def measure(recipe: Recipe, job: Job, test: np.ndarray) -> dict[str, Any]:
    """Return the test metrics of the model and of the baselines, with intervals, as results.json has them."""
    targets = job.task.targets["test"]
    names, multi_label = job.task.labels.names, job.task.labels.multi_label
    samples, seed = recipe.evaluation.bootstrap_samples, recipe.train.seed
    baselines: dict[str, Any] = {}
    for name, other in (job.task.baselines("test", seed) if recipe.evaluation.baselines else {}).items():
        difference = paired_difference(
            test, other, targets, names, metric="macro_f1", samples=samples, seed=seed, multi_label=multi_label
        )
        measured = _measured(recipe, other, targets, names, multi_label)
        baselines[name] = measured | {"difference": {"macro_f1": difference}}
    return {
        "task": recipe.task.kind,
        "test": _measured(recipe, test, targets, names, multi_label),
        "baselines": baselines,
    }


def _measured(
    recipe: Recipe, probabilities: np.ndarray, targets: np.ndarray, names: tuple[str, ...], multi_label: bool
) -> dict[str, Any]:
    samples, seed = recipe.evaluation.bootstrap_samples, recipe.train.seed
    return {
        "examples": len(targets),
        "metrics": classification_metrics(probabilities, targets, names, multi_label=multi_label),
        "intervals": bootstrap_intervals(
            probabilities, targets, names, samples=samples, seed=seed, multi_label=multi_label
        ),
    }


def evaluate(folder: Path, *, split: str, source: str | None, emit: Emit) -> dict[str, Any]:
    """Measure the saved model of a run again, on one of its splits or on all rows of another table.

    Raises:
        DataError: the run has no model, its data changed since, or the other table does not fit.
        RecipeError: there is no such split.
    """
    predictor = load_predictor(folder, emit)
    examples, targets = predictor.labelled(split, source)
    recipe, labels = predictor.recipe, predictor.labels
    probabilities = predictor.probabilities(examples)
    measured = _measured(recipe, probabilities, targets, labels.names, labels.multi_label)
    title = f"{folder} on {source or split}, {len(targets)} examples"
    for table in _tables({"test": measured, "baselines": {}}, probabilities, targets, labels.names, title):
        emit(table)
    return measured


def predict(
    folder: Path, source: Path, *, lines: list[str] | None, output: Path | None, top_k: int | None, emit: Emit
) -> str:
    """Predict what is at ``source``, or ``lines``; write ``output``, or return the CSV text if it is None."""
    if output is not None:
        check_output(output, source)
    predictor = load_predictor(folder, emit)
    names, predictions = predictor.predict_path(source) if lines is None else ([], predictor.predict(lines))
    return write_or_format(prediction_columns(predictions, predictor.labels.names, names, top_k), output)


def _export(recipe: Recipe, job: Job, run: RunDir) -> GateReport:
    """Export and check on validation rows, the longest among them."""
    rows = job.task.datasets().splits["validation"]
    lengths = np.arange(len(rows)) if rows.lengths is None else rows.lengths
    chosen = np.argsort(-lengths, kind="stable")[:: max(1, len(rows) // GATE_ROWS)][:GATE_ROWS]
    batch = job.task.datasets().collate([rows.examples[index] for index in chosen])

    def logits(model: torch.nn.Module) -> np.ndarray:
        with torch.inference_mode():
            return job.task.plain_logits(model.eval(), batch).float().numpy()

    return export_model(
        job.tuned.model,
        run,
        save=job.task.save,
        rows=GateRows(lambda folder: job.task.gate_request(chosen, folder), logits, job.task.auto_class),
        labels=job.task.labels.names,
        save_base=job.save_base,
        adapter_base=hub_id(recipe.model, job.weights),
    )


def _report(run: RunDir, task: ClassificationTask, test: np.ndarray, results: dict[str, Any], emit: Emit) -> None:
    """Write pictures and test predictions, and show the closing tables."""
    names, targets, multi_label = task.labels.names, task.targets["test"], task.labels.multi_label
    title = f"Test split, {len(targets)} examples, 95 % intervals"
    for table in _tables(results, test, targets, names, title):
        emit(table)
    run.report.mkdir(exist_ok=True)
    if not multi_label:
        write_confusion_png(confusion_matrix(test, targets), names, run.report / "confusion.png")
    write_reliability_png(test, targets, run.report / "reliability.png")
    run.predictions.mkdir(exist_ok=True)
    write_predictions(
        run.predictions / "test.csv",
        task.row_numbers["test"],
        {task.unit: task.examples("test")},
        labels=_class_names(targets, names),
        predicted=_class_names(to_decisions(test, multi_label), names),
        probabilities=test,
        names=names,
    )


def _picture_report(run: RunDir, task: ImageClassificationTask, model: torch.nn.Module, test: np.ndarray) -> None:
    """Draw the worst errors, some images with predictions (for the card), and where the model looks in them."""
    targets, names, pixels = task.targets["test"], task.labels.names, task.pixels("test")
    decisions = to_decisions(test, multi_label=False)

    def grid(chosen: np.ndarray, path: Path, images: Sequence[np.ndarray] | None = None) -> None:
        titles = [
            f"{names[decisions[index]]} {test[index, decisions[index]]:.2f}\n(true: {names[targets[index]]})"
            for index in chosen
        ]
        write_image_grid(images or [pixels[int(index)] for index in chosen], titles, path)

    grid(worst_first(test, targets, WORST_SHOWN), run.report / "worst.png")
    samples = np.linspace(0, len(targets) - 1, min(SAMPLES_SHOWN, len(targets))).astype(int)
    grid(samples, run.model / "samples.png")
    maps = task.attention_maps(model, "test", samples, decisions[samples])
    heated = [overlay(pixels[int(index)], heat) for index, heat in zip(samples, maps, strict=True)]
    grid(samples, run.report / "where_it_looks.png", heated)


def _tables(results: Any, probabilities: np.ndarray, targets: np.ndarray, names: tuple[str, ...], title: str) -> Any:
    test = results["test"]
    yield replace(results_table(results), title=title)
    yield per_class_table(test["metrics"], test["intervals"], names)
    if targets.ndim == 1:
        yield confusion_table(confusion_matrix(probabilities, targets), names)


def _class_names(classes: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """One name a row, or for (N, C) 0/1 the names joined by ``|``."""
    if classes.ndim == 1:
        return [names[index] for index in classes]
    return ["|".join(name for name, chosen in zip(names, row, strict=True) if chosen) for row in classes]


def _training_facts(job: Job, fitted: FitResult, temperature: float, gate: GateReport) -> dict[str, Any]:
    return {
        "train": fitted.facts("examples"),
        "validation": {"metrics": dict(fitted.best.metrics)},
        "skipped": job.task.summary["skipped"],
        **job.task.facts(),
        "temperature": temperature,
        "gate": gate.to_json(),
    }
