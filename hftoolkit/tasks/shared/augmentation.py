"""Random changes of training images. Every number comes from torch's generator, which the trainer seeds each step.

B images, H and W pixels.
"""

from dataclasses import dataclass

import torch
from torchvision.transforms import v2

from hftoolkit.recipe import Augmentation

# "light" keeps what a character or a scan means: no mirror image, no colour, small moves. Degrees; shares of the side.
LIGHT_DEGREES, LIGHT_SHIFT, LIGHT_SCALE = 10, 0.1, (0.9, 1.1)
STRONG_SCALE = (0.5, 1.0)  # share of the area that a crop keeps


@dataclass(frozen=True, slots=True)
class Mixed:
    """Images that may be blends of two: the loss is ``share`` of the first target's, the rest of the second's."""

    pixels: torch.Tensor  # (B, 3, H, W) uint8, or float32 of blends, 0 to 255
    partners: torch.Tensor  # (B,) index of the second image of each
    share: float


class Augment:
    """The changes that a recipe asks for."""

    def __init__(self, section: Augmentation, height: int, width: int) -> None:
        self._blend = _blend(section)
        self._change = _preset(section.preset, height, width)
        self._erase = v2.RandomErasing(p=section.erasing, value=0) if section.erasing > 0 else None

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, H, W) uint8 images, each changed in its own way."""
        if self._change is None and self._erase is None:
            return pixels
        return torch.stack([self._one(image) for image in pixels])

    def mix(self, pixels: torch.Tensor) -> Mixed:
        """Blend or paste images of a batch by mixup or CutMix; where the recipe has both, one of them by chance."""
        partners = torch.arange(len(pixels)).roll(1)  # as torchvision pairs them
        if self._blend is None:
            return Mixed(pixels, partners, 1.0)
        blended, shares_BB = self._blend(pixels.float(), torch.eye(len(pixels)))
        return Mixed(blended, partners.to(pixels.device), float(shares_BB[0, 0]))

    def _one(self, image: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = image if self._change is None else self._change(image)
        return changed if self._erase is None else self._erase(changed)


def _preset(name: str, height: int, width: int) -> v2.Transform | None:
    match name:
        case "none":
            return None
        case "light":
            shift = (LIGHT_SHIFT, LIGHT_SHIFT)
            bilinear = v2.InterpolationMode.BILINEAR
            return v2.RandomAffine(LIGHT_DEGREES, translate=shift, scale=LIGHT_SCALE, interpolation=bilinear)
        case "strong":
            crop = v2.RandomResizedCrop((height, width), scale=STRONG_SCALE, antialias=True)
            return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandAugment()])
        case _:
            raise AssertionError(f"unknown preset {name}")


def _blend(section: Augmentation) -> v2.Transform | None:
    chosen = [v2.MixUp(alpha=section.mixup)] if section.mixup > 0 else []
    chosen += [v2.CutMix(alpha=section.cutmix)] if section.cutmix > 0 else []
    return v2.RandomChoice(chosen) if chosen else None
