"""Image classification: one label an image. B images of H x W pixels, C classes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Batch, Datasets, Emit, Infer, Message, StepOutput
from hftoolkit.data.image.splits import ImageSplits
from hftoolkit.models.attribution import occlusion_maps
from hftoolkit.models.image_backbones import ImageBackbone, save_image_classifier
from hftoolkit.models.preprocessing import normalize
from hftoolkit.recipe import Augmentation, ImageClassification
from hftoolkit.tasks.classification import ClassificationTask, first_rows, stack_targets
from hftoolkit.tasks.shared.augmentation import Augment
from hftoolkit.tasks.shared.baselines import majority, pixel_logreg


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Images and targets of a split, read from the memory-mapped cache when they are asked for."""

    pixels: Sequence[np.ndarray]  # each (H, W, 3) uint8
    targets: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, Any]:
        return self.pixels[index], self.targets[index]


class ImageClassificationTask(ClassificationTask):
    """See ``contracts.Task``. Images are (B, H, W, 3) uint8 until they enter the model."""

    unit = "image"
    auto_class = "AutoModelForImageClassification"

    def __init__(
        self, section: ImageClassification, splits: ImageSplits, backbone: ImageBackbone, augmentation: Augmentation
    ) -> None:
        """Take the images as the cache holds them: fitted to the size of the backbone."""
        super().__init__(section, splits, backbone)
        self._flip = section.test_time_flip
        self._names = splits.names
        self._pixels = splits.pixels
        self._preprocessing = backbone.preprocessing
        self._heads = backbone.fresh_modules
        self._augment = Augment(augmentation, backbone.preprocessing.height, backbone.preprocessing.width)
        self._rows = {
            name: self.make_rows(name, ImageRows(pixels, self.targets[name]), None)  # type: ignore[arg-type]
            for name, pixels in splits.pixels.items()
        }
        self._features: dict[str, np.ndarray] | None = None  # (N, F) by split while a linear probe is trained

    def datasets(self) -> Datasets:
        """Return images, or cached features while ``cached_features`` is open."""
        if self._features is None:
            return Datasets(self._rows, _collate)
        cached = {
            name: self.make_rows(name, list(zip(features, self.targets[name], strict=True)), None)
            for name, features in self._features.items()
        }
        return Datasets(cached, _collate_features)

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed loss of a batch of changed and, with mixup or CutMix, blended images."""
        if "features" in batch:
            return super().step(model, batch)
        images = _channels_first(batch["pixels"])
        mixed = self._augment.mix(self._augment(images))
        logits = self._forward(model, mixed.pixels)
        targets = batch["targets"]
        losses_B = self._loss(logits, targets)
        if mixed.share < 1:
            losses_B = mixed.share * losses_B + (1 - mixed.share) * self._loss(logits, targets[mixed.partners])
        return StepOutput(losses_B.sum(), len(losses_B))

    def predict_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits of a batch, (B, C); with ``test_time_flip`` the mean over each image and its mirror."""
        if "features" in batch:
            from_head: torch.Tensor = model.get_submodule(self._heads[0])(batch["features"])
            return from_head
        images = _channels_first(batch["pixels"])
        logits = self._forward(model, images)
        return (logits + self._forward(model, images.flip(-1))) / 2 if self._flip else logits

    def examples(self, split: str) -> Sequence[str]:
        """Return the names of the images."""
        return self._names[split]

    def facts(self) -> dict[str, Any]:
        """Return the size in pixels at which the model sees images."""
        return {"image_size": [self._preprocessing.height, self._preprocessing.width]}

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write a plain model with its preprocessing."""
        save_image_classifier(model, self._preprocessing, directory)

    def plain_logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits of the images as they are, (B, C)."""
        return self._forward(model, _channels_first(batch["pixels"]))

    def gate_request(self, chosen: np.ndarray, folder: Path) -> dict[str, Any]:
        """Return the file of the chosen validation images, normalized, (N, 3, H, W) float32."""
        pixels = torch.from_numpy(np.stack([self._pixels["validation"][int(index)] for index in chosen]))
        np.save(folder / "pixels.npy", normalize(_channels_first(pixels), self._preprocessing).contiguous().numpy())
        return {"pixel_values": str(folder / "pixels.npy")}

    def baselines(self, split: str, seed: int) -> dict[str, np.ndarray]:
        """Return the probabilities, (N, C), of a majority model and a logistic regression on small gray images."""
        targets, classes = self.targets["train"], len(self.labels.names)
        return {
            "majority": majority(targets, len(self.targets[split]), classes, False),
            "pixel_logreg": pixel_logreg(
                self._pixels["train"], targets, self._pixels[split], num_classes=classes, seed=seed
            ),
        }

    def pixels(self, split: str) -> Sequence[np.ndarray]:
        """Return the images of a split, each (H, W, 3) uint8, as the model sees them."""
        return self._pixels[split]

    def attention_maps(self, model: nn.Module, split: str, chosen: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return where the model looks in the chosen images for a class of each, (N, H, W)."""
        device = next(model.parameters()).device
        images = torch.from_numpy(np.stack([self._pixels[split][int(index)] for index in chosen]))
        images = _channels_first(images).float().to(device)
        return occlusion_maps(
            lambda part: self._forward(model.eval(), part), images, torch.from_numpy(classes).to(device)
        )

    @contextmanager
    def cached_features(self, model: nn.Module, infer: Infer, emit: Emit) -> Iterator[None]:
        """Inside, the frozen backbone is not run: the head gets inputs that were computed once.

        Where the head is several modules, or not the last one, the backbone runs in every step instead.
        """
        one = first_rows(self._rows["validation"], 1)
        if len(self._heads) == 1 and infer(model, one, step=self._is_head_last, full_precision=True).all():
            self._features = {
                name: infer(model, rows, step=self._head_input, full_precision=True)
                for name, rows in self._rows.items()
            }
        else:
            emit(
                Message("no single layer gives the logits of this architecture; the frozen backbone runs in each step")
            )
        try:
            yield
        finally:
            self._features = None

    def _forward(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(pixel_values=normalize(images, self._preprocessing)).logits
        return logits

    def _head_input(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return what the head gets for each image, (B, ...)."""
        return self._watch_head(model, batch)[0]

    def _is_head_last(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return whether what the head gives are the logits, (B,)."""
        _, output, logits = self._watch_head(model, batch)
        return torch.tensor([torch.equal(output, logits)]).expand(len(logits))

    def _watch_head(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the input and the output of the head, and the logits of the model."""
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(self._heads[0]).register_forward_hook(
            lambda _, inputs, output: seen.extend((inputs[0], output))
        )
        try:
            logits = self._forward(model, _channels_first(batch["pixels"]))
        finally:
            handle.remove()
        return seen[0], seen[1], logits


def _channels_first(pixels_NHWC: torch.Tensor) -> torch.Tensor:
    return pixels_NHWC.permute(0, 3, 1, 2)


def _collate(examples: list[tuple[np.ndarray, Any]]) -> Batch:
    pixels = torch.from_numpy(np.stack([image for image, _ in examples]))  # (B, H, W, 3) uint8
    return {"pixels": pixels, "targets": stack_targets([target for _, target in examples])}


def _collate_features(examples: list[tuple[np.ndarray, Any]]) -> Batch:
    features = torch.from_numpy(np.stack([feature for feature, _ in examples]))  # (B, F)
    return {"features": features, "targets": stack_targets([target for _, target in examples])}
