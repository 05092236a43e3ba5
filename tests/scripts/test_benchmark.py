"""``scripts/benchmark_trainer.py``: both sides on tiny texts, and what it says where there is no GPU."""

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from doubles.commands import read_json
from doubles.paths import ROOT

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts" / "benchmark_trainer.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_trainer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_sides_leave_rate_memory_and_quality(benchmark, write_recipe, tmp_path: Path, capsys):
    options = argparse.Namespace(
        recipe=write_recipe(), set=["train.epochs=1"], seed=0, examples=None, trainer_precision="fp32", rates_only=False
    )
    results = {}
    for name, side in (("hftoolkit", benchmark.run_hftoolkit), ("trainer", benchmark.run_trainer)):
        options.output = tmp_path / name
        side(options)
        results[name] = [read_json(tmp_path / f"{name}.json")]
        results[name][0]["probabilities"] = benchmark.np.load(tmp_path / f"{name}.npy")
        assert results[name][0]["rate"] > 0 and results[name][0]["peak_memory_bytes"] > 1e6
        assert len(results[name][0]["targets"]) == len(results[name][0]["probabilities"]) == 9
    benchmark.report(results, "trainer", with_quality=True)
    assert "hftoolkit over HF Trainer: median" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_comparison_on_one_says_so():
    ended = subprocess.run([sys.executable, str(SCRIPT), "--gpu"], capture_output=True, text=True, check=False)
    assert ended.returncode == 4 and ended.stderr.startswith("error: no GPU with bf16") and not ended.stdout


def test_a_recipe_is_timed_with_speedups_and_without(write_recipe):
    options = ["--against", "no-speedups", "--recipe", str(write_recipe()), "--examples", "32", "--rounds", "1"]
    ended = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    first, second, ratio = ended.stdout.splitlines()
    assert first.startswith("round 1 no-speedups") and second.startswith("round 1 hftoolkit  ")
    assert ratio.startswith("hftoolkit over no speedups: median")


def test_each_speedup_that_is_left_out_is_there(benchmark):
    for module, name in benchmark.ONE_SPEEDUP.values():
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.faults
def test_several_processes_are_compared(write_recipe):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["--recipe", str(write_recipe()), "--examples", "64", "--rounds", "1", "--trainer-precision", "fp32"]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--launch", shlex.join(launcher)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("examples/s, peak memory") == 2 and "hftoolkit over HF Trainer: median" in ended.stdout
