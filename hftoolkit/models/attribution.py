"""Where an image classifier looks, through captum, sole owner of that library."""

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import Occlusion

WINDOWS = 6  # windows a side, before they overlap by half
PERTURBATIONS = 16  # images of a forward pass


def occlusion_maps(
    logits: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, classes: torch.Tensor
) -> np.ndarray:
    """Return how much the logit of a class falls when a part of the image is covered (Zeiler and Fergus 2014).

    Args:
        logits: maps (N, 3, H, W) images, 0 to 255, to logits (N, C).
        images: (N, 3, H, W) float32.
        classes: (N,) whose logit is watched.

    Returns:
        (N, H, W) float32, one number a pixel: the mean over the windows that cover it, each filled with the mean colour
        of its image.
    """
    height, width = images.shape[-2:]
    window = (3, max(1, height // WINDOWS), max(1, width // WINDOWS))
    strides = (3, max(1, window[1] // 2), max(1, window[2] // 2))
    colours = images.mean((2, 3), keepdim=True).expand_as(images)
    with torch.no_grad():
        maps = Occlusion(logits).attribute(
            images,
            sliding_window_shapes=window,
            strides=strides,
            baselines=colours,
            target=classes,
            perturbations_per_eval=PERTURBATIONS,
        )
    result: np.ndarray = maps.mean(1).float().cpu().numpy()
    return result
