"""The composition root: what each command does, from the recipe to the run directory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftoolkit.contracts import Emit, Event, Message
from hftoolkit.data import TextSplits, clean_rows, load_text_splits, read_table
from hftoolkit.environment import describe_environment
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.export import GateReport, GateRows, export_model
from hftoolkit.hub import hub_id, write_card
from hftoolkit.job import Job, prepare, train
from hftoolkit.metrics.bootstrap import bootstrap_intervals, paired_difference
from hftoolkit.metrics.classification import classification_metrics, confusion_matrix
from hftoolkit.metrics.probabilities import to_decisions
from hftoolkit.models.backbones import save_classifier
from hftoolkit.predictor import (
    Predictor,
    as_csv,
    check_output,
    load_predictor,
    predict_file,
    prediction_columns,
    write_prediction_file,
)
from hftoolkit.recipe import Recipe, dump_recipe
from hftoolkit.report import (
    confusion_table,
    per_class_table,
    results_table,
    write_confusion_png,
    write_predictions,
    write_reliability_png,
)
from hftoolkit.rundir import RunDir, read_json, recorded, write_json
from hftoolkit.sources import public_address, resolve_data
from hftoolkit.trainer import Fitted, one_step

GATE_ROWS = 64


def finetune(recipe: Recipe, *, name: str, run_dir: Path | None, emit: Emit) -> Path:
    """Train, export, check and measure a model; return its run directory.

    Args:
        recipe: what to do.
        name: run name, used when ``run_dir`` is None.
        run_dir: exactly where the run goes; it must not exist or be empty.
        emit: gets everything a user or a log wants to see.

    Raises:
        HFToolkitError: see ``errors``; status.json says what happened.
    """
    run = RunDir.create(name, run_dir)
    listen = _both(emit, run.record)
    with recorded(run):
        run.recipe.write_text(dump_recipe(recipe), encoding="utf-8")
        write_json(run.environment, describe_environment())
        job = prepare(recipe, listen)
        write_json(run.data, job.task.splits.summary)
        write_json(run.labels, job.task.labels.to_json())
        fitted = train(recipe, job, run, emit=listen)
        listen(Message("best weights loaded; predicting validation and test in fp32, for calibration and results"))
        temperature = job.task.finish(job.tuned.model, job.infer)
        test = job.probabilities("test")
        gate = _export(recipe, job, run)
        listen(Message(f"reloaded {run.model} in a fresh process without hftoolkit: same predictions"))
        results = measure(recipe, job, test) | _training_facts(job, fitted, temperature, gate)
        write_json(run.results, results)
        _report(run, job.task.splits, test, results, listen)
        write_card(run, recipe, results, job.task.splits.summary, hub_id(recipe, job.weights))
    return run.root


def rehearse(recipe: Recipe, *, run_dir: Path | None, emit: Emit) -> float:
    """Do all that precedes training and one real optimizer step; write nothing; return the loss of the step."""
    if run_dir is not None:
        RunDir.refuse_taken(run_dir)
    job = prepare(recipe, emit)
    with job.probe(recipe, emit):
        return one_step(
            job.task,
            job.tuned.model,
            train=recipe.train,
            evaluation=recipe.evaluation,
            accelerator=job.infer.accelerator,
        )


def measure(recipe: Recipe, job: Job, test: np.ndarray) -> dict[str, Any]:
    """Return the test metrics of the model and of the baselines, with intervals, as results.json has them."""
    targets = job.task.splits.targets["test"]
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
    predictor = load_predictor(folder)
    texts, targets = _labelled_texts(predictor, folder, split, source)
    recipe, labels = predictor.recipe, predictor.labels
    probabilities = predictor.probabilities(texts)
    measured = _measured(recipe, probabilities, targets, labels.names, labels.multi_label)
    title = f"{folder} on {source or split}, {len(texts)} examples"
    for table in _tables({"test": measured, "baselines": {}}, probabilities, targets, labels.names, title):
        emit(table)
    return measured


def _labelled_texts(predictor: Predictor, folder: Path, split: str, source: str | None) -> tuple[list[str], np.ndarray]:
    recipe, labels = predictor.recipe, predictor.labels
    if source is not None:
        rows = clean_rows(
            read_table(resolve_data(source).path),
            recipe.data,
            multi_label=labels.multi_label,
            label_separator=recipe.task.label_separator,
            labels=labels,
        )
        return rows.texts, rows.targets
    table = resolve_data(recipe.data.source, sha256=recipe.data.sha256)
    splits = load_text_splits(table.path, recipe.data, recipe.task, labels)
    if split not in splits.texts:
        raise RecipeError(f"--split {split}: the splits of this run are {', '.join(splits.texts)}")
    trained_on = read_json(RunDir.open(folder).data)["fingerprint"]
    if splits.summary["fingerprint"] != trained_on:
        raise DataError(
            f"{recipe.data.source} has changed since the run (fingerprint {splits.summary['fingerprint'][:12]}, "
            f"was {trained_on[:12]}), so its splits are others; use --data to measure on any table"
        )
    return splits.texts[split], splits.targets[split]


def predict(folder: Path, source: Path, *, lines: list[str] | None, output: Path | None) -> str:
    """Predict a table file, or ``lines`` of text; write ``output``, or return the CSV text if it is None."""
    if output is not None:
        check_output(output, source)
    predictor = load_predictor(folder)
    predictions = predict_file(predictor, source) if lines is None else predictor.predict(lines)
    columns = prediction_columns(predictions, predictor.labels.names)
    if output is None:
        return as_csv(columns)
    write_prediction_file(columns, output)
    return ""


def _export(recipe: Recipe, job: Job, run: RunDir) -> GateReport:
    """Export and check on validation rows, the longest among them."""
    rows = job.task.datasets().splits["validation"]
    assert rows.lengths is not None
    chosen = np.argsort(-rows.lengths, kind="stable")[:: max(1, len(rows) // GATE_ROWS)][:GATE_ROWS]
    batch = job.task.datasets().collate([rows.examples[index] for index in chosen])

    def logits(model: torch.nn.Module) -> np.ndarray:
        with torch.inference_mode():
            return job.task.predict_step(model.eval(), batch).float().numpy()

    return export_model(
        job.tuned.model,
        run,
        save=lambda model, folder: save_classifier(model, job.backbone.tokenizer, folder),
        rows=GateRows(tuple(job.task.splits.texts["validation"][index] for index in chosen), logits),
        labels=job.task.labels.names,
        backbone=job.weights.path,
        adapter_base=hub_id(recipe, job.weights) or public_address(job.weights.address),
    )


def _report(run: RunDir, splits: TextSplits, test: np.ndarray, results: dict[str, Any], emit: Emit) -> None:
    """Write pictures and test predictions, and show the closing tables."""
    names, targets = splits.labels.names, splits.targets["test"]
    title = f"Test split, {len(targets)} examples, 95 % intervals"
    for table in _tables(results, test, targets, names, title):
        emit(table)
    run.report.mkdir(exist_ok=True)
    if not splits.labels.multi_label:
        write_confusion_png(confusion_matrix(test, targets), names, run.report / "confusion.png")
    write_reliability_png(test, targets, run.report / "reliability.png")
    run.predictions.mkdir(exist_ok=True)
    write_predictions(
        run.predictions / "test.csv",
        splits.row_numbers["test"],
        splits.texts["test"],
        labels=_class_names(targets, names),
        predicted=_class_names(to_decisions(test, splits.labels.multi_label), names),
        probabilities=test,
        names=names,
    )


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


def _training_facts(job: Job, fitted: Fitted, temperature: float, gate: GateReport) -> dict[str, Any]:
    limit = job.backbone.tokenizer.model_max_length
    return {
        "train": {
            "seconds": fitted.seconds,
            "examples_per_second": fitted.examples_per_second,
            "steps": fitted.steps,
            "best_step": fitted.best.step,
            "peak_memory_bytes": fitted.peak_memory_bytes,
        },
        "validation": {"metrics": dict(fitted.best.metrics)},
        "skipped": job.task.splits.summary["skipped"],
        "truncated": {name: int((lengths > limit).sum()) for name, lengths in job.task.token_counts.items()},
        "temperature": temperature,
        "gate": gate.to_json(),
    }


def _both(first: Emit, second: Emit) -> Emit:
    def emit(event: Event) -> None:
        first(event)
        second(event)

    return emit
