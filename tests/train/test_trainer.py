import json
import math
import os
import signal
import sys
import threading
from importlib.machinery import ModuleSpec
from itertools import count
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from doubles.toy_training import (
    EXAMPLES,
    Bench,
    SmallMemory,
    ToyTask,
    assert_close,
    assert_same,
    copy_of,
    differ,
    flat,
    toy_model,
)
from hftoolkit.contracts import Evaluated, Examples, InferenceProgress, Message, StepDone
from hftoolkit.errors import EnvironmentFault, Interrupted, RecipeError, TrainingError
from hftoolkit.models.tuning import TunedModel
from hftoolkit.recipe import Evaluation, Train
from hftoolkit.runs.checkpoint import load_weights
from hftoolkit.runs.lifecycle import record_event
from hftoolkit.train.devices import choose_precision, make_accelerator
from hftoolkit.train.inference import Inference
from hftoolkit.train.loop import one_step
from hftoolkit.train.weights import trained_state

pytestmark = pytest.mark.smoke

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are slower on several threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench(tmp_path):
    numbers = count()
    return lambda task=None, model=None: Bench(tmp_path / f"run{next(numbers)}", task, model)


@pytest.fixture
def gradients():
    """The gradients that the optimizer got, one tuple a step."""
    seen = []

    def note(optimizer, *_):
        seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_pre_hook(note)
    yield seen
    handle.remove()


def norm_of(gradients):
    return math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients))


# The update


def reference_steps(task, batches, rates, max_norm):
    """Train with PyTorch alone on the mean loss over each whole batch; return weights and gradients by step."""
    model = toy_model()
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=False, foreach=False)
    states, norms = [], []
    for indices, rate in zip(batches, rates, strict=True):
        optimizer.zero_grad()
        cross_entropy(model(task.x[indices]), task.y[indices]).backward()
        norms.append(norm_of([p.grad for p in model.parameters()]))
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        states.append(copy_of(model))
    return states, norms


# 40 examples in batches of 16 are 3 steps an epoch, 6 in all; a warmup of round(0.17 * 6) = 1 step.
RATES = [0.01 * share for share in (1 / 2, 5 / 5, 4 / 5, 3 / 5, 2 / 5, 1 / 5)]


def test_an_update_is_that_of_plain_adamw_on_the_mean_loss_of_the_whole_batch(bench):
    toy = bench(ToyTask(scores=range(1, 10)))
    toy.fit(max_gradient_norm=0.2, warmup_ratio=0.17)
    states, norms = reference_steps(toy.task, toy.task.drawn, RATES, max_norm=0.2)
    for step, state in enumerate(states, start=1):
        assert_close(toy.after[step], state)
    assert [event.gradient_norm for event in toy.told(StepDone)] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 0.2


def test_every_epoch_draws_every_example_once(bench):
    toy = bench()
    toy.fit()
    assert [len(indices) for indices in toy.task.drawn] == [16, 16, 8, 16, 16, 8]
    epochs = [flat(toy.task.drawn[:3]), flat(toy.task.drawn[3:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(EXAMPLES))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 16])
def test_the_micro_batch_size_does_not_change_what_is_learned(bench, gradients, micro_batch_size):
    whole, split = bench(ToyTask(scores=range(1, 10))), bench(ToyTask(scores=range(1, 10)))
    whole.fit()
    split.fit(micro_batch_size=micro_batch_size)
    assert len(gradients) == 12
    for left, right in zip(gradients[:6], gradients[6:], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)
    assert_close(split.weights, whole.weights)
    assert max(len(indices) for indices in split.task.drawn) == micro_batch_size
    losses = [[event.loss for event in toy.told(StepDone)] for toy in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_loss_told_is_the_mean_over_the_examples_of_the_step(bench):
    toy = bench()
    toy.fit(epochs=1, micro_batch_size=5)
    indices = flat(toy.task.drawn[:4])
    assert len(indices) == 16
    expected = cross_entropy(toy_model()(toy.task.x[indices]), toy.task.y[indices]).item()
    assert toy.told(StepDone)[0].loss == pytest.approx(expected, abs=1e-6)


def test_clipping_limits_the_gradient_that_the_optimizer_gets(bench, gradients):
    toy = bench()
    toy.fit(max_gradient_norm=0.01)
    told = [event.gradient_norm for event in toy.told(StepDone)]
    assert min(told) > 0.1
    assert [norm_of(step) for step in gradients] == pytest.approx([0.01] * 6, rel=1e-3)


def test_a_gradient_below_the_limit_is_not_touched(bench, gradients):
    toy = bench()
    toy.fit(max_gradient_norm=1e6)
    assert [norm_of(step) for step in gradients] == pytest.approx(
        [event.gradient_norm for event in toy.told(StepDone)], rel=1e-6
    )


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", (1 / 3, 2 / 3, 1, 1, 1, 1)),
        ("linear", (1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4)),
        ("cosine", (1 / 3, 2 / 3, *(0.5 + 0.5 * math.cos(math.pi * k / 4) for k in range(4)))),
    ],
)
def test_the_learning_rate_follows_the_schedule_to_the_last_step(bench, schedule, shares):
    toy = bench()
    toy.fit(schedule=schedule, warmup_ratio=0.34)
    assert [event.learning_rate for event in toy.told(StepDone)] == pytest.approx([0.01 * share for share in shares])
    assert [event.step for event in toy.told(StepDone)] == [1, 2, 3, 4, 5, 6]
    assert {event.total_steps for event in toy.told(StepDone)} == {6}


def test_rate_scales_slow_down_what_they_name_and_nothing_else(bench):
    plain, scaled = bench(), bench()
    options = {"weight_decay": 0.0, "warmup_ratio": 0.0}
    plain.fit(**options)
    scaled.fit(rate_scales={"head.weight": 0.25, "body.bias": 0.0}, **options)
    moved = {name: plain.after[1][name] - plain.after[0][name] for name in plain.after[0]}
    moved_scaled = {name: scaled.after[1][name] - scaled.after[0][name] for name in scaled.after[0]}
    torch.testing.assert_close(moved_scaled["head.weight"], moved["head.weight"] * 0.25, rtol=1e-4, atol=1e-7)
    assert not moved_scaled["body.bias"].any()
    assert torch.equal(moved_scaled["body.weight"], moved["body.weight"])


def test_a_frozen_parameter_stays_and_is_not_in_the_checkpoint(bench):
    toy = bench()
    toy.model.body.requires_grad_(False)
    fitted = toy.fit()
    assert torch.equal(toy.weights["body.weight"], toy.after[0]["body.weight"])
    assert set(load_weights(fitted.best.path)) == {"head.weight", "head.bias"}


def test_a_micro_batch_of_one_row_uses_the_running_statistics(bench):
    toy = bench(model=toy_model(batch_norm=True))
    toy.fit(epochs=1, batch_size=13)  # 40 rows: 13, 13, 13 and 1
    assert torch.equal(toy.after[4]["norm.running_mean"], toy.after[3]["norm.running_mean"])
    assert not torch.equal(toy.after[3]["norm.running_mean"], toy.after[2]["norm.running_mean"])
    assert differ(toy.after[4], toy.after[3])


BODY_JOINS = {"body.weight": 1.0, "body.bias": 4 / 3, "norm.weight": 1.0, "norm.bias": 1.0}


def test_a_parameter_joins_in_its_epoch_and_is_frozen_before(bench):
    toy, frozen = bench(model=toy_model(batch_norm=True)), bench(model=toy_model(batch_norm=True))
    toy.fit(unfreeze_at=BODY_JOINS)  # 3 steps an epoch
    for parameter in (*frozen.model.body.parameters(), *frozen.model.norm.parameters()):
        parameter.requires_grad_(False)
    frozen.fit()
    for step in (1, 2, 3):
        assert_same(toy.after[step], frozen.after[step])
    assert not torch.equal(toy.after[4]["body.weight"], toy.after[3]["body.weight"])
    assert not torch.equal(toy.after[4]["norm.running_mean"], toy.after[3]["norm.running_mean"])
    assert torch.equal(toy.after[4]["body.bias"], toy.after[0]["body.bias"])
    assert not torch.equal(toy.after[5]["body.bias"], toy.after[4]["body.bias"])
    assert all(parameter.requires_grad for parameter in toy.model.parameters())


@pytest.mark.parametrize("ema_decay", [None, 0.001])
def test_the_best_weights_come_back_whole_when_parameters_joined_after_them(bench, ema_decay):
    toy = bench(ToyTask(scores=[0.9, 0.1]))
    fitted = toy.fit(unfreeze_at={"body.weight": 1.0, "body.bias": 1.0}, ema_decay=ema_decay)
    assert set(load_weights(fitted.best.path)) == set(toy.weights)
    assert torch.equal(toy.weights["body.weight"], toy.after[0]["body.weight"])
    assert differ(toy.after[6], toy.weights)
    assert differ(toy.weights, toy.after[0])


# Determinism


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_seed_gives_bitwise_equal_weights(bench, dropout):
    first, second = bench(model=toy_model(dropout)), bench(model=toy_model(dropout))
    first.fit(micro_batch_size=5, seed=11)
    torch.rand(13)
    second.fit(micro_batch_size=5, seed=11)
    assert_same(first.after[6], second.after[6])
    assert_same(first.weights, second.weights)


def test_the_number_of_workers_changes_nothing(bench):
    alone, helped = bench(model=toy_model(0.5)), bench(model=toy_model(0.5))
    alone.fit(epochs=1)
    helped.fit(epochs=1, num_workers=2)
    assert_same(alone.after[3], helped.after[3])


def test_evaluating_more_often_changes_nothing(bench):
    rarely, often = bench(model=toy_model(0.5)), bench(model=toy_model(0.5))
    rarely.fit(times_per_epoch=1)
    often.fit(times_per_epoch=3)
    assert len(often.told(Evaluated)) == 6
    assert_same(rarely.after[6], often.after[6])


def test_dropout_differs_by_step_and_by_micro_step(bench):
    masks = []
    model = toy_model(0.5)
    model.dropout.register_forward_hook(lambda _, inputs, output: masks.append((output == 0)[:4].tolist()))
    toy = bench(model=model)
    toy.task.evaluate = lambda *_: {"accuracy": 1.0, "loss": 0.0}
    toy.fit(micro_batch_size=8)
    assert len(masks) == 10
    assert len({str(mask) for mask in masks}) == 10


def test_a_model_that_comes_in_eval_mode_is_trained_with_dropout_too(bench):
    ready, loaded = bench(model=toy_model(0.5)), bench(model=toy_model(0.5).eval())
    ready.fit()
    loaded.fit()
    assert_same(ready.after[6], loaded.after[6])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_another_seed_gives_other_weights(bench, dropout):
    first, second = bench(model=toy_model(dropout)), bench(model=toy_model(dropout))
    first.fit(seed=1)
    second.fit(seed=2)
    assert differ(first.after[6], second.after[6])
    assert first.task.drawn != second.task.drawn


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_environment_of_accelerate_changes_nothing(bench, monkeypatch, precision):
    plain, disturbed = bench(), bench()
    plain.fit(micro_batch_size=4)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    disturbed.fit(micro_batch_size=4)
    assert_same(plain.after[6], disturbed.after[6])
    assert disturbed.accelerator.gradient_accumulation_steps == 1
    assert disturbed.accelerator.mixed_precision == "no"
    assert set(disturbed.task.dtypes) == {torch.float32}


# Best weights, evaluation, early stopping, averages


@pytest.mark.parametrize(
    ("best_by", "scores", "best_epoch"),
    [
        ("accuracy", (0.5, 0.9, 0.6), 2),
        ("loss", (1.0, 0.2, 0.5), 2),
        ("accuracy", (0.5, 0.6, 0.9), 3),
        ("loss", (0.1, 0.2, 0.5), 1),
        ("accuracy", (0.9, 0.9, 0.9), 1),
    ],
)
def test_the_model_gets_its_best_weights_back(bench, best_by, scores, best_epoch):
    toy = bench(ToyTask(scores=scores))
    fitted = toy.fit(epochs=3, best_by=best_by)
    assert_same(toy.weights, toy.task.judged[best_epoch - 1])
    assert fitted.best.step == 3 * best_epoch
    assert fitted.best.metrics[best_by] == scores[best_epoch - 1]
    assert [event.is_best for event in toy.told(Evaluated)].index(True) == 0
    names = {path.name for path in toy.run.checkpoints.iterdir()}
    assert {"step-000006", "step-000009", f"best-{3 * best_epoch:06d}"} <= names and len(names) <= 4
    assert fitted.progress.step == 9


class Undecided(ToyTask):
    """A task whose accuracy is always the same, with a loss of ``scores``."""

    def evaluate(self, model, infer):
        self.judged.append(copy_of(model))
        return {"accuracy": 0.5, "loss": next(self.scores)}


def test_of_equal_evaluations_the_one_with_the_lowest_loss_is_kept(bench):
    toy = bench(Undecided(scores=(0.9, 0.4, 0.6)))
    fitted = toy.fit(epochs=3, best_by="accuracy")
    assert_same(toy.weights, toy.task.judged[1])
    assert fitted.best.step == 6
    assert [event.is_best for event in toy.told(Evaluated)] == [True, True, False]


def test_running_statistics_belong_to_the_best_weights(bench):
    toy = bench(ToyTask(scores=(0.9, 0.1)), toy_model(batch_norm=True))
    toy.fit()
    assert differ(toy.after[6], toy.task.judged[0])
    assert_same(toy.weights, toy.task.judged[0])


@pytest.mark.parametrize(
    ("times_per_epoch", "steps"), [(1, [5, 10]), (2, [3, 5, 8, 10]), (4, [2, 3, 4, 5, 7, 8, 9, 10])]
)
def test_evaluations_are_spread_evenly_over_each_epoch(bench, times_per_epoch, steps):
    toy = bench()
    toy.fit(batch_size=8, times_per_epoch=times_per_epoch)
    assert [event.step for event in toy.told(Evaluated)] == steps


@pytest.mark.parametrize(
    ("scores", "patience", "evaluations"),
    [((0.9, 0.1, 0.1, 0.1, 0.1), 2, 3), ((0.5, 0.4, 0.6, 0.5, 0.4, 0.3), 2, 5), ((0.5, 0.5, 0.9), 1, 2)],
)
def test_training_stops_early_when_nothing_gets_better(bench, scores, patience, evaluations):
    toy = bench(ToyTask(scores=scores))
    fitted = toy.fit(epochs=6, early_stopping_patience=patience)
    assert len(toy.told(Evaluated)) == evaluations
    assert fitted.progress.step == 3 * evaluations
    assert [f"{patience} evaluations" in event.text for event in toy.told(Message)] == [True]


def test_without_patience_training_does_not_stop_early(bench):
    toy = bench(ToyTask(scores=(0.9, 0.5, 0.4, 0.3)))
    assert toy.fit(epochs=4).progress.step == 12
    assert not toy.told(Message)


def test_the_moving_average_is_the_one_computed_by_hand(bench):
    toy = bench(ToyTask(scores=(0.1, 0.9)))
    toy.fit(ema_decay=0.7)
    average = toy.after[1]
    for step in range(2, 7):
        average = {name: 0.7 * average[name] + 0.3 * toy.after[step][name] for name in average}
    assert_close(toy.task.judged[-1], average)
    assert_close(toy.weights, average)
    assert differ(toy.weights, toy.after[6])


def test_a_metric_that_the_split_cannot_give_is_refused_before_the_first_step(bench):
    toy = bench()
    with pytest.raises(RecipeError, match=r"evaluation\.best_by: roc_auc .*\(possible: accuracy, loss\)"):
        toy.fit(best_by="roc_auc")
    assert not toy.task.drawn
    assert_same(toy.weights, toy.after[0])


def test_the_loop_counts_what_it_did(bench):
    fitted = bench().fit(epochs=3)
    assert fitted.progress.step == 9
    assert fitted.progress.seconds > 0
    assert fitted.progress.examples == 3 * EXAMPLES
    assert 2**20 < fitted.peak_memory_bytes < 2**40


def test_one_step_writes_nothing_and_returns_the_mean_loss(bench, monkeypatch, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    task, model = ToyTask(), toy_model()
    train = Train.model_validate({"batch_size": 16, "micro_batch_size": 6, "precision": "fp32"})
    evaluation = Evaluation.model_validate({"best_by": "accuracy"})
    loss = one_step(task, TunedModel(model), train=train, evaluation=evaluation, accelerator=make_accelerator("fp32"))
    indices = flat(task.drawn)
    assert len(indices) == 16
    assert loss == pytest.approx(cross_entropy(toy_model()(task.x[indices]), task.y[indices]).item(), abs=1e-6)
    assert differ(copy_of(model), copy_of(toy_model()))
    assert not list(folder.iterdir())


def test_only_what_training_changes_is_kept():
    model = toy_model(batch_norm=True)
    model.norm.register_buffer("scratch", torch.zeros(2), persistent=False)
    names = {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(trained_state(model, names)) == names | statistics


# Failures


def infinite_gradient(number, loss_sum):
    if number == 5:
        loss_sum.register_hook(lambda gradient: gradient * math.inf)
    return loss_sum


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (lambda number, loss_sum: loss_sum * (math.nan if number == 5 else 1), "loss nan"),
        (lambda number, loss_sum: loss_sum + (math.inf if number == 5 else 0), "loss inf"),
        (infinite_gradient, "gradient norm (inf|nan)"),
    ],
)
def test_what_is_not_finite_stops_training_before_it_reaches_the_weights(bench, disturb, words):
    toy = bench(ToyTask(disturb=disturb))
    with pytest.raises(TrainingError, match=rf"step 5: .*{words}") as caught:
        toy.fit()
    assert [event.step for event in toy.told(StepDone)] == [1, 2, 3, 4]
    assert_same(toy.weights, toy.after[4])
    kept = toy.run.checkpoints / "best-000003"
    assert str(kept) in str(caught.value)
    assert_same(load_weights(kept), toy.after[3])
    assert (toy.run.checkpoints / "step-000003").is_dir()


def test_a_bad_number_in_one_micro_batch_is_enough(bench):
    toy = bench(ToyTask(disturb=lambda number, loss_sum: loss_sum * (math.nan if number == 2 else 1)))
    with pytest.raises(TrainingError, match=r"step 1: .*no weights were kept yet"):
        toy.fit(micro_batch_size=4)
    assert_same(toy.weights, toy.after[0])


def raise_at(number_wanted, error):
    def disturb(number, loss_sum):
        if number == number_wanted:
            raise error
        return loss_sum

    return disturb


def allocate_too_much(number, loss_sum):
    return loss_sum + torch.empty(2**50)[0] if number == 5 else loss_sum


SHORT_OF_MEMORY = {
    "cuda": raise_at(5, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    "words": raise_at(5, RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")),
    "cpu": allocate_too_much,
    "python": raise_at(5, MemoryError()),
}


@pytest.mark.parametrize("how", SHORT_OF_MEMORY)
def test_lack_of_memory_halves_the_micro_batch_and_changes_no_step(bench, how):
    toy, plain = bench(ToyTask(disturb=SHORT_OF_MEMORY[how])), bench()
    toy.fit()
    plain.fit()
    assert [len(indices) for indices in toy.task.drawn] == [16, 16, 8, 16, 16, 8, 8, 8]
    assert toy.task.drawn[4] == flat(toy.task.drawn[5:7])  # step 5 again
    assert [event.step for event in toy.told(StepDone)] == [1, 2, 3, 4, 5, 6]
    assert_same(toy.after[4], plain.after[4])
    assert_close(toy.after[6], plain.after[6])
    (warning,) = [message for message in toy.told(Message) if message.level == "warning"]
    assert "step 5: out of memory; from now on micro-batches of 8 instead of 16 examples" in warning.text


def test_gradients_of_a_step_that_ran_out_of_memory_are_dropped(bench):
    halfway = raise_at(4, torch.OutOfMemoryError("CUDA out of memory"))  # in the second micro-step of step 2
    toy, plain = bench(ToyTask(disturb=halfway)), bench()
    toy.fit(micro_batch_size=8, epochs=1)
    plain.fit(micro_batch_size=8, epochs=1)
    assert len(toy.task.drawn) == 10  # 2 and 2, then 4 of four rows and 2 for the last eight
    assert_close(toy.after[3], plain.after[3])


def test_lack_of_memory_is_met_as_often_as_needed_and_is_as_if_the_recipe_had_said_so(bench):
    toy, told = bench(SmallMemory(3)), bench()
    toy.fit()
    told.fit(micro_batch_size=2)
    assert_same(toy.weights, told.weights)
    assert [message.level for message in toy.told(Message)] == ["warning"] * 3


def test_auto_finds_the_micro_batch_before_the_first_step_and_learns_nothing_from_it(bench):
    lengths = np.arange(EXAMPLES)
    toy, told = bench(SmallMemory(5), toy_model(0.5, batch_norm=True)), bench(model=toy_model(0.5, batch_norm=True))
    toy.task.rows = Examples(range(EXAMPLES), lengths, row_numbers=np.arange(EXAMPLES) + 1)
    toy.fit(micro_batch_size="auto", length_buckets=False)
    told.fit(micro_batch_size=4, length_buckets=False)
    assert_same(toy.weights, told.weights)
    assert toy.task.drawn[0] == [39, 38, 37, 36] and toy.task.drawn[1:] == told.task.drawn
    assert toy.told(Message)[-1].text == "micro-batches of 4 examples fit into memory"


def test_a_rehearsal_in_little_memory_takes_its_step_in_pieces():
    task, model = SmallMemory(5), toy_model()
    train = Train.model_validate({"batch_size": 16, "precision": "fp32"})
    evaluation = Evaluation.model_validate({"best_by": "accuracy"})
    loss = one_step(task, TunedModel(model), train=train, evaluation=evaluation, accelerator=make_accelerator("fp32"))
    indices = flat(task.drawn)
    assert loss == pytest.approx(cross_entropy(toy_model()(task.x[indices]), task.y[indices]).item(), abs=1e-6)


def test_lack_of_memory_for_a_single_example_stops_training(bench):
    toy = bench(SmallMemory(0))
    with pytest.raises(TrainingError, match=r"step 1: out of memory with a single example, no weights were kept yet"):
        toy.fit(micro_batch_size=4)
    assert_same(toy.weights, toy.after[0])


def test_lack_of_memory_in_evaluation_predicts_fewer_rows_at_a_time(bench):
    toy, plain = bench(SmallMemory(16, predicting=5)), bench()
    fitted, expected = toy.fit(), plain.fit()
    assert_same(toy.weights, plain.weights)
    assert fitted.best.metrics == expected.best.metrics
    assert "from now on 32 examples at a time" in toy.told(Message)[0].text
    with pytest.raises(TrainingError, match="out of memory while predicting a single example"):
        bench(SmallMemory(16, predicting=0)).fit()


@pytest.mark.parametrize(("ema_decay", "states"), [(None, 3), (0.5, 4)])
def test_a_disk_without_room_is_told_before_the_first_step(bench, monkeypatch, ema_decay, states):
    toy = bench()
    weights = sum(p.numel() * 4 for p in toy.model.parameters())
    needed = 3 * (states + 1) * weights + weights
    free = [needed - 1]
    monkeypatch.setattr("hftoolkit.train.state.shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with pytest.raises(EnvironmentFault, match=r"needs 0 MB more .*0 MB are free; make room, or .*--run-dir"):
        toy.fit(ema_decay=ema_decay)
    assert not toy.task.drawn and not toy.run.checkpoints.exists()
    free[0] = needed
    peak, rename = [], os.rename
    monkeypatch.setattr(
        "hftoolkit.runs.checkpoint.os.rename", lambda a, b: (peak.append(size_of(a.parent)), rename(a, b))
    )
    toy.fit(ema_decay=ema_decay, epochs=4, checkpoint_every=1)
    assert needed * 0.6 < max(peak) + weights < needed + 20_000  # manifests and names of so small tensors


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_other_errors_keep_their_type(bench):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as caught:
        bench(ToyTask(disturb=raise_at(1, error))).fit()
    assert caught.value is error


# Signals


def kill_at(*numbers, by):
    def disturb(number, loss_sum):
        if number in numbers:
            os.kill(os.getpid(), by)
        return loss_sum

    return disturb


@pytest.fixture
def handlers():
    """Signal handlers that fail the test when the loop lets a signal through."""

    def unexpected(*_):
        raise AssertionError("the signal was not deferred")

    before = {number: signal.signal(number, unexpected) for number in (signal.SIGINT, signal.SIGTERM)}
    yield dict.fromkeys(before, unexpected)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_rows_of_a_step_that_is_not_finite_are_named(bench):
    toy = bench(ToyTask(disturb=lambda number, loss_sum: loss_sum * (math.nan if number == 3 else 1)))
    with pytest.raises(TrainingError) as caught:
        toy.fit(batch_size=15)  # 40 rows: 15, 15 and 10
    named = str(caught.value).partition("rows of the step: ")[2]
    assert named == ", ".join(str(index + 1) for index in toy.task.drawn[2])
    with pytest.raises(TrainingError, match=r"rows of the step: (\d+, ){10}\.\.\.$"):
        bench(ToyTask(disturb=lambda _, loss_sum: loss_sum * math.nan)).fit()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_the_state_and_restores_the_handlers(bench, handlers, number, exit_code):
    toy = bench(ToyTask(disturb=kill_at(3, by=number)))  # in the first of two micro-steps of step 2
    with pytest.raises(Interrupted, match=rf"{number.name} at step 2") as caught:
        toy.fit(micro_batch_size=8)
    assert caught.value.exit_code == exit_code
    assert len(toy.task.drawn) == 4
    assert [event.step for event in toy.told(StepDone)] == [1, 2]
    assert "--resume" in str(caught.value)
    assert [path.name for path in toy.run.checkpoints.iterdir()] == ["step-000002"]
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_a_second_signal_stops_at_once(bench, handlers):
    toy = bench(ToyTask(disturb=kill_at(3, 4, by=signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        toy.fit(micro_batch_size=4)
    assert len(toy.task.drawn) == 4
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_the_handlers_are_restored_after_a_failure_and_after_success(bench, handlers):
    bench().fit(epochs=1)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    with pytest.raises(ZeroDivisionError):
        bench(ToyTask(disturb=raise_at(1, ZeroDivisionError()))).fit()
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_training_works_outside_the_main_thread(bench):
    toy, steps = bench(), []
    thread = threading.Thread(target=lambda: steps.append(toy.fit().progress.step))
    thread.start()
    thread.join()
    assert steps == [6]


# Precision


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(RecipeError, match=r"train\.precision: fp16 needs a GPU"):
        make_accelerator("fp16")


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "no")]
)
def test_auto_on_a_cpu_is_what_its_instructions_allow(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert make_accelerator("auto").mixed_precision == expected


def test_auto_on_a_cpu_leaves_what_bf16_slows_down_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision("auto", CPU, bf16_pays_on_cpus=False) == "fp32"
    assert choose_precision("bf16", CPU, bf16_pays_on_cpus=False) == "bf16"


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_does_not_count_emulation(monkeypatch, supported, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert choose_precision("auto", torch.device("cuda")) == expected


def test_what_was_asked_for_is_not_overruled():
    assert choose_precision("fp32", torch.device("cuda")) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("fp16", torch.device("cuda")) == "fp16"
    assert choose_precision("auto", torch.device("mps")) == "fp32"


def test_runs_of_one_process_may_differ_in_precision(bench):
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        toy = bench()
        toy.fit(epochs=1, precision=precision)
        assert set(toy.task.dtypes) == {expected}
        assert {tensor.dtype for tensor in toy.weights.values()} == {torch.float32}


# Inference


def test_inference_returns_rows_in_the_order_of_the_data():
    lengths = np.random.default_rng(0).integers(1, 9, size=150)
    task, model = ToyTask(num_examples=150, lengths=lengths), toy_model()
    order, told = [], []

    def step(model, batch):
        order.append(batch["index"].tolist())
        return task.predict(model, batch)

    result = Inference(task, make_accelerator("fp32"), told.append)(model, task.rows, predict=step)
    np.testing.assert_allclose(result, model(task.x).detach().numpy(), rtol=0, atol=1e-6)
    assert {row.dtype for row in result} == {np.dtype(np.float32)}
    assert [len(batch) for batch in order] == [64, 64, 22]
    assert told == [InferenceProgress(64, 150), InferenceProgress(128, 150), InferenceProgress(150, 150)]
    drawn = lengths[flat(order)]
    assert (np.diff(drawn) <= 0).all() and len(set(drawn)) > 2


def test_inference_is_without_dropout_and_gradients_and_restores_the_mode():
    task, model = ToyTask(), toy_model(0.5)
    infer = Inference(task, make_accelerator("fp32"))
    for training in (True, False):
        model.train(training)
        first = infer(model, task.rows)
        assert model.training is training
        np.testing.assert_array_equal(first, infer(model, task.rows))
    assert not any(infer(model, task.rows, predict=lambda m, b: [float(m(b["x"]).requires_grad)] * len(b["x"])))


def test_inference_restores_the_mode_after_a_failure():
    task, model = ToyTask(), toy_model()
    with pytest.raises(ZeroDivisionError):
        Inference(task, make_accelerator("fp32"))(model, task.rows, predict=lambda *_: 1 / 0)
    assert model.training


def test_inference_is_fp32_on_demand_whatever_the_precision_of_the_run():
    task, model = ToyTask(), toy_model()
    infer = Inference(task, make_accelerator("bf16"))
    half, full = infer(model, task.rows), infer(model, task.rows, full_precision=True)
    assert task.dtypes == [torch.bfloat16, torch.float32]
    half, full = np.stack(half), np.stack(full)
    assert half.dtype == full.dtype == np.float32
    np.testing.assert_allclose(full, model(task.x).detach().numpy(), rtol=0, atol=1e-6)
    assert np.abs(half - full).max() > 1e-4


# Trackers


def test_tensorboard_gets_the_numbers_of_steps_and_evaluations(bench):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    toy = bench()
    toy.fit(epochs=1, trackers=("tensorboard",))
    [file] = toy.run.tracking.rglob("events.out.tfevents.*")
    log = EventAccumulator(str(file)).Reload()
    steps = toy.told(StepDone)
    for tag, values in {
        "loss": [event.loss for event in steps],
        "gradient_norm": [event.gradient_norm for event in steps],
        "lr": [event.learning_rate for event in steps],
    }.items():
        assert [point.step for point in log.Scalars(tag)] == [1, 2, 3]
        assert [point.value for point in log.Scalars(tag)] == pytest.approx(values)
    assert log.Scalars("validation/accuracy")[0].value == pytest.approx(toy.told(Evaluated)[0].metrics["accuracy"])


@pytest.mark.parametrize(("mode", "expected"), [(None, "offline"), ("online", "online")])
def test_weights_and_biases_is_offline_unless_the_user_says_otherwise(bench, monkeypatch, mode, expected):
    started, logged = [], []
    package = ModuleType("wandb")
    package.__spec__ = ModuleSpec("wandb", None)

    class Run:
        def log(self, values, step, **_):
            logged.append((step, sorted(values)))

        def finish(self):
            logged.append("finished")

    package.init = lambda **options: started.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    toy = bench()
    toy.fit(epochs=1, trackers=("wandb",))
    assert [options["mode"] for options in started] == [expected]
    assert [options["dir"] for options in started] == [toy.run.tracking]
    steps = [(step, ["gradient_norm", "loss", "lr"]) for step in (1, 2, 3)]
    assert logged == [*steps, (3, ["validation/accuracy", "validation/loss"]), "finished"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_told_before_training(bench, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    toy = bench()
    with pytest.raises(EnvironmentFault, match=rf"{name}, which is not installed: pip install 'hftoolkit\[trackers\]'"):
        toy.fit(trackers=(name,))
    assert not toy.task.drawn


def test_events_of_a_run_are_valid_json_lines(bench):
    toy = bench()
    listen = toy.listen
    toy.listen = lambda event: (listen(event), record_event(toy.run, event))
    toy.fit()
    events = [json.loads(line) for line in toy.run.metrics.read_text().splitlines()]
    assert [event["event"] for event in events] == (["step"] * 3 + ["evaluation"]) * 2
    assert events[0]["loss"] == toy.told(StepDone)[0].loss
