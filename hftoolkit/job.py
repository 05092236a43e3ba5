"""A recipe made real: data, model, task and device, loaded and checked, and the training of them."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from hftoolkit.contracts import Emit, Message
from hftoolkit.data import TextSplits, load_text_splits
from hftoolkit.devices import make_accelerator
from hftoolkit.inference import Inference
from hftoolkit.models.backbones import (
    Backbone,
    enable_gradient_checkpointing,
    load_text_classifier,
    set_attention,
)
from hftoolkit.models.tuning import TunedModel, apply_tuning, trainable_table
from hftoolkit.recipe import LinearProbe, Recipe
from hftoolkit.rundir import RunDir
from hftoolkit.sources import Resolved, describe, resolve_data, resolve_model
from hftoolkit.tasks import build_task
from hftoolkit.tasks.text_classification import TextClassificationTask, truncation_report
from hftoolkit.trainer import Fitted, fit


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a recipe names, loaded and checked."""

    task: TextClassificationTask
    backbone: Backbone
    tuned: TunedModel
    infer: Inference
    weights: Resolved

    def probabilities(self, split: str) -> np.ndarray:
        """Return the fp32 predictions for a split, (N, C)."""
        rows = self.task.datasets().splits[split]
        return self.task.to_probabilities(self.infer(self.tuned.model, rows, full_precision=True))

    def probe(self, recipe: Recipe, emit: Emit) -> Any:
        """Return a context in which a linear probe uses cached features; any other method is left as it is."""
        if isinstance(recipe.tuning, LinearProbe):
            return self.task.cached_features(self.tuned.model, self.infer, emit)
        return nullcontext()


def prepare(recipe: Recipe, emit: Emit) -> Job:
    """Fetch, load and check everything a recipe names.

    Raises:
        RecipeError, DataError, EnvironmentFault: what is wrong, before anything was trained.
    """
    table = resolve_data(recipe.data.source, sha256=recipe.data.sha256)
    emit(Message(f"data: {describe(table)}"))
    splits = load_text_splits(table.path, recipe.data, recipe.task)
    _tell_about_data(splits, emit)
    weights = resolve_model(recipe.model.backbone, sha256=recipe.model.sha256)
    emit(Message(f"backbone: {describe(weights)}"))
    return prepare_with(recipe, splits, weights, emit=emit)


def prepare_with(recipe: Recipe, splits: TextSplits, weights: Resolved, *, emit: Emit) -> Job:
    """Build model and task on data and weights that are here already."""
    accelerator = make_accelerator(recipe.train.precision)
    backbone = load_text_classifier(
        weights.path,
        splits.labels.names,
        multi_label=splits.labels.multi_label,
        max_length=recipe.model.max_length,
        dropout=recipe.model.dropout,
        seed=recipe.train.seed,
    )
    if backbone.replaced_labels:
        emit(
            Message(f"replaced the head of the backbone, trained for {', '.join(backbone.replaced_labels)}", "warning")
        )
    if recipe.model.gradient_checkpointing:
        enable_gradient_checkpointing(backbone.model)
    kernel = set_attention(backbone.model, accelerator.device)
    task = build_task(recipe.task, splits, backbone)
    _tell_about_truncation(task, recipe.model.max_length, emit)
    tuned = apply_tuning(backbone, recipe.tuning)
    emit(trainable_table(tuned.model))
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    emit(Message(f"{accelerator.device.type}, precision {precision}, attention {kernel}"))
    return Job(task, backbone, tuned, Inference(task, accelerator), weights)


def train(recipe: Recipe, job: Job, run: RunDir, *, emit: Emit) -> Fitted:
    """Run the loop; the model of the job then has the best weights."""
    with job.probe(recipe, emit):
        return fit(
            job.task,
            job.tuned.model,
            job.tuned.rate_scales,
            train=recipe.train,
            evaluation=recipe.evaluation,
            accelerator=job.infer.accelerator,
            run=run,
            emit=emit,
        )


def _tell_about_data(splits: TextSplits, emit: Emit) -> None:
    sizes = ", ".join(f"{name} {len(texts)}" for name, texts in splits.texts.items())
    emit(Message(f"rows: {sizes}; classes: {', '.join(splits.labels.names)}"))
    for sentence in splits.summary["warnings"]:
        emit(Message(sentence, "warning"))


def _tell_about_truncation(task: TextClassificationTask, max_length: int, emit: Emit) -> None:
    lengths = task.token_counts["train"]
    cut, recommended = truncation_report(lengths, max_length)
    if cut:
        share = cut / len(lengths)
        emit(
            Message(
                f"{cut} training texts ({share:.1%}) are cut at {max_length} tokens; "
                f"max_length: {recommended} keeps 99 % whole",
                "warning",
            )
        )
