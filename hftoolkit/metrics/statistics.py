"""Stand-in until the branch metrics is merged."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hftoolkit.errors import DataError
from hftoolkit.metrics.bootstrap import _interval, resample_counts


@dataclass(frozen=True)
class RowStatistics:
    num_rows: int
    under: Callable[[np.ndarray], dict[str, np.ndarray]]
    values: Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Resamples:
    statistics: RowStatistics
    draws: dict[str, np.ndarray]


def is_better(new: float, old: float, *, lower: bool) -> bool:
    return new < old if lower else new > old


def measure(statistics: RowStatistics) -> dict[str, float]:
    return statistics.values()


def resample(statistics: RowStatistics, *, samples: int, seed: int) -> Resamples:
    parts = [statistics.under(c) for c in resample_counts(statistics.num_rows, samples=samples, seed=seed)]
    return Resamples(statistics, {m: np.concatenate([p[m] for p in parts]) for m in parts[0]})


def intervals(resamples: Resamples) -> dict[str, tuple[float, float]]:
    return {m: _interval(d) for m, d in resamples.draws.items() if not np.isnan(d).all()}


def paired_lead(ours: Resamples, theirs: Resamples, metric: str) -> tuple[float, float, float]:
    ones = np.ones((ours.statistics.num_rows, 1))
    a, b = (float(r.statistics.under(ones)[metric][0]) for r in (ours, theirs))
    if np.isnan([a, b]).any():
        raise DataError(f"{metric} is undefined on these rows")
    return (a - b, *_interval(ours.draws[metric] - theirs.draws[metric]))
