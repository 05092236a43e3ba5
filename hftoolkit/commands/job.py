"""A recipe made real: data, model, task and device, loaded and checked, and the training of them."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hftoolkit.contracts import Emit, Message
from hftoolkit.data.image.splits import ImageSplits, load_image_splits
from hftoolkit.data.labels import LabelSet
from hftoolkit.data.sources.resolve import Resolved, describe, resolve_data, resolve_model
from hftoolkit.data.texts import TextSplits, load_text_splits
from hftoolkit.errors import RecipeError
from hftoolkit.models.backbones import (
    Backbone,
    TextBackbone,
    enable_gradient_checkpointing,
    load_text_classifier,
    save_classifier,
    set_attention,
)
from hftoolkit.models.image_backbones import (
    ImageBackbone,
    arrange_for_cpus,
    is_convolutional,
    load_image_classifier,
    save_image_classifier,
)
from hftoolkit.models.tuning import TunedModel, apply_tuning, trainable_table
from hftoolkit.recipe import FullTuning, ImageModel, ImageRecipe, LinearProbe, Recipe, TextRecipe
from hftoolkit.runs.directory import RunDir
from hftoolkit.tasks.classification import ClassificationTask
from hftoolkit.tasks.image_classification import ImageClassificationTask
from hftoolkit.tasks.text_classification import TextClassificationTask, truncation_report
from hftoolkit.train.devices import describe_device, make_accelerator
from hftoolkit.train.distributed.launch import join_processes
from hftoolkit.train.distributed.strategy import WHOLE, Strategy
from hftoolkit.train.inference import Inference
from hftoolkit.train.loop import fit
from hftoolkit.train.state import FitResult


def join(recipe: Recipe) -> Strategy:
    """Join the processes of a launcher; return how the model is to lie in them.

    Raises:
        EnvironmentFault: the launcher asked for what is not supported.
        RecipeError: the recipe asks for what a sharded model cannot do.
    """
    strategy = join_processes()
    if not strategy.is_sharded:
        return strategy
    problems = []
    if isinstance(recipe.tuning, LinearProbe):
        problems.append("tuning.method: linear-probe trains the head alone, which is too small to be sharded")
    if isinstance(recipe.tuning, FullTuning) and recipe.tuning.unfreeze_epochs > 0:
        problems.append("tuning.unfreeze_epochs: what is trained is fixed when the model is sharded")
    if recipe.train.micro_batch_size == "auto":
        problems.append("train.micro_batch_size: auto lets memory run out, and the other ranks would wait forever")
    if recipe.train.precision == "fp16":
        problems.append("train.precision: fp16 scales gradients, which is not done there; use bf16 or fp32")
    if problems:
        listed = "\n  ".join(problems)
        what = f"not possible with {strategy.name}; change the recipe, or launch with --multi_gpu alone"
        raise RecipeError(f"{what}:\n  {listed}")
    return strategy


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a recipe names, loaded and checked.

    Attributes:
        weights: where the pretrained weights came from; None for training from scratch.
        save_base: writes the backbone as it was before training into a folder that plain libraries load, for an
            adapter to be put on.
    """

    task: ClassificationTask
    backbone: Backbone
    tuned: TunedModel
    infer: Inference
    weights: Resolved | None
    save_base: Callable[[Path], None]

    @property
    def origin(self) -> dict[str, str | None]:
        """Return what identifies the pretrained weights."""
        return origin_of(self.weights)

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
    match recipe:
        case TextRecipe():
            table = resolve_data(recipe.data.source, sha256=recipe.data.sha256)
            emit(Message(f"data: {describe(table)}"))
            splits = load_text_splits(table.path, recipe.data, recipe.task)
            weights = resolve_model(recipe.model.backbone, sha256=recipe.model.sha256)
            return prepare_texts(recipe, splits, weights, emit=emit)
        case ImageRecipe():
            source = resolve_data(recipe.data.source, sha256=recipe.data.sha256)
            emit(Message(f"data: {describe(source)}"))
            return _prepare_images(recipe, source, emit)
        case _:
            raise AssertionError(type(recipe))


def prepare_texts(recipe: TextRecipe, splits: TextSplits, weights: Resolved, *, emit: Emit) -> Job:
    """Build model and task on texts and weights that are here already."""
    _tell_about_data(splits, emit)
    emit(Message(f"backbone: {describe(weights)}"))
    accelerator = make_accelerator(recipe.train.precision)

    def save_base(folder: Path) -> None:
        base = _load_texts(recipe, weights, splits.labels)
        save_classifier(base.model, base.tokenizer, folder)

    backbone = _load_texts(recipe, weights, splits.labels)
    kernel = set_attention(backbone.model, accelerator.device)
    task = TextClassificationTask(recipe.task, splits, backbone)
    _tell_about_truncation(task, recipe.model.max_length, emit)
    tuned = _tune(recipe, backbone, emit)
    emit(Message(f"{describe_device(accelerator)}, attention {kernel}"))
    return Job(task, backbone, tuned, Inference(task, accelerator, emit), weights, save_base)


def _prepare_images(recipe: ImageRecipe, source: Resolved, emit: Emit) -> Job:
    weights = resolve_weights(recipe)
    origin = describe(weights) if weights else f"{recipe.model.architecture}, from scratch"
    emit(Message(f"backbone: {origin}"))

    def save_base(folder: Path) -> None:
        base = _load_images(recipe, weights, splits.labels.names)
        save_image_classifier(base.model, base.preprocessing, folder)

    # The size of the images comes from the weights, and the number of classes from the images.
    geometry = _load_images(recipe, weights, ("a", "b")).preprocessing.geometry
    emit(Message(f"decoding images to {geometry.height} x {geometry.width} pixels, unless they are in the cache"))
    splits = load_image_splits(source.path, recipe.data, recipe.task, geometry)
    _tell_about_data(splits, emit)
    backbone = _load_images(recipe, weights, splits.labels.names)
    accelerator = make_accelerator(recipe.train.precision, bf16_pays_on_cpus=not is_convolutional(backbone.model))
    if accelerator.device.type == "cpu":
        arrange_for_cpus(backbone.model)
    if backbone.loaded_by == "position":
        emit(Message("the weights have foreign names; count and shapes agree, so they were loaded by position"))
    task = ImageClassificationTask(recipe.task, splits, backbone, recipe.augmentation)
    tuned = _tune(recipe, backbone, emit)
    emit(Message(describe_device(accelerator)))
    return Job(task, backbone, tuned, Inference(task, accelerator, emit), weights, save_base)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The model of a run without its data.

    Attributes:
        tuned: as it was before training.
        save: writes a plain model like it, with what it needs to read raw examples, into a folder.
    """

    tuned: TunedModel
    save: Callable[[nn.Module, Path], None]


def rebuild(recipe: Recipe, weights: Resolved | None, labels: LabelSet) -> Rebuilt:
    """Build the model of a run again, which takes its classes but none of its data."""
    match recipe:
        case TextRecipe():
            text = _load_texts(recipe, weights, labels)
            return Rebuilt(
                apply_tuning(text, recipe.tuning), lambda model, folder: save_classifier(model, text.tokenizer, folder)
            )
        case ImageRecipe():
            image = _load_images(recipe, weights, labels.names)
            return Rebuilt(
                apply_tuning(image, recipe.tuning),
                lambda model, folder: save_image_classifier(model, image.preprocessing, folder),
            )
        case _:
            raise AssertionError(type(recipe))


def resolve_weights(recipe: Recipe) -> Resolved | None:
    """Fetch the pretrained weights that a recipe names; return None for training from scratch."""
    model = recipe.model
    if isinstance(model, ImageModel) and not model.pretrained:
        return None
    return resolve_model(model.backbone or "", sha256=model.sha256)


def origin_of(weights: Resolved | None) -> dict[str, str | None]:
    """Return what identifies pretrained weights."""
    return {"revision": weights.revision if weights else None}


def _load_texts(recipe: TextRecipe, weights: Resolved | None, labels: LabelSet) -> TextBackbone:
    assert weights is not None
    return load_text_classifier(
        weights.path,
        labels.names,
        multi_label=labels.multi_label,
        max_length=recipe.model.max_length,
        dropout=recipe.model.dropout,
        seed=recipe.train.seed,
    )


def _load_images(recipe: ImageRecipe, weights: Resolved | None, names: tuple[str, ...]) -> ImageBackbone:
    return load_image_classifier(
        weights.path if weights else None,
        names,
        architecture=recipe.model.architecture,
        image_size=recipe.model.image_size,
        dropout=recipe.model.dropout,
        drop_path=recipe.model.drop_path,
        seed=recipe.train.seed,
    )


def _tune(recipe: Recipe, backbone: Backbone, emit: Emit) -> TunedModel:
    if backbone.replaced_labels:
        emit(
            Message(f"replaced the head of the backbone, trained for {', '.join(backbone.replaced_labels)}", "warning")
        )
    if recipe.model.gradient_checkpointing:
        enable_gradient_checkpointing(backbone.model)
    tuned = apply_tuning(backbone, recipe.tuning)
    emit(trainable_table(tuned.model))
    return tuned


def train(recipe: Recipe, job: Job, run: RunDir, *, emit: Emit, strategy: Strategy = WHOLE) -> FitResult:
    """Run the loop; the model of the job then has the best weights."""
    with job.probe(recipe, emit):
        return fit(
            job.task,
            job.tuned,
            train=recipe.train,
            evaluation=recipe.evaluation,
            accelerator=job.infer.accelerator,
            run=run,
            emit=emit,
            strategy=strategy,
        )


def _tell_about_data(splits: TextSplits | ImageSplits, emit: Emit) -> None:
    sizes = ", ".join(f"{name} {len(targets)}" for name, targets in splits.targets.items())
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
