"""``finetune``: train, export, check and measure a model."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.commands.report import (
    PARTS,
    Exported,
    make_report,
    report,
    write_results,
)
from hftoolkit.commands.setup import Setup, join, prepare, prepare_extra_metrics
from hftoolkit.contracts import Calibrates, Emit, Event, Folds, Message
from hftoolkit.data.sources.sealing import seal
from hftoolkit.export.gate import GateReport, export_model
from hftoolkit.export.manifest import Manifest
from hftoolkit.hub.background import BackgroundPushes
from hftoolkit.hub.card import public_recipe
from hftoolkit.hub.push import publish
from hftoolkit.hub.repository import check_push_access
from hftoolkit.models.backbones import head_names
from hftoolkit.recipe import Recipe
from hftoolkit.runs.attempts import complete_report
from hftoolkit.runs.checkpoint import prune
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.extension import hand_over
from hftoolkit.runs.lifecycle import finished_run_lifecycle, run_lifecycle, with_recording, write_status
from hftoolkit.runs.resume import Resume, check_unchanged, open_run, write_manifest
from hftoolkit.runs.revisions import pinned
from hftoolkit.train.distributed.collectives import broadcast, is_main, shut_down
from hftoolkit.train.distributed.strategy import Strategy
from hftoolkit.train.loop import fit, one_step
from hftoolkit.train.state import FitResult

GATE_ROWS = 64


def finetune(
    recipe: Recipe, *, name: str, run_dir: Path | None, emit: Emit, resume: Resume = False, allow_code: bool = False
) -> Path | None:
    """Train, export, check and measure a model.

    Args:
        recipe: what to do.
        name: run name, used when ``run_dir`` is None.
        run_dir: exactly where the run goes, or is.
        emit: gets everything a user or a log wants to see.
        resume: go on with the run of that name or directory, from its newest checkpoint; ``auto``: start it if there is
            none, and do nothing if it is done.
        allow_code: run code that the recipe names.

    Returns:
        The run directory; None in the processes that only help the main one.

    Raises:
        HFToolkitError: see ``errors``; status.json says what happened.
    """
    strategy = join(recipe)
    if not is_main():
        _help(broadcast(None), strategy)
        return None
    extra = prepare_extra_metrics(recipe, allow_code=allow_code)
    run = open_run(recipe, name, run_dir, resume=resume, emit=emit)
    if run.is_done():
        return _nothing_to_train(recipe, run, emit, allow_code=allow_code)
    listen = with_recording(run, emit)
    pushes = BackgroundPushes(recipe.hub, run, listen)
    with run_lifecycle(run) as ending, pushes:
        write_manifest(recipe, run, listen)
        check_push_access(recipe.hub, create=True, emit=listen)
        fixed = pinned(recipe, run)
        broadcast((run, fixed))
        setup = prepare(fixed, listen)
        check_unchanged(run.data, setup.dataset.summary, "the data")
        check_unchanged(run.labels, setup.dataset.schema.to_json(), "the classes")
        check_unchanged(run.backbone, setup.weights.origin, "the pretrained weights")
        broadcast("prepared")
        trained = _train(setup, run, strategy, pushes.listen)
        gate = _export(setup, run)
        Manifest(public_recipe(recipe), setup.dataset.schema.to_json()).write(run.model)
        seal(run.model)
        listen(Message(f"reloaded {run.model} in a fresh process without hftoolkit: same predictions"))
        exported = _exported(setup, run, trained, gate)
        write_results(run, exported.results, {})
        ending.update(without=list(PARTS))
    with ExitStack() as stack, finished_run_lifecycle(run):  # from here on, nothing costs the model
        stack.push(pushes)  # an upload on its way is stopped with this, too
        attempts = make_report(exported, extra, listen)
        write_status(run, "done", exit_code=0, **attempts.ending())
        attempts.warn_of_missing()
        prune(run.checkpoints, keep=1)  # from which a larger train.epochs goes on
    pushes.finish()
    run = hand_over(run)
    publish(recipe.hub, run, emit=with_recording(run, emit))
    return run.root


def dry_run(recipe: Recipe, *, run_dir: Path | None, emit: Emit, allow_code: bool = False) -> float:
    """Do all that precedes training and one real optimizer step; write nothing; return the loss of the step."""
    strategy = join(recipe)
    if run_dir is not None:
        RunDir.check_free(run_dir)
    emit = emit if is_main() else _keep_silent
    if is_main():
        prepare_extra_metrics(recipe, allow_code=allow_code)
        check_push_access(recipe.hub, create=False, emit=emit)
    setup = prepare(recipe, emit)
    with setup.probe(emit):
        return one_step(
            setup.learner,
            setup.tuned,
            train=recipe.train,
            evaluation=recipe.evaluation,
            accelerator=setup.infer.accelerator,
            strategy=strategy,
        )


@dataclass(frozen=True, slots=True)
class _Trained:
    """What training gave.

    Attributes:
        calibration: what results.json says of it.
        test: fp32 outputs for the test split.
    """

    fitted: FitResult
    calibration: dict[str, Any]
    test: list[Any]


def _nothing_to_train(recipe: Recipe, run: RunDir, emit: Emit, *, allow_code: bool) -> Path:
    """Try again what the report of a finished run lacks; if it is on the Hub already, the push does nothing."""
    broadcast(None)
    shut_down()
    complete_report(run, partial(report, run.root, emit=emit, allow_code=allow_code), emit)
    publish(recipe.hub, run, emit=with_recording(run, emit))
    return run.root


def _help(task: tuple[RunDir, Recipe] | None, strategy: Strategy) -> None:
    """Do the part of one process in a run that the main one leads."""
    if task is None:
        shut_down()
        return
    run, recipe = task
    broadcast("prepared")  # the main process has filled the caches, and found what is wrong
    _train(prepare(recipe, _keep_silent), run, strategy, _keep_silent)


def _train(setup: Setup, run: RunDir, strategy: Strategy, emit: Emit) -> _Trained:
    """Do what takes all processes: train, calibrate, predict the test split."""
    model, fitted = setup.tuned.model, fit_setup(setup, run, strategy, emit)
    emit(Message("best weights loaded; predicting validation and test in fp32, for calibration and results"))
    if isinstance(setup.task, Folds):
        setup.task.fold(model)
    calibration: dict[str, Any] = {}
    if isinstance(setup.task, Calibrates):
        outputs = setup.learner.outputs(model, setup.infer, "validation", full_precision=True)
        calibration = setup.task.calibrate(model, outputs, setup.dataset.splits["validation"])
    test = setup.learner.outputs(model, setup.infer, "test", full_precision=True)
    shut_down()
    return _Trained(fitted, calibration, test)


def fit_setup(setup: Setup, run: RunDir, strategy: Strategy, emit: Emit) -> FitResult:
    """Run the loop; the model then has the best weights."""
    with setup.probe(emit):
        return fit(
            setup.learner,
            setup.tuned,
            train=setup.recipe.train,
            evaluation=setup.recipe.evaluation,
            accelerator=setup.infer.accelerator,
            run=run,
            emit=emit,
            strategy=strategy,
        )


def _keep_silent(event: Event) -> None:
    """Take an event that the main process tells."""


def _export(setup: Setup, run: RunDir) -> GateReport:
    """Export and check on validation rows, the longest among them."""
    rows, examples = setup.dataset.splits["validation"], setup.learner.examples("validation")
    whole = examples.lengths is None or examples.owners is not None
    lengths = np.arange(len(rows)) if whole else examples.lengths
    assert lengths is not None
    chosen = np.argsort(-lengths, kind="stable")[:: max(1, len(rows) // GATE_ROWS)][:GATE_ROWS]
    return export_model(
        setup.tuned.model,
        run,
        save=setup.task.save,
        inputs=setup.task.gate_inputs([rows[index] for index in chosen.tolist()]),
        forward=setup.task.forward,
        auto_class=setup.task.auto_class,
        names=head_names(setup.tuned.model),
        save_base=setup.save_base,
        adapter_base=setup.weights.hub_id,
    )


def _exported(setup: Setup, run: RunDir, trained: _Trained, gate: GateReport) -> Exported:
    """Return what the report is made of, with the facts of the run that results.json holds."""
    cut = {name: setup.learner.examples(name).num_truncated for name in setup.dataset.splits}
    truncated = {} if None in cut.values() else {"truncated": cut}
    facts = {
        "task": setup.recipe.task.kind,
        "train": trained.fitted.facts("examples"),
        "validation": {"metrics": dict(trained.fitted.best.metrics)},
        "skipped": setup.dataset.summary["skipped"],
        **truncated,
        **setup.task.facts(),
        **trained.calibration,
        "gate": gate.to_json(),
    }
    return Exported(run, setup.recipe, setup.task, setup.tuned.model, setup.dataset, trained.test, setup.weights, facts)
