"""Logits, probabilities and decisions of a classifier.

Shape suffixes: N rows, C classes. Targets are ints ``(N,)``, or 0/1 ``(N, C)`` for multi-label.
"""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

from hftoolkit.errors import DataError, TrainingError

THRESHOLD = 0.5  # multi-label: a class is predicted from this probability on
TEMPERATURE_BOUNDS = (0.05, 20.0)
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)  # what scikit-learn's log_loss clips at


def to_probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return ``(N, C)`` float64: the softmax over classes, or with ``multi_label`` the sigmoid of each logit."""
    logits_NC = np.asarray(logits, dtype=np.float64)
    return np.asarray(special.expit(logits_NC) if multi_label else special.softmax(logits_NC, axis=1))


def to_decisions(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return the predicted class ``(N,)``, the first of equals, or with ``multi_label`` 0/1 for each class."""
    return (probabilities >= THRESHOLD).astype(np.int64) if multi_label else probabilities.argmax(axis=1)


def to_multi_hot(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Return ``(N, C)`` bool; multi-label input only changes its type."""
    return classes.astype(bool) if classes.ndim == 2 else classes[:, None] == np.arange(num_classes)


def check_rows(probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str], *, multi_label: bool) -> None:
    """Check what every metric needs.

    Raises:
        DataError: there are no rows.
        TrainingError: a probability is not finite.
    """
    if len(targets) == 0:
        raise DataError("there are no rows to measure (0 found, at least 1 needed); check data.split")
    assert probabilities.shape == (len(targets), len(names)), (probabilities.shape, targets.shape, len(names))
    assert targets.shape == (probabilities.shape if multi_label else (len(probabilities),)), targets.shape
    if not np.isfinite(probabilities).all():
        row = int(np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[0])
        raise TrainingError(
            f"the model predicts non-finite probabilities (first in row {row} of the split); "
            "lower train.learning_rate or set train.precision=fp32"
        )


def log_losses(probabilities: np.ndarray, targets: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return the negative log likelihood of each row in nats, ``(N,)``; multi-label: its mean over the classes."""
    clipped_NC = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    if multi_label:
        return np.asarray(-np.where(targets == 1, np.log(clipped_NC), np.log1p(-clipped_NC)).mean(axis=1))
    return np.asarray(-np.log(clipped_NC[np.arange(len(targets)), targets]))


def fit_temperature(logits: np.ndarray, targets: np.ndarray, *, multi_label: bool) -> float:
    """Return the T whose ``logits / T`` have the least log loss (Guo et al. 2017), between 0.05 and 20.

    The loss is convex in 1 / T, so the bounded search over log T has one minimum to find. Where every row is right
    the loss only falls with T: the result is then so small that the loss is numerically 0, or 0.05. Where the logits
    say nothing it is 20.

    Raises:
        DataError: there are no rows.
    """
    if len(targets) == 0:
        raise DataError("a temperature needs rows to fit (0 found); set task.calibrate=false or check data.split")
    logits_NC = np.asarray(logits, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return _mean_log_loss(logits_NC / np.exp(log_temperature), targets, multi_label)

    found = optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURE_BOUNDS), method="bounded")
    return float(np.exp(found.x))


def _mean_log_loss(logits_NC: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    """Work on logits, unclipped: confident mistakes must keep pulling the temperature up."""
    if multi_label:
        return float(np.logaddexp(0, np.where(targets == 1, -logits_NC, logits_NC)).mean())
    right_N = logits_NC[np.arange(len(targets)), targets]
    return float((special.logsumexp(logits_NC, axis=1) - right_N).mean())
