"""Metrics of any task, their confidence intervals, and paired leads, from what each row adds.

A metric is a function of how often each row counts: once each gives its value, the draws of a resample (Efron's
bootstrap) give the spread behind its interval. Nearly all metrics depend on the rows through sums alone, so that one
sparse product of row terms and counts serves many resamples at once; others, as ROC-AUC, read the counts themselves.

Shape suffixes: N rows, B resamples at a time, K sums.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from hftoolkit import seeding
from hftoolkit.contracts import Metrics
from hftoolkit.errors import DataError

Values = dict[str, np.ndarray]  # metric -> (B,), nan where undefined

LEVEL_PERCENT = 95
_CHUNK_CELLS = 2_000_000  # rows times resamples held at once: 16 MB an array, a handful of arrays


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """What the rows of a split add to metrics.

    Attributes:
        terms: (K, N) sparse or dense: what each row adds to each sum.
        from_sums: maps sums, (K, B), and the number of rows drawn to the value of each metric under each resample.
        from_counts: the same of how often each row counts, (N, B), for metrics that are no function of such sums.
        plain: values of metrics of the rows as they are, where adding up the terms would round them otherwise.
    """

    terms: sparse.csr_array | np.ndarray
    from_sums: Callable[[np.ndarray, float], Values]
    from_counts: Callable[[np.ndarray], Values] = field(default=lambda _: {})
    plain: Metrics = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return int(self.terms.shape[1])

    def under(self, counts_NB: np.ndarray) -> Values:
        """Return each metric under each column of counts, (B,); all columns have the same sum."""
        total = float(counts_NB[:, 0].sum())
        return self.from_sums(self.terms @ counts_NB, total) | self.from_counts(counts_NB)


@dataclass(frozen=True, slots=True)
class Resamples:
    """The metrics of one model on resampled rows; the same seed and number of rows give the same resamples."""

    statistics: RowStatistics
    draws: Values


def measure(statistics: RowStatistics) -> Metrics:
    """Return each metric of the rows; undefined ones are left out, so none is ever ``nan``."""
    return {name: value for name, value in (_once_each(statistics) | statistics.plain).items() if value == value}


def resample(statistics: RowStatistics, *, samples: int, seed: int) -> Resamples:
    """Return each metric on each of so many resamples of the rows."""
    chunks = resample_counts(statistics.num_rows, samples=samples, seed=seed)
    parts = [statistics.under(counts_NB) for counts_NB in chunks]
    return Resamples(statistics, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def intervals(resamples: Resamples) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval ``(low, high)`` of each metric.

    Resamples where a metric is undefined do not count for it; a metric that is undefined in all of them is left out.
    Calibration error is biased upwards in resamples, so its interval may lie above its value.
    """
    return {name: _interval(draws) for name, draws in resamples.draws.items() if not np.isnan(draws).all()}


def paired_lead(ours: Resamples, theirs: Resamples, metric: str) -> tuple[float, float, float]:
    """Return ``metric`` of ours minus that of theirs, and the 95 % interval ``(low, high)`` of the difference.

    Both were measured on the same resamples of the same rows, so what the rows have in common cancels.

    Raises:
        DataError: the metric does not exist or is undefined on these rows.
    """
    points = []
    for each in (ours, theirs):
        if metric not in each.draws:
            raise DataError(f"there is no metric {metric!r} (metrics: {', '.join(each.draws)})")
        points.append(_once_each(each.statistics)[metric])
    if np.isnan(points).any():
        rows = ours.statistics.num_rows
        raise DataError(f"{metric} is undefined on these {rows} rows, so it has no difference to report")
    return (points[0] - points[1], *_interval(ours.draws[metric] - theirs.draws[metric]))


def is_better(new: float, old: float, *, lower: bool) -> bool:
    """Tell whether ``new`` beats ``old``, which it does by being ``lower`` or higher; ties and ``nan`` do not."""
    return new < old if lower else new > old


def is_better_by(name: str, new: Mapping[str, float], old: Mapping[str, float], *, lower: bool) -> bool:
    """Tell whether new metrics beat old ones by one of them; where that is equal, by a lower ``loss`` if there is any.

    Few validation rows give few different values of most metrics, and the first of equals is the least trained.
    """
    if new[name] == old[name] and "loss" in new and "loss" in old:
        return is_better(new["loss"], old["loss"], lower=True)
    return is_better(new[name], old[name], lower=lower)


def ratio(numerators: np.ndarray, denominators: np.ndarray, *, otherwise: float = 0.0) -> np.ndarray:
    """Divide where the denominator is positive."""
    quotients = np.full_like(numerators, otherwise)
    np.divide(numerators, denominators, out=quotients, where=denominators > 0)
    return quotients


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


def _once_each(statistics: RowStatistics) -> Metrics:
    """Return each metric of the rows, ``nan`` where it is undefined."""
    return {name: float(values[0]) for name, values in statistics.under(np.ones((statistics.num_rows, 1))).items()}


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = (100 - LEVEL_PERCENT) / 2
    low, high = np.percentile(draws[~np.isnan(draws)], (tail, 100 - tail))
    return float(low), float(high)
