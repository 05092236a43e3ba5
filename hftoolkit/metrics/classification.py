"""The metrics of a classifier, as functions of how often each row counts.

Predictions are probabilities ``(N, C)``; targets are ints ``(N,)``, or 0/1 ``(N, C)`` for multi-label, where a class is
predicted from probability 0.5 on. A class is scored if it occurs in the targets or the decisions.

accuracy            share of rows that are right; multi-label: in every class
f1/, precision/, recall/NAME, macro_*   of each class, and their means over the classes that occur; 0 / 0 counts as 0
mcc                 correlation of decision and truth over all classes (Gorodkin 2004); multi-label: mean of the binary
                    ones of classes that occur; 0 where either never varies
roc_auc             area under the ROC curve, one class against the rest, mean over the classes that have a curve
ece                 expected calibration error over 15 equal-width bins (Guo et al. 2017), of the top probability;
                    multi-label: of all class probabilities
loss                mean negative log likelihood in nats; multi-label: mean over rows and classes of the binary ones

Shape suffixes: N rows, C classes, B resamples at a time, K sums, P rows of one class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import sparse
from sklearn import metrics as formulas

from hftoolkit.contracts import Metrics
from hftoolkit.metrics.calibration import NUM_BINS, bin_of, expected_calibration_error, judgements
from hftoolkit.metrics.probabilities import check_rows, log_losses, to_decisions, to_multi_hot
from hftoolkit.metrics.statistics import RowStatistics, Values, measure, ratio


def classification_statistics(
    probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str], *, multi_label: bool = False
) -> RowStatistics:
    """Return what each row adds to the metrics of a classifier.

    Args:
        probabilities: ``(N, C)``, finite.
        targets: ``(N,)`` int, or ``(N, C)`` 0/1 with ``multi_label``.
        names: the C class names, all different.
        multi_label: any number of classes a row.

    Raises:
        DataError: there are no rows.
        TrainingError: a probability is not finite.
    """
    check_rows(probabilities, targets, names, multi_label=multi_label)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    truth_NC = to_multi_hot(targets, len(names))
    decided_NC = to_multi_hot(to_decisions(probabilities, multi_label), len(names))
    right_N = (truth_NC == decided_NC).all(axis=1)
    losses_N = log_losses(probabilities, targets, multi_label)
    blocks = [(truth_NC & decided_NC).T, decided_NC.T, truth_NC.T, right_N[None], losses_N[None]]
    terms = sparse.vstack([sparse.csr_array(block, dtype=np.float64) for block in blocks])
    scored = np.flatnonzero(truth_NC.any(axis=0) & ~truth_NC.all(axis=0))
    rankings = [_rank(probabilities[:, index], truth_NC[:, index]) for index in scored]
    areas = [formulas.roc_auc_score(truth_NC[:, index], probabilities[:, index]) for index in scored]
    plain = {"ece": expected_calibration_error(probabilities, targets), "loss": float(losses_N.mean())}
    return RowStatistics(
        terms=sparse.csr_array(sparse.vstack([terms, _calibration_gaps(probabilities, targets)])),
        from_sums=partial(_from_sums, names=names, multi_label=multi_label),
        from_counts=lambda counts_NB: {"roc_auc": _roc_auc(rankings, counts_NB)},
        plain=plain | ({"roc_auc": float(np.mean(areas))} if areas else {}),
    )


def classification_metrics(
    probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str], *, multi_label: bool = False
) -> Metrics:
    """Return every metric of one split, flat; arguments and errors are those of ``classification_statistics``."""
    return measure(classification_statistics(probabilities, targets, names, multi_label=multi_label))


def confusion_matrix(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return ``(C, C)`` counts of single-label rows: true class down, predicted class across."""
    classes = range(probabilities.shape[1])
    return np.asarray(formulas.confusion_matrix(targets, to_decisions(probabilities, False), labels=classes))


def _from_sums(sums_KB: np.ndarray, total: float, *, names: Sequence[str], multi_label: bool) -> Values:
    C = len(names)
    hits_CB, decided_CB, truth_CB = sums_KB[:C], sums_KB[C : 2 * C], sums_KB[2 * C : 3 * C]
    correlate = _binary_correlations if multi_label else _correlation
    return {
        "accuracy": sums_KB[3 * C] / total,
        **_f1_values(hits_CB, decided_CB, truth_CB, names),
        "mcc": correlate(hits_CB, decided_CB, truth_CB, total),
        "ece": np.abs(sums_KB[3 * C + 2 :]).sum(axis=0) / (total * (C if multi_label else 1)),
        "loss": sums_KB[3 * C + 1] / total,
    }


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Rows in ascending order of one class's score, and where the rows of that class stand."""

    order: np.ndarray  # (N,) row numbers
    positives: np.ndarray  # (P,) row numbers
    ties_start: np.ndarray  # (P,) how many rows score lower
    ties_stop: np.ndarray  # (P,) how many rows score no higher


def _calibration_gaps(probabilities: np.ndarray, targets: np.ndarray) -> sparse.csr_array:
    """Return ``(bins, N)``: what each row adds to hits minus confidence of each bin."""
    confidences, came_true = judgements(probabilities, targets)
    rows = np.broadcast_to(np.arange(len(targets))[:, None], confidences.shape)
    gaps = (came_true - confidences).ravel()
    cells = (bin_of(confidences).ravel(), rows.ravel())
    return sparse.csr_array((gaps, cells), shape=(NUM_BINS, len(targets)))


def _rank(scores_N: np.ndarray, truth_N: np.ndarray) -> _Ranking:
    order = np.argsort(scores_N, kind="stable")
    positives = np.flatnonzero(truth_N)
    ties_start, ties_stop = (
        np.searchsorted(scores_N[order], scores_N[positives], side=side) for side in ("left", "right")
    )
    return _Ranking(order, positives, ties_start, ties_stop)


def _f1_values(hits_CB: np.ndarray, decided_CB: np.ndarray, truth_CB: np.ndarray, names: Sequence[str]) -> Values:
    occurs_CB = decided_CB + truth_CB > 0
    by_kind = {
        "f1": ratio(2 * hits_CB, decided_CB + truth_CB),
        "precision": ratio(hits_CB, decided_CB),
        "recall": ratio(hits_CB, truth_CB),
    }
    values = {f"macro_{kind}": _mean_of(ratios_CB, occurs_CB) for kind, ratios_CB in by_kind.items()}
    for kind, ratios_CB in by_kind.items():
        values |= dict(zip((f"{kind}/{name}" for name in names), np.where(occurs_CB, ratios_CB, np.nan), strict=True))
    return values


def _correlation(hits_CB: np.ndarray, decided_CB: np.ndarray, truth_CB: np.ndarray, total: float) -> np.ndarray:
    """Return the K-category correlation R_K (Gorodkin 2004), ``(B,)``."""
    covariance_B = hits_CB.sum(axis=0) * total - (decided_CB * truth_CB).sum(axis=0)
    spread_B = (total**2 - (decided_CB**2).sum(axis=0)) * (total**2 - (truth_CB**2).sum(axis=0))
    return ratio(covariance_B, np.sqrt(spread_B))


def _binary_correlations(hits_CB: np.ndarray, decided_CB: np.ndarray, truth_CB: np.ndarray, total: float) -> np.ndarray:
    """Return the mean phi coefficient (Matthews 1975) of the classes that occur, ``(B,)``."""
    covariance_CB = hits_CB * total - decided_CB * truth_CB
    spread_CB = decided_CB * (total - decided_CB) * truth_CB * (total - truth_CB)
    return _mean_of(ratio(covariance_CB, np.sqrt(spread_CB)), decided_CB + truth_CB > 0)


def _roc_auc(rankings: Sequence[_Ranking], counts_NB: np.ndarray) -> np.ndarray:
    """Return the mean area over the classes that have a curve in the resample, ``(B,)``."""
    total = counts_NB[:, 0].sum()
    sums_B, curves_B = np.zeros(counts_NB.shape[1]), np.zeros(counts_NB.shape[1])
    for ranking in rankings:
        positives_B = counts_NB[ranking.positives].sum(axis=0)
        pairs_B = positives_B * (total - positives_B)
        sums_B += ratio(_won_pairs(ranking, counts_NB, positives_B), pairs_B)
        curves_B += pairs_B > 0
    return ratio(sums_B, curves_B, otherwise=np.nan)


def _won_pairs(ranking: _Ranking, counts_NB: np.ndarray, positives_B: np.ndarray) -> np.ndarray:
    """Count pairs where the positive outscores the negative, ties half (Mann and Whitney 1947), ``(B,)``.

    Pairs of a positive with any row are counted first. Those among positives come to half of their square, whatever
    the scores are. Counts are integers, so every sum here is exact.
    """
    running = np.zeros((len(ranking.order) + 1, counts_NB.shape[1]))
    np.cumsum(counts_NB[ranking.order], axis=0, out=running[1:])
    not_above_PB = running[ranking.ties_start]
    not_above_PB += running[ranking.ties_stop]
    pairs_B = np.einsum("pb,pb->b", counts_NB[ranking.positives], not_above_PB)
    return np.asarray(pairs_B - positives_B**2) / 2


def _mean_of(values_CB: np.ndarray, occurs_CB: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that occur, ``(B,)``; ``nan`` where none does."""
    sums_B, sizes_B = np.where(occurs_CB, values_CB, 0).sum(axis=0), occurs_CB.sum(axis=0)
    return ratio(sums_B, sizes_B, otherwise=np.nan)
