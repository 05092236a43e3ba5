"""Watching a policy: in a window, or in a video file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.rl import INSTALL
from hftoolkit.rl.evaluation import Policy, watch
from hftoolkit.rl.pixels import Env

FORMATS = (".mp4", ".gif")
DEFAULT_FRAMES_PER_SECOND = 30


def check_video(path: Path) -> None:
    """Raise RecipeError if a video cannot go there."""
    if path.suffix not in FORMATS:
        raise RecipeError(f"--video {path}: the format is not known; choose a name that ends in {' or '.join(FORMATS)}")
    if path.exists():
        raise RecipeError(f"--video {path} exists and is kept; choose another name")


def record_video(policy: Policy, make: Callable[[], Env], path: Path, *, episodes: int, seed: int) -> list[float]:
    """Write episodes into one video, and return what they brought.

    Args:
        policy: who plays.
        make: returns an environment that draws images.
        path: an .mp4 or .gif file.
        episodes: how many, the first ones of an evaluation with ``seed``.
        seed: of that evaluation.

    Raises:
        EnvironmentFault: imageio is missing, or the file cannot be written.
    """
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise EnvironmentFault(f"videos need imageio; {INSTALL}") from error
    env = make()
    rate = env.metadata.get("render_fps", DEFAULT_FRAMES_PER_SECOND)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer: Any
        speed = {"duration": 1000 / rate} if path.suffix == ".gif" else {"fps": rate}  # milliseconds a frame
        with imageio.get_writer(path, **speed) as writer:
            return watch(policy, env, episodes=episodes, seed=seed, look=lambda: writer.append_data(env.render()))
    except BaseException as error:
        path.unlink(missing_ok=True)  # half a video would stand in the way of the next one
        if isinstance(error, OSError):
            raise EnvironmentFault(f"cannot write {path}: {error}") from error
        raise
    finally:
        env.close()


def show(policy: Policy, make: Callable[[], Env], *, episodes: int, seed: int) -> list[float]:
    """Play episodes in a window, which the environment opens itself, and return what they brought."""
    env = make()
    try:
        return watch(policy, env, episodes=episodes, seed=seed, look=lambda: None)
    finally:
        env.close()
