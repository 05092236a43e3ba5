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


def pixel_frames(env: Env, section: PixelObservations) -> Env:
    """Return the environment with the latest frames as observations, uint8, the newest one last.

    Their shape is (stack, size, size), or (stack, size, size, 3) in colour. At the beginning of an episode its first
    frame fills the stack.

    Args:
        env: gives images, or draws them (``render_mode`` is ``rgb_array``).
        section: what the recipe says of them.

    Raises:
        RecipeError: it does neither.
        EnvironmentFault: a package that draws is missing.
    """
    if section.origin == "render":
        env = _drawn(env)
    elif not _is_image(env.observation_space):
        raise RecipeError(
            f"environment.pixels.origin: the observations are {env.observation_space}, not uint8 images of shape "
            "(H, W), (H, W, 1) or (H, W, 3); write origin: render, or leave environment.pixels out"
        )
    if section.frame_skip > 1:
        env = _RepeatAction(env, section.frame_skip)
    env = _resized(env, section.size, grayscale=section.grayscale)
    return FrameStackObservation(env, section.stack, padding_type="reset")


def _is_image(space: spaces.Space[Any]) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) >= 2 and space.shape[2:] in ((), (1,), (3,))


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
    mode, shape = ("L", (size, size)) if grayscale else ("RGB", (size, size, 3))

    def resize(frame: np.ndarray) -> np.ndarray:
        plain = frame[..., 0] if frame.shape[2:] == (1,) else frame
        # BOX averages areas, so that objects of one pixel only fade.
        return np.asarray(Image.fromarray(plain).convert(mode).resize((size, size), Image.Resampling.BOX))

    return TransformObservation(env, resize, spaces.Box(0, 255, shape, np.uint8))
