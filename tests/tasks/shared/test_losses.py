import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from hftoolkit.tasks.shared.losses import ClassificationLoss, build_loss, class_frequencies, sampling_weights

pytestmark = pytest.mark.smoke

TARGETS = np.repeat([0, 1, 2], [60, 30, 10])
MULTI_TARGETS = np.stack([np.arange(20) < 15, np.arange(20) % 2 == 0, np.arange(20) == 3], axis=1).astype(np.float32)


@pytest.fixture
def logits():
    return torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def multi_logits():
    return torch.randn(20, 3, generator=torch.Generator().manual_seed(1)) * 3


def loss_for(targets=TARGETS, num_classes=3, *, imbalance="none", strength=1.0, smoothing=0.0):
    return build_loss(targets, num_classes, imbalance=imbalance, strength=strength, smoothing=smoothing)


def test_the_plain_loss_is_the_cross_entropy_of_each_example(logits):
    targets = torch.tensor(TARGETS)
    by_hand = [
        -math.log(math.exp(row[t]) / sum(map(math.exp, row))) for row, t in zip(logits.tolist(), TARGETS, strict=True)
    ]
    losses = loss_for()(logits, targets)
    assert losses.shape == (100,)
    torch.testing.assert_close(losses, cross_entropy(logits, targets, reduction="none"), rtol=0, atol=0)
    assert losses.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_the_loss_is_float32_whatever_the_logits_are(logits):
    half = logits.bfloat16()
    losses = loss_for()(half, torch.tensor(TARGETS))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, cross_entropy(half.float(), torch.tensor(TARGETS), reduction="none"))


def test_smoothing_is_a_share_of_the_target_spread_over_the_classes(logits):
    log_p = logits.log_softmax(-1)
    truth = torch.nn.functional.one_hot(torch.tensor(TARGETS), 3)
    expected = -((0.8 * truth + 0.2 / 3) * log_p).sum(1)
    torch.testing.assert_close(loss_for(smoothing=0.2)(logits, torch.tensor(TARGETS)), expected)


# Rare classes


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_class_weights_are_inverse_powers_of_frequency_with_mean_one_over_the_split(strength):
    weights = np.array(loss_for(imbalance="weights", strength=strength).class_weights)
    assert weights[TARGETS].mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(2**strength)
    assert weights[2] / weights[0] == pytest.approx(6**strength)


def test_class_weights_multiply_the_losses_by_the_class_of_the_truth(logits):
    targets = torch.tensor(TARGETS)
    loss = loss_for(imbalance="weights")
    plain = cross_entropy(logits, targets, reduction="none")
    expected = plain * torch.tensor([100 / 180, 100 / 90, 100 / 30])[targets]
    torch.testing.assert_close(loss(logits, targets), expected)


def test_logit_adjustment_adds_the_log_priors(logits):
    targets = torch.tensor(TARGETS)
    log_priors = torch.tensor([0.6, 0.3, 0.1]).log()
    for strength in (1.0, 0.5):
        adjusted = loss_for(imbalance="logit-adjust", strength=strength)(logits, targets)
        expected = cross_entropy(logits + strength * log_priors, targets, reduction="none")
        torch.testing.assert_close(adjusted, expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_the_formula_of_the_paper(logits, gamma):
    p = logits.double().softmax(-1)[torch.arange(100), torch.tensor(TARGETS)]
    expected = -((1 - p) ** gamma) * p.log()
    losses = loss_for(imbalance="focal", strength=gamma)(logits, torch.tensor(TARGETS))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_the_focal_loss_is_finite_where_the_model_is_sure():
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    ClassificationLoss(focal_gamma=2.0)(logits, torch.tensor([0, 0])).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_sampler_draws_classes_by_their_frequency_to_the_power_left(strength):
    chances = sampling_weights(TARGETS, 3, strength)
    assert chances.shape == (100,)
    shares = np.bincount(TARGETS, weights=chances) / chances.sum()
    expected = np.array([0.6, 0.3, 0.1]) ** (1 - strength)
    assert shares == pytest.approx(expected / expected.sum())


def test_at_full_strength_the_sampler_balances_the_classes_exactly():
    chances = sampling_weights(TARGETS, 3, 1.0)
    assert np.bincount(TARGETS, weights=chances) / chances.sum() == pytest.approx([1 / 3] * 3, rel=1e-12)


# A class without rows


@pytest.mark.parametrize("imbalance", ["none", "weights", "sampler", "focal", "logit-adjust"])
def test_a_class_without_rows_gives_finite_losses(logits, imbalance):
    targets = np.repeat([0, 2], 50)
    loss = loss_for(targets, imbalance=imbalance)
    assert torch.isfinite(loss(logits, torch.tensor(targets))).all()
    assert torch.isfinite(loss(logits, torch.ones(100, dtype=torch.long))).all()
    assert np.isfinite(sampling_weights(targets, 3, 1.0)).all()
    assert class_frequencies(targets, 3).tolist() == [0.5, 0.005, 0.5]


def test_a_class_without_rows_does_not_change_the_mean_weight():
    targets = np.repeat([0, 2], [90, 10])
    weights = np.array(loss_for(targets, imbalance="weights").class_weights)
    assert weights[targets].mean() == pytest.approx(1)
    assert weights[2] / weights[0] == pytest.approx(9)


@pytest.mark.parametrize("imbalance", ["none", "weights", "focal"])
@pytest.mark.parametrize("column", [0.0, 1.0])
def test_a_class_that_no_text_or_every_text_has_gives_finite_losses(multi_logits, imbalance, column):
    targets = MULTI_TARGETS.copy()
    targets[:, 1] = column
    losses = loss_for(targets, imbalance=imbalance)(multi_logits, torch.tensor(targets))
    assert torch.isfinite(losses).all() and (losses > 0).all()


# Any number of labels


def test_the_multi_label_loss_is_the_mean_binary_cross_entropy_over_the_classes(multi_logits):
    targets = torch.tensor(MULTI_TARGETS)
    p = multi_logits.double().sigmoid()
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1) / 3
    losses = loss_for(MULTI_TARGETS)(multi_logits, targets)
    assert losses.shape == (20,)
    torch.testing.assert_close(losses.double(), by_hand, rtol=1e-5, atol=1e-6)


def test_multi_label_smoothing_moves_targets_toward_one_half(multi_logits):
    targets = torch.tensor(MULTI_TARGETS)
    smooth = torch.where(targets > 0.5, 0.9, 0.1)
    expected = binary_cross_entropy_with_logits(multi_logits, smooth, reduction="none").mean(1)
    torch.testing.assert_close(loss_for(MULTI_TARGETS, smoothing=0.2)(multi_logits, targets), expected)


def test_multi_label_weights_are_the_odds_against_a_class_on_its_positives(multi_logits):
    targets = torch.tensor(MULTI_TARGETS)
    odds = torch.tensor([5 / 15, 10 / 10, 19 / 1])
    expected = binary_cross_entropy_with_logits(multi_logits, targets, pos_weight=odds, reduction="none").mean(1)
    torch.testing.assert_close(loss_for(MULTI_TARGETS, imbalance="weights")(multi_logits, targets), expected)


def test_multi_label_focal_loss_is_the_formula_of_the_paper(multi_logits):
    targets = torch.tensor(MULTI_TARGETS)
    p = multi_logits.double().sigmoid()
    truth = torch.where(targets > 0.5, p, 1 - p)
    expected = (-((1 - truth) ** 2) * truth.log()).mean(1)
    losses = loss_for(MULTI_TARGETS, imbalance="focal", strength=2.0)(multi_logits, targets)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-6)
