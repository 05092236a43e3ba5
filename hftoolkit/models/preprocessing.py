"""How an image becomes the input of a model, as read from checkpoints and written beside weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor, nextafter
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessor, LevitImageProcessor, ViTImageProcessor

from hftoolkit.data.image.cache import CROP_MODES, Geometry, fit
from hftoolkit.errors import DataError, RecipeError

# PIL's numbers for the resampling filters.
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
RESAMPLE = {name: number for number, name in INTERPOLATIONS.items()}
SHOWS_ALL = {"squash": "squash", "pad": "border"}  # ``model.resize``: timm's word
CONVNEXT_CROPS_BELOW = 384  # pixels; from there on ConvNeXT's processor squashes
# Levels, of 255, by which torchvision's and Pillow's resizing may differ.
MAX_LEVELS_APART = 4.0


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes the input of a model: resized towards size / crop_pct, cropped in the centre, normalized.

    Attributes:
        height: pixels.
        width: pixels.
        crop_pct: share of the resized image's shorter side that the crop keeps; at most 1.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        mean: of each channel, where white is 1.
        std: of each channel, where white is 1.
        crop_mode: what resizing does to the aspect ratio: ``center``, ``squash`` or ``border``, see ``Geometry``.
        cut_before: how the crop divides an odd number of pixels: ``even`` or ``down``, see ``Geometry``.
    """

    height: int
    width: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: str = "center"
    cut_before: str = "even"

    @property
    def geometry(self) -> Geometry:
        """What happens to an image before it is normalized."""
        geometry = Geometry(
            self.height, self.width, self.crop_pct, self.interpolation, self.crop_mode, cut_before=self.cut_before
        )
        if self.crop_mode != "border":
            return geometry
        red, green, blue = self.mean
        return replace(geometry, fill=(round(255 * red), round(255 * green), round(255 * blue)))  # as timm fills


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a size that is one number where both are equal."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def at_size(own: Preprocessing, image_size: int | tuple[int, int] | None) -> Preprocessing:
    """Return the same at another size; None keeps its own."""
    if image_size is None:
        return own
    height, width = height_and_width(image_size)
    return replace(own, height=height, width=width)


def resized_by(own: Preprocessing, resize: str | None) -> Preprocessing:
    """Return the same with another rule for the aspect ratio: ``crop``, or ``squash`` and ``pad``, which show all."""
    if resize is None:
        return own
    if resize == "crop":
        return replace(own, crop_mode="center")
    return replace(own, crop_mode=SHOWS_ALL[resize], crop_pct=1.0)


def normalize(pixels_NCHW: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the model's input, (N, 3, H, W) float32, of pixels of the same shape from 0 to 255."""
    mean = torch.tensor(preprocessing.mean, device=pixels_NCHW.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=pixels_NCHW.device).view(1, 3, 1, 1)
    return (pixels_NCHW.float() / 255 - mean) / std


def timm_preprocessing(settings: Mapping[str, Any], image_size: int | tuple[int, int] | None) -> Preprocessing:
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
    crop_pct, crop_mode = min(1.0, float(resolved["crop_pct"])), resolved["crop_mode"]
    crop_mode = crop_mode if crop_mode in CROP_MODES else "center"  # so does timm
    return at_size(Preprocessing(height, width, crop_pct, interpolation, mean, std, crop_mode), image_size)


def timm_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the entries of ``pretrained_cfg`` from which timm and TimmWrapper do the same."""
    return {
        "input_size": [3, preprocessing.height, preprocessing.width],
        "test_input_size": None,
        "test_crop_pct": None,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": preprocessing.crop_mode,
        "interpolation": preprocessing.interpolation,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def processor_preprocessing(path: Path, image_size: int | tuple[int, int] | None) -> Preprocessing:
    """Return what the folder's own image processor does, at ``image_size`` if it is given.

    Raises:
        RecipeError: it leaves images as large as they are, and no ``image_size`` is given.
        DataError: it reads the channels in another order, pads images, crops height and width differently, or gives
            other pixels for a test image in any way.
    """
    processor: Any = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    if getattr(processor, "do_flip_channel_order", False):
        raise DataError(
            f"{path.name} reads images in BGR order, which is not supported; set model.backbone to one that reads RGB"
        )
    height, width, crop_pct, crop_mode = _processor_geometry(processor, path.name, image_size)
    # Pixels may be scaled to another range than 0 to 1: mean and deviation are those of 0 to 1.
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    own = Preprocessing(
        height,
        width,
        crop_pct,
        INTERPOLATIONS.get(int(processor.resample), "bicubic"),
        (mean[0] / scale, mean[1] / scale, mean[2] / scale),
        (std[0] / scale, std[1] / scale, std[2] / scale),
        crop_mode,
        cut_before="down",
    )
    if processor.do_resize:
        _compare(processor, own, path.name)
    return at_size(own, image_size)


def make_processor(preprocessing: Preprocessing) -> Any:
    """Return transformers' processor that does the same."""
    assert preprocessing.crop_mode != "border", "only timm has it, and timm models need no processor"
    height, width, crop_pct = preprocessing.height, preprocessing.width, preprocessing.crop_pct
    shared = {
        "resample": RESAMPLE[preprocessing.interpolation],
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": True,
    }
    size = {"shortest_edge": floor(min(height, width) / crop_pct)}
    if preprocessing.crop_mode == "squash":
        size = {"height": floor(height / crop_pct), "width": floor(width / crop_pct)}
        if size == {"height": height, "width": width}:
            return ViTImageProcessor(size=size, **shared)
    return BitImageProcessor(size=size, crop_size={"height": height, "width": width}, **shared)


def _processor_geometry(
    processor: Any, name: str, image_size: int | tuple[int, int] | None
) -> tuple[int, int, float, str]:
    """Return the height, width, crop_pct and crop_mode of what a transformers processor does."""
    if not processor.do_resize:
        if image_size is None:
            raise RecipeError(f"model.image_size is missing: the image processor of {name} leaves images as they are")
        return *height_and_width(image_size), 1.0, "center"
    size, crop = dict(processor.size), dict(getattr(processor, "crop_size", None) or {})
    edge = size.get("shortest_edge")
    crop_mode = "squash" if edge is None else "center"
    if getattr(processor, "do_center_crop", False) and crop:
        height, width = crop["height"], crop["width"]
        crop_pct = _share(height, _resized_edge(processor, edge) if edge else size["height"])
        if crop_pct > 1 or (edge is None and floor(width / crop_pct) != size["width"]):
            raise DataError(
                f"the image processor of {name} resizes to {size} and then crops {crop}, which is not supported: "
                "it pads, or keeps another share of the height than of the width. Set model.backbone to another one"
            )
        return height, width, crop_pct, crop_mode
    if edge is None:
        return size["height"], size["width"], 1.0, crop_mode
    convnext_crop_pct = getattr(processor, "crop_pct", None)
    if convnext_crop_pct is None:
        return edge, edge, 1.0, crop_mode
    return (edge, edge, convnext_crop_pct, crop_mode) if edge < CONVNEXT_CROPS_BELOW else (edge, edge, 1.0, "squash")


def _resized_edge(processor: Any, edge: int) -> int:
    """Return the shorter side before the crop where a processor has a rule of its own."""
    if isinstance(processor, LevitImageProcessor):
        return int(256 / 224 * edge)
    crop_pct = getattr(processor, "crop_pct", None)
    return edge if crop_pct is None else int(edge / crop_pct)


def _compare(processor: Any, own: Preprocessing, name: str) -> None:
    """Raise DataError where a processor makes something else of an image than ``own`` says."""
    rows, columns = np.mgrid[0 : own.height * 3 // 2, 0 : own.width * 2]  # smooth, and of another aspect ratio
    channels = [columns / columns.max(), rows / rows.max(), (rows + columns) / (rows + columns).max()]
    image = Image.fromarray((64 + 127 * np.stack(channels, axis=-1)).astype(np.uint8))
    wanted = processor(images=image, return_tensors="pt").get("pixel_values")
    ours = normalize(torch.from_numpy(fit(image, own.geometry)).permute(2, 0, 1)[None], own)
    std = torch.tensor(own.std).view(1, 3, 1, 1)
    if wanted is None or wanted.shape != ours.shape or ((wanted - ours) * std * 255).abs().max() > MAX_LEVELS_APART:
        raise DataError(
            f"the image processor of {name}, {type(processor).__name__}, does not just resize, crop and normalize; "
            "that is not supported; set model.backbone to another one"
        )


def _share(kept: int, resized: int) -> float:
    """Return the ``crop_pct`` of two lengths: ``floor(kept / crop_pct)`` is ``resized`` in spite of rounding."""
    share = kept / resized
    return share if floor(kept / share) == resized else nextafter(share, 0)
