"""How far confidence and accuracy are apart.

Shape suffixes: N rows, C classes, M judgements (N, or N times C for multi-label), S bins.
"""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15  # Guo et al. 2017
_INNER_EDGES = np.linspace(0, 1, NUM_BINS + 1)[1:-1]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Judgements sorted into equal-width bins of confidence; an empty bin has zeros."""

    counts: np.ndarray  # (S,) int
    confidence: np.ndarray  # (S,) mean in the bin
    accuracy: np.ndarray  # (S,) mean in the bin


def judgements(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences and whether each came true, both ``(N, 1)`` or, for multi-label targets, ``(N, C)``.

    With one label a row, the confidence is the top probability and true means that its class is right. With
    multi-label targets ``(N, C)`` every class probability is a judgement, and true means that the row has the class.
    """
    if targets.ndim == 2:
        return probabilities, targets.astype(bool)
    decisions_N = probabilities.argmax(axis=1)
    return probabilities.max(axis=1, keepdims=True), (decisions_N == targets)[:, None]


def bin_of(confidences: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence, 0 to 14; bins are closed on the right, so 1.0 falls into the last."""
    return np.searchsorted(_INNER_EDGES, confidences, side="left")


def reliability(probabilities: np.ndarray, targets: np.ndarray) -> Reliability:
    """Return the reliability diagram's numbers (Guo et al. 2017, equations 3 and 4, 15 bins)."""
    confidences, came_true = (values.ravel() for values in judgements(probabilities, targets))
    bins_M = bin_of(confidences)
    counts_S = np.bincount(bins_M, minlength=NUM_BINS)
    divisors_S = np.maximum(counts_S, 1)
    return Reliability(
        counts=counts_S,
        confidence=np.bincount(bins_M, weights=confidences, minlength=NUM_BINS) / divisors_S,
        accuracy=np.bincount(bins_M, weights=came_true, minlength=NUM_BINS) / divisors_S,
    )


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean gap between accuracy and confidence over all judgements (Guo et al. 2017, equation 5)."""
    bins = reliability(probabilities, targets)
    return float(bins.counts @ np.abs(bins.accuracy - bins.confidence) / bins.counts.sum())
