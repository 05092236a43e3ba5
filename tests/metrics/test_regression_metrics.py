import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from hftoolkit.errors import DataError, TrainingError
from hftoolkit.metrics.regression import regression_statistics
from hftoolkit.metrics.statistics import intervals, measure, paired_lead, resample, resample_counts

SAMPLES = 40


def make_rows(count: int, seed: int, *, ties: bool, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.normal(size=count) + offset
    predictions = 0.7 * targets + generator.normal(size=count)
    return (predictions.round(), targets.round()) if ties else (predictions, targets)


def by_libraries(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The same metrics from scikit-learn and scipy; what is undefined is left out."""
    expected = {
        "rmse": reference.root_mean_squared_error(targets, predictions),
        "mae": reference.mean_absolute_error(targets, predictions),
    }
    if np.ptp(targets) > 0:
        expected["r2"] = reference.r2_score(targets, predictions)
        if np.ptp(predictions) > 0:
            expected["pearson"] = stats.pearsonr(predictions, targets).statistic
            expected["spearman"] = stats.spearmanr(predictions, targets).statistic
    return expected


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_every_metric_is_that_of_scikit_learn_and_scipy(count: int, ties: bool, offset: float) -> None:
    for seed in range(20):
        rows = make_rows(count, seed, ties=ties, offset=offset)
        assert measure(regression_statistics(*rows)) == pytest.approx(by_libraries(*rows), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4, 60])
def test_each_resample_is_measured_as_a_split_of_its_own(count: int, ties: bool) -> None:
    predictions, targets = make_rows(count, 1, ties=ties, offset=100.1)
    draws = resample(regression_statistics(predictions, targets), samples=SAMPLES, seed=0).draws
    (counts_NB,) = resample_counts(count, samples=SAMPLES, seed=0)
    for b, counts in enumerate(counts_NB.T.astype(int)):
        expected = by_libraries(np.repeat(predictions, counts), np.repeat(targets, counts))
        found = {name: values[b] for name, values in draws.items() if not np.isnan(values[b])}
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_constant_targets_leave_errors_alone_and_constant_predictions_leave_r2() -> None:
    constant, varying = np.full(7, 0.1), np.arange(7.0)
    assert set(measure(regression_statistics(varying, constant))) == {"rmse", "mae"}
    found = measure(regression_statistics(np.full(7, varying.mean()), varying))
    assert set(found) == {"rmse", "mae", "r2"} and found["r2"] == 0


def test_perfect_predictions_score_one_and_leave_no_error() -> None:
    targets = make_rows(30, 3, ties=False, offset=2000.0)[1]
    expected = {"rmse": 0, "mae": 0, "r2": 1, "pearson": 1, "spearman": 1}
    assert measure(regression_statistics(targets, targets)) == pytest.approx(expected, abs=1e-14)


def test_half_precision_rows_are_summed_in_float64() -> None:
    rows = [each.astype(np.float16) for each in make_rows(400, 4, ties=False, offset=300.0)]
    expected = by_libraries(*(each.astype(np.float64) for each in rows))
    assert measure(regression_statistics(*rows)) == pytest.approx(expected)


def test_intervals_and_leads_are_those_of_the_draws() -> None:
    predictions, targets = make_rows(50, 5, ties=False)
    ours = resample(regression_statistics(predictions, targets), samples=200, seed=0)
    theirs = resample(regression_statistics(np.full(50, targets.mean()), targets), samples=200, seed=0)
    low, high = intervals(ours)["spearman"]
    assert low < measure(ours.statistics)["spearman"] < high
    lead, low, high = paired_lead(ours, theirs, "rmse")
    assert (low, high) == tuple(np.percentile(ours.draws["rmse"] - theirs.draws["rmse"], (2.5, 97.5)))
    assert lead == measure(ours.statistics)["rmse"] - measure(theirs.statistics)["rmse"]


def test_no_rows_and_non_finite_predictions_are_refused() -> None:
    with pytest.raises(DataError, match=r"no rows .* check data.split"):
        regression_statistics(np.zeros(0), np.zeros(0))
    with pytest.raises(TrainingError, match=r"first in row 1 of the split.*train.learning_rate"):
        regression_statistics(np.array([0.0, np.nan, np.inf]), np.zeros(3))
