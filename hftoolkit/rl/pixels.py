"""Environments whose observations are stacks of small frames, as DQN saw Atari games (Mnih et al. 2015)."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import AddRenderObservation, FrameStackObservation, TransformObservation
from PIL import Image

from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.recipe import PixelObservations

Env = gymnasium.Env[Any, Any]
SMALLEST_IMAGE = 36  # pixels; what has a shorter side than nature-cnn takes is a grid of cells for an MLP


def pixel_frames(env: Env, section: PixelObservations) -> Env:
    """Return the environment with the latest frames as observations, uint8, the newest one last.

    Their shape is (stack, size, size), or (stack, size, size, 3) in colour, or with as many channels as the environment
    gives if those are neither one nor three. At the beginning of an episode its first frame fills the stack.

    Args:
        env: gives images, or draws them (``render_mode`` is ``rgb_array``).
        section: what the recipe says of them.

    Raises:
        RecipeError: it does neither, or its images have a layout that is not known.
        EnvironmentFault: a package that draws is missing.
    """
    env = _drawn(env) if section.origin == "render" else _as_images(env)
    if section.frame_skip > 1:
        env = _RepeatAction(env, section.frame_skip)
    env = _resized(env, section.size, grayscale=section.grayscale)
    return FrameStackObservation(env, section.stack, padding_type="reset")


def is_large_image(shape: tuple[int, ...]) -> bool:
    """Return whether bytes of this shape are an image that only an encoder should see, and no grid of a few cells."""
    return len(shape) > 1 and sorted(shape)[-2] >= SMALLEST_IMAGE


def _as_images(env: Env) -> Env:
    """Return the environment with observations (H, W) or (H, W, C), uint8.

    Raises:
        RecipeError: its observations are no images.
    """
    space = env.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        stacked = (
            "; leave out frame stacks of your own, environment.pixels.stack makes them" if _is_stack(space) else ""
        )
        raise RecipeError(
            f"environment.pixels.origin: the observations are {space}, no image of shape (H, W), (H, W, C) or (C, H, W)"
            f"{stacked or '; write origin: render, or leave environment.pixels out'}"
        )
    if space.dtype != np.uint8 and not (space.low.min() >= 0 and space.high.max() <= 255):
        raise RecipeError(
            f"environment.pixels.origin: the observations are {space.dtype} from {space.low.min()} to "
            f"{space.high.max()}; give images as uint8, or numbers from 0 to 1 or from 0 to 255, or leave "
            "environment.pixels out"
        )
    is_share = space.dtype.kind == "f" and space.high.max() <= 1
    moves = len(space.shape) == 3 and not _has_channels_last(space.shape)
    if space.dtype == np.uint8 and not moves:
        return env

    def convert(image: np.ndarray) -> np.ndarray:
        image = np.moveaxis(image, 0, -1) if moves else image
        return (np.rint(image * 255) if is_share else image).astype(np.uint8)

    shape = (*space.shape[1:], space.shape[0]) if moves else space.shape
    return TransformObservation(env, convert, spaces.Box(0, 255, shape, np.uint8))


def _has_channels_last(shape: tuple[int, ...]) -> bool:
    first, _, last = shape
    return last in (1, 3, 4) or not first <= min(shape[1:]) or last <= first


def _is_stack(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 4


def _drawn(env: Env) -> Env:
    if env.render_mode != "rgb_array":
        raise RecipeError(
            f"environment.pixels.origin: render draws each frame for the agent, so render_mode {env.render_mode!r} "
            "cannot be shown beside it; record a video instead"
        )
    try:
        return AddRenderObservation(env)
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvironmentFault(f"environment.pixels.origin: render: {error}") from error
    except (NotImplementedError, TypeError) as error:
        raise RecipeError(f"environment.pixels.origin: this environment draws no frames: {error}") from error


class _RepeatAction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Take each action several times; give the sum of the rewards and the pixelwise maximum of the last two frames.

    gymnasium's ``MaxAndSkipObservation`` goes on showing frames of the action before where an episode ends early.
    """

    def __init__(self, env: Env, times: int) -> None:
        super().__init__(env)
        self._times = times

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return what one step does, after as many as the episode has left."""
        frames: list[np.ndarray] = []
        total = 0.0
        for _ in range(self._times):
            frame, reward, terminated, truncated, info = self.env.step(action)
            frames = [*frames[-1:], np.array(frame)]  # a copy: environments may draw the next one over it
            total += float(reward)
            if terminated or truncated:
                break
        return np.maximum.reduce(frames), total, terminated, truncated, info


def _resized(env: Env, size: int, *, grayscale: bool) -> Env:
    assert env.observation_space.shape is not None
    channels = env.observation_space.shape[2:]
    mode, of_frame = ("RGB", (3,)) if channels in ((), (1,), (3,)) and not grayscale else ("L", ())
    has_others = channels not in ((), (1,), (3,))

    def resize(frame: np.ndarray) -> np.ndarray:
        if has_others:
            return np.stack([resize_one(frame[..., each]) for each in range(frame.shape[-1])], axis=-1)
        return resize_one(frame[..., 0] if frame.shape[2:] == (1,) else frame)

    def resize_one(plain: np.ndarray) -> np.ndarray:
        # BOX averages areas, so that objects of one pixel only fade.
        return np.asarray(Image.fromarray(plain).convert(mode).resize((size, size), Image.Resampling.BOX))

    shape = (size, size, *(channels if has_others else of_frame))
    return TransformObservation(env, resize, spaces.Box(0, 255, shape, np.uint8))
