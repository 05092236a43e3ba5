"""Several processes: the update and the metrics of one. They are forked here, and talk over gloo as under torchrun."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from doubles.commands import hft, read_json
from doubles.processes import (
    PATIENCE_SECONDS,
    Group,
    ShortMemory,
    attempt_in,
    events_close,
    interrupted,
    kill_one,
    slow,
    together,
    trained,
)
from doubles.toy_training import ToyTask, assert_close, assert_same, flat, toy_model
from hftoolkit.contracts import Message
from hftoolkit.errors import EnvironmentFault
from hftoolkit.runs.checkpoint import newest_state
from hftoolkit.train.batches import micro_batches
from hftoolkit.train.devices import make_accelerator
from hftoolkit.train.distributed.collectives import is_main, num_processes
from hftoolkit.train.distributed.launch import join_processes
from hftoolkit.train.inference import Inference

# Who takes what


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_the_shares_of_all_processes_are_the_step(processes):
    for examples in range(1, 20):
        step = np.random.default_rng(examples).permutation(100)[:examples]
        for size in (1, 2, 5):
            shares = [micro_batches(step, size, index, processes) for index in range(processes)]
            assert flat([list(micro) for share in shares for micro in share]) == step.tolist()
            assert all(0 < len(micro) <= size for share in shares for micro in share)
            counts = [sum(map(len, share)) for share in shares]
            assert max(counts) - min(counts) <= 1


# One process and two


CASES = {
    "plain": ({}, {}),
    "accumulation": ({}, {"micro_batch_size": 3}),
    "one row in the last step": ({}, {"batch_size": 13}),
    "average": ({}, {"ema_decay": 0.6}),
    "unfreezing": ({}, {"unfreeze_at": {"body.weight": 1.0, "body.bias": 4 / 3}}),
    "early stopping": ({}, {"early_stopping_patience": 1, "epochs": 6}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(tmp_path, case):
    layers, knobs = CASES[case]
    (alone,) = together(tmp_path, trained, tmp_path / "alone", layers, knobs, count=1)
    first, second = together(tmp_path, trained, tmp_path / "two", layers, knobs)
    assert_same(first["weights"], second["weights"])
    assert_close(first["weights"], alone["weights"])
    for key in ("best", "step", "examples"):
        assert first[key] == second[key] == alone[key]
    assert events_close(tmp_path / "alone" / "run", tmp_path / "two" / "run")
    assert sorted(flat(first["drawn"]) + flat(second["drawn"])) == sorted(flat(alone["drawn"]))


def test_a_gradient_that_was_not_summed_would_be_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("hftoolkit.train.distributed.strategy.sum_gradients", lambda *_: None)
    (alone,) = together(tmp_path, trained, tmp_path / "alone", {}, {}, count=1)
    first, second = together(tmp_path, trained, tmp_path / "two", {}, {})
    assert any(
        not torch.allclose(first["weights"][name], alone["weights"][name], atol=1e-6) for name in alone["weights"]
    )
    assert first["drawn"] != second["drawn"]


def test_dropout_differs_between_processes_and_batch_norms_do_not(tmp_path):
    layers = {"dropout": 0.5, "batch_norm": True}
    first, second = together(tmp_path, trained, tmp_path / "two", layers, {"batch_size": 13, "ema_decay": 0.5})
    assert_same(first["weights"], second["weights"])
    assert first["weights"]["norm.running_mean"].any()


# Metrics


def predicted(sizes, batch_sizes):
    """Predict splits of many sizes; return the predictions of this process, and how many rows it ran itself."""
    model, accelerator, answers = toy_model(), make_accelerator("fp32"), {}
    for size in sizes:
        task = ToyTask(num_examples=size, lengths=np.random.default_rng(size).integers(1, 9, size=size))
        for batch_size in batch_sizes:
            infer, ran = Inference(task, accelerator, batch_size=batch_size), []

            def step(model, batch, task=task, ran=ran):
                ran.extend(batch["index"].tolist())
                return task.predict(model, batch)

            answers[size, batch_size] = (np.stack(infer(model, task.rows, predict=step)), ran)
    return answers


def test_metrics_are_those_of_one_process_for_any_number_of_rows(tmp_path):
    sizes, batch_sizes = range(1, 41), range(1, 9)
    (alone,) = together(tmp_path, predicted, sizes, batch_sizes, count=1)
    first, second = together(tmp_path, predicted, sizes, batch_sizes)
    assert len(alone) == 320
    for key, (expected, _) in alone.items():
        np.testing.assert_array_equal(first[key][0], expected)
        np.testing.assert_array_equal(second[key][0], expected)
        assert sorted(first[key][1] + second[key][1]) == list(range(key[0]))


# Interrupts, kills and resume


@pytest.mark.parametrize("only", [(0,), (1,), (0, 1)])
def test_a_signal_to_any_process_stops_all_after_the_same_step_and_both_go_on(tmp_path, only):
    layers, knobs = {"dropout": 0.5, "batch_norm": True}, {"ema_decay": 0.6, "micro_batch_size": 3, "epochs": 3}
    whole, _ = together(tmp_path, trained, tmp_path / "whole", layers, knobs)
    answers = together(tmp_path, interrupted, tmp_path / "cut", 4, knobs, only)
    assert answers[0] == answers[1] and answers[0][0] == 143 and "at step 4;" in answers[0][1]
    assert newest_state(tmp_path / "cut" / "run" / "checkpoints", print).step == 4
    first, second = together(tmp_path, trained, tmp_path / "cut", layers, knobs)
    assert_same(first["weights"], whole["weights"])
    assert_same(second["weights"], whole["weights"])


@pytest.mark.parametrize("victim", [0, 1])
def test_no_process_is_left_when_one_is_killed(tmp_path, victim):
    kill_one(Group(tmp_path, slow, tmp_path), victim, tmp_path)
    assert newest_state(tmp_path / "run" / "checkpoints", print) is not None


def trained_in_little_memory(folder):
    attempt = attempt_in(folder, ShortMemory())
    fitted = attempt.fit()
    return attempt.weights, fitted.progress.micro_batch_size, [event.text for event in attempt.told(Message)]


def test_lack_of_memory_in_one_process_halves_the_micro_batches_of_all(tmp_path):
    (first, size, said), (second, other_size, _) = together(tmp_path, trained_in_little_memory, tmp_path / "two")
    (alone,) = together(tmp_path, trained, tmp_path / "alone", {}, {}, count=1)
    assert size == other_size == 2 and len(said) == 2
    assert_same(first, second)
    assert_close(first, alone["weights"])


# Launchers


@pytest.mark.faults
def test_a_launcher_that_starts_fewer_processes_than_asked_for_is_found_out(write_recipe, tmp_path):
    """D5: accelerate launch --cpu --num_processes 2 starts one, and says nothing."""
    command = ["launch", "--cpu", "--num_processes", "2", "-m", "hftoolkit", "finetune", str(write_recipe())]
    launcher = Path(sys.executable).with_name("accelerate")
    options = ["--run-dir", str(tmp_path / "run")]
    ended = subprocess.run([str(launcher), *command, *options], capture_output=True, text=True, check=False)
    assert "error: 2 ranks were asked for and 1 runs" in ended.stderr, ended.stderr
    assert "torchrun --nproc_per_node 2" in ended.stderr and not (tmp_path / "run").exists()


@pytest.fixture
def launcher(monkeypatch):
    """Let the parent of this process look like a launcher with these arguments."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-c", "import sys; sys.stdin.read()", *arguments]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        monkeypatch.setattr("hftoolkit.train.distributed.launch.os.getppid", lambda: processes[-1].pid)
        while b"launch" not in Path(f"/proc/{processes[-1].pid}/cmdline").read_bytes():
            time.sleep(0.01)

    yield start
    for process in processes:
        process.communicate()


def test_the_count_on_the_command_line_of_accelerate_must_have_taken_effect(launcher, tmp_path):
    launcher("accelerate", "launch", "--num_processes", "1", "-m", "hftoolkit", "finetune", "x.yaml")
    join_processes()
    launcher("/usr/bin/accelerate", "launch", "--cpu", "--num_processes=2", "-m", "hftoolkit", "finetune", "x.yaml")
    with pytest.raises(EnvironmentFault, match=r"2 ranks were asked for and 1 runs: .*--nproc_per_node 2 -m"):
        join_processes()
    config = tmp_path / "two.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 3\n")
    launcher("accelerate", "launch", "--config_file", str(config), "-m", "hftoolkit", "finetune", "x.yaml")
    with pytest.raises(EnvironmentFault, match="3 ranks were asked for"):
        join_processes()


@pytest.mark.parametrize("name", ["MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_what_divides_the_model_in_another_way_than_fsdp2_is_refused(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(EnvironmentFault, match=r"not supported.*--config_file docs/accelerate"):
        join_processes()


def test_a_run_of_its_own_is_one_process():
    join_processes()
    assert num_processes() == 1 and is_main()


def torchrun(*arguments):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "hftoolkit",
    ]
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_torchrun_gives_the_run_of_one_process_and_only_the_main_one_speaks(write_recipe, tmp_path):
    recipe = write_recipe(60, "")
    process = torchrun("finetune", recipe, "--run-dir", tmp_path / "two")
    out, err = process.communicate(timeout=PATIENCE_SECONDS * 2)
    assert process.returncode == 0, err
    assert out.count("results   ") == 1 and out.count("rows: train") == 1
    assert hft("finetune", recipe, "--run-dir", tmp_path / "one").code == 0
    results = [read_json(tmp_path / name / "results.json") for name in ("one", "two")]
    assert results[0]["train"]["steps"] == results[1]["train"]["steps"] == 24
    assert events_close(tmp_path / "one", tmp_path / "two")
    one, two = results[0]["test"]["metrics"], results[1]["test"]["metrics"]
    assert one == pytest.approx(two, abs=1e-5)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    process = torchrun("finetune", recipe, "--run-dir", tmp_path / "two", "--resume", "auto")
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0 and out.count("there is nothing to do") == 1, err
