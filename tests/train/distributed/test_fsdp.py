"""A model that FSDP2 divides over two processes, on CPUs: the update, the files and the metrics of a whole one."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

import hftoolkit
from doubles.commands import hft, read_json, refused
from doubles.launch import launched_with
from doubles.paths import ROOT
from doubles.pictures import RECIPE, write_pictures
from doubles.processes import (
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
from doubles.toy_training import Attempt, ToyTask, assert_close, assert_same, flat, stop_after, toy_model
from hftoolkit.commands.finetune import fit_setup
from hftoolkit.commands.setup import join, prepare
from hftoolkit.contracts import Message
from hftoolkit.errors import EnvironmentFault, Interrupted, RecipeError, TrainingError
from hftoolkit.models.tuning import TunedModel
from hftoolkit.recipe import Evaluation, Train, load_recipe
from hftoolkit.runs.checkpoint import load_weights, newest_state
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.lifecycle import record_event
from hftoolkit.train.batches import TrainBatches
from hftoolkit.train.devices import make_accelerator
from hftoolkit.train.distributed.collectives import is_main, process_index
from hftoolkit.train.distributed.fsdp import Fsdp
from hftoolkit.train.distributed.strategy import WHOLE
from hftoolkit.train.loop import one_step
from hftoolkit.train.weights import Weights

FILE = ROOT / "docs" / "accelerate" / "fsdp2-8-gpus.yaml"
AT_ONCE, IN_TWO = Fsdp(by_blocks=False), Fsdp(by_blocks=True, block_classes=("Linear",))
TOLD = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def dividing(function, *arguments, strategy=IN_TWO):
    """Call a function of these tests or of ``doubles.processes``, whose attempts then divide their models."""
    Attempt.strategy = strategy
    return function(*arguments)


# The update


CASES = {
    "plain": ({}, {}, IN_TWO),
    "as one unit": ({}, {}, AT_ONCE),
    "blocks kept after the forward pass": ({}, {}, Fsdp(True, ("Linear",), reshard_after_forward=False)),
    "accumulation": ({}, {"micro_batch_size": 3}, IN_TWO),
    "shares of two micro-batches and of one": ({}, {"batch_size": 9, "micro_batch_size": 4}, IN_TWO),
    "one row in the last step": ({}, {"batch_size": 13}, IN_TWO),
    "clipping": ({}, {"max_gradient_norm": 0.05}, IN_TWO),
    "average": ({}, {"ema_decay": 0.6}, IN_TWO),
    "early stopping": ({}, {"early_stopping_patience": 1, "epochs": 6}, IN_TWO),
    "workers": ({}, {"batch_size": 13, "num_workers": 1}, IN_TWO),
}


@pytest.mark.parametrize("case", CASES)
def test_a_divided_model_learns_what_a_whole_one_does(tmp_path, case):
    layers, knobs, strategy = CASES[case]
    check_two_learn_what_one_does(tmp_path, divided, layers, knobs, strategy)


def check_two_learn_what_one_does(folder, goes, layers, knobs, division):
    """``goes`` trains in one of two processes that ``division`` divides."""
    (alone,) = together(folder, trained, folder / "alone", layers, knobs, count=1)
    first, second = together(folder, goes, folder / "two", layers, knobs, division)
    assert_same(first["weights"], second["weights"])
    assert_close(first["weights"], alone["weights"])
    for key in ("best", "step", "examples"):
        assert first[key] == second[key] == alone[key]
    assert events_close(folder / "alone" / "run", folder / "two" / "run")


def divided(folder, layers, knobs, strategy=IN_TWO):
    return dividing(trained, folder, layers, knobs, strategy=strategy)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_batch_norms_and_precision_are_those_of_two_whole_models(tmp_path, precision):
    check_two_learn_what_two_whole_models_do(tmp_path, divided, precision)


def check_two_learn_what_two_whole_models_do(folder, goes, precision):
    """The last step has one row: the second process runs it too, which must change none of its statistics."""
    layers = {"dropout": 0.5, "batch_norm": True}
    knobs = {"batch_size": 13, "micro_batch_size": 4, "ema_decay": 0.5, "precision": precision}
    whole, _ = together(folder, trained, folder / "whole", layers, knobs)
    first, second = together(folder, goes, folder / "two", layers, knobs)
    assert_same(first["weights"], second["weights"])
    assert first["weights"]["norm.running_mean"].any()
    assert_close(first["weights"], whole["weights"])


def begun_differently(folder):
    attempt = attempt_in(folder)
    with torch.no_grad():
        attempt.model.head.bias += process_index()
    attempt.fit()
    return attempt.weights


def test_all_parts_are_those_of_the_weights_that_the_main_process_began_with(tmp_path):
    check_two_begin_as_the_main_one_does(tmp_path, dividing)


def check_two_begin_as_the_main_one_does(folder, goes):
    first, second = together(folder, goes, begun_differently, folder / "two")
    (alone,) = together(folder, trained, folder / "alone", {}, {}, count=1)
    assert_same(first, second)
    assert_close(first, alone["weights"])


def test_all_processes_get_as_many_micro_batches_and_what_was_added_is_told():
    for examples in range(1, 20):
        task, section = ToyTask(num_examples=examples), Train(epochs=1, batch_size=7, micro_batch_size=2)
        steps = [list(feed.steps(0, 0, 2)) for feed in feeds(task, section, processes=3)]
        for of_processes in zip(*steps, strict=True):
            assert len({len(step.micro_batches) for step in of_processes}) == 1
            own = [step.micro_batches[: len(step.micro_batches) - step.num_padding] for step in of_processes]
            seen = flat([batch["index"].tolist() for share in own for batch in share])
            assert seen == of_processes[0].indices.tolist()
            assert min(step.num_padding for step in of_processes) == 0


def feeds(task, section, processes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hftoolkit.train.batches.num_processes", lambda: processes)
        for index in range(processes):
            patch.setattr("hftoolkit.train.batches.process_index", lambda index=index: index)
            yield TrainBatches(task, section, equal_micro_batches=True)


def parts(folder):
    """Return how many numbers of weights, gradients and moments this process holds after a step, and of how many."""
    held = {}

    def note(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = {"weights": parameters, "gradients": [p.grad for p in parameters]}
        kept["moments"] = [slot for state in optimizer.state.values() for slot in state.values() if slot.ndim]
        assert all(isinstance(tensor, DTensor) for tensors in kept.values() for tensor in tensors)
        held.update({name: sum(tensor.to_local().numel() for tensor in tensors) for name, tensors in kept.items()})

    register_optimizer_step_post_hook(note)
    dividing(trained, folder, {}, {"epochs": 1})
    return held


def test_each_process_holds_a_part(tmp_path):
    total = sum(parameter.numel() for parameter in toy_model().parameters())
    first, second = together(tmp_path, parts, tmp_path)
    for name, times in (("weights", 1), ("gradients", 1), ("moments", 2)):
        assert first[name] + second[name] == times * total and abs(first[name] - second[name]) <= times * total * 0.2, (
            name
        )


def blocks_of(model, strategy):
    with pytest.MonkeyPatch.context() as patch:
        divided = []
        patch.setattr("hftoolkit.train.distributed.fsdp.shard", lambda _, blocks, *__, **___: divided.append(blocks))
        Weights.of(model, torch.device("cpu"), ema_decay=None, strategy=strategy)
    return [type(block).__name__ for block in divided[0]]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])


def test_blocks_are_found_or_named_and_inner_ones_come_first():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Stage(), Stage()))
    assert blocks_of(model, Fsdp(by_blocks=True)) == ["Block", "Block", "Stage"] * 2
    assert blocks_of(model, Fsdp(True, ("Block",))) == ["Block"] * 4
    assert blocks_of(model, AT_ONCE) == []
    with pytest.raises(EnvironmentFault, match=r"the model has no BertLayer; leave .* are found \(Block, Stage\)"):
        blocks_of(model, Fsdp(True, ("Block", "BertLayer")))
    with pytest.raises(EnvironmentFault, match="there are none here"):
        blocks_of(toy_model(), Fsdp(True, ("BertLayer",)))


def rehearsed():
    task, section = ToyTask(), Train(precision="fp32", batch_size=16)
    knobs = {"train": section, "evaluation": Evaluation(best_by="accuracy"), "accelerator": make_accelerator("fp32")}
    return one_step(task, TunedModel(toy_model()), **knobs, strategy=IN_TWO), flat(task.drawn)


def test_one_step_of_a_rehearsal_has_the_mean_loss_over_both_shares(tmp_path):
    (first, own), (second, others) = together(tmp_path, rehearsed)
    task = ToyTask()
    with torch.no_grad():
        expected = float(task.loss(toy_model(), task.collate(own + others, training=True)).loss_sum) / 16
    assert first == second == pytest.approx(expected, rel=1e-6) and len(own) == len(others) == 8


def test_scaled_gradients_are_refused():
    accelerator = SimpleNamespace(scaler=object(), device=torch.device("cpu"))
    knobs = {"train": Train(), "evaluation": Evaluation(best_by="accuracy"), "accelerator": accelerator}
    with pytest.raises(RecipeError, match="auto is fp16 on this device, which does not work with FSDP2; use fp32"):
        one_step(ToyTask(), TunedModel(toy_model()), **knobs, strategy=IN_TWO)


# Files and resume


def test_checkpoints_are_those_of_a_whole_model(tmp_path):
    knobs = {"ema_decay": 0.6, "epochs": 1}
    together(tmp_path, trained, tmp_path / "whole", {"batch_norm": True}, knobs)
    together(tmp_path, divided, tmp_path / "divided", {"batch_norm": True}, knobs)
    folders = [tmp_path / name / "run" / "checkpoints" for name in ("whole", "divided")]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1] == ["best-000003", "step-000003"]
    states = [newest_state(folder, print).tensors for folder in folders]
    assert_close(*states)
    assert_close(*[load_weights(folder / "best-000003") for folder in folders])


def stopped(folder, step, knobs):
    attempt = attempt_in(folder)
    tell, stop = attempt.listen, stop_after(step)
    attempt.listen = lambda event: (tell(event), stop(event))
    with pytest.raises(Interrupted):
        attempt.fit(**knobs)


def went_on(folder, knobs):
    attempt = attempt_in(folder)
    attempt.fit(**knobs)
    return attempt.weights, [event.text for event in attempt.told(Message) if event.level == "warning"]


@pytest.mark.parametrize("is_divided, count, says", [(True, 1, "1 instead of 2 ranks, with"), (False, 2, "with")])
def test_a_run_goes_on_divided_or_whole_and_says_so(tmp_path, is_divided, count, says):
    """Two divided processes are followed by a whole one, and two whole ones by divided ones."""
    knobs, strategy = {"epochs": 3, "ema_decay": 0.6}, IN_TWO if is_divided else WHOLE
    uninterrupted, _ = together(tmp_path, divided, tmp_path / "whole", {}, knobs)
    together(tmp_path, partial(dividing, strategy=strategy), stopped, tmp_path / "cut", 4, knobs)
    goes_on = partial(dividing, strategy=WHOLE if is_divided else IN_TWO)
    weights, (warning,) = together(tmp_path, goes_on, went_on, tmp_path / "cut", knobs, count=count)[0]
    assert_close(weights, uninterrupted["weights"])
    says += "out FSDP2" if is_divided else " FSDP2"
    assert warning == f"{says}: the run resumes, but will not be equal to the last bit"


def test_a_divided_run_goes_on_to_the_same_bits(tmp_path):
    layers, knobs = {"dropout": 0.5, "batch_norm": True}, {"ema_decay": 0.6, "micro_batch_size": 3, "epochs": 3}
    whole, _ = together(tmp_path, divided, tmp_path / "whole", layers, knobs)
    answers = together(tmp_path, dividing, interrupted, tmp_path / "cut", 4, knobs, (1,))
    assert answers[0] == answers[1] and answers[0][0] == 143
    assert newest_state(tmp_path / "cut" / "run" / "checkpoints", print).step == 4
    first, second = together(tmp_path, divided, tmp_path / "cut", layers, knobs)
    assert_same(first["weights"], whole["weights"])
    assert_same(second["weights"], whole["weights"])
    ends = [newest_state(tmp_path / name / "run" / "checkpoints", print) for name in ("whole", "cut")]
    assert ends[0].step == ends[1].step == 9  # the best weights may be older than the interrupt
    assert_same(ends[0].tensors, ends[1].tensors)


# What ends a run


def short_of_memory(folder):
    attempt = attempt_in(folder, ShortMemory())
    with pytest.raises((TrainingError, EnvironmentFault)) as caught:
        attempt.fit()
    return type(caught.value).__name__, str(caught.value), [event.text for event in attempt.told(Message)]


def test_lack_of_memory_in_one_process_ends_all_and_is_told_before_and_after(tmp_path):
    group = Group(tmp_path, dividing, short_of_memory, tmp_path)
    first, second = group.answers()
    assert second[0] == "TrainingError" and "Start a run with a smaller train.micro_batch_size" in second[1]
    assert first[0] == "EnvironmentFault" and "lost the other ranks of this run" in first[1]
    assert "if memory runs out in a step, the run ends" in first[2][0]
    assert first[2][0].startswith("model sharded over 2 ranks by FSDP2, 2 blocks one by one")


@pytest.mark.parametrize("victim", [0, 1])
def test_no_process_is_left_when_one_is_killed(tmp_path, victim):
    kill_one(Group(tmp_path, dividing, slow, tmp_path), victim, tmp_path)


# What is refused


@pytest.fixture
def told(monkeypatch):
    """Be told by accelerate launch to use FSDP2, with these differences."""

    def tell(**more):
        for name, value in (TOLD | more).items():
            monkeypatch.setenv(name, value)

    return tell


@pytest.mark.parametrize(
    "more, says",
    [
        ({"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_IGNORED_MODULES": "classifier"}, "fsdp_ignored_modules"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "model.gradient_checkpointing: true"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "use TRANSFORMER_BASED_WRAP"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "full_shard"}, "true or false"),
        ({}, "leave out the launcher"),
    ],
)
def test_other_settings_of_accelerate_are_refused(told, write_recipe, tmp_path, more, says):
    told(**more)
    refused(hft("finetune", write_recipe(), "--run-dir", tmp_path / "run"), 4, says)
    assert not (tmp_path / "run").exists()


def joined(recipe, told, *overrides):
    os.environ |= told
    strategy = join(load_recipe(recipe, list(overrides)))
    return strategy, any(name.startswith("ACCELERATE_USE_") and name in os.environ for name in told)


def refused_recipe(recipe, told):
    with pytest.raises(RecipeError) as caught:
        later = "tuning={method: full, unfreeze_epochs: 1}"
        joined(recipe, told, later, "train.micro_batch_size=auto", "train.precision=fp16")
    messages = [str(caught.value)]
    with pytest.raises(RecipeError) as caught:
        joined(recipe, told, "tuning.method=linear-probe")
    return [*messages, str(caught.value)]


def test_what_accelerate_tells_is_read_and_told_nobody_else(write_recipe, tmp_path):
    more = {"FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer, Other", "FSDP_RESHARD_AFTER_FORWARD": "false"}
    for strategy, is_still_told in together(tmp_path, joined, write_recipe(), TOLD | more):
        assert strategy == Fsdp(True, ("BertLayer", "Other"), reshard_after_forward=False)
        assert not is_still_told


def test_recipes_that_a_divided_model_cannot_follow_are_refused_with_all_reasons(write_recipe, tmp_path):
    refuses_recipes(tmp_path, write_recipe(), TOLD, "FSDP2")


def refuses_recipes(folder, recipe, told, name):
    for several, probe in together(folder, refused_recipe, recipe, told):
        assert several.startswith(f"not possible with {name}; change the recipe, or launch with --multi_gpu alone:\n")
        assert [line.split(":")[0].strip() for line in several.splitlines()[1:]] == [
            "tuning.unfreeze_epochs",
            "train.micro_batch_size",
            "train.precision",
        ]
        assert "tuning.method: linear-probe" in probe and len(probe.splitlines()) == 2


# Recipes


def followed(path, folder, overrides, strategy):
    """Train what a recipe says; return the trained weights of this process, and what was told."""
    recipe, events, run = load_recipe(path, overrides), [], RunDir(folder)
    folder.mkdir(exist_ok=True)

    def listen(event):
        events.append(event)
        if is_main():
            record_event(run, event)

    job = prepare(recipe, listen)
    fit_setup(job, run, strategy, listen)
    state = {name: tensor.clone() for name, tensor in job.tuned.model.state_dict().items()}
    return state, [event.text for event in events if isinstance(event, Message)]


@pytest.fixture
def image_recipe(tmp_path, monkeypatch):
    """A vision transformer of six blocks from scratch."""
    return write_image_recipe(tmp_path, monkeypatch, "test_vit")


def write_image_recipe(folder, monkeypatch, architecture):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(folder / "cache"))
    pictures = write_pictures(folder / "pictures", per_class=20)
    (folder / "r.yaml").write_text(RECIPE.format(source=pictures, architecture=architecture))
    return folder / "r.yaml"


VARIANTS = {
    "full, checkpointing": ["model.gradient_checkpointing=true", "tuning={method: full, layer_decay: 0.8}"],
    "LoRA": ["tuning.method=lora", "tuning.rank=2", "tuning.dropout=0"],
    "DoRA, norms": ["tuning.method=lora", "tuning.rank=2", "tuning.dora=true", "tuning.norms=true", "tuning.dropout=0"],
    "last layers": ["tuning.method=last-layers", "tuning.layers=1"],
}
HEAVY = {"DoRA, norms", "last layers"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.faults if name in HEAVY else ()) for name in VARIANTS]
)
def test_texts_give_the_losses_of_whole_models(write_recipe, lively_backbone, tmp_path, variant):
    compare(tmp_path, write_recipe(40), ["train.epochs=2", f"model.backbone={lively_backbone}", *VARIANTS[variant]])


@pytest.mark.slow
def test_images_give_the_losses_of_whole_models(image_recipe, tmp_path):
    compare(tmp_path, image_recipe, ["train.epochs=2", "augmentation={mixup: 0.2}"])


def compare(folder, recipe, overrides, strategy=Fsdp(True)):  # noqa: B008  (it is frozen)
    """Adam makes steps of the rounding of gradients that should be zero, so losses and gradient norms are compared."""
    together(folder, followed, recipe, folder / "whole", overrides, WHOLE)
    (first, said), (second, _) = together(folder, followed, recipe, folder / "two", overrides, strategy)
    assert_same(first, second)
    assert any(text.startswith(f"model sharded over 2 ranks by {strategy.name}, ") for text in said)
    assert events_close(folder / "whole", folder / "two")
    best = [load_weights(max((folder / name / "checkpoints").glob("best-*"))) for name in ("whole", "two")]
    assert {n: t.shape for n, t in best[0].items()} == {n: t.shape for n, t in best[1].items()}


def commanded(recipe, folder, overrides, told):
    """Run the command line in this process, as one of those that a launcher tells something."""
    os.environ |= told
    options = [word for override in overrides for word in ("--set", override)]
    ended = hft("finetune", recipe, "--run-dir", folder, *options)
    return ended.code, ended.out, ended.err


@pytest.fixture(params=["texts", pytest.param("images", marks=pytest.mark.faults)])
def recipe(request, write_recipe, lively_backbone):
    """A path, and overrides for it."""
    if request.param == "texts":
        return write_recipe(60), [f"model.backbone={lively_backbone}", "train.epochs=2"]
    return request.getfixturevalue("image_recipe"), ["train.epochs=2", "tuning={method: lora, rank: 2}"]


@pytest.mark.slow
def test_the_shipped_file_gives_the_run_of_one_process(recipe, tmp_path):
    out, model_type = gives_the_run_of_one_process(tmp_path, FILE, *recipe)
    assert len(re.findall(r"model sharded over 2 ranks by FSDP2, [26] blocks one by one", out)) == 1
    assert not model_type.startswith("FSDP")


def gives_the_run_of_one_process(tmp_path, file, recipe, overrides):
    """Compare what a file of accelerate's leads to with one process; return what was told, and the class of model/."""
    with pytest.MonkeyPatch.context() as patch:
        launched = launched_with(file, patch)
    told = {name: value for name, value in launched.items() if name.startswith(("FSDP_", "ACCELERATE_"))}
    assert any(name.startswith("ACCELERATE_USE_") for name in told)
    (code, out, err), helper = together(tmp_path, commanded, recipe, tmp_path / "two", overrides, told)
    assert code == 0 and err == "" and helper[:2] == (0, ""), (err, helper)
    followed(recipe, tmp_path / "one", overrides, WHOLE)
    assert events_close(tmp_path / "one", tmp_path / "two")
    results, run = read_json(tmp_path / "two" / "results.json"), tmp_path / "two"
    assert {path.name for path in (tmp_path / "one" / "checkpoints").glob("best-*")} == {
        path.name for path in (run / "checkpoints").glob("best-*")
    }
    predictor = hftoolkit.load(run)
    rows = predictor.own_data().splits["test"]
    found = np.stack(predictor.outputs(rows)).argmax(axis=1)
    accuracy = np.mean(found == [row.target for row in rows])
    assert accuracy == pytest.approx(results["test"]["metrics"]["accuracy"])
    return out, read_json(run / "model" / "config.json")["architectures"][0]


@pytest.mark.faults
def test_the_launcher_itself_divides_the_model(write_recipe, tmp_path):
    out = launches_itself(tmp_path, FILE, write_recipe(60))
    assert "model sharded over 2 ranks by FSDP2, 2 blocks one by one" in out


def launches_itself(tmp_path, file, recipe):
    """Let accelerate launch start two processes as a file of its own says; return what they told."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launcher = str(Path(sys.executable).with_name("accelerate"))
    command = [launcher, "launch", "--config_file", str(file), "--num_processes", "2", "-m", "hftoolkit", "finetune"]
    command += [str(recipe), "--run-dir", str(tmp_path / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert read_json(tmp_path / "run" / "status.json")["state"] == "done"
    return ended.stdout
