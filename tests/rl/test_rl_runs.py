"""Runs in environments as people bring them: their cards, their crashes, and what goes on from what was learned."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hftoolkit
from doubles.commands import hft, read_json, refused
from hftoolkit.recipe import load_reinforcement_recipe


def trained(recipe: Path, where: Path, *arguments: object) -> Path:
    ended = hft("rl", "train", recipe, "--run-dir", where, *arguments)
    assert ended.code == 0, ended.err
    return where


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


class Walk(gymnasium.Env[Any, int]):
    """Ten steps; action 1 brings 1. What it shows, allows and when it raises, options say."""

    steps = alive = 0

    def __init__(self, show: str = "box", masked: bool = False, raises_at: int = 0, alone: bool = False) -> None:
        self.show, self.masked, self.raises_at, self.alone = show, masked, raises_at, alone
        rest = {"box": gymnasium.spaces.Box(-1, 1, (2,)), "number": gymnasium.spaces.Discrete(11, start=5)}
        rest["grid"] = gymnasium.spaces.Box(0, 255, (2, 2), np.uint8)
        rest["pair"] = gymnasium.spaces.Tuple((gymnasium.spaces.Discrete(11), gymnasium.spaces.Discrete(2)))
        mask = gymnasium.spaces.MultiBinary(3)
        rest["dict"] = gymnasium.spaces.Dict(observation=rest["number"], action_mask=mask)
        self.observation_space, self.action_space = rest[show], gymnasium.spaces.Discrete(3, start=1)
        if alone and Walk.alive:
            raise OSError("address already in use: port 2000")
        Walk.alive += 1

    def see(self) -> Any:
        one = {"box": np.float32([self.time / 10, 1]), "number": 5 + self.time, "pair": (self.time, 1)}
        one["grid"] = np.full((2, 2), self.time, np.uint8)
        return {"observation": 5 + self.time, "action_mask": [1, 1, 0]} if self.show == "dict" else one[self.show]

    def info(self) -> dict[str, Any]:
        return {"action_mask": [1, 1, 0]} if self.masked else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.see(), self.info()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Walk.steps += 1
        if Walk.steps == self.raises_at:
            raise RuntimeError("simulator lost the connection")
        assert action in (1, 2) or not (self.masked or self.show == "dict")
        self.time += 1
        return self.see(), float(action == 2), self.time >= 10, False, self.info()

    def close(self) -> None:
        Walk.alive -= 1


WALK = """\
environment: {id: Walk-v0, max_episode_steps: 50}
algorithm: {kind: dqn, network: {encoder: mlp, hidden_sizes: [16]}, learning_starts: 50, batch_size: 16}
train: {steps: 1000}
evaluation: {episodes: 3, curve_points: 0, bootstrap_samples: 100}
"""


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Path]:
    gymnasium.register("Walk-v0", Walk)
    Walk.steps = Walk.alive = 0
    path = tmp_path / "walk.yaml"
    path.write_text(WALK)
    yield path
    del gymnasium.registry["Walk-v0"]


TABLE = ("--set", "algorithm={kind: q-learning, epsilon_fraction: 1.0}")


@pytest.mark.parametrize(
    ("options", "knobs"),
    [
        ("{show: number}", ()),
        ("{show: number, masked: true}", ()),
        ("{show: number, masked: true}", TABLE),
        ("{show: dict}", ()),
        ("{show: dict}", TABLE),
        ("{show: grid}", ()),
        ("{show: pair}", ()),
        (
            "{show: box, masked: true}",
            ("--set", "algorithm.dueling=true", "--set", "algorithm.normalize_observations=true"),
        ),
    ],
)
def test_the_code_of_the_card_acts_in_the_environment_itself(walk: Path, options: str, knobs: tuple[str, ...]):
    run = trained(walk, walk.parent / "run", "--set", f"environment.options={options}", *knobs)
    measured = read_json(run / "results.json")["test"]["metrics"]
    assert measured["min_return"] == measured["max_return"] >= 5  # all episodes are alike
    card = (run / "model" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert ("action mask" in card) == ("masked" in options or "dict" in options)
    env = Walk(**hftoolkit_recipe(run).environment.options)
    observation, info = env.reset(seed=0)
    total, over = 0.0, False
    with contextlib.chdir(run / "model"):
        while not over:
            names = {"env": env, "observation": observation, "state": observation, "info": info}
            exec(code, names)
            observation, reward, over, _, info = env.step(int(names["action"]))
            total += reward
        for number in range(3 if "action mask" in card else 0):
            mask = [int(number == other) for other in range(3)]
            shown = observation | {"action_mask": mask} if isinstance(observation, dict) else observation
            names = {"env": env, "observation": shown, "state": shown, "info": {"action_mask": mask}}
            exec(code, names)
            assert names["action"] == number + 1  # the only one that is allowed
    assert total == measured["mean_return"]


def hftoolkit_recipe(run: Path) -> Any:
    return load_reinforcement_recipe(run / "recipe.yaml")


def test_a_policy_takes_numbers_of_states_as_well_as_vectors(walk: Path):
    run = trained(walk, walk.parent / "run", "--set", "environment.options={show: number}")
    policy = hftoolkit.load(run)
    states = np.arange(10)
    np.testing.assert_array_equal(policy.act(states), policy.act(np.eye(11, dtype=np.float32)[:10], None))
    assert policy.act(states).mean() >= 0.5


def test_what_was_learned_is_kept_where_the_environment_raises(walk: Path):
    where = walk.parent / "run"
    command = ("rl", "train", walk, "--run-dir", where, "--set", "environment.options={raises_at: 700}")
    failed = hft(*command)
    refused(
        failed,
        4,
        "RuntimeError: simulator lost the connection (test_rl_runs.py, line",
        "697 steps was saved",
        "--resume",
    )
    assert read_json(where / "status.json")["state"] == "failed"
    ended = hft(*command, "--resume")
    assert ended.code == 0 and "resumed at step 697" in ended.out, ended.err
    assert read_json(where / "results.json")["train"]["steps"] == 1000


def test_a_simulator_that_allows_one_copy_is_trained_in_and_evaluated_at_the_end(walk: Path):
    alone = ("--set", "environment.options={alone: true}", "--set", "evaluation.curve_points=2")
    ended = hft("rl", "train", walk, "--run-dir", walk.parent / "run", *alone)
    assert ended.code == 0 and "address already in use" in ended.out and "no learning curve" in ended.out, ended.err
    results = read_json(walk.parent / "run" / "results.json")
    assert results["curve"] == [] and results["test"]["examples"] == 3 and Walk.alive == 0
    assert hft("rl", "train", walk, "--dry-run", *alone).code == 0
    several = hft("rl", "train", walk, "--dry-run", *alone, "--set", "environment.num_envs=2")
    refused(several, 4, "address already in use", "environment.num_envs=1")


def test_a_finished_run_goes_on_with_more_steps_and_another_starts_from_its_weights(walk: Path):
    where, table = walk.parent / "run", (*TABLE, "--set", "environment.options={show: number}")
    first = trained(walk, where, *table)
    assert (
        list((where / "checkpoints").iterdir())
        and "extended_at_steps" not in read_json(where / "results.json")["train"]
    )
    longer = (*table, "--set", "train.steps=1500")
    ended = hft("rl", "train", walk, "--run-dir", first, "--resume", *longer)
    assert ended.code == 0 and "extended from 1000 to 1500 steps" in ended.out, ended.err
    results = read_json(where / "results.json")["train"]
    assert results["steps"] == 1500 and results["extended_at_steps"] == [1000]
    refused(
        hft("rl", "train", walk, "--run-dir", first, "--resume", *longer), 2, "a larger train.steps would extend it"
    )
    nothing = ("--set", "algorithm.learning_rate=1e-9", "--set", "train.steps=10")
    start = ("--set", f"train.start_from={where}")
    other = trained(walk, walk.parent / "other", *table, *nothing, *start)
    np.testing.assert_allclose(weights(other)["table"], weights(first)["table"], atol=1e-6)
    assert (
        str(where) not in (other / "model" / "README.md").read_text() + (other / "model" / "hftoolkit.json").read_text()
    )
    refused(hft("rl", "train", walk, "--dry-run", *start), 2, "train.start_from: those weights do not fit this network")
    boxes = ("--set", "environment.options={show: dict}", *TABLE)
    assert hft("rl", "train", walk, "--dry-run", *boxes, *start).code == 0
    refused(
        hft("rl", "train", walk, "--dry-run", *start, "--set", "train.start_from=nowhere/at-all"), 4, "nowhere/at-all"
    )


def test_several_seeds_are_extended_together(walk: Path):
    where = trained(walk, walk.parent / "run", *TABLE, "--seeds", 2, "--set", "environment.options={show: number}")
    more = (
        *TABLE,
        "--seeds",
        2,
        "--set",
        "environment.options={show: number}",
        "--set",
        "train.steps=1200",
        "--resume",
    )
    ended = hft("rl", "train", walk, "--run-dir", where, *more)
    assert ended.code == 0 and ended.out.count("extended from 1000 to 1200") == 2, ended.err
    assert read_json(where / "results.json")["train"]["steps"] == 2400


def test_a_training_that_saw_one_return_only_says_so_in_its_table(walk: Path):
    stuck = ("--set", "environment.id=FrozenLake-v1", "--set", "environment.options={desc: [SH, HG]}")
    ended = hft("rl", "train", walk, "--run-dir", walk.parent / "run", *stuck, *TABLE)
    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    assert "Every episode of training returned 0, of which nothing can be learned" in said
    assert read_json(walk.parent / "run" / "results.json")["train"]["only_return"] == 0


def test_numbers_of_rl_go_to_trackers_too(walk: Path):
    pytest.importorskip("tensorboard")
    board = ("--set", "train.trackers=[tensorboard]", "--set", "environment.options={show: number}")
    run = trained(walk, walk.parent / "run", *TABLE, *board)
    assert list((run / "tracking").rglob("events*"))
