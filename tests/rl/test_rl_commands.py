"""``hftoolkit rl`` as its users meet it: what a run leaves behind, resume, exit codes, messages."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from doubles.commands import hft, read_json, refused
from doubles.paths import ROOT
from hftoolkit.rl import commands as run_rl
from hftoolkit.rl.artifact import load_policy
from hftoolkit.rl.dqn import QPolicy
from hftoolkit.runs.tables import return_text

RECIPE = """\
environment: {id: CartPole-v1, num_envs: 3}
algorithm:
  kind: dqn
  network: {encoder: mlp, hidden_sizes: [16, 16]}
  learning_starts: 30
  batch_size: 8
  replay_size: 500
train: {steps: 600, checkpoint_every: 250}
evaluation: {episodes: 4, curve_points: 3, curve_episodes: 2, bootstrap_samples: 100}
"""
TABLE_RECIPE = """\
environment: {id: FrozenLake-v1, options: {is_slippery: false}}
algorithm: {kind: q-learning, learning_rate: 0.5, epsilon_fraction: 1.0}
train: {steps: 3000}
evaluation: {episodes: 4, curve_points: 0, bootstrap_samples: 100}
"""
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a DQN recipe and a tabular one."""
    path = tmp_path_factory.mktemp("rl")
    (path / "tiny.yaml").write_text(RECIPE)
    (path / "lake.yaml").write_text(TABLE_RECIPE)
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A finished DQN run."""
    return trained(folder / "tiny.yaml", folder / "run")


def trained(recipe: Path, where: Path, *arguments: object) -> Path:
    ended = hft("rl", "train", recipe, "--run-dir", where, *arguments)
    assert ended.code == 0, ended.err
    return where


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_finished_run_holds_its_policy_its_results_and_its_curve(run: Path):
    assert {path.name for path in run.iterdir()} == {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "train.log", "status.json", "results.json"),
        *("model", "model.sha256", "report", "checkpoints", ".lock"),
    }
    assert {path.name for path in (run / "model").iterdir()} == {
        *("model.safetensors", "config.json", "hftoolkit.json", "README.md")
    }
    assert (run / "report" / "learning_curve.png").stat().st_size > 1000
    results = read_json(run / "results.json")
    assert results["task"] == "reinforcement-learning" and results["test"]["examples"] == 4
    low, high = results["test"]["intervals"]["mean_return"]
    assert low <= results["test"]["metrics"]["mean_return"] <= high
    assert results["train"]["steps"] == 600 and results["train"]["seconds"] > 0
    assert [step for step, _ in results["curve"]] == [201, 402, 600]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "evaluation"] == [201, 402, 600]
    assert {"loss", "epsilon", "learning_rate"} <= events[-2]["metrics"].keys()


def test_the_random_baseline_is_random(run: Path):
    baseline = read_json(run / "results.json")["baselines"]["random actions"]["metrics"]
    assert 9 <= baseline["mean_return"] <= 60


def test_a_policy_whose_curve_cannot_be_drawn_is_finished(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "report" / "learning_curve.png").unlink()
    (copy / "model" / "README.md").unlink()

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of the test")

    with monkeypatch.context() as patch:
        patch.setattr("hftoolkit.rl.commands.write_learning_curve_png", broken)
        assert hft("report", copy).code == 1
    status = read_json(copy / "status.json")
    assert (status["state"], status["without"]) == ("done", ["learning curve"])
    assert (copy / "model" / "README.md").read_bytes() == (run / "model" / "README.md").read_bytes()
    assert hft("report", copy).code == 0 and "without" not in read_json(copy / "status.json")
    assert (copy / "report" / "learning_curve.png").is_file()


def test_evaluate_repeats_the_final_measurement_exactly(run: Path):
    shown = hft("rl", "evaluate", run)
    expected = read_json(run / "results.json")["test"]["metrics"]
    assert shown.code == 0 and f"{return_text(expected['mean_return'])} [" in shown.out
    other = hft("rl", "evaluate", run, "--episodes", 2, "--seed", 7)
    assert other.code == 0 and "2 greedy episodes" in other.out


def test_play_writes_the_episodes_that_were_measured(run: Path, tmp_path: Path):
    ended = hft("rl", "play", run, "--episodes", 2, "--video", tmp_path / "new" / "replay.gif")
    assert ended.code == 0, ended.err
    assert (tmp_path / "new" / "replay.gif").read_bytes()[:4] == b"GIF8"
    totals = [float(text) for text in re.findall(r"return (\S+)", ended.out)]
    one = hft("rl", "evaluate", run, "--episodes", 2)
    assert f"{return_text(float(np.mean(totals)))} [" in one.out
    refused(hft("rl", "play", run, "--video", tmp_path / "new" / "replay.gif"), 2, "exists and is kept")
    refused(hft("rl", "play", run, "--video", tmp_path / "replay.webm"), 2, ".mp4 or .gif")


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["dueling", "normalize_observations", "double", "network.layer_norm"])
def test_the_snippet_in_the_card_gives_the_same_actions_without_hftoolkit(folder: Path, tmp_path: Path, switch: str):
    layers = "algorithm.network.hidden_sizes=[16, 16, 16, 16, 16, 16]"  # so many that their numbers have two digits
    settings = ("--set", f"algorithm.{switch}=true", "--set", "train.steps=3000", "--set", layers)
    run = trained(folder / "tiny.yaml", tmp_path / "run", *settings)
    card = (run / "model" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    blocked = "import sys; sys.modules['hftoolkit'] = None\n"
    looped = "\n".join(
        f"observation = {row.tolist()}\n{snippet}\nprint(action, *values.tolist())" for row in observations
    )
    ended = subprocess.run(
        [sys.executable, "-c", blocked + looped], cwd=run / "model", capture_output=True, text=True, check=True
    )
    printed = np.array([line.split() for line in ended.stdout.splitlines()], float)
    policy = load_policy(run / "model")
    assert isinstance(policy, QPolicy)
    with torch.no_grad():
        values = policy._network(torch.from_numpy(observations)).numpy()
    assert printed[:, 0].tolist() == values.argmax(axis=1).tolist()
    # What a dueling network adds to all actions alike is left out of the snippet.
    advantages, expected = (table - table.mean(axis=1, keepdims=True) for table in (printed[:, 1:], values))
    np.testing.assert_allclose(advantages, expected, atol=1e-4)
    assert np.ptp(expected) > 1e-3


def test_a_table_is_trained_saved_and_played_by_the_same_commands(folder: Path, tmp_path: Path):
    run = trained(folder / "lake.yaml", tmp_path / "run")
    assert read_json(run / "results.json")["test"]["metrics"]["mean_return"] == 1.0
    assert weights(run)["table"].shape == (16, 4)
    ended = hft("rl", "evaluate", run)
    assert ended.code == 0 and "1.000 [1.000, 1.000]" in ended.out
    card = (run / "model" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ended_snippet = subprocess.run(
        [sys.executable, "-c", f"state = 14\n{snippet}\nprint(action)"],
        cwd=run / "model",
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ended_snippet.stdout) == 2  # to the right, onto the goal


def test_several_seeds_are_runs_of_their_own_and_are_summed_up(folder: Path, tmp_path: Path):
    run = trained(folder / "tiny.yaml", tmp_path / "run", "--seeds", 3, "--set", "train.seed=5")
    ones = [read_json(run / "seeds" / f"seed-{seed}" / "results.json") for seed in (5, 6, 7)]
    means = np.array([one["test"]["metrics"]["mean_return"] for one in ones])
    results = read_json(run / "results.json")
    metrics = results["test"]["metrics"]
    assert results["test"]["examples"] == 3 and list(results["seeds"]) == ["5", "6", "7"]
    assert metrics["mean_return"] == pytest.approx(means.mean())
    assert metrics["iqm_return"] == pytest.approx(means.mean())  # a quarter of three, rounded down, is nothing
    assert (metrics["min_return"], metrics["max_return"]) == (means.min(), means.max())
    low, high = results["test"]["intervals"]["iqm_return"]
    assert means.min() <= low <= high <= means.max()
    assert (run / "report" / "learning_curve.png").stat().st_size > 1000
    assert not same_weights(run / "seeds" / "seed-5", run / "seeds" / "seed-6")
    alone = trained(folder / "tiny.yaml", tmp_path / "alone", "--set", "train.seed=6")
    assert same_weights(alone, run / "seeds" / "seed-6")
    refused(hft("rl", "play", run, "--video", tmp_path / "x.gif"), 3, "several seeds", "seed-5")


def test_equal_recipes_give_equal_weights(folder: Path, run: Path, tmp_path: Path):
    assert same_weights(run, trained(folder / "tiny.yaml", tmp_path / "again"))


def test_dry_run_leaves_nothing_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ended = hft("rl", "train", folder / "tiny.yaml", "--dry-run")
    assert ended.code == 0 and "nothing was written" in ended.out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_resumes_to_the_same_weights(folder: Path, tmp_path: Path, number: int, code: int):
    longer = ("--set", "train.steps=6000")
    whole = trained(folder / "tiny.yaml", tmp_path / "whole", *longer)
    cut = tmp_path / "cut"
    command = [sys.executable, "-m", "hftoolkit", "rl", "train", folder / "tiny.yaml", "--run-dir", cut, *longer]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_progress(cut, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, err
    assert "--resume" in err and "Traceback" not in err
    assert read_json(cut / "status.json")["state"] == "interrupted"
    refused(hft("rl", "evaluate", cut), 3, "interrupted")
    different = hft("rl", "train", folder / "tiny.yaml", "--run-dir", cut, "--resume")
    refused(different, 2, "train.steps: 6000 -> 600")
    ended = hft("rl", "train", folder / "tiny.yaml", "--run-dir", cut, "--resume", *longer)
    assert ended.code == 0, ended.err
    assert "resumed at step" in ended.out
    assert same_weights(whole, cut)
    results = [read_json(run / "results.json") for run in (whole, cut)]
    assert results[0]["curve"] == results[1]["curve"] and results[0]["test"] == results[1]["test"]
    steps = [[json.loads(line)["step"] for line in (run / "metrics.jsonl").open()] for run in (whole, cut)]
    assert steps[0] == steps[1]
    done = hft("rl", "train", folder / "tiny.yaml", "--run-dir", cut, "--resume", *longer)
    refused(done, 2, "there is nothing to resume")
    repeated = hft("rl", "train", folder / "tiny.yaml", "--run-dir", cut, "--resume", "auto", *longer)
    assert repeated.code == 0 and "there is nothing to do" in repeated.out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_of_a_run_loses_nothing(folder: Path, tmp_path: Path, number: int, code: int):
    """As Ctrl-C in a terminal and most job schedulers send it, here to environments in processes of their own."""
    cut, longer = tmp_path / "cut", ("--set", "train.steps=6000", "--set", "environment.vectorization=async")
    command = [sys.executable, "-m", "hftoolkit", "rl", "train", folder / "tiny.yaml", "--run-dir", cut, *longer]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_progress(cut, process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)  # also waits for the workers, which share its stderr
    assert process.returncode == code, err
    assert "everything was saved" in err and "Traceback" not in err


def wait_for_progress(where: Path, process: subprocess.Popen[str]) -> None:
    start = time.monotonic()
    while not (where / "metrics.jsonl").exists() or '"loss"' not in (where / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - start < PATIENCE_SECONDS, "nothing was reported"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_weights(folder: Path, tmp_path: Path):
    longer = ("--set", "train.steps=6000")
    whole = trained(folder / "tiny.yaml", tmp_path / "whole", *longer)
    cut = tmp_path / "cut"
    command = [sys.executable, "-m", "hftoolkit", "rl", "train", folder / "tiny.yaml", "--run-dir", cut, *longer]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    start = time.monotonic()
    while not list(cut.glob("checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() - start < PATIENCE_SECONDS, process.communicate()
        time.sleep(0.02)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    ended = hft("rl", "train", folder / "tiny.yaml", "--run-dir", cut, "--resume", *longer)
    assert ended.code == 0, ended.err
    assert same_weights(whole, cut)


def test_several_seeds_resume_where_they_stopped(folder: Path, tmp_path: Path):
    two = trained(folder / "tiny.yaml", tmp_path / "two", "--seeds", 2)
    (two / "status.json").write_text('{"state": "interrupted"}')
    first = (two / "seeds" / "seed-0" / "results.json").stat().st_mtime_ns
    assert hft("rl", "train", folder / "tiny.yaml", "--run-dir", two, "--seeds", 3, "--resume").code == 0
    assert (two / "seeds" / "seed-0" / "results.json").stat().st_mtime_ns == first
    assert list(read_json(two / "results.json")["seeds"]) == ["0", "1", "2"]


def test_resume_minds_whether_a_run_has_several_seeds(folder: Path, tmp_path: Path):
    several = trained(folder / "tiny.yaml", tmp_path / "several", "--seeds", 2, "--set", "train.steps=60")
    (several / "status.json").write_text('{"state": "interrupted"}')
    again = ("rl", "train", folder / "tiny.yaml", "--resume", "--set", "train.steps=60", "--run-dir")
    refused(hft(*again, several), 2, "several seeds", "--seeds")
    one = tmp_path / "one"
    with mock.patch.object(run_rl, "check_saved", side_effect=KeyboardInterrupt):
        assert hft("rl", "train", folder / "tiny.yaml", "--run-dir", one, "--set", "train.steps=60").code == 130
    refused(hft(*again, one, "--seeds", 2), 2, "leave out --seeds")
    refused(hft("rl", "evaluate", one), 3, "interrupted")
    refused(hft(*again, one, "--set", "train.speedups=none"), 2, "train.speedups: auto -> none")
    assert hft(*again, one).code == 0


def test_a_dqn_trains_without_speedups_when_the_recipe_says_so(folder: Path, tmp_path: Path):
    plain = ("--set", "train.speedups=none", "--set", "train.steps=60")
    with mock.patch("hftoolkit.rl.dqn.FastLearner", side_effect=AssertionError):
        run = trained(folder / "tiny.yaml", tmp_path / "plain", *plain)
        with pytest.raises(AssertionError):
            hft("rl", "train", folder / "tiny.yaml", "--run-dir", tmp_path / "auto", *plain[2:])
    assert "speedups: none" in (run / "recipe.yaml").read_text()
    assert hft("rl", "evaluate", run).code == 0


def test_a_table_has_no_speedups_to_turn_off(folder: Path):
    ended = hft("rl", "train", folder / "lake.yaml", "--set", "train.speedups=none")
    refused(ended, 2, "train.speedups: q-learning has none", "drop it")


def test_an_environment_without_a_time_limit_needs_one(folder: Path, tmp_path: Path):
    endless = ("--set", "environment.id=CliffWalking-v1", "--set", "environment.options={}")
    where = ("--run-dir", tmp_path / "run")
    refused(hft("rl", "train", folder / "lake.yaml", *where, *endless), 2, "max_episode_steps")
    assert not (tmp_path / "run").exists()


def test_a_run_too_short_to_learn_is_refused(folder: Path):
    refused(hft("rl", "train", folder / "tiny.yaml", "--set", "train.steps=30"), 2, "learning_starts", "train.steps")


def test_resume_without_a_run_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    refused(hft("rl", "train", folder / "tiny.yaml", "--resume"), 2, "there is no run of tiny")
    refused(hft("rl", "train", folder / "tiny.yaml", "--resume", "--run-dir", "x"), 2, "there is no run in x")


def test_commands_of_the_other_kind_name_the_right_one(folder: Path, run: Path, tmp_path: Path):
    refused(hft("finetune", folder / "tiny.yaml"), 2, "hftoolkit rl train")
    other = tmp_path / "sentiment.yaml"
    other.write_text("task: {kind: text-classification}\n")
    refused(hft("rl", "train", other), 2, "hftoolkit finetune")
    refused(hft("evaluate", run), 3, "hftoolkit rl evaluate")
    refused(hft("predict", run, "x.csv"), 3, "hftoolkit rl evaluate")


def test_mistakes_in_a_recipe_are_told_at_once(folder: Path):
    ended = hft(
        *("rl", "train", folder / "tiny.yaml", "--set", "algorithm.doubel=true", "--set", "train.steps=0"),
        *("--set", "algorithm.network.encoder=mpl", "--set", "environment.num_env=2"),
    )
    refused(ended, 2, "did you mean 'double'?", "at least 1", "did you mean 'mlp'?", "did you mean 'num_envs'?")


def test_an_unknown_environment_is_refused_before_a_run_begins(folder: Path, tmp_path: Path):
    where = tmp_path / "run"
    ended = hft("rl", "train", folder / "tiny.yaml", "--run-dir", where, "--set", "environment.id=CartPol-v1")
    refused(ended, 2, "CartPole")
    assert hft("rl", "train", folder / "tiny.yaml", "--run-dir", where, "--set", "train.steps=40").code == 0


def test_code_of_others_runs_only_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT / "tests" / "doubles")
    monkeypatch.delitem(gymnasium.registry, "GridRoad-v0", raising=False)  # other tests may have imported it
    monkeypatch.delitem(sys.modules, "grid_road", raising=False)
    recipe = tmp_path / "road.yaml"
    recipe.write_text(TABLE_RECIPE.replace("{id: FrozenLake-v1, options: {is_slippery: false}}", "{id: GridRoad-v0}"))
    refused(hft("rl", "train", recipe, "--run-dir", tmp_path / "a"), 2, "GridRoad")
    with_module = ("--set", "environment.module=grid_road")
    refused(hft("rl", "train", recipe, "--run-dir", tmp_path / "b", *with_module), 2, "--allow-code")
    missing = ("--set", "environment.module=grid_rod", "--allow-code")
    refused(hft("rl", "train", recipe, "--run-dir", tmp_path / "c", *missing), 4, "grid_rod")
    run = trained(recipe, tmp_path / "d", *with_module, "--allow-code")
    refused(hft("rl", "evaluate", run), 2, "--allow-code")
    assert hft("rl", "evaluate", run, "--allow-code").code == 0


def test_a_damaged_policy_is_refused(run: Path, folder: Path, tmp_path: Path):
    broken = trained(folder / "tiny.yaml", tmp_path / "run", "--set", "train.steps=40")
    (broken / "model" / "model.safetensors").write_bytes(b"\0" * 100)
    refused(hft("rl", "evaluate", broken), 3, "model.safetensors has changed")
    (broken / "model.sha256").unlink()
    refused(hft("rl", "evaluate", broken), 3, "cannot be read")
    (broken / "model" / "model.safetensors").write_bytes((run / "model" / "model.safetensors").read_bytes())
    config = read_json(broken / "model" / "config.json")
    config["num_actions"] = 5
    (broken / "model" / "config.json").write_text(json.dumps(config))
    refused(hft("rl", "evaluate", broken), 3, "cannot be read")


def test_values_that_diverge_end_the_run_with_exit_code_5(folder: Path, tmp_path: Path):
    ended = hft(
        *("rl", "train", folder / "tiny.yaml", "--run-dir", tmp_path / "run", "--set", "algorithm.learning_rate=10"),
        *("--set", "train.steps=3000", "--set", "algorithm.schedule=constant"),
    )
    refused(ended, 5, "algorithm.learning_rate")
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"


PIXELS = """\
environment:
  id: CartPole-v1
  num_envs: 2
  pixels: {origin: render, size: 36, stack: 2, frame_skip: 2}
algorithm:
  kind: dqn
  network: NETWORK
  learning_starts: 10
  batch_size: 4
  replay_size: 60
train: {steps: 60, checkpoint_every: 30}
evaluation: {episodes: 2, curve_points: 0, bootstrap_samples: 100}
"""


@pytest.mark.parametrize(
    ("network", "speedups"),
    [
        ("{encoder: nature-cnn, hidden_sizes: [16]}", "auto"),
        ("{encoder: timm, architecture: test_resnet, frozen: false, hidden_sizes: [16]}", "auto"),
        ("{encoder: timm, architecture: test_resnet, frozen: false, hidden_sizes: [16]}", "none"),
    ],
)
def test_an_agent_that_sees_pixels_is_trained_resumed_saved_and_played(network: str, speedups: str, tmp_path: Path):
    recipe = tmp_path / "pixels.yaml"
    recipe.write_text(PIXELS.replace("NETWORK", network).replace("train: {", f"train: {{speedups: {speedups}, "))
    run = trained(recipe, tmp_path / "run")
    shown = hft("rl", "evaluate", run)
    expected = read_json(run / "results.json")["test"]["metrics"]["mean_return"]
    assert shown.code == 0 and f"{return_text(expected)} [" in shown.out
    assert hft("rl", "play", run, "--video", tmp_path / "replay.gif").code == 0
    with mock.patch.object(run_rl, "check_saved", side_effect=OSError(errno.ENOSPC, "full")):
        refused(hft("rl", "train", recipe, "--run-dir", tmp_path / "cut"), 4, "disk is full")
    assert hft("rl", "train", recipe, "--run-dir", tmp_path / "cut", "--resume").code == 0
    assert same_weights(run, tmp_path / "cut")
