"""DeepSpeed divides moments and gradients over two processes, on CPUs: the update and the files of a whole model."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from functools import partial

import pytest
from test_fsdp import (
    IN_TWO,
    check_two_begin_as_the_main_one_does,
    check_two_learn_what_one_does,
    check_two_learn_what_two_whole_models_do,
    compare,
    dividing,
    followed,
    gives_the_run_of_one_process,
    joined,
    launches_itself,
    refuses_recipes,
    short_of_memory,
    stopped,
    went_on,
    write_image_recipe,
)

from doubles.commands import hft, read_json, refused
from doubles.paths import ROOT
from doubles.processes import Group, attempt_in, interrupted, kill_one, slow, together, trained
from doubles.toy_training import ToyTask, assert_close, assert_same, toy_model
from hftoolkit.errors import TrainingError
from hftoolkit.runs.checkpoint import load_weights, newest_state
from hftoolkit.train import state as snapshot
from hftoolkit.train.distributed.collectives import process_index
from hftoolkit.train.distributed.zero import Zero, ZeroOptimizer
from hftoolkit.train.state import Snapshots

FILE = ROOT / "docs" / "accelerate" / "zero-8-gpus.yaml"
TOLD = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
stages = pytest.mark.parametrize("stage", [1, 2])


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Import here what takes each process seconds, before they are forked."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")


def divided(folder, layers, knobs, stage=2):
    return dividing(trained, folder, layers, knobs, sharding=Zero(stage))


# The update


EVERYTHING = {
    "batch_size": 13,
    "micro_batch_size": 4,
    "max_gradient_norm": 0.05,
    "ema_decay": 0.6,
    "schedule": "cosine",
    "warmup_ratio": 0.4,
    "rate_scales": {"head.weight": 3.0, "head.bias": 3.0},
    "weight_decay": 0.3,
    "early_stopping_patience": 1,
    "epochs": 4,
}
CASES = {"plain": {}, "shares of two micro-batches and of one": {"batch_size": 9, "micro_batch_size": 4}}


@stages
@pytest.mark.parametrize("case", [*CASES, "everything"])
def test_two_processes_learn_what_one_does(tmp_path, stage, case):
    """The last step of the last case has one row, and the second process none."""
    knobs = EVERYTHING if case == "everything" else CASES[case]
    check_two_learn_what_one_does(tmp_path, divided, {}, knobs, stage)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_batch_norms_and_precision_are_those_of_two_whole_models(tmp_path, precision):
    check_two_learn_what_two_whole_models_do(tmp_path, divided, precision)


def test_all_begin_with_the_weights_of_the_main_process(tmp_path):
    check_two_begin_as_the_main_one_does(tmp_path, partial(dividing, sharding=Zero(2)))


def parts(folder, stage):
    """Return how many numbers of gradients, summed gradients and moments this process holds at a step."""
    held, honest = {}, ZeroOptimizer.clip_to_mean

    def note(self, *arguments):
        parameters = [p for _, members in self._groups() for p in members]
        held["gradients"] = sum(p.grad.numel() for p in parameters if p.grad is not None)
        norm = honest(self, *arguments)
        held["summed"] = sum(g.numel() for group in self._divided.averaged_gradients.values() for g in group)
        states = [self._divided.state[part] for part, _ in self._groups()]
        held["moments"] = sum(slot.numel() for state in states for slot in state.values() if slot.ndim)
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZeroOptimizer, "clip_to_mean", note)
        divided(folder, {}, {"epochs": 1}, stage)
    return held


@stages
def test_each_process_holds_a_part(tmp_path, stage):
    total = sum(parameter.numel() for parameter in toy_model().parameters())
    padding = 2 * 2 * 2  # of two groups to a multiple of four
    for held in together(tmp_path, parts, tmp_path, stage):
        assert held["gradients"] == (total if stage == 1 else 0)
        assert total / 2 <= held["summed"] <= total / 2 + padding
        assert total <= held["moments"] <= total + 2 * padding


# Files and resume


def test_checkpoints_are_those_of_a_whole_model(tmp_path):
    knobs = {"ema_decay": 0.6, "epochs": 1}
    together(tmp_path, trained, tmp_path / "whole", {"batch_norm": True}, knobs)
    together(tmp_path, divided, tmp_path / "divided", {"batch_norm": True}, knobs)
    folders = [tmp_path / name / "run" / "checkpoints" for name in ("whole", "divided")]
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in folders]
    assert names[0] == names[1] and {"best-000003", "step-000003"} < set(names[0])
    states = [newest_state(folder, print).tensors for folder in folders]
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in states[0])
    assert_close(*states)
    assert_close(*[load_weights(folder / "best-000003") for folder in folders])


@pytest.mark.parametrize("stage, count", [(1, 2), (2, 2), (2, 4)])
def test_a_run_goes_on_to_the_same_bits(tmp_path, stage, count):
    """Of four processes, two have nothing of the group of the last bias, which is three numbers."""
    layers, knobs = {"dropout": 0.5, "batch_norm": True}, {"ema_decay": 0.6, "micro_batch_size": 3, "epochs": 3}
    knobs["rate_scales"] = {"head.bias": 3.0}
    whole, *_ = together(tmp_path, divided, tmp_path / "whole", layers, knobs, stage, count=count)
    goes = partial(dividing, sharding=Zero(stage))
    answers = together(tmp_path, goes, interrupted, tmp_path / "cut", 4, knobs, (1,), count=count)
    assert len(set(answers)) == 1 and answers[0][0] == 143
    assert newest_state(tmp_path / "cut" / "run" / "checkpoints", print).step == 4
    for again in together(tmp_path, divided, tmp_path / "cut", layers, knobs, stage, count=count):
        assert_same(again["weights"], whole["weights"])


def saving_slowly(folder):
    """The main process takes long to write; return when it had written, and when this process went on."""
    written, went = [], []

    def save(*arguments, **knobs):
        time.sleep(0.5)
        written.append(time.monotonic())
        return honest_save(*arguments, **knobs)

    def goes(self, *arguments):
        honest_goes(self, *arguments)
        went.append(time.monotonic())

    honest_save, honest_goes = snapshot.save_state, Snapshots.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "save_state", save)
        patch.setattr(Snapshots, "save", goes)
        divided(folder, {}, {"epochs": 1})
    return written, went


def test_no_exchange_of_deepspeed_waits_for_a_state_to_be_written(tmp_path):
    """Its process group gives up after minutes, and one state of a large model can take as long."""
    ((written,), _), (nothing, (went,)) = together(tmp_path, saving_slowly, tmp_path)
    assert not nothing and went >= written


@pytest.mark.parametrize(
    "before, after, says",
    [
        (Zero(2), None, "1 instead of 2 processes, without DeepSpeed ZeRO 2"),
        (IN_TWO, Zero(2), "with DeepSpeed ZeRO 2"),
    ],
)
def test_a_run_goes_on_divided_otherwise_and_says_so(tmp_path, before, after, says):
    knobs, count = {"epochs": 3, "ema_decay": 0.6}, 2 if after else 1
    uninterrupted, _ = together(tmp_path, divided, tmp_path / "whole", {}, knobs)
    together(tmp_path, partial(dividing, sharding=before), stopped, tmp_path / "cut", 4, knobs)
    goes_on = partial(dividing, sharding=after)
    weights, (warning,) = together(tmp_path, goes_on, went_on, tmp_path / "cut", knobs, count=count)[0]
    assert_close(weights, uninterrupted["weights"])
    assert warning == f"{says}: the run goes on, but not to the last bit as it would have"


# What ends a run


def spoilt(folder):
    """The second process gets a loss that is no number in its second step."""
    disturb = lambda number, loss: loss * (math.nan if process_index() == 1 and number == 2 else 1)  # noqa: E731
    attempt, updates, honest = attempt_in(folder, ToyTask(disturb=disturb)), [], ZeroOptimizer.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError) as caught:
        patch.setattr(ZeroOptimizer, "step", lambda self: (updates.append(1), honest(self)))
        attempt.fit()
    return str(caught.value), len(updates)


@stages
def test_a_loss_that_is_no_number_stops_all_before_the_update(tmp_path, stage):
    for message, updates in together(tmp_path, partial(dividing, sharding=Zero(stage)), spoilt, tmp_path):
        assert message.startswith("step 2: loss nan, gradient norm nan; stopped before the update") and updates == 1


def test_lack_of_memory_in_one_process_ends_all_and_is_told_before_and_after(tmp_path):
    first, second = Group(tmp_path, partial(dividing, sharding=Zero(2)), short_of_memory, tmp_path).answers()
    assert second[0] == "TrainingError" and "Start a run with a smaller train.micro_batch_size" in second[1]
    assert first[0] == "EnvironmentFault" and "lost the other processes of this run" in first[1]
    said = "DeepSpeed ZeRO 2 divides gradients and moments over 2 processes; if memory runs out in a step, the run ends"
    assert first[2][0].startswith(said)


def test_no_process_is_left_when_one_is_killed(tmp_path):
    kill_one(Group(tmp_path, partial(dividing, sharding=Zero(2)), slow, tmp_path), 1, tmp_path)


# What is refused, and what is not said


def test_deepspeed_says_nothing_where_nobody_asked_for_it():
    """Accelerate imports it to save any model."""
    code = "from hftoolkit.train.devices import make_accelerator; make_accelerator('fp32'); import deepspeed"
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == ""


def test_deepspeed_must_be_installed(monkeypatch, write_recipe, tmp_path):
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    recipe, find_spec = write_recipe(), importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "deepspeed" else find_spec(name))
        ended = hft("finetune", recipe, "--run-dir", tmp_path / "run")
    refused(ended, 4, "distributed_type: DEEPSPEED needs DeepSpeed: pip install 'hftoolkit[zero]'")


@pytest.mark.parametrize(
    "more, says",
    [
        ({"DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage: 0 is not supported"),
        ({"DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "offload_param_device: nvme is not supported"),
        ({"DEEPSPEED_MOE_LAYER_CLS_NAMES": "Experts"}, "deepspeed_moe_layer_cls_names: Experts is not supported"),
        ({"GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps: 4 is not supported"),
        ({"GRADIENT_ACCUMULATION_STEPS": "1"}, "ZeRO 2 divides the training over several processes, and 1 runs"),
    ],
)
def test_other_settings_of_accelerate_are_refused(monkeypatch, write_recipe, tmp_path, more, says):
    for name, value in (TOLD | {f"ACCELERATE_{name}": value for name, value in more.items()}).items():
        monkeypatch.setenv(name, value)
    refused(hft("finetune", write_recipe(), "--run-dir", tmp_path / "run"), 4, says)
    assert not (tmp_path / "run").exists()


def test_what_accelerate_tells_is_read_and_told_nobody_else(write_recipe, tmp_path):
    told = TOLD | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1", "ACCELERATE_GRADIENT_CLIPPING": "auto"}
    for sharding, is_still_told in together(tmp_path, joined, write_recipe(), told):
        assert sharding == Zero(1) and not is_still_told


def test_recipes_that_cannot_be_followed_are_refused_with_all_reasons(write_recipe, tmp_path):
    refuses_recipes(tmp_path, write_recipe(), TOLD, "DeepSpeed ZeRO 2")


# Recipes


VARIANTS = {
    "full, checkpointing": (1, ["model.gradient_checkpointing=true", "tuning={method: full, layer_decay: 0.8}"]),
    "LoRA": (2, ["tuning.method=lora", "tuning.rank=2", "tuning.dropout=0"]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_give_the_losses_of_whole_models(write_recipe, lively_backbone, tmp_path, variant):
    stage, overrides = VARIANTS[variant]
    overrides = ["train.epochs=2", f"model.backbone={lively_backbone}", *overrides]
    compare(tmp_path, write_recipe(40), overrides, Zero(stage))


@pytest.mark.faults
def test_images_give_the_losses_of_whole_models(tmp_path, monkeypatch):
    recipe = write_image_recipe(tmp_path, monkeypatch, "test_vit")
    compare(tmp_path, recipe, ["train.epochs=2", "augmentation={mixup: 0.2}"], Zero(2))


def test_convolutions_whose_weights_are_channels_last_are_trained(tmp_path, monkeypatch):
    """Theirs are not while they are divided, which rounds otherwise; Adam enlarges that."""
    recipe, losses = write_image_recipe(tmp_path, monkeypatch, "test_efficientnet"), []
    for name, sharding in (("whole", None), ("two", Zero(2))):
        together(tmp_path, followed, recipe, tmp_path / name, ["train.epochs=1"], sharding)
        events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        losses.append([event["loss"] for event in events if event["event"] == "step"])
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_shipped_file_gives_the_run_of_one_process(write_recipe, lively_backbone, tmp_path):
    overrides = [f"model.backbone={lively_backbone}", "train.epochs=2"]
    out, _ = gives_the_run_of_one_process(tmp_path, FILE, write_recipe(60), overrides)
    assert out.count("DeepSpeed ZeRO 2 divides gradients and moments over 2 processes") == 1
    config = read_json(tmp_path / "two" / "model" / "config.json")
    assert config["architectures"] == ["BertForSequenceClassification"]


@pytest.mark.faults
def test_the_launcher_itself_divides_gradients_and_moments(write_recipe, tmp_path):
    out = launches_itself(tmp_path, FILE, write_recipe(60))
    assert "DeepSpeed ZeRO 2 divides gradients and moments over 2 processes" in out
