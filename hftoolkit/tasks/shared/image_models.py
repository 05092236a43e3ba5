"""What tasks on images have in common: the backbone of a recipe, and pixels on their way into it.

Shape suffixes: B images of H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import GateInputs, HeadSpec
from hftoolkit.models.image_backbones import (
    ImageBackbone,
    load_image_classifier,
    load_saved_image_classifier,
    saved_preprocessing,
)
from hftoolkit.models.preprocessing import Preprocessing, normalize
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe import ImageModel

WORST_SHOWN = 24
SAMPLES_SHOWN = 12


class HasPixels(Protocol):
    """A raw row with an image."""

    @property
    def pixels(self) -> np.ndarray:
        """The image, (H, W, 3) uint8."""
        ...


@dataclass(frozen=True, slots=True)
class PixelsOf(Sequence[np.ndarray]):
    """The pixels of images, each read when it is asked for."""

    rows: Sequence[HasPixels]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.rows[place].pixels


def load_backbone(section: ImageModel, head: HeadSpec, weights: Weights, seed: int) -> ImageBackbone:
    """Return the exported model of ``weights``, or the backbone that a recipe names with this head.

    ``seed`` is of what has no weights yet.
    """
    if weights.saved is not None:
        return load_saved_image_classifier(weights.saved)
    return load_image_classifier(
        weights.path,
        head,
        architecture=section.architecture,
        image_size=section.height_and_width,
        dropout=section.dropout,
        drop_path=section.drop_path,
        seed=seed,
        resize=section.resize,
    )


def preprocessing_of(section: ImageModel, weights: Weights, seed: int) -> Preprocessing:
    """Return what the weights expect of images; the names of the head do not matter for that."""
    if weights.saved is not None:
        return saved_preprocessing(weights.saved)
    return load_backbone(section, HeadSpec(("a", "b"), "single_label_classification"), weights, seed).preprocessing


def stack_pixels(rows: Sequence[HasPixels]) -> torch.Tensor:
    """Return images in one tensor, (B, H, W, 3) uint8."""
    return torch.from_numpy(np.stack([row.pixels for row in rows]))


def channels_first(pixels_BHWC: torch.Tensor) -> torch.Tensor:
    """Return a view of images, (B, 3, H, W)."""
    return pixels_BHWC.permute(0, 3, 1, 2)


def logits_of(model: nn.Module, images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the logits of images, (B, 3, H, W), that are not normalized yet."""
    logits: torch.Tensor = model(pixel_values=normalize(images, preprocessing)).logits
    return logits


def image_gate_inputs(rows: Sequence[HasPixels], preprocessing: Preprocessing) -> GateInputs:
    """Return normalized images, ``pixel_values`` (B, 3, H, W) float32."""
    images = channels_first(stack_pixels(rows))
    return GateInputs({"pixel_values": normalize(images, preprocessing).contiguous()})


def sample_places(num_images: int) -> np.ndarray:
    """Return the places of the images that are shown as samples, evenly among all of them."""
    return np.linspace(0, num_images - 1, min(SAMPLES_SHOWN, num_images)).astype(int)
