"""From stacks of frames to features: the convolutions of Mnih et al. 2015, or a timm backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import HeadSpec
from hftoolkit.data.sources.resolve import resolve_model
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.models.image_backbones import is_convolutional, load_image_classifier, timm_part
from hftoolkit.models.preprocessing import Preprocessing, normalize
from hftoolkit.models.timm_models import replace_head
from hftoolkit.recipe import Network, TimmEncoder

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel size and stride in pixels
LEAST_SIZE = 36  # pixels; below it nothing is left for the last convolution
# Knobs as errors of image recipes name them, and where they are in recipes of this kind.
KNOBS = {
    "model.backbone": "algorithm.network.backbone",
    "model.architecture": "algorithm.network.architecture",
    "model.image_size": "environment.pixels.size",
}


def nature_cnn(observation: np.ndarray) -> tuple[nn.Sequential, int]:
    """Return layers from stacks (B, stack, H, W[, C]) uint8 to features (B, F), and F.

    Args:
        observation: one example, (stack, H, W[, C]).

    Raises:
        RecipeError: the frames are too small.
    """
    side = observation.shape[1]
    if side < LEAST_SIZE:
        raise RecipeError(
            f"environment.pixels.size: {side} is too small for nature-cnn; the least is {LEAST_SIZE}. For a grid of "
            "few cells leave environment.pixels out, and choose encoder: mlp"
        )
    layers: list[nn.Module] = [StackAsChannels()]
    inputs = observation.shape[0] * (observation.shape[3] if observation.ndim == 4 else 1)
    for outputs, kernel, stride in CONVOLUTIONS:
        layers += [nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU()]
        inputs, side = outputs, (side - kernel) // stride + 1
    return nn.Sequential(*layers, nn.Flatten()), inputs * side**2


class StackAsChannels(nn.Module):
    """Turn stacks of frames, (B, stack, H, W[, C]) uint8, into (B, channels, H, W) float32 from 0 to 1."""

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        """Return stack channels, or C * stack where frames have several."""
        channels = stacks.permute(0, 1, 4, 2, 3).flatten(1, 2) if stacks.ndim == 5 else stacks
        return channels.float() / 255


def timm_encoder(section: TimmEncoder, observation: np.ndarray) -> tuple[nn.Sequential, int]:
    """Return layers from stacks (B, stack, H, W[, 3]) uint8 to the joined features of their frames, and their number.

    Random weights are drawn from torch's generator, which starts again from a seed that was drawn from it.

    Args:
        section: what the recipe says of the backbone.
        observation: one example, (stack, H, W[, 3]).

    Raises:
        RecipeError: the architecture is missing, unknown, not of timm, or does not take frames of this size.
        DataError: the weights cannot be had or do not fit.
        EnvironmentFault: no network, no permission, disk full.
    """
    if observation.shape[3:] not in ((), (3,)):
        raise RecipeError(
            f"algorithm.network.encoder: timm sees gray or coloured frames, and these have {observation.shape[3]} "
            "channels; choose nature-cnn"
        )
    weights = None if section.backbone is None else resolve_model(section.backbone, sha256=section.sha256)
    with _errors_name_knobs_of_this_recipe():
        classifier = load_image_classifier(
            None if weights is None else weights.path,
            HeadSpec(("no", "head")),
            architecture=section.architecture,
            image_size=observation.shape[1],
            dropout=0,
            drop_path=0,
            seed=int(torch.randint(2**62, ())),
        )
        backbone = timm_part(classifier.model)
        if backbone is None:
            raise RecipeError("model.backbone: this is no model of timm; name one, for example timm/resnet18.a1_in1k")
        config: Any = classifier.model.config
        replace_head(backbone, 0, config.model_args)
    if is_convolutional(backbone):
        backbone.to(memory_format=torch.channels_last)  # up to twice as fast on CPUs
    encoder = FrameFeatures(backbone.requires_grad_(not section.frozen), classifier.preprocessing)
    with torch.no_grad():
        return nn.Sequential(encoder), encoder(torch.from_numpy(observation)[None]).shape[1]


class FrameFeatures(nn.Module):
    """A backbone on each frame of a stack: (B, stack, H, W[, 3]) uint8 -> (B, stack * F) float32.

    The backbone stays in eval mode. An agent acts on a few observations and learns from many, so statistics of the
    batch would make the value of an observation depend on what it is seen with, and targets on what was drawn.

    Args:
        backbone: normalized images, (B, 3, H, W) -> features, (B, F).
        preprocessing: the mean and deviation that it expects.
    """

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone = backbone.eval()
        self._preprocessing = preprocessing

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the backbone."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, stacks: torch.Tensor) -> torch.Tensor:
        """Return the features of a stack's frames one after the other; gray frames become three equal channels."""
        frames = stacks.flatten(0, 1)
        images = frames.permute(0, 3, 1, 2) if frames.ndim == 4 else frames[:, None].expand(-1, 3, -1, -1)
        features: torch.Tensor = self.backbone(normalize(images, self._preprocessing))
        return features.reshape(len(stacks), -1)


class Perception:
    """What an agent takes observations for, before it remembers them or learns from them.

    That is the observations themselves; or, where an encoder is frozen, the features of each frame, so that neither the
    replay memory nor the Q-network ever sees a frame. Frames of the latest call are known to the next one, and each
    frame of an episode is therefore encoded once.

    Args:
        encoder: (B, 1, H, W[, 3]) uint8 -> (B, F); None for no encoder.
    """

    def __init__(self, encoder: nn.Module | None) -> None:
        self.encoder = encoder
        self._cache: dict[bytes, np.ndarray] = {}

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Return (N, stack, F) float32 for stacks of N environments, (N, stack, H, W[, 3]); or what was given."""
        if self.encoder is None:
            return observations
        frames = observations.reshape(-1, 1, *observations.shape[2:])
        keys = [frame.tobytes() for frame in frames]
        new = {key: index for index, key in enumerate(keys) if key not in self._cache}
        if new:
            self._cache.update(zip(new, self._encode(self.encoder, frames[list(new.values())]), strict=True))
        self._cache = {key: self._cache[key] for key in keys}
        return np.stack([self._cache[key] for key in keys]).reshape(*observations.shape[:2], -1)

    def to(self, device: torch.device) -> Self:
        """Move the encoder, if there is one."""
        if self.encoder is not None:
            self.encoder.to(device)
        return self

    def fill_cache(self, observations: np.ndarray, seen: np.ndarray) -> None:
        """Take what a call had returned as if it had been made here.

        The last bits of features depend on how many frames are encoded together, so this is what makes resuming exact.
        """
        if self.encoder is not None:
            keys = (frame.tobytes() for stack in observations for frame in stack)
            self._cache = dict(zip(keys, seen.reshape(-1, seen.shape[-1]), strict=True))

    def with_empty_cache(self) -> "Perception":
        """Return another one with the same encoder that knows no frame: for environments other than those so far."""
        return Perception(self.encoder)

    @staticmethod
    @torch.inference_mode()
    def _encode(encoder: nn.Module, frames: np.ndarray) -> np.ndarray:
        device = next(encoder.parameters()).device
        features: np.ndarray = encoder(torch.from_numpy(frames).to(device)).cpu().numpy()
        return features


def perception(section: Network, observation: np.ndarray) -> Perception:
    """Return the perception that goes with a network; arguments and errors are those of `timm_encoder`."""
    if isinstance(section, TimmEncoder) and section.frozen:
        return Perception(timm_encoder(section, observation)[0])
    return Perception(None)


@contextmanager
def _errors_name_knobs_of_this_recipe() -> Iterator[None]:
    try:
        yield
    except (RecipeError, DataError) as error:
        message = str(error)
        for theirs, ours in KNOBS.items():
            message = message.replace(theirs, ours)
        raise type(error)(message) from error
