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

    pixels: torch.Tensor  # (B, 3, H, W) uint8 or float32, 0 to 255
    partners: torch.Tensor  # (B,) index of the second image of each
    share: float


class Augment:
    """The changes that a recipe asks for."""

    def __init__(self, section: Augmentation, height: int, width: int) -> None:
        self._section = section
        self._change = _preset(section.preset, height, width)
        self._erase = v2.RandomErasing(p=section.erasing, value=0) if section.erasing > 0 else None

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, H, W) uint8 images, each changed in its own way."""
        if self._change is None and self._erase is None:
            return pixels
        return torch.stack([self._one(image) for image in pixels])

    def mix(self, pixels: torch.Tensor) -> Mixed:
        """Blend or paste images of a batch by mixup or CutMix; where the recipe has both, one of them by chance."""
        mixup, cutmix = self._section.mixup, self._section.cutmix
        partners = torch.arange(len(pixels), device=pixels.device)
        if mixup == 0 and cutmix == 0:
            return Mixed(pixels, partners, 1.0)
        paste = cutmix > 0 and (mixup == 0 or bool(torch.rand(()) < 0.5))
        share = _draw_share(cutmix if paste else mixup)
        partners = torch.randperm(len(pixels)).to(pixels.device)
        if paste:
            return _paste(pixels, partners, share)
        blended = share * pixels.float() + (1 - share) * pixels[partners].float()
        return Mixed(blended, partners, share)

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


def _draw_share(alpha: float) -> float:
    """Draw from Beta(alpha, alpha) with torch's generator."""
    return float(torch.distributions.Beta(alpha, alpha).sample())


def _paste(pixels: torch.Tensor, partners: torch.Tensor, share: float) -> Mixed:
    """Put a rectangle of each partner into each image; the share is then what is left of the image, to the pixel."""
    height, width = pixels.shape[-2:]
    side = (1 - share) ** 0.5
    middle_y, middle_x = int(torch.randint(height, ())), int(torch.randint(width, ()))
    top, bottom = _span(middle_y, side * height, height)
    left, right = _span(middle_x, side * width, width)
    pasted = pixels.clone()
    pasted[..., top:bottom, left:right] = pixels[partners][..., top:bottom, left:right]
    return Mixed(pasted, partners, 1 - (bottom - top) * (right - left) / (height * width))


def _span(middle: int, length: float, limit: int) -> tuple[int, int]:
    return max(0, round(middle - length / 2)), min(limit, round(middle + length / 2))
