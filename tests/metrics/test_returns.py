"""Means over episodes and seeds: against plain arithmetic and a bootstrap written as a loop."""

import numpy as np
import pytest

from hftoolkit.metrics.returns import interquartile_mean, return_intervals, return_metrics, seed_metrics
from hftoolkit.runs.figures import write_learning_curve_png


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3, 100], 2.5), ([5, 1, 2, 3, 100], 10 / 3), ([7, 1], 4), ([3], 3), (range(12), 5.5), ([0, 0, 9], 3)],
)
def test_the_interquartile_mean_leaves_out_a_quarter_on_both_sides_rounded_down(values, expected):
    assert interquartile_mean(np.array(list(values), float)) == pytest.approx(expected)


def test_metrics_of_one_policy_and_of_seeds():
    found = return_metrics(np.array([1.0, 3.0, 8.0]), np.array([10, 20, 60]))
    assert found["mean_return"] == 4 and found["mean_length"] == 30
    assert (found["min_return"], found["max_return"]) == (1, 8)
    assert found["std_return"] == pytest.approx(np.sqrt((9 + 1 + 16) / 3))
    seeds = seed_metrics(np.array([500.0, 500.0, 490.0, 500.0, 100.0]))
    assert seeds["mean_return"] == 418 and seeds["min_return"] == 100 and seeds["iqm_return"] == pytest.approx(1490 / 3)


def test_intervals_are_percentiles_of_resampled_means():
    values = np.random.default_rng(0).exponential(size=40)
    intervals = return_intervals(values, ("mean_return", "iqm_return"), samples=4000, seed=1)
    generator = np.random.default_rng(2)
    resampled = [generator.choice(values, 40) for _ in range(4000)]
    for name, statistic in (("mean_return", np.mean), ("iqm_return", lambda drawn: np.sort(drawn)[10:30].mean())):
        expected = np.percentile([statistic(drawn) for drawn in resampled], (2.5, 97.5))
        assert intervals[name] == pytest.approx(expected, abs=0.03)
    assert return_intervals(values, ("mean_return",), samples=500, seed=1) == return_intervals(
        values, ("mean_return",), samples=500, seed=1
    )


def test_equal_values_and_a_single_one_have_an_interval_of_no_width():
    assert return_intervals(np.full(5, 500.0), ("mean_return", "iqm_return"), samples=100, seed=0) == {
        "mean_return": [500, 500],
        "iqm_return": [500, 500],
    }
    assert return_intervals(np.array([2.0]), ("mean_return",), samples=100, seed=0) == {"mean_return": [2, 2]}


def test_a_learning_curve_is_drawn_for_one_seed_and_for_several(tmp_path):
    one = [(100, 1.0), (200, 5.0)]
    write_learning_curve_png({"0": one}, "CartPole-v1", tmp_path / "one.png")
    write_learning_curve_png({"0": one, "1": [(100, 2.0), (200, 3.0)]}, "CartPole-v1", tmp_path / "two.png")
    pictures = [(tmp_path / name).read_bytes() for name in ("one.png", "two.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and pictures[0] != pictures[1]
