"""How an image becomes the input of a model, as read from checkpoints and written beside weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import AutoImageProcessor, BitImageProcessor

from hftoolkit.data import Geometry
from hftoolkit.errors import DataError

# PIL's numbers for the resampling filters.
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
RESAMPLE = {name: number for number, name in INTERPOLATIONS.items()}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes the input of a model: resized to cover size / crop_pct, cropped in the centre, normalized.

    Attributes:
        height: pixels.
        width: pixels.
        crop_pct: share of the resized image's shorter side that the crop keeps; at most 1.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        mean: of each channel, where white is 1.
        std: of each channel, where white is 1.
    """

    height: int
    width: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def geometry(self) -> Geometry:
        """What happens to an image before it is normalized."""
        return Geometry(self.height, self.width, self.crop_pct, self.interpolation)


def normalize(pixels_NCHW: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the model's input, (N, 3, H, W) float32, of pixels of the same shape from 0 to 255."""
    mean = torch.tensor(preprocessing.mean, device=pixels_NCHW.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=pixels_NCHW.device).view(1, 3, 1, 1)
    return (pixels_NCHW.float() / 255 - mean) / std


def timm_preprocessing(settings: Mapping[str, Any], image_size: int | None) -> Preprocessing:
    """Return what timm does in evaluation with a model of this ``pretrained_cfg``, at ``image_size`` if it is given.

    Raises:
        DataError: the model does not read three channels.
    """
    fixed = bool(settings.get("fixed_input_size"))
    resolved = timm.data.resolve_data_config(pretrained_cfg=dict(settings), use_test_size=not fixed)
    channels, height, width = resolved["input_size"]
    mean, std = tuple(map(float, resolved["mean"])), tuple(map(float, resolved["std"]))
    if channels != 3 or len(mean) != 3 or len(std) != 3:
        raise DataError(f"the backbone reads images of {channels} channels; it must read 3 (RGB)")
    interpolation = resolved["interpolation"] if resolved["interpolation"] in RESAMPLE else "bicubic"
    own = Preprocessing(height, width, min(1.0, float(resolved["crop_pct"])), interpolation, mean, std)
    return own if image_size is None else replace(own, height=image_size, width=image_size)


def timm_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the entries of ``pretrained_cfg`` from which timm and TimmWrapper do the same."""
    return {
        "input_size": [3, preprocessing.height, preprocessing.width],
        "test_input_size": None,
        "test_crop_pct": None,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": "center",
        "interpolation": preprocessing.interpolation,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def processor_preprocessing(path: Path, image_size: int | None) -> Preprocessing:
    """Return what the folder's own image processor does, at ``image_size`` if it is given.

    Images that it would squeeze to another aspect ratio are cropped instead.

    Raises:
        DataError: it reads the channels in another order.
    """
    processor: Any = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    if getattr(processor, "do_flip_channel_order", False):
        raise DataError(f"{path.name} reads images in BGR order, which is not supported")
    size, crop = dict(processor.size), dict(getattr(processor, "crop_size", None) or {})
    edge = size.get("shortest_edge")
    resized = edge or size["height"]
    if getattr(processor, "do_center_crop", False) and crop:
        height, width, crop_pct = crop["height"], crop["width"], crop["height"] / resized
    elif edge is not None:
        # ConvNeXt's processor crops below 384 pixels, in its own words.
        height, width, crop_pct = edge, edge, getattr(processor, "crop_pct", None) if edge < 384 else None
    else:
        height, width, crop_pct = size["height"], size["width"], None
    # Pixels may be scaled to another range than 0 to 1: mean and deviation are those of 0 to 1.
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    own = Preprocessing(
        height,
        width,
        min(1.0, crop_pct or 1.0),
        INTERPOLATIONS.get(int(processor.resample), "bicubic"),
        (mean[0] / scale, mean[1] / scale, mean[2] / scale),
        (std[0] / scale, std[1] / scale, std[2] / scale),
    )
    return own if image_size is None else replace(own, height=image_size, width=image_size)


def make_processor(preprocessing: Preprocessing) -> Any:
    """Return transformers' processor that does the same."""
    resized = int(min(preprocessing.height, preprocessing.width) / preprocessing.crop_pct)
    return BitImageProcessor(
        size={"shortest_edge": resized},
        crop_size={"height": preprocessing.height, "width": preprocessing.width},
        resample=RESAMPLE[preprocessing.interpolation],
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
        do_convert_rgb=True,
    )
