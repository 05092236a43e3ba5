"""Confidence intervals by resampling rows (Efron's percentile bootstrap).

A resample is described by how often it draws each row. Every metric but ROC-AUC is a function of sums over rows, so
one sparse product of row terms and counts gives those sums for many resamples at once; ROC-AUC takes running sums of
the counts in score order. Each resample is measured as a split of its own, by the rules of ``classification``.

Shape suffixes: N rows, C classes, B resamples at a time, K sums, P rows of one class.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from hftoolkit import seeding
from hftoolkit.errors import DataError
from hftoolkit.metrics.calibration import NUM_BINS, bin_of, judgements
from hftoolkit.metrics.probabilities import check_rows, log_losses, to_decisions, to_multi_hot

Values = dict[str, np.ndarray]  # metric -> (B,), nan where undefined

LEVEL_PERCENT = 95
_CHUNK_CELLS = 2_000_000  # rows times resamples held at once: 16 MB an array, a handful of arrays


def bootstrap_intervals(
    probabilities: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    *,
    samples: int,
    seed: int,
    multi_label: bool = False,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval ``(low, high)`` of each metric that ``classification_metrics`` gives.

    Resamples where a metric is undefined do not count for it; a metric that is undefined in all of them is left out.
    Calibration error is biased upwards in resamples, so its interval may lie above its value.

    Args:
        probabilities: ``(N, C)``, finite.
        targets: ``(N,)`` int, or ``(N, C)`` 0/1 with ``multi_label``.
        names: the C class names, all different.
        samples: how many resamples.
        seed: the same seed and N give the same resamples.
        multi_label: any number of classes a row.

    Raises:
        DataError: there are no rows.
        TrainingError: a probability is not finite.
    """
    rows = _prepare(probabilities, targets, names, multi_label=multi_label)
    values = _resampled(rows, names, samples=samples, seed=seed)
    return {metric: _interval(draws) for metric, draws in values.items() if not np.isnan(draws).all()}


def paired_difference(
    probabilities_a: np.ndarray,
    probabilities_b: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    *,
    metric: str,
    samples: int,
    seed: int,
    multi_label: bool = False,
) -> tuple[float, float, float]:
    """Return ``metric`` of a minus that of b, and the 95 % interval ``(low, high)`` of the difference.

    Both are measured on the same resamples, so what the rows have in common cancels. Arguments and errors are those of
    ``bootstrap_intervals``, and:

    Raises:
        DataError: the metric does not exist or is undefined on these rows.
    """
    points, draws = [], []
    for probabilities in (probabilities_a, probabilities_b):
        rows = _prepare(probabilities, targets, names, multi_label=multi_label, with_roc_auc=metric == "roc_auc")
        points.append(_pick(_measure(rows, names, np.ones((len(targets), 1))), metric))
        draws.append(_pick(_resampled(rows, names, samples=samples, seed=seed), metric))
    if np.isnan(points).any():
        raise DataError(f"{metric} is undefined on these {len(targets)} rows, so it has no difference to report")
    return (float(points[0][0] - points[1][0]), *_interval(draws[0] - draws[1]))


def resample_counts(num_rows: int, *, samples: int, seed: int, chunk: int | None = None) -> Iterator[np.ndarray]:
    """Yield how often each resample draws each row, ``(N, B)`` float64, ``samples`` columns in all.

    The columns are multinomial and do not depend on ``chunk``, the number of columns at a time.
    """
    generator = seeding.numpy_generator("bootstrap", seed)
    chunk = chunk or max(1, _CHUNK_CELLS // num_rows)
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        draws_BN = generator.integers(num_rows, size=(size, num_rows))
        draws_BN += np.arange(size)[:, None] * num_rows
        counts_BN = np.bincount(draws_BN.ravel(), minlength=size * num_rows).reshape(size, num_rows)
        yield np.ascontiguousarray(counts_BN.T, dtype=np.float64)


def mean_intervals(values: Mapping[str, np.ndarray], *, samples: int, seed: int) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of the mean of each array, (N,), over resampled rows.

    Of the differences of two models on the same rows, it is the paired interval. Rows that are nan in one array are
    left out for all; an empty result means that no row is left.
    """
    rows = np.stack(list(values.values())).astype(np.float64)  # (K, N)
    rows = rows[:, ~np.isnan(rows).any(axis=0)]
    if not rows.shape[1]:
        return {}
    chunks = resample_counts(rows.shape[1], samples=samples, seed=seed)
    means_KS = np.concatenate([rows @ counts / rows.shape[1] for counts in chunks], axis=1)
    return {name: _interval(draws) for name, draws in zip(values, means_KS, strict=True)}


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Rows in ascending order of one class's score, and where the rows of that class stand."""

    order: np.ndarray  # (N,) row numbers
    positives: np.ndarray  # (P,) row numbers
    ties_start: np.ndarray  # (P,) how many rows score lower
    ties_stop: np.ndarray  # (P,) how many rows score no higher


@dataclass(frozen=True, slots=True)
class _Rows:
    """One model's predictions, ready to be summed under any counts."""

    terms: sparse.csr_array  # (K, N): per class hits, decisions, truths; then rows right, loss, calibration gaps
    rankings: tuple[_Ranking, ...]  # of classes that have both positive and negative rows
    cells: int  # judgements a row: 1, or C for multi-label
    multi_label: bool


def _prepare(
    probabilities: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    *,
    multi_label: bool,
    with_roc_auc: bool = True,
) -> _Rows:
    check_rows(probabilities, targets, names, multi_label=multi_label)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    truth_NC = to_multi_hot(targets, len(names))
    decided_NC = to_multi_hot(to_decisions(probabilities, multi_label), len(names))
    right_N = (truth_NC == decided_NC).all(axis=1)
    losses_N = log_losses(probabilities, targets, multi_label)
    blocks = [(truth_NC & decided_NC).T, decided_NC.T, truth_NC.T, right_N[None], losses_N[None]]
    terms = sparse.vstack([sparse.csr_array(block, dtype=np.float64) for block in blocks])
    scored = np.flatnonzero(truth_NC.any(axis=0) & ~truth_NC.all(axis=0)) if with_roc_auc else ()
    return _Rows(
        terms=sparse.csr_array(sparse.vstack([terms, _calibration_gaps(probabilities, targets)])),
        rankings=tuple(_rank(probabilities[:, index], truth_NC[:, index]) for index in scored),
        cells=len(names) if multi_label else 1,
        multi_label=multi_label,
    )


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


def _resampled(rows: _Rows, names: Sequence[str], *, samples: int, seed: int) -> Values:
    """Return each metric on each resample, ``(samples,)``."""
    chunks = resample_counts(rows.terms.shape[1], samples=samples, seed=seed)
    parts = [_measure(rows, names, counts_NB) for counts_NB in chunks]
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}


def _measure(rows: _Rows, names: Sequence[str], counts_NB: np.ndarray) -> Values:
    """Return each metric under each column of counts, ``(B,)``; all columns have the same sum."""
    C = len(names)
    sums_KB = rows.terms @ counts_NB
    hits_CB, decided_CB, truth_CB = sums_KB[:C], sums_KB[C : 2 * C], sums_KB[2 * C : 3 * C]
    total = float(counts_NB[:, 0].sum())
    correlate = _binary_correlations if rows.multi_label else _correlation
    return {
        "accuracy": sums_KB[3 * C] / total,
        **_f1_values(hits_CB, decided_CB, truth_CB, names),
        "mcc": correlate(hits_CB, decided_CB, truth_CB, total),
        "roc_auc": _roc_auc(rows.rankings, counts_NB),
        "ece": np.abs(sums_KB[3 * C + 2 :]).sum(axis=0) / (total * rows.cells),
        "loss": sums_KB[3 * C + 1] / total,
    }


def _f1_values(hits_CB: np.ndarray, decided_CB: np.ndarray, truth_CB: np.ndarray, names: Sequence[str]) -> Values:
    occurs_CB = decided_CB + truth_CB > 0
    by_kind = {
        "f1": _divide(2 * hits_CB, decided_CB + truth_CB),
        "precision": _divide(hits_CB, decided_CB),
        "recall": _divide(hits_CB, truth_CB),
    }
    values = {f"macro_{kind}": _mean_of(ratios_CB, occurs_CB) for kind, ratios_CB in by_kind.items()}
    for kind, ratios_CB in by_kind.items():
        values |= dict(zip((f"{kind}/{name}" for name in names), np.where(occurs_CB, ratios_CB, np.nan), strict=True))
    return values


def _correlation(hits_CB: np.ndarray, decided_CB: np.ndarray, truth_CB: np.ndarray, total: float) -> np.ndarray:
    """Return the K-category correlation R_K (Gorodkin 2004), ``(B,)``."""
    covariance_B = hits_CB.sum(axis=0) * total - (decided_CB * truth_CB).sum(axis=0)
    spread_B = (total**2 - (decided_CB**2).sum(axis=0)) * (total**2 - (truth_CB**2).sum(axis=0))
    return _divide(covariance_B, np.sqrt(spread_B))


def _binary_correlations(hits_CB: np.ndarray, decided_CB: np.ndarray, truth_CB: np.ndarray, total: float) -> np.ndarray:
    """Return the mean phi coefficient (Matthews 1975) of the classes that occur, ``(B,)``."""
    covariance_CB = hits_CB * total - decided_CB * truth_CB
    spread_CB = decided_CB * (total - decided_CB) * truth_CB * (total - truth_CB)
    return _mean_of(_divide(covariance_CB, np.sqrt(spread_CB)), decided_CB + truth_CB > 0)


def _roc_auc(rankings: Sequence[_Ranking], counts_NB: np.ndarray) -> np.ndarray:
    """Return the mean area over the classes that have a curve in the resample, ``(B,)``."""
    total = counts_NB[:, 0].sum()
    sums_B, curves_B = np.zeros(counts_NB.shape[1]), np.zeros(counts_NB.shape[1])
    for ranking in rankings:
        positives_B = counts_NB[ranking.positives].sum(axis=0)
        pairs_B = positives_B * (total - positives_B)
        sums_B += _divide(_won_pairs(ranking, counts_NB, positives_B), pairs_B)
        curves_B += pairs_B > 0
    return _divide(sums_B, curves_B, otherwise=np.nan)


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


def _divide(numerators: np.ndarray, denominators: np.ndarray, *, otherwise: float = 0.0) -> np.ndarray:
    """Divide where the denominator is positive."""
    quotients = np.full_like(numerators, otherwise)
    np.divide(numerators, denominators, out=quotients, where=denominators > 0)
    return quotients


def _mean_of(values_CB: np.ndarray, occurs_CB: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that occur, ``(B,)``; ``nan`` where none does."""
    sums_B, sizes_B = np.where(occurs_CB, values_CB, 0).sum(axis=0), occurs_CB.sum(axis=0)
    return _divide(sums_B, sizes_B, otherwise=np.nan)


def _pick(values: Mapping[str, np.ndarray], metric: str) -> np.ndarray:
    if metric not in values:
        raise DataError(f"there is no metric {metric!r} (metrics: {', '.join(values)})")
    return values[metric]


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = (100 - LEVEL_PERCENT) / 2
    low, high = np.percentile(draws[~np.isnan(draws)], (tail, 100 - tail))
    return float(low), float(high)
