"""Image classification: one label an image, or any number. B images of H x W pixels, C classes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import (
    Batch,
    CardText,
    Columns,
    Dataset,
    Emit,
    Examples,
    GateInputs,
    Infer,
    Inputs,
    Labelled,
    Message,
    StepOutput,
    Table,
    Task,
    Tensors,
)
from hftoolkit.contracts.names import short
from hftoolkit.data.image.changes import CARD_SENTENCE
from hftoolkit.data.image.splits import load_image_splits, load_labelled_images
from hftoolkit.data.labels import LabelSet
from hftoolkit.metrics.statistics import RowStatistics
from hftoolkit.models.attribution import occlusion_maps
from hftoolkit.models.image_backbones import (
    ImageBackbone,
    save_image_classifier,
)
from hftoolkit.models.preprocessing import Preprocessing
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe import ImageRecipe
from hftoolkit.runs.figures import HEAT_LEGEND, overlay, worst_first, write_image_grid, write_note_png
from hftoolkit.runs.lettering import drawable_names
from hftoolkit.tasks.shared.augmentation import Augment
from hftoolkit.tasks.shared.baselines import majority, pixel_logreg
from hftoolkit.tasks.shared.class_head import (
    HEADLINE,
    NO_PREDICTION,
    CachedExample,
    ClassHead,
    Prediction,
    cached_examples,
    class_head_spec,
    class_title,
    first_examples,
    stack_targets,
    summed,
    targets_of,
    to_rows,
)
from hftoolkit.tasks.shared.image_inputs import image_inputs
from hftoolkit.tasks.shared.image_models import (
    WORST_SHOWN,
    PixelsOf,
    channels_first,
    image_gate_inputs,
    load_backbone,
    logits_of,
    preprocessing_of,
    sample_places,
    stack_pixels,
)

TITLE_NAME = 60  # characters of a class name above an image


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image of the model's size and its class: a number, or (C,) float32 of 0 and 1; None where it is predicted.

    Attributes:
        images: where its pixels are; the cache reads them when they are asked for.
        place: of the image among them.
        name: of its file, or ``row 12``.
    """

    images: Sequence[np.ndarray]
    place: int
    name: str
    target: Any = None

    @property
    def pixels(self) -> np.ndarray:
        """The image, (H, W, 3) uint8."""
        return self.images[self.place]


class ImageClassificationTask:
    """See ``contracts.Task``. Images are (B, H, W, 3) uint8 until they enter the model."""

    unit: ClassVar[str] = "image"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    pipeline_tag: ClassVar[str] = "image-classification"
    headline: ClassVar[Mapping[str, str]] = HEADLINE
    compared_by: ClassVar[str] = "macro_f1"
    no_answer: ClassVar[Prediction] = NO_PREDICTION

    def __init__(
        self, recipe: ImageRecipe, head: ClassHead, preprocessing: Preprocessing, head_modules: tuple[str, ...]
    ) -> None:
        """Make one with ``build``."""
        self._recipe = recipe
        self._head = head
        self._preprocessing = preprocessing
        self._head_modules = head_modules
        self._augment = Augment(recipe.augmentation, preprocessing.height, preprocessing.width)

    @classmethod
    def read(
        cls, recipe: ImageRecipe, source: Path, weights: Weights, schema: LabelSet | None, emit: Emit
    ) -> Dataset[LabelledImage]:
        """Return the checked images of a source, fitted to the size of the weights and divided into splits."""
        geometry = preprocessing_of(recipe.model, weights, recipe.train.seed).geometry
        emit(Message(f"decoding images to {geometry.height} x {geometry.width} pixels, unless they are in the cache"))
        splits = load_image_splits(source, recipe.data, recipe.task, geometry, schema)
        rows = {
            name: [
                LabelledImage(splits.pixels[name], place, found, target)
                for place, (found, target) in enumerate(zip(names, splits.targets[name], strict=True))
            ]
            for name, names in splits.names.items()
        }
        return Dataset(rows, splits.row_numbers, splits.labels, splits.summary)

    @classmethod
    def read_labelled(
        cls, recipe: ImageRecipe, source: Path, weights: Weights, schema: LabelSet
    ) -> Labelled[LabelledImage]:
        """Return all images of another source."""
        geometry = preprocessing_of(recipe.model, weights, recipe.train.seed).geometry
        found = load_labelled_images(source, recipe.data, recipe.task, geometry, schema)
        rows = [
            LabelledImage(found.pixels, place, name, target)
            for place, (name, target) in enumerate(zip(found.names, found.targets, strict=True))
        ]
        return Labelled(rows, found.bad, found.source, tuple(schema.values))

    @classmethod
    def schema_from_json(cls, stored: Mapping[str, Any]) -> LabelSet:
        """Return the classes of a run."""
        return LabelSet.from_json(stored)

    @classmethod
    def load(cls, recipe: ImageRecipe, schema: LabelSet, weights: Weights) -> ImageBackbone:
        """Return the backbone with a head for the classes."""
        return load_backbone(recipe.model, class_head_spec(schema), weights, recipe.train.seed)

    @classmethod
    def build(
        cls, recipe: ImageRecipe, schema: LabelSet, base: ImageBackbone, train: Sequence[LabelledImage] | None
    ) -> Self:
        """Return the task."""
        head = ClassHead.of(schema, recipe.task, base.output_layers, train)
        return cls(recipe, head, base.preprocessing, base.fresh_modules)

    def encode(self, raw: Sequence[LabelledImage]) -> Examples:
        """Return the images as they are: they have the size of the model already."""
        return Examples(raw)

    def sampling_weights(self, raw: Sequence[LabelledImage]) -> np.ndarray | None:
        """Return the relative frequency of each row, where rare classes are drawn more often."""
        return self._head.sampling_weights(raw)

    def collate(self, examples: Sequence[Any], *, training: bool) -> Batch:
        """Return ``pixels`` (B, H, W, 3) uint8, or cached ``features`` (B, F), and ``targets``, (B,) or (B, C)."""
        if isinstance(examples[0], CachedExample):
            batch = {"features": torch.from_numpy(np.stack([example.features for example in examples]))}
        else:
            batch = {"pixels": stack_pixels(examples)}
        if examples[0].target is None:
            return batch
        return batch | {"targets": stack_targets([example.target for example in examples])}

    def forward(self, model: nn.Module, batch: Batch) -> Tensors:
        """Return the ``logits`` of the images as they are, (B, C)."""
        if "pixel_values" in batch:
            return {"logits": model(pixel_values=batch["pixel_values"]).logits}
        if "features" in batch:
            return {"logits": self._from_features(model, batch)}
        return {"logits": self._logits(model, channels_first(batch["pixels"]))}

    def loss(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed loss of a batch of changed and, with mixup or CutMix, blended images."""
        targets = batch["targets"]
        if "features" in batch:
            return self._head.step(self._from_features(model, batch), batch)
        mixed = self._augment.mix(self._augment(channels_first(batch["pixels"])))
        logits = self._logits(model, mixed.pixels)
        losses_B = self._head.losses(logits, targets)
        if mixed.share < 1:
            losses_B = mixed.share * losses_B + (1 - mixed.share) * self._head.losses(logits, targets[mixed.partners])
        return summed(losses_B)

    def predict(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Return the logits of each example, (C,) float32; with ``test_time_flip``, means with its mirror image."""
        if "features" in batch:
            return to_rows(self._from_features(model, batch))
        images = channels_first(batch["pixels"])
        logits = self._logits(model, images)
        if self._recipe.task.test_time_flip:
            logits = (logits + self._logits(model, images.flip(-1))) / 2
        return to_rows(logits)

    def metric_names(self, raw: Sequence[LabelledImage]) -> frozenset[str]:
        """Return the metrics that the targets allow."""
        return self._head.metric_names(raw)

    def score(self, outputs: Sequence[np.ndarray], raw: Sequence[LabelledImage]) -> RowStatistics:
        """Return the metrics of logits."""
        return self._head.statistics(self._head.probabilities(outputs), raw)

    def unmeasured(self, raw: Sequence[LabelledImage]) -> list[str]:
        """Return the classes that none of the rows has."""
        return self._head.unmeasured(raw)

    def pairs(self, outputs: Sequence[np.ndarray], raw: Sequence[LabelledImage]) -> tuple[list[Any], list[Any]]:
        """Return predicted and true classes."""
        return self._head.pairs(outputs, raw)

    def inputs(self, source: Any) -> Inputs[LabelledImage]:
        """Return the images of a file, folder, pattern or table, or of a list."""
        return image_inputs(
            source,
            self._recipe.data,
            self._preprocessing.geometry,
            lambda pixels, name: LabelledImage([pixels], 0, name),
        )

    def answers(self, outputs: Sequence[np.ndarray], raw: Sequence[LabelledImage]) -> list[Prediction]:
        """Return classes and probabilities."""
        return self._head.answers(outputs)

    def columns(self, answers: Sequence[Prediction]) -> Columns:
        """Return label and probabilities."""
        return self._head.columns(answers)

    def top_columns(self, answers: Sequence[Prediction], count: int) -> Columns:
        """Return label and the most probable classes."""
        return self._head.top_columns(answers, count)

    def truth(self, raw: Sequence[LabelledImage]) -> Columns:
        """Return names and true labels."""
        return {self.unit: [row.name for row in raw], "label": self._head.true_labels(raw)}

    def facts(self) -> dict[str, Any]:
        """Return the size in pixels at which the model sees images."""
        return {"image_size": [self._preprocessing.height, self._preprocessing.width]}

    def card(self, results: Mapping[str, Any]) -> CardText:
        """Return title, usage, limits and the samples."""
        title = class_title("Image classifier", self._head.labels.names)
        if not results:
            return CardText(title, USAGE, ())
        height, width = results["image_size"]
        flipped = self._recipe.task.test_time_flip
        mirrored = "; the results are means over each image and its mirror image" if flipped else ""
        *weakest, calibrated = self._head.limits(results, "")
        seen = f"Images are seen at {height} x {width} pixels{mirrored}."
        limits = (*weakest, seen, CARD_SENTENCE, calibrated)
        return CardText(title, USAGE, limits, "![Predictions for test images](samples.png)")

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a plain model with its preprocessing."""
        save_image_classifier(model, self._preprocessing, folder)

    def gate_inputs(self, raw: Sequence[LabelledImage]) -> GateInputs:
        """Return normalized images."""
        return image_gate_inputs(raw, self._preprocessing)

    def calibrate(
        self, model: nn.Module, outputs: Sequence[np.ndarray], raw: Sequence[LabelledImage]
    ) -> dict[str, Any]:
        """Fold a temperature into the output layers."""
        return self._head.calibrate(model, outputs, raw)

    def baselines(
        self, train: Sequence[LabelledImage], raw: Sequence[LabelledImage], seed: int
    ) -> dict[str, RowStatistics]:
        """Return a majority model and a logistic regression on small gray images, fitted on the training rows."""
        targets, classes, several = targets_of(train), len(self._head.labels.names), self._head.labels.multi_label
        found = {
            "majority": majority(targets, len(raw), classes, several),
            "pixel_logreg": pixel_logreg(
                PixelsOf(train), targets, PixelsOf(raw), num_classes=classes, multi_label=several, seed=seed
            ),
        }
        return {name: self._head.statistics(probabilities, raw) for name, probabilities in found.items()}

    def details(
        self, measured: Mapping[str, Any], outputs: Sequence[np.ndarray], raw: Sequence[LabelledImage]
    ) -> Iterable[Table]:
        """Return metrics by class, and the confusion matrix."""
        return self._head.details(measured, outputs, raw)

    def draw(
        self,
        model: nn.Module,
        outputs: Sequence[np.ndarray],
        raw: Sequence[LabelledImage],
        *,
        report: Path,
        model_folder: Path,
    ) -> None:
        """Write the pictures of all classifiers, the worst errors, samples (for the card), and where the model looks.

        Each image stands under its name, its prediction and its true class; worst.png shows errors alone.
        """
        self._head.draw(outputs, raw, report)
        probabilities, names = self._head.probabilities(outputs), drawable_names(self._head.labels.names, TITLE_NAME)
        targets, best = targets_of(raw), probabilities.argmax(axis=1)
        answers, truth = self._head.answers(outputs), self._head.true_labels(raw)

        def title(index: int) -> str:
            if self._head.labels.multi_label:
                said, true = drawable_names([answers[index].label or "none", truth[index] or "none"], TITLE_NAME)
            else:
                said = f"{names[best[index]]} {probabilities[index, best[index]]:.2f}"
                true = names[targets[index]]
            return f"{short(raw[index].name)}\n{said}\n(true: {true})"

        def grid(chosen: np.ndarray, path: Path, images: Sequence[np.ndarray] | None = None) -> None:
            titles = [title(index) for index in chosen.tolist()]
            shown = images or [raw[index].pixels for index in chosen.tolist()]
            write_image_grid(shown, titles, path, legend=HEAT_LEGEND if images else ())

        wrong = worst_first(probabilities, targets, WORST_SHOWN)
        if len(wrong):
            grid(wrong, report / "worst.png")
        else:
            write_note_png(f"None of the {len(raw)} test images got a wrong class.", report / "worst.png")
        samples = sample_places(len(raw))
        grid(samples, model_folder / "samples.png")
        shown = [raw[int(index)].pixels for index in samples]
        maps = self._attention_maps(model, shown, best[samples])
        heated = [overlay(pixels, heat) for pixels, heat in zip(shown, maps, strict=True)]
        grid(samples, report / "where_it_looks.png", heated)

    @contextmanager
    def cached_features(
        self, model: nn.Module, examples: Mapping[str, Examples], infer: Infer, emit: Emit
    ) -> Iterator[Mapping[str, Examples]]:
        """Inside, the frozen backbone is not run: the head gets inputs that were computed once.

        Where the head is several modules, or not the last one, the backbone runs in every step instead.
        """
        one = first_examples(examples["validation"], 1)
        if len(self._head_modules) == 1 and all(infer(model, one, predict=self._is_head_last, full_precision=True)):
            yield {
                name: cached_examples(infer(model, found, predict=self._head_input, full_precision=True), found)
                for name, found in examples.items()
            }
            return
        emit(Message("no single layer gives the logits of this architecture; the frozen backbone runs in each step"))
        yield examples

    def _logits(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return logits_of(model, images, self._preprocessing)

    def _from_features(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = model.get_submodule(self._head_modules[0])(batch["features"])
        return logits

    def _attention_maps(self, model: nn.Module, pixels: Sequence[np.ndarray], classes: np.ndarray) -> np.ndarray:
        """Return where the model looks in images for a class of each, (N, H, W)."""
        device = next(model.parameters()).device
        images = channels_first(torch.from_numpy(np.stack(pixels))).float().to(device)
        return occlusion_maps(
            lambda part: self._logits(model.eval(), part), images, torch.from_numpy(classes).to(device)
        )

    def _head_input(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Return what the head gets for each image, (B, ...)."""
        return to_rows(self._watch_head(model, batch)[0])

    def _is_head_last(self, model: nn.Module, batch: Batch) -> list[bool]:
        """Return, for each image, whether what the head gives are the logits."""
        _, output, logits = self._watch_head(model, batch)
        return [torch.equal(output, logits)] * len(logits)

    def _watch_head(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the input and the output of the head, and the logits of the model."""
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(self._head_modules[0]).register_forward_hook(
            lambda _, inputs, output: seen.extend((inputs[0], output))
        )
        try:
            logits = self._logits(model, channels_first(batch["pixels"]))
        finally:
            handle.remove()
        return seen[0], seen[1], logits


USAGE = """from transformers import pipeline

classify = pipeline("image-classification", model="path/or/repository")
classify("photo.jpg")"""


if TYPE_CHECKING:
    _: type[Task] = ImageClassificationTask
