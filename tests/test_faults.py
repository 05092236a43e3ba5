"""Runs that are killed, interrupted and starved of disk, through the command line: texts, images, logs, environments.

Each command is a process of its own, forked from one that has imported everything, and stopped from outside. The
samples run always; ``pytest -m faults`` runs them in number.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from doubles.commands import hft, read_json, refused
from doubles.pictures import write_pictures
from doubles.recommend_tables import RECIPE as RECOMMENDER
from doubles.recommend_tables import write_world
from doubles.reviews import review_rows

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 120
STOP_SECONDS = 30  # between a signal and the end

TEXT = """\
task: {{kind: text-classification}}
data: {{source: {data}, columns: {{text: text, label: label}}}}
model: {{backbone: {backbone}, max_length: 16, dropout: 0.1}}
tuning: {{method: {method}{rank}}}
train: {{epochs: 4, batch_size: 8, micro_batch_size: 4, learning_rate: 5.0e-3, precision: fp32, checkpoint_every: 7,
  ema_decay: 0.9}}
evaluation: {{bootstrap_samples: 100, baselines: false}}
"""
IMAGES = """\
task: {{kind: image-classification}}
data: {{source: {data}}}
model: {{pretrained: false, architecture: {architecture}, image_size: 32, dropout: 0.1}}
augmentation: {{preset: light, mixup: 0.2}}
tuning: {{method: {method}{rank}}}
train: {{epochs: 4, batch_size: 8, learning_rate: 3.0e-3, precision: fp32, checkpoint_every: 7, num_workers: 2}}
evaluation: {{bootstrap_samples: 100, best_by: accuracy, baselines: false, times_per_epoch: 2}}
"""
POLICY = """\
environment: {{id: {environment}}}
algorithm: {{kind: dqn, network: {{encoder: mlp, hidden_sizes: [16]}}, learning_starts: 100, batch_size: 16,
  update_every: 2, replay_size: 1000, prioritized: {prioritized}, normalize_observations: {prioritized}}}
train: {{steps: 3000, checkpoint_every: 200}}
evaluation: {{episodes: 3, curve_points: 5, curve_episodes: 2, bootstrap_samples: 100}}
"""
KINDS = (
    *("text full", "text lora", "image full", "image lora", "recommender full", "recommender lora"),
    *("policy plain", "policy prioritized"),
)
TUNED = "tuning: {{method: {method}{rank}}}\n"


@dataclass(frozen=True)
class Job:
    """A recipe, and what it gives when nothing happens."""

    recipe: Path
    whole: Path

    @property
    def command(self) -> tuple[object, ...]:
        """What begins a run; ``--resume`` goes on with it."""
        return (*(("rl", "train") if self.recipe.name.startswith("policy") else ("finetune",)), self.recipe)

    @property
    def hash(self) -> dict[str, Any]:
        return weights_in(self.whole)


def weights_in(run: Path) -> dict[str, bytes]:
    """Every weight that a run exported, its adapter's too, to the bit."""
    files = sorted((run / "model").rglob("*.safetensors"))
    assert files
    return {
        f"{file.relative_to(run)}:{name}": tensor.contiguous().view(-1).numpy().tobytes()
        for file in files
        for name, tensor in load_file(file).items()
    }


@pytest.fixture(scope="module")
def server() -> Any:
    """Where processes are forked, with hftoolkit imported."""
    context = multiprocessing.get_context("forkserver")
    preloaded = [
        "hftoolkit.commands.finetune",
        "hftoolkit.rl.commands",
        "hftoolkit.recommend.commands",
        "hftoolkit.cli.render",
    ]
    context.set_forkserver_preload([*preloaded, "transformers.models.bert", "timm"])
    return context


def command(arguments: list[str], out: str, environment: dict[str, str]) -> None:
    """Run the command line in a forked process, without the gate, which has tests of its own and takes seconds."""
    from hftoolkit.cli import main
    from hftoolkit.export import gate as export
    from hftoolkit.recommend import export as recommender

    export.check_round_trip = lambda *_, **__: export.GateReport(0, 0.0, None, None, 0.0)
    recommender._check = lambda *_, **__: {}

    for number in (1, 2):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | environment
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # of workers that read data, as outside of this server
    sys.argv = ["hftoolkit", *arguments]
    import torch

    torch.set_num_threads(1)
    main()


class Process:
    """One attempt at a run."""

    def __init__(self, server: Any, *arguments: object, **environment: str) -> None:
        self.out = Path(str(arguments[-1]) + ".out" + environment.get("RANK", ""))
        self.out.unlink(missing_ok=True)
        self.process = server.Process(target=command, args=([*map(str, arguments)], str(self.out), environment))
        self.process.start()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(self.said)
        return int(self.process.exitcode)

    def wait_for(self, happened: Callable[[], bool], pause: float = 0.002) -> bool:
        """Return whether it happened before the process ended."""
        start = time.monotonic()
        while not happened():
            if not self.process.is_alive():
                return False
            if time.monotonic() - start > PATIENCE_SECONDS:
                self.process.kill()
                raise AssertionError(self.said)
            time.sleep(pause)
        return True

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    @property
    def said(self) -> str:
        return self.out.read_text()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, lively_backbone: Path, server: Any) -> Callable[[str], Job]:
    """Make a job of one kind, once."""
    folder = tmp_path_factory.mktemp("faults")
    made: dict[str, Job] = {}
    os.environ["HF_HOME"] = str(folder / "cache")

    def job(kind: str) -> Job:
        if kind not in made:
            recipe = folder / f"{kind.replace(' ', '-')}.yaml"
            recipe.write_text(recipe_of(kind, folder, lively_backbone))
            whole = folder / recipe.stem
            made[kind] = Job(recipe, whole)
            process = Process(server, *made[kind].command, "--run-dir", whole)
            assert process.wait() == 0, process.said
        return made[kind]

    return job


def recipe_of(kind: str, folder: Path, backbone: Path) -> str:
    kind, method = kind.split()
    if kind == "policy":
        others = {"plain": "CartPole-v1", "prioritized": "MountainCar-v0"}
        return POLICY.format(environment=others[method], prioritized=str(method == "prioritized").lower())
    rank = ", rank: 4" if method == "lora" else ""
    if kind == "recommender":
        write_world(folder)
        text = RECOMMENDER.format(folder=folder, backbone=backbone) + TUNED.format(method=method, rank=rank)
        text = text.replace("epochs: 6, batch_size: 60,", "epochs: 4, batch_size: 30, checkpoint_every: 3,")
        return text.replace("cutoff: 5,", "cutoff: 5, baselines: false,")
    if kind == "text":
        table = folder / "reviews.csv"
        table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in review_rows(90)))
        return TEXT.format(data=table, backbone=backbone, method=method, rank=rank)
    if not (folder / "pictures").exists():
        write_pictures(folder / "pictures", 30)
    architecture = "test_vit" if method == "lora" else "test_efficientnet"
    return IMAGES.format(data=folder / "pictures", architecture=architecture, method=method, rank=rank)


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(re.findall('"event": "(?:step|progress)"', path.read_text())) if path.exists() else 0


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".tmp-*"))


def assert_same_run(run: Path, job: Job) -> None:
    assert weights_in(run) == job.hash
    assert read_json(run / "status.json")["state"] == "done"
    events = [[without_times(line) for line in (each / "metrics.jsonl").open()] for each in (run, job.whole)]
    assert events[0] == events[1]
    results = [read_json(each / "results.json") for each in (run, job.whole)]
    facts = {"test", "validation", "temperature", "weights", "curve"}
    assert {name: results[0][name] for name in facts & results[0].keys()} == {
        name: results[1][name] for name in facts & results[1].keys()
    }
    assert not list((run / "checkpoints").glob(".tmp-*"))
    is_policy = job.command[0] == "rl"
    assert len(list((run / "checkpoints").glob("step-*"))) == 1
    assert (run / "predictions" / "test.csv").exists() != is_policy


def without_times(line: str) -> dict[str, Any]:
    speeds = ("examples_per_second", "steps_per_second")
    return {key: value for key, value in json.loads(line).items() if key not in speeds}


def finish(server: Any, job: Job, run: Path) -> str:
    """Resume until the end; return what was said."""
    process = Process(server, *job.command, "--resume", "--run-dir", run)
    assert process.wait() == 0, process.said
    assert_same_run(run, job)
    return process.said


def kill_points(generator: random.Random, run: Path, number: int) -> list[Callable[[], bool]]:
    """Moments at which to kill: every second inside of a save, the others between two steps."""
    points = []
    done = 0
    for index in range(number):
        if index % 2:
            points.append(lambda: is_saving(run))
        else:
            done += generator.randint(1, 60 // number)
            points.append(lambda done=done: steps_logged(run) >= done)
    return points


def kill_and_resume(server: Any, job: Job, run: Path, number: int, seed: int) -> tuple[int, int]:
    """Kill a run ``number`` times, then let it end; return how many kills met it, and how many of these a save."""
    met = in_save = 0
    arguments = job.command
    for happened in kill_points(random.Random(seed), run, number):
        process = Process(server, *arguments, "--run-dir", run)
        if process.wait_for(happened):
            process.signal(signal.SIGKILL)
            process.wait()
            met, in_save = met + 1, in_save + is_saving(run)
        if (run / "recipe.yaml").exists():
            arguments = (*job.command, "--resume")
    finish(server, job, run)
    return met, in_save


@pytest.mark.parametrize("kind", ["text full", "image lora", "recommender lora", "policy prioritized"])
def test_a_run_that_is_killed_ends_with_the_same_weights(server, jobs, tmp_path: Path, kind: str):
    met, _ = kill_and_resume(server, jobs(kind), tmp_path / "run", 2, seed=KINDS.index(kind))
    assert met >= 1


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_many_times_ends_with_the_same_weights(
    server, jobs, tmp_path, kind, seed, record_property
):
    met, in_save = kill_and_resume(server, jobs(kind), tmp_path / "run", 8, seed=10 + seed)
    record_property("kills", met)
    record_property("kills in a save", in_save)
    assert met >= 5 and (in_save >= 1 or kind.startswith("policy"))


def test_an_interrupted_run_saves_its_last_step_and_goes_on(server, jobs, tmp_path: Path):
    interrupt_and_resume(server, jobs("text full"), tmp_path / "run", signal.SIGTERM, after=9)


@pytest.mark.faults
@pytest.mark.parametrize("after", [1, 8, 18, 27, 34])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["text lora", "image full"])
def test_interrupts_anywhere(server, jobs, tmp_path: Path, kind, number, after):
    interrupt_and_resume(server, jobs(kind), tmp_path / "run", number, after)


def interrupt_and_resume(server: Any, job: Job, run: Path, number: int, after: int) -> None:
    process = Process(server, "finetune", job.recipe, "--run-dir", run)
    assert process.wait_for(lambda: steps_logged(run) >= after), process.said
    process.signal(number)
    start = time.monotonic()
    assert process.wait() == 128 + number, process.said
    assert time.monotonic() - start < STOP_SECONDS
    assert "with --resume continues there" in process.said and "Traceback" not in process.said
    done = steps_logged(run)
    assert list((run / "checkpoints").glob(f"step-{done:06d}*"))
    assert read_json(run / "status.json")["state"] == "interrupted"
    assert f"resumed after step {done} of" in finish(server, job, run)


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "steps"), [("text lora", 36), ("recommender lora", 32)])
def test_a_run_killed_while_it_exports_goes_straight_to_the_end(server, jobs, tmp_path: Path, kind: str, steps: int):
    job, run = jobs(kind), tmp_path / "run"
    process = Process(server, "finetune", job.recipe, "--run-dir", run)
    assert process.wait_for((run / "model").exists)
    process.signal(signal.SIGKILL)
    process.wait()
    said = finish(server, job, run)
    assert f"resumed after step {steps} of {steps}" in said
    again = hft("finetune", job.recipe, "--resume", "--run-dir", run)
    refused(again, 2, "nothing to resume", "train.epochs")


class Pair:
    """Two processes that work on one run, as torchrun starts them."""

    def __init__(self, server: Any, *arguments: object, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2"}
        self.main, self.other = (
            Process(server, *arguments, RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2", **place, **environment)
            for rank in "01"
        )

    def wait(self) -> tuple[int, int]:
        return self.main.wait(), self.other.wait()


@dataclass(frozen=True)
class PairJob(Job):
    """The same of two processes, and what their launcher tells them."""

    environment: dict[str, str]

    def start(self, server: Any, run: Path, *more: str) -> Pair:
        return Pair(server, "finetune", self.recipe, "--run-dir", run, *more, **self.environment)


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
PAIRS: dict[str, tuple[dict[str, str], list[str]]] = {
    "whole": ({}, []),
    "divided": (FSDP2, ["model sharded over 2 ranks"]),
}


@pytest.fixture(scope="module", params=PAIRS)
def pair_job(request: pytest.FixtureRequest, jobs: Callable[[str], Job], server: Any) -> PairJob:
    """What two processes give when nothing happens, each with the whole model or with a part of it."""
    alone, (environment, says) = jobs("text full"), PAIRS[request.param]
    job = PairJob(alone.recipe, alone.whole.with_name(f"two-{request.param}"), environment)
    pair = job.start(server, job.whole)
    assert pair.wait() == (0, 0), pair.main.said + pair.other.said
    assert not pair.other.said
    assert re.findall("model sharded over 2 ranks", pair.main.said) == says
    return job


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(10))
def test_two_processes_that_are_killed_end_with_the_same_weights(server, pair_job, tmp_path: Path, seed: int):
    """One of the two is killed, or both; the other one ends by itself."""
    generator, run = random.Random(seed), tmp_path / "run"
    more: tuple[str, ...] = ()
    for happened in kill_points(generator, run, 2):
        pair = pair_job.start(server, run, *more)
        assert pair.main.wait_for(happened), pair.main.said
        for victim in generator.choice([(pair.main,), (pair.other,), (pair.main, pair.other)]):
            victim.signal(signal.SIGKILL)
        start = time.monotonic()
        assert set(pair.wait()) <= {-9, 4}, pair.main.said + pair.other.said
        assert time.monotonic() - start < 40
        more = ("--resume",)
    pair = pair_job.start(server, run, *more)
    assert pair.wait() == (0, 0), pair.main.said + pair.other.said
    assert_same_run(run, pair_job)


@pytest.mark.faults
@pytest.mark.parametrize("after", [3, 12, 20, 28, 33])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_that_are_interrupted_end_with_the_same_weights(server, pair_job, tmp_path, number, after):
    run = tmp_path / "run"
    pair = pair_job.start(server, run)
    assert pair.main.wait_for(lambda: steps_logged(run) >= after), pair.main.said
    pair.other.signal(number)
    assert pair.wait() == (128 + number, 128 + number), pair.main.said + pair.other.said
    pair = pair_job.start(server, run, "--resume")
    assert pair.wait() == (0, 0), pair.main.said + pair.other.said
    assert_same_run(run, pair_job)


def test_a_run_that_is_at_work_is_not_resumed_by_another_process(server, jobs, tmp_path: Path):
    job, run = jobs("text full"), tmp_path / "run"
    first = Process(server, "finetune", job.recipe, "--run-dir", run)
    assert first.wait_for(lambda: steps_logged(run) > 0)
    first.signal(signal.SIGSTOP)
    refused(hft("finetune", job.recipe, "--resume", "--run-dir", run), 4, f"process {first.process.pid}", "at work on")
    assert read_json(run / "status.json")["state"] == "running"
    first.signal(signal.SIGCONT)
    assert first.wait() == 0, first.said
    assert_same_run(run, job)


def test_a_changed_recipe_is_refused_unless_the_change_makes_no_difference(server, jobs, tmp_path: Path):
    job, run = jobs("text full"), tmp_path / "run"
    process = Process(server, "finetune", job.recipe, "--run-dir", run)
    assert process.wait_for(lambda: steps_logged(run) >= 3)
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    before = (run / "recipe.yaml").read_text()
    again = ("finetune", job.recipe, "--resume", "--run-dir", run)
    changes = ("--set", "train.learning_rate=1.0e-3", "--set", "train.num_workers=1", "--set", "train.epochs=5")
    ended = hft(*again, *changes)
    refused(ended, 2, "train.learning_rate: 0.005 -> 0.001", "train.epochs: 4 -> 5")
    assert "num_workers" not in ended.err
    assert (run / "recipe.yaml").read_text() == before
    refused(hft(*again, "--dry-run"), 2, "leave out one")
    table = Path(str(job.recipe.parent / "reviews.csv"))
    rows = table.read_text()
    try:
        table.write_text(rows.replace("word1 ", "word2 "))
        refused(hft(*again), 3, "the data changed since the run began", "data.json")
    finally:
        table.write_text(rows)
    ended = hft(*again, "--set", "train.num_workers=1", "--set", "train.checkpoint_every=50")
    assert ended.code == 0, ended.err
    assert_same_run(run, job)


def test_a_finished_run_is_extended_on_purpose(server, jobs, tmp_path: Path):
    job, run = jobs("text full"), tmp_path / "run"
    shutil.copytree(job.whole, run)
    ended = hft("finetune", job.recipe, "--resume", "--run-dir", run, "--set", "train.epochs=5")
    assert ended.code == 0, ended.err
    assert "extended from 4 to 5 epochs" in ended.out
    train = read_json(run / "results.json")["train"]
    assert (train["epochs"], train["steps"]) == (5, 45)
    assert train["extensions"] == [{"step": 36, "epochs": 4, "to_epochs": 5}]
    events = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 46))
    assert events[-2]["total_steps"] == 45 and "epochs: 5" in (run / "recipe.yaml").read_text()
    shutil.rmtree(run / "checkpoints")
    refused(hft("finetune", job.recipe, "--resume", "--run-dir", run, "--set", "train.epochs=6"), 3, "is gone")
    assert not (run / ".model-old").exists() and hft("predict", run, "-", stdin=b"good\n").code == 0


@pytest.mark.faults
@pytest.mark.parametrize("free_kib", [0, 40, 300])
def test_a_full_disk_ends_the_run_cleanly_and_with_room_it_goes_on(server, jobs, small_disk, free_kib: int):
    job, run = jobs("text full"), small_disk / "run"
    process = Process(server, "finetune", job.recipe, "--run-dir", run)
    assert process.wait_for(lambda: any(run.glob("checkpoints/step-*")))
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(small_disk).free - free_kib * 1024)))
    code = process.wait()
    assert code == 4, process.said
    assert "Traceback" not in process.said and process.said.count("\nerror: ") == 1
    ballast.unlink()
    said = finish(server, job, run)
    assert "resumed after step" in said and "damaged" not in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MiB, where the system lets this user make one."""
    path = tmp_path / "small disk"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)
