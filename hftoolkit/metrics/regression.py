"""The metrics of predicted numbers, as functions of how often each row counts.

rmse       root of the mean squared error, in the unit of the target
mae        mean absolute error, in the unit of the target
r2         coefficient of determination: 1 less the squared error over that of predicting the mean of the same rows
pearson    linear correlation of prediction and target
spearman   Pearson correlation of their ranks; ties have their mean rank (Spearman 1904)

r2 is undefined where the targets do not vary; the correlations also where the predictions do not.

Shape suffixes: N rows, B resamples at a time, K sums, G different values.
"""

from dataclasses import dataclass

import numpy as np

from hftoolkit.errors import DataError, TrainingError
from hftoolkit.metrics.statistics import RowStatistics, Values, ratio


def regression_statistics(predictions: np.ndarray, targets: np.ndarray) -> RowStatistics:
    """Return what each row adds to the metrics of predicted numbers.

    Args:
        predictions: ``(N,)``, finite.
        targets: ``(N,)``, finite.

    Raises:
        DataError: there are no rows.
        TrainingError: a prediction is not finite.
    """
    _check(predictions, targets)
    predictions_N, targets_N = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    errors_N = predictions_N - targets_N
    # Moments about the mean: about 0, those of years or prices would cancel.
    x_N, y_N = predictions_N - predictions_N.mean(), targets_N - targets_N.mean()
    ranked = _rank(predictions_N), _rank(targets_N)
    return RowStatistics(
        terms=np.stack([np.abs(errors_N), errors_N**2, x_N, y_N, x_N**2, y_N**2, x_N * y_N]),
        from_sums=_from_sums,
        from_counts=lambda counts_NB: {"spearman": _rank_correlation(*ranked, counts_NB)},
    )


def _check(predictions: np.ndarray, targets: np.ndarray) -> None:
    if len(targets) == 0:
        raise DataError("there are no rows to measure (0 found, at least 1 needed); check data.split")
    assert predictions.shape == targets.shape == (len(targets),), (predictions.shape, targets.shape)
    assert np.isfinite(targets).all(), "targets are checked where they are read"
    if not np.isfinite(predictions).all():
        row = int(np.flatnonzero(~np.isfinite(predictions))[0])
        raise TrainingError(
            f"the model predicts non-finite numbers (first in row {row} of the split); "
            "lower train.learning_rate or set train.precision=fp32"
        )


def _from_sums(sums_KB: np.ndarray, total: float) -> Values:
    absolute_B, squared_B, x_B, y_B, xx_B, yy_B, xy_B = sums_KB
    x_spread_B, y_spread_B = _spread(xx_B, x_B, total), _spread(yy_B, y_B, total)
    correlations_B = ratio(xy_B - x_B * y_B / total, np.sqrt(x_spread_B) * np.sqrt(y_spread_B), otherwise=np.nan)
    return {
        "rmse": np.sqrt(squared_B / total),
        "mae": absolute_B / total,
        "r2": 1 - ratio(squared_B, y_spread_B, otherwise=np.nan),
        "pearson": np.clip(correlations_B, -1, 1),
    }


def _spread(squares_B: np.ndarray, sums_B: np.ndarray, total: float) -> np.ndarray:
    """Return the sum of squares about the mean, ``(B,)``; 0 where it is no more than the rounding of the sums."""
    spread_B = squares_B - sums_B**2 / total
    rounding_B = 4 * np.finfo(np.float64).eps * total * squares_B
    return np.where(spread_B > rounding_B, spread_B, 0.0)


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Rows in ascending order, and where the different values stand in it."""

    order: np.ndarray  # (N,) row numbers
    starts: np.ndarray  # (G,) position of the first row of each value
    value_of: np.ndarray  # (N,) which of the G values a row has

    def weights_and_ranks(self, counts_NB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how often each value is drawn, and its mean rank less that of all rows, ``(G, B)`` both."""
        weights_GB = np.add.reduceat(counts_NB[self.order], self.starts, axis=0)
        not_above_GB = np.cumsum(weights_GB, axis=0)
        return weights_GB, not_above_GB - weights_GB / 2 - not_above_GB[-1] / 2


def _rank(values_N: np.ndarray) -> _Ranking:
    _, value_of, sizes = np.unique(values_N, return_inverse=True, return_counts=True)
    return _Ranking(np.argsort(value_of, kind="stable"), np.cumsum(sizes) - sizes, value_of)


def _rank_correlation(x: _Ranking, y: _Ranking, counts_NB: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of the drawn rows, ``(B,)``; ranks are half integers, so constants give exact 0."""
    (x_weights, x_ranks), (y_weights, y_ranks) = x.weights_and_ranks(counts_NB), y.weights_and_ranks(counts_NB)
    covariance_B = np.einsum("nb,nb->b", counts_NB * x_ranks[x.value_of], y_ranks[y.value_of])
    x_spread_B, y_spread_B = (x_weights * x_ranks**2).sum(axis=0), (y_weights * y_ranks**2).sum(axis=0)
    correlations_B = ratio(covariance_B, np.sqrt(x_spread_B) * np.sqrt(y_spread_B), otherwise=np.nan)
    return np.asarray(np.clip(correlations_B, -1, 1))
