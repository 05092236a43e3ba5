import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import get_scheduler

from hftoolkit.models.tuning import rate_scales
from hftoolkit.train.optim import build_optimizer, rate_factor, set_rate

pytestmark = pytest.mark.smoke

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def factors(schedule, total_steps, warmup_steps):
    return [
        rate_factor(step, total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule)
        for step in range(total_steps)
    ]


def transformers_factors(schedule, total_steps, warmup_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    options = {} if schedule == "constant" else {"num_training_steps": total_steps}
    scheduler = get_scheduler(SCHEDULES[schedule], optimizer, num_warmup_steps=warmup_steps, **options)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total_steps", "warmup_steps"), [(20, 0), (20, 3), (7, 1), (1, 0), (5, 4)])
def test_after_the_warmup_the_rate_is_that_of_transformers(schedule, total_steps, warmup_steps):
    ours = factors(schedule, total_steps, warmup_steps)
    theirs = transformers_factors(schedule, total_steps, warmup_steps)
    assert ours[warmup_steps:] == pytest.approx(theirs[warmup_steps:], abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warmup_rises_in_equal_steps_from_above_zero_to_one(schedule):
    assert factors(schedule, 20, 3)[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])


@pytest.mark.parametrize(
    ("schedule", "last"), [("linear", 1 / 100), ("cosine", (1 + math.cos(0.99 * math.pi)) / 2), ("constant", 1)]
)
def test_the_last_step_has_the_rate_just_above_the_end_of_the_schedule(schedule, last):
    assert factors(schedule, 100, 0)[-1] == pytest.approx(last)


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    total_steps=st.integers(1, 200),
    warmup_ratio=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_the_rate_rises_then_never_rises_again_and_stays_between_zero_and_one(schedule, total_steps, warmup_ratio):
    warmup_steps = round(warmup_ratio * total_steps)
    rates = factors(schedule, total_steps, warmup_steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)


def test_layer_decay_and_head_scale_are_powers_by_depth():
    layers = [frozenset({"embeddings"}), frozenset({"block0.a", "block0.b"}), frozenset({"block1"})]
    names = ["embeddings", "block0.a", "block0.b", "block1", "pooler", "head"]
    scales = rate_scales(names, layers, frozenset({"head"}), decay=0.5, head_scale=10.0)
    assert scales == pytest.approx(
        {"embeddings": 0.125, "block0.a": 0.25, "block0.b": 0.25, "block1": 0.5, "pooler": 1.0, "head": 10.0}
    )


def test_without_decay_and_head_scale_every_rate_is_the_same():
    scales = rate_scales(["a", "b"], [frozenset({"a"})], frozenset({"b"}), decay=1.0, head_scale=1.0)
    assert scales == {"a": 1.0, "b": 1.0}


@pytest.fixture
def parameters():
    shapes = {"matrix": (2, 3), "kernel": (2, 3, 3, 3), "bias": (3,), "scalar": (), "head": (3, 3), "frozen": (3, 3)}
    named = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    named["frozen"].requires_grad_(False)
    return named


def options_of(optimizer, parameters):
    """Return the group options of each parameter that the optimizer has, by name."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_vectors_are_not_decayed_and_frozen_parameters_are_absent(parameters):
    optimizer = build_optimizer(parameters, {}, learning_rate=0.1, weight_decay=0.2)
    decays = {name: group["weight_decay"] for name, group in options_of(optimizer, parameters).items()}
    assert decays == {"matrix": 0.2, "kernel": 0.2, "head": 0.2, "bias": 0.0, "scalar": 0.0}


def test_weight_decay_shrinks_matrices_alone(parameters):
    optimizer = build_optimizer(parameters, {}, learning_rate=0.1, weight_decay=0.2)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    means = {name: parameter.mean().item() for name, parameter in parameters.items()}
    shrunk, kept = pytest.approx(1 - 0.1 * 0.2), 1.0
    assert means == {"matrix": shrunk, "kernel": shrunk, "head": shrunk, "bias": kept, "scalar": kept, "frozen": kept}


def test_a_rate_is_the_learning_rate_times_its_scale_times_the_factor(parameters):
    optimizer = build_optimizer(parameters, {"head": 5.0, "bias": 0.5}, learning_rate=0.1, weight_decay=0.0)
    for factor in (0.25, 1.0, 0.5):  # not cumulative
        told = set_rate(optimizer, factor)
        rates = {name: group["lr"] for name, group in options_of(optimizer, parameters).items()}
        plain = pytest.approx(0.1 * factor)
        assert rates == {
            "matrix": plain,
            "kernel": plain,
            "scalar": plain,
            "head": pytest.approx(0.5 * factor),
            "bias": pytest.approx(0.05 * factor),
        }
        assert told == plain
