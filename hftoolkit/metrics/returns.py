"""Returns of episodes and of seeds, with bootstrap intervals."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from hftoolkit.seeding import numpy_generator


def return_metrics(returns: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """Return mean, deviation and extremes of the returns, (E,), of one policy, and the mean of the lengths, (E,)."""
    return {
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std()),
        "min_return": float(returns.min()),
        "max_return": float(returns.max()),
        "mean_length": float(lengths.mean()),
    }


def seed_metrics(means: np.ndarray) -> dict[str, float]:
    """Return mean, interquartile mean and extremes over seeds, from the mean return of each, (S,)."""
    return {
        "mean_return": float(means.mean()),
        "iqm_return": interquartile_mean(means),
        "min_return": float(means.min()),
        "max_return": float(means.max()),
    }


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean of (N,) values without the lowest and the highest quarter (Agarwal et al. 2021), rounded down."""
    return float(stats.trim_mean(values, 0.25))


def return_intervals(values: np.ndarray, names: tuple[str, ...], *, samples: int, seed: int) -> dict[str, list[float]]:
    """Return 95 % percentile bootstrap intervals of ``mean_return`` and ``iqm_return`` over (N,) episodes or seeds.

    Args:
        values: one return for each episode, or one mean return for each seed.
        names: which of the two.
        samples: resamples.
        seed: of the resampling.
    """
    kinds: dict[str, Callable[..., Any]] = {
        "mean_return": np.mean,
        "iqm_return": partial(stats.trim_mean, proportiontocut=0.25),
    }
    intervals = {}
    for name in names:
        low, high = _interval(values, kinds[name], samples, numpy_generator(seed, "bootstrap", name))
        intervals[name] = [low, high]
    return intervals


def _interval(
    values: np.ndarray, statistic: Callable[..., Any], samples: int, generator: np.random.Generator
) -> tuple[float, float]:
    if len(values) < 2:  # nothing to resample
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,), statistic, n_resamples=samples, method="percentile", rng=generator, vectorized=True
    ).confidence_interval
    return float(found.low), float(found.high)
