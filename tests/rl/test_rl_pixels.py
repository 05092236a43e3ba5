"""Stacks of frames, as environments show them and as the replay memory rebuilds them, against lists of frames."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.recipe import Environment, PixelObservations
from hftoolkit.rl.environments import Environments, make_environment
from hftoolkit.rl.pixels import pixel_frames
from hftoolkit.rl.replay import ReplayBuffer

SIZE = 8


class Flipbook(gymnasium.Env[np.ndarray, int]):
    """Show given frames one after the other; the i-th step brings the reward i, and the last one ends the episode.

    Frames are drawn over each other in one array, as emulators do.
    """

    action_space = spaces.Discrete(3)

    def __init__(self, frames: Sequence[np.ndarray] = (), *, truncates: bool = False, render_mode: Any = None) -> None:
        self.frames, self.truncates, self.render_mode = frames, truncates, render_mode
        self.screen = np.zeros_like(frames[0])
        self.observation_space = spaces.Box(0, 255, self.screen.shape, self.screen.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.show(), self.info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        ended = self.time == len(self.frames) - 1
        return self.show(), self.time, ended and not self.truncates, ended and self.truncates, self.info()

    def show(self) -> np.ndarray:
        self.screen[:] = self.frames[self.time]
        return self.screen

    def info(self) -> dict[str, Any]:
        return {"action_mask": np.arange(3) != self.time % 3}


class Noise(gymnasium.Env[np.ndarray, int]):
    """Frames that never come twice; episodes of 1 to 7 steps, every other one cut off."""

    observation_space = spaces.Box(0, 255, (SIZE, SIZE), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 8))
        self.truncates = bool(self.np_random.integers(2))
        return self.frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        ended = self.left == 0
        return self.frame(), 1.0, ended and not self.truncates, ended and self.truncates, {}

    def frame(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (SIZE, SIZE), np.uint8)


@pytest.fixture
def noise() -> Iterator[str]:
    gymnasium.register("Noise-v0", Noise)
    yield "Noise-v0"
    del gymnasium.registry["Noise-v0"]


def random_frames(number: int, *shape: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (number, *shape), np.uint8))


def pixels(**knobs: Any) -> PixelObservations:
    return PixelObservations(**{"size": SIZE} | knobs)


@pytest.mark.parametrize("stack", [1, 4])
def test_observations_are_the_latest_frames_and_the_first_one_fills_the_stack(stack: int) -> None:
    frames = random_frames(7, SIZE, SIZE)
    env = pixel_frames(Flipbook(frames), pixels(stack=stack))
    assert env.observation_space == spaces.Box(0, 255, (stack, SIZE, SIZE), np.uint8)
    for _ in range(2):  # an episode leaves nothing in the next one's stacks
        seen = [env.reset()[0]]
        while len(seen) < len(frames):
            seen.append(env.step(0)[0])
        for time, observation in enumerate(seen):
            wanted = [frames[max(0, time - back)] for back in reversed(range(stack))]
            np.testing.assert_array_equal(observation, wanted)
            assert observation in env.observation_space


def test_frames_keep_their_colours_where_they_are_wanted() -> None:
    frames = random_frames(3, SIZE, SIZE, 3)
    env = pixel_frames(Flipbook(frames), pixels(stack=2, grayscale=False))
    np.testing.assert_array_equal(env.reset()[0], [frames[0], frames[0]])
    np.testing.assert_array_equal(env.step(0)[0], [frames[0], frames[1]])
    assert env.observation_space.shape == (2, SIZE, SIZE, 3)


def test_grayscale_is_luminance() -> None:
    frames = random_frames(2, SIZE, SIZE, 3)
    env = pixel_frames(Flipbook(frames), pixels(stack=1))
    np.testing.assert_allclose(env.reset()[0][0], frames[0] @ [0.299, 0.587, 0.114], atol=1)


def test_a_gray_frame_may_have_an_axis_for_its_only_channel() -> None:
    frames = random_frames(2, SIZE, SIZE, 1)
    env = pixel_frames(Flipbook(frames), pixels(stack=1))
    np.testing.assert_array_equal(env.reset()[0][0], frames[0][..., 0])
    in_colour = pixel_frames(Flipbook(frames), pixels(stack=1, grayscale=False))
    np.testing.assert_array_equal(in_colour.reset()[0][0], frames[0].repeat(3, axis=2))


def test_resizing_averages_areas() -> None:
    frames = random_frames(2, 4 * SIZE, 2 * SIZE)
    env = pixel_frames(Flipbook(frames), pixels(stack=1))
    means = frames[0].reshape(SIZE, 4, SIZE, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(env.reset()[0][0], means, atol=1)


def test_a_repeated_action_sums_rewards_and_shows_the_brighter_of_the_last_two_frames() -> None:
    frames = random_frames(10, SIZE, SIZE)
    env = pixel_frames(Flipbook(frames), pixels(stack=2, frame_skip=4))
    env.reset()
    observation, reward, terminated, _, info = env.step(0)
    np.testing.assert_array_equal(observation, [frames[0], np.maximum(frames[3], frames[4])])
    assert reward == 1 + 2 + 3 + 4 and not terminated
    np.testing.assert_array_equal(info["action_mask"], np.arange(3) != 4 % 3)
    observation, reward, *_ = env.step(0)
    np.testing.assert_array_equal(observation[-1], np.maximum(frames[7], frames[8]))
    assert reward == 5 + 6 + 7 + 8


@pytest.mark.parametrize("truncates", [False, True])
def test_a_repeated_action_stops_at_the_end_and_shows_no_older_frames(truncates: bool) -> None:
    # One step is left for the second action, then two.
    for length, newest in ((6, (5,)), (7, (5, 6))):
        frames = random_frames(length, SIZE, SIZE)
        env = pixel_frames(Flipbook(frames, truncates=truncates), pixels(stack=1, frame_skip=4))
        env.reset()
        env.step(0)
        observation, reward, *ends, _ = env.step(0)
        np.testing.assert_array_equal(observation[0], np.max([frames[time] for time in newest], axis=0))
        assert reward == sum(newest) and ends == [not truncates, truncates]


def test_action_masks_go_through_untouched() -> None:
    env = pixel_frames(Flipbook(random_frames(4, SIZE, SIZE)), pixels())
    infos = [env.reset()[1], env.step(0)[4]]
    for time, info in enumerate(infos):
        np.testing.assert_array_equal(info["action_mask"], np.arange(3) != time % 3)


def test_frames_are_drawn_where_the_environment_gives_none() -> None:
    section = Environment(id="CartPole-v1", pixels=PixelObservations(origin="render", size=40, stack=2))
    env = make_environment(section)
    first, _ = env.reset(seed=1)
    assert first.shape == (2, 40, 40) and first.dtype == np.uint8
    plain = make_environment(Environment(id="CartPole-v1"), render_mode="rgb_array")
    plain.reset(seed=1)
    for _ in range(8):
        observation, *_ = env.step(1)
        plain.step(1)
    picture: Any = plain.render()  # (400, 600, 3)
    means = (picture @ [0.299, 0.587, 0.114]).reshape(40, 10, 40, 15).mean(axis=(1, 3))
    np.testing.assert_allclose(observation[-1], means, atol=2)
    assert not np.array_equal(observation[-1], first[-1])
    env.close()
    plain.close()


def test_numbers_are_no_images() -> None:
    with pytest.raises(RecipeError, match=r"no image of shape .* write origin: render"):
        make_environment(Environment(id="CartPole-v1", pixels=pixels()))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (np.zeros(8, np.uint8), "no image of shape"),
        (np.zeros((4, 8, 8, 3), np.uint8), "leave out frame stacks of your own"),
        (np.zeros((8, 8), np.int8), "int8 from -1 to 1; give images as uint8"),
    ],
)
def test_what_is_no_image_is_refused_with_what_is(frame: np.ndarray, said: str) -> None:
    book = Flipbook([frame.astype(np.uint8)])
    if frame.dtype == np.int8:
        book.observation_space = spaces.Box(-1, 1, frame.shape, np.int8)
    with pytest.raises(RecipeError, match=said):
        pixel_frames(book, pixels())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["uint8", "int64", "0 to 1"])
def test_channels_may_come_first_and_numbers_in_other_types(channels: int, kind: str) -> None:
    frames = random_frames(3, 12, 10, channels)
    last, first = Flipbook(frames), Flipbook([np.moveaxis(frame, -1, 0) for frame in frames])
    if kind != "uint8":
        share = kind == "0 to 1"
        shape = (channels, 12, 10)
        first = Flipbook([np.float32(np.moveaxis(f, -1, 0) / 255) if share else np.moveaxis(f, -1, 0) for f in frames])
        first.observation_space = spaces.Box(0, 1 if share else 255, shape, np.float32 if share else np.int64)
    one, other = (pixel_frames(book, pixels(grayscale=False)) for book in (last, first))
    assert one.observation_space == other.observation_space
    np.testing.assert_array_equal(one.reset()[0], other.reset()[0])
    np.testing.assert_array_equal(one.step(0)[0], other.step(0)[0])


def test_frames_of_other_channels_keep_them_all() -> None:
    frames = random_frames(2, SIZE, SIZE, 4)
    env = pixel_frames(Flipbook(frames), pixels(stack=2))
    observation = env.reset()[0]
    np.testing.assert_array_equal(observation, [frames[0], frames[0]])
    assert env.observation_space.shape == (2, SIZE, SIZE, 4)


def test_an_agent_that_sees_drawn_frames_has_no_window() -> None:
    section = Environment(id="CartPole-v1", pixels=pixels(origin="render"))
    with pytest.raises(RecipeError, match=r"render_mode 'human' cannot be shown .* record a video"):
        make_environment(section, render_mode="human")


def test_an_environment_that_cannot_draw_says_so() -> None:
    book = Flipbook(random_frames(2, SIZE, SIZE), render_mode="rgb_array")
    with pytest.raises(RecipeError, match="draws no frames"):
        pixel_frames(book, pixels(origin="render"))


def test_a_missing_package_for_drawing_is_named() -> None:
    class NeedsPygame(Flipbook):
        def render(self) -> Any:
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed")

    book = NeedsPygame(random_frames(2, SIZE, SIZE), render_mode="rgb_array")
    with pytest.raises(EnvironmentFault, match="pygame is not installed"):
        pixel_frames(book, pixels(origin="render"))


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("capacity", [40, 1000])
def test_the_replay_memory_rebuilds_the_stacks_that_were_seen(
    noise: str, stack: int, n_steps: int, capacity: int
) -> None:
    environments = Environments(Environment(id=noise, num_envs=2, pixels=pixels(stack=stack)), seed=0)
    replay = ReplayBuffer(
        capacity,
        2,
        frame=environments.observations[0, -1],
        stack=stack,
        num_actions=None,
        n_steps=n_steps,
        discount=0.9,
    )
    seen: list[list[np.ndarray]] = [[], []]  # stacks before each step, by environment
    after: list[list[tuple[np.ndarray, bool, bool]]] = [[], []]  # next stack, terminated, truncated
    for _ in range(120):
        observations = environments.observations
        step = environments.step(np.zeros(2, np.int64))
        replay.add(observations, None, np.zeros(2, np.int64), step)
        for index in range(2):
            seen[index].append(observations[index])
            after[index].append((step.next_observations[index], step.terminated[index], step.truncated[index]))
    where = {stacks[time][-1].tobytes(): (index, time) for index, stacks in enumerate(seen) for time in range(120)}
    assert len(where) == 240  # the newest frame tells which stack it is
    drawn = replay.sample(4000, np.random.default_rng(0))
    indices, cut_off = set(), 0
    for number, observation in enumerate(drawn.observations):
        index, time = where[observation[-1].tobytes()]
        np.testing.assert_array_equal(observation, seen[index][time])
        last = next(at for at in count(time) if at in (time + n_steps - 1, 119) or any(after[index][at][1:]))
        following, terminated, truncated = after[index][last]
        assert (drawn.discounts[number] == 0) == terminated
        if not terminated:
            np.testing.assert_array_equal(drawn.next_observations[number], following)
        indices.add((index, time))
        cut_off += truncated
    assert cut_off > 20 and len(indices) == min(len(replay), 240) > 30
