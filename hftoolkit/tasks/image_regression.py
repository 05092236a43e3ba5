"""Regression: a number for each image. B images of H x W pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from torch import nn

from hftoolkit.contracts import (
    Batch,
    CardText,
    Columns,
    Dataset,
    Emit,
    Examples,
    GateInputs,
    Inputs,
    Labelled,
    Message,
    StepOutput,
    Task,
    Tensors,
)
from hftoolkit.contracts.names import markdown, short
from hftoolkit.data.image.changes import CARD_SENTENCE
from hftoolkit.data.image.rows import ScoredImage, load_scored_images, read_scored_images
from hftoolkit.metrics.statistics import RowStatistics
from hftoolkit.models.image_backbones import ImageBackbone, save_image_classifier
from hftoolkit.models.preprocessing import Preprocessing
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe.regression import ImageRegressionRecipe
from hftoolkit.runs.figures import write_image_grid
from hftoolkit.tasks.shared.augmentation import Augment
from hftoolkit.tasks.shared.baselines import pixel_ridge
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
from hftoolkit.tasks.shared.score_head import HEADLINE, Score, ScoreHead, targets_of, with_targets


class ImageRegressionTask:
    """See ``contracts.Task``. An output is a number; images are (B, H, W, 3) uint8 until they enter the model."""

    unit: ClassVar[str] = "image"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    pipeline_tag: ClassVar[str] = "image-classification"
    headline: ClassVar[Mapping[str, str]] = HEADLINE
    compared_by: ClassVar[str] = "r2"
    no_answer: ClassVar[float | None] = None

    def __init__(self, recipe: ImageRegressionRecipe, head: ScoreHead, preprocessing: Preprocessing) -> None:
        """Make one with ``build``."""
        self._recipe = recipe
        self._head = head
        self._preprocessing = preprocessing
        self._augment = Augment(recipe.augmentation, preprocessing.height, preprocessing.width)

    @classmethod
    def read(
        cls, recipe: ImageRegressionRecipe, source: Path, weights: Weights, schema: Score | None, emit: Emit
    ) -> Dataset[ScoredImage]:
        """Return the checked images of a source, fitted to the size of the weights and divided into splits."""
        geometry = preprocessing_of(recipe.model, weights, recipe.train.seed).geometry
        emit(Message(f"decoding images to {geometry.height} x {geometry.width} pixels, unless they are in the cache"))
        divided, column = load_scored_images(source, recipe.data, geometry)
        score = schema or Score.of(column, targets_of(divided.splits["train"]))
        return Dataset(divided.splits, divided.row_numbers, score, divided.summary)

    @classmethod
    def read_labelled(
        cls, recipe: ImageRegressionRecipe, source: Path, weights: Weights, schema: Score
    ) -> Labelled[ScoredImage]:
        """Return all images of another source."""
        geometry = preprocessing_of(recipe.model, weights, recipe.train.seed).geometry
        return read_scored_images(source, recipe.data, geometry)

    @classmethod
    def schema_from_json(cls, stored: Mapping[str, Any]) -> Score:
        """Return the number that a run learned."""
        return Score.from_json(stored)

    @classmethod
    def load(cls, recipe: ImageRegressionRecipe, schema: Score, weights: Weights) -> ImageBackbone:
        """Return the backbone with a head of one output."""
        return load_backbone(recipe.model, schema.head, weights, recipe.train.seed)

    @classmethod
    def build(
        cls, recipe: ImageRegressionRecipe, schema: Score, base: ImageBackbone, train: Sequence[ScoredImage] | None
    ) -> Self:
        """Return the task."""
        head = ScoreHead.of(schema, recipe.task.loss, base, is_trained=not base.output_layers)
        return cls(recipe, head, base.preprocessing)

    def encode(self, raw: Sequence[ScoredImage]) -> Examples:
        """Return the images as they are: they have the size of the model already."""
        return Examples(raw)

    def sampling_weights(self, raw: Sequence[ScoredImage]) -> None:
        """Return nothing: each image is shown once an epoch."""
        return

    def collate(self, examples: Sequence[ScoredImage], *, training: bool) -> Batch:
        """Return ``pixels`` (B, H, W, 3) uint8 and ``targets`` (B,) float32."""
        return with_targets({"pixels": stack_pixels(examples)}, examples)

    def forward(self, model: nn.Module, batch: Batch) -> Tensors:
        """Return the ``logits`` of the images as they are, (B, 1)."""
        if "pixel_values" in batch:
            return {"logits": model(pixel_values=batch["pixel_values"]).logits}
        return {"logits": logits_of(model, channels_first(batch["pixels"]), self._preprocessing)}

    def loss(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed loss of a batch of changed images; of blended ones, by the number of either image."""
        mixed = self._augment.mix(self._augment(channels_first(batch["pixels"])))
        outputs = logits_of(model, mixed.pixels, self._preprocessing)
        step = self._head.step(outputs, batch)
        if mixed.share == 1:
            return step
        partners = self._head.step(outputs, {"targets": batch["targets"][mixed.partners]})
        loss = mixed.share * step.loss_sum + (1 - mixed.share) * partners.loss_sum
        return StepOutput(loss, step.weight, step.num_examples)

    def predict(self, model: nn.Module, batch: Batch) -> list[float]:
        """Return a number for each image."""
        return self._head.to_numbers(self.forward(model, batch)["logits"])

    def fold(self, model: nn.Module) -> None:
        """Let the model give the number in its own unit."""
        self._head.fold(model)

    def metric_names(self, raw: Sequence[ScoredImage]) -> frozenset[str]:
        """Return the metrics that the targets allow."""
        return self._head.metric_names(raw)

    def score(self, outputs: Sequence[float], raw: Sequence[ScoredImage]) -> RowStatistics:
        """Return the metrics of numbers."""
        return self._head.statistics(outputs, raw)

    def pairs(self, outputs: Sequence[float], raw: Sequence[ScoredImage]) -> tuple[list[Any], list[Any]]:
        """Return predicted and true numbers."""
        return self._head.pairs(outputs, raw)

    def inputs(self, source: Any) -> Inputs[ScoredImage]:
        """Return the images of a file, folder, pattern or table, or of a list."""
        return image_inputs(
            source,
            self._recipe.data,
            self._preprocessing.geometry,
            lambda pixels, name: ScoredImage([pixels], 0, name),
        )

    def answers(self, outputs: Sequence[float], raw: Sequence[ScoredImage]) -> list[float]:
        """Return the numbers."""
        return list(outputs)

    def columns(self, answers: Sequence[float | None]) -> Columns:
        """Return the numbers as a table."""
        return self._head.columns(answers)

    def truth(self, raw: Sequence[ScoredImage]) -> Columns:
        """Return names and true numbers."""
        return {self.unit: [row.name for row in raw], **self._head.columns([row.target for row in raw])}

    def facts(self) -> dict[str, Any]:
        """Return the size in pixels at which the model sees images."""
        return {"image_size": [self._preprocessing.height, self._preprocessing.width]}

    def card(self, results: Mapping[str, Any]) -> CardText:
        """Return title, usage, limits and the samples."""
        title = f"Image regression: {markdown(short(self._head.score.name))}"
        if not results:
            return CardText(title, USAGE, ())
        height, width = results["image_size"]
        seen = f"Images are seen at {height} x {width} pixels."
        limits = (*self._head.limits(results), seen, CARD_SENTENCE)
        return CardText(title, USAGE, limits, "![Predictions for test images](samples.png)")

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a plain model with its preprocessing."""
        save_image_classifier(model, self._preprocessing, folder)

    def gate_inputs(self, raw: Sequence[ScoredImage]) -> GateInputs:
        """Return normalized images."""
        return image_gate_inputs(raw, self._preprocessing)

    def baselines(
        self, train: Sequence[ScoredImage], raw: Sequence[ScoredImage], seed: int
    ) -> dict[str, RowStatistics]:
        """Return the mean of the training rows, and a ridge regression on small gray images."""
        targets = targets_of(train)
        ridge = pixel_ridge(PixelsOf(train), targets, PixelsOf(raw))
        return self._head.baselines(targets, raw, {"pixel_ridge": ridge})

    def draw(
        self,
        model: nn.Module,
        outputs: Sequence[float],
        raw: Sequence[ScoredImage],
        *,
        report: Path,
        model_folder: Path,
    ) -> None:
        """Write predicted against true numbers, the worst errors, and samples (for the card)."""
        self._head.draw(outputs, raw, report)
        errors = np.abs(np.array(outputs) - targets_of(raw))

        def grid(chosen: np.ndarray, path: Path) -> None:
            titles = [
                f"{short(raw[index].name)}\n{outputs[index]:.4g}\n(true: {raw[index].target:.4g})" for index in chosen
            ]
            write_image_grid([raw[index].pixels for index in chosen], titles, path)

        grid(np.argsort(-errors, kind="stable")[:WORST_SHOWN], report / "worst.png")
        samples = sample_places(len(raw))
        grid(samples, model_folder / "samples.png")


USAGE = """from transformers import pipeline

score = pipeline("image-classification", model="path/or/repository", function_to_apply="none")
score("photo.jpg")"""


if TYPE_CHECKING:
    _: type[Task] = ImageRegressionTask
