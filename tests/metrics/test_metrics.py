import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from sklearn import metrics as reference

from hftoolkit.errors import DataError, TrainingError
from hftoolkit.metrics import statistics
from hftoolkit.metrics.calibration import expected_calibration_error, reliability
from hftoolkit.metrics.classification import classification_metrics, classification_statistics, confusion_matrix
from hftoolkit.metrics.probabilities import fit_temperature, log_losses, to_decisions, to_probabilities
from hftoolkit.metrics.statistics import (
    intervals,
    is_better,
    is_better_by,
    paired_lead,
    resample,
    resample_counts,
)
from hftoolkit.recipe.sections import ClassificationEvaluation

pytestmark = pytest.mark.smoke

NAMES = ("bad", "fine", "good", "rare")
SAMPLES = 12


def bootstrap_intervals(
    probabilities: np.ndarray, targets: np.ndarray, names: Any, *, samples: int, seed: int, multi_label: bool = False
) -> dict[str, tuple[float, float]]:
    found = classification_statistics(probabilities, targets, names, multi_label=multi_label)
    return intervals(resample(found, samples=samples, seed=seed))


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, targets: np.ndarray, names: Any, *, metric: str, samples: int, **kind: Any
) -> tuple[float, float, float]:
    seed = kind.pop("seed")
    both = [classification_statistics(each, targets, names, **kind) for each in (ours, theirs)]
    return paired_lead(*(resample(each, samples=samples, seed=seed) for each in both), metric)


def make_rows(count: int, seed: int = 0, *, multi_label: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties and targets that follow them; the last class is rare."""
    generator = np.random.default_rng(seed)
    logits = generator.integers(-2, 3, size=(count, len(NAMES))) - np.array([0, 0, 0, 2])
    noisy = logits + generator.gumbel(size=logits.shape)
    probabilities = to_probabilities(logits, multi_label)
    if multi_label:
        return probabilities, (generator.random(logits.shape) < probabilities).astype(np.int64)
    return probabilities, noisy.argmax(axis=1)


def by_scikit_learn(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The same metrics of single-label rows, straight from scikit-learn."""
    decisions = probabilities.argmax(axis=1)
    both = sorted({*targets.tolist(), *decisions.tolist()})
    options = {"labels": both, "average": "macro", "zero_division": 0}
    present = [index for index in range(len(NAMES)) if 0 < (targets == index).sum() < len(targets)]
    expected = {
        "accuracy": reference.accuracy_score(targets, decisions),
        "macro_f1": reference.f1_score(targets, decisions, **options),
        "macro_precision": reference.precision_score(targets, decisions, **options),
        "macro_recall": reference.recall_score(targets, decisions, **options),
        "mcc": reference.matthews_corrcoef(targets, decisions) if len(both) > 1 else 0.0,
        "loss": reference.log_loss(targets, probabilities, labels=range(len(NAMES))),
        "ece": hand_calibration_error(probabilities.max(axis=1), decisions == targets),
    }
    for index in both:
        scores = reference.precision_recall_fscore_support(
            targets, decisions, labels=[index], average=None, zero_division=0
        )
        expected |= {f"{kind}/{NAMES[index]}": scores[i][0] for i, kind in enumerate(("precision", "recall", "f1"))}
    if present:
        areas = [reference.roc_auc_score(targets == index, probabilities[:, index]) for index in present]
        expected["roc_auc"] = sum(areas) / len(areas)
    return expected


def hand_calibration_error(confidences: np.ndarray, came_true: np.ndarray) -> float:
    error = 0.0
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        inside = [
            (p, hit) for p, hit in zip(confidences, came_true, strict=True) if low < p <= high or p == low == index
        ]
        if inside:
            mean_confidence = sum(p for p, _ in inside) / len(inside)
            mean_accuracy = sum(bool(hit) for _, hit in inside) / len(inside)
            error += len(inside) / len(confidences) * abs(mean_accuracy - mean_confidence)
    return error


@pytest.mark.parametrize("count", range(1, 41))
def test_metrics_equal_scikit_learn_for_every_small_split(count: int) -> None:
    probabilities, targets = make_rows(count, seed=count)
    metrics = classification_metrics(probabilities, targets, NAMES)
    assert metrics == pytest.approx(by_scikit_learn(probabilities, targets), abs=1e-12)
    assert all(type(value) is float for value in metrics.values())


def test_a_normal_split_has_every_metric_a_recipe_can_name() -> None:
    for multi_label in (False, True):
        metrics = classification_metrics(*make_rows(200, multi_label=multi_label), NAMES, multi_label=multi_label)
        selectable = get_args(ClassificationEvaluation.model_fields["best_by"].annotation)
        assert {name for name in metrics if "/" not in name} == set(selectable)
        assert {name for name in metrics if "/" in name} == {
            f"{k}/{n}" for k in ("f1", "precision", "recall") for n in NAMES
        }


def test_multi_label_metrics_equal_scikit_learn_class_by_class() -> None:
    probabilities, targets = make_rows(80, multi_label=True)
    decisions = (probabilities >= 0.5).astype(int)
    metrics = classification_metrics(probabilities, targets, NAMES, multi_label=True)
    classes = range(len(NAMES))
    binary_losses = [reference.log_loss(targets[:, i], probabilities[:, i], labels=[0, 1]) for i in classes]
    expected = {
        "accuracy": np.mean([(decisions[row] == targets[row]).all() for row in range(80)]),
        "macro_f1": np.mean([reference.f1_score(targets[:, i], decisions[:, i], zero_division=0) for i in classes]),
        "mcc": np.mean([reference.matthews_corrcoef(targets[:, i], decisions[:, i]) for i in classes]),
        "roc_auc": reference.roc_auc_score(targets, probabilities, average="macro"),
        "ece": hand_calibration_error(probabilities.ravel(), targets.ravel()),
        "loss": np.mean(binary_losses),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_classes_that_do_not_occur_are_left_out_and_nothing_is_nan() -> None:
    probabilities = np.array([[0.9, 0.05, 0.05, 0.0], [0.8, 0.1, 0.1, 0.0]])
    metrics = classification_metrics(probabilities, np.array([0, 0]), NAMES)
    assert metrics["macro_f1"] == 1.0
    assert "roc_auc" not in metrics
    assert "f1/good" not in metrics
    empty = classification_metrics(np.full((3, 4), 0.1), np.zeros((3, 4), np.int64), NAMES, multi_label=True)
    assert empty == pytest.approx({"accuracy": 1.0, "ece": 0.1, "loss": -math.log(0.9)})


def test_no_rows_and_non_finite_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        classification_metrics(np.zeros((0, 4)), np.zeros(0, np.int64), NAMES)
    with pytest.raises(DataError, match="no rows"):
        bootstrap_intervals(np.zeros((0, 4)), np.zeros(0, np.int64), NAMES, samples=10, seed=0)
    with pytest.raises(TrainingError, match="first in row 1 "):
        classification_metrics(np.array([[0.2] * 4, [np.nan] * 4]), np.array([0, 1]), NAMES)


def test_metrics_open_no_socket_and_write_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(socket, "socket", refuse)
    for multi_label in (False, True):
        classification_metrics(*make_rows(20, multi_label=multi_label), NAMES, multi_label=multi_label)
    assert list(tmp_path.rglob("*")) == [work]


@pytest.mark.parametrize("multi_label", [False, True])
def test_bootstrap_equals_measuring_the_repeated_rows_one_resample_at_a_time(multi_label: bool) -> None:
    probabilities, targets = make_rows(60, multi_label=multi_label)
    probabilities[:2] = (0.1, 0.1, 0.1, 0.7)  # a class that resamples have in decisions, in truth, in both, in neither
    truth = targets[:, 3] if multi_label else targets
    truth[truth == (1 if multi_label else 3)] = 0
    truth[2] = 1 if multi_label else 3
    draws: dict[str, list[float]] = {}
    (counts,) = resample_counts(60, samples=SAMPLES, seed=3)
    for column in counts.T.astype(int):
        rows = np.repeat(np.arange(60), column)
        metrics = classification_metrics(probabilities[rows], targets[rows], NAMES, multi_label=multi_label)
        for name, value in metrics.items():
            draws.setdefault(name, []).append(value)
    expected = {name: np.percentile(values, (2.5, 97.5)) for name, values in draws.items()}
    intervals = bootstrap_intervals(probabilities, targets, NAMES, samples=SAMPLES, seed=3, multi_label=multi_label)
    assert intervals.keys() == expected.keys()
    for name, interval in intervals.items():
        assert interval == pytest.approx(expected[name], abs=1e-12), name


def test_bootstrap_area_equals_scikit_learn_with_weights_under_ties() -> None:
    generator = np.random.default_rng(5)
    scores = generator.integers(0, 4, 50) / 4
    targets = generator.integers(0, 2, 50)
    (counts,) = resample_counts(50, samples=SAMPLES, seed=0)
    expected = [reference.roc_auc_score(targets, scores, sample_weight=column) for column in counts.T]
    intervals = bootstrap_intervals(
        np.stack([1 - scores, scores], axis=1), targets, ("no", "yes"), samples=SAMPLES, seed=0
    )
    assert intervals["roc_auc"] == pytest.approx(np.percentile(expected, (2.5, 97.5)), abs=1e-12)


def test_resamples_draw_every_row_equally_often_and_do_not_depend_on_the_chunk() -> None:
    whole = np.concatenate(list(resample_counts(7, samples=5000, seed=1)), axis=1)
    parts: Iterator[np.ndarray] = resample_counts(7, samples=5000, seed=1, chunk=33)
    assert np.array_equal(whole, np.concatenate(list(parts), axis=1))
    assert (whole.sum(axis=0) == 7).all()
    assert whole.mean(axis=1) == pytest.approx(np.ones(7), abs=0.06)  # 4.5 standard errors
    assert whole.var(axis=1) == pytest.approx(np.full(7, 6 / 7), abs=0.1)
    assert not np.array_equal(whole, next(resample_counts(7, samples=5000, seed=2)))


def test_intervals_do_not_depend_on_how_many_resamples_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(30)
    whole = bootstrap_intervals(*rows, NAMES, samples=100, seed=0)
    monkeypatch.setattr(statistics, "_CHUNK_CELLS", 70)
    parts = bootstrap_intervals(*rows, NAMES, samples=100, seed=0)
    assert parts.keys() == whole.keys()
    assert np.array(list(parts.values())) == pytest.approx(np.array(list(whole.values())), abs=1e-12)


def test_accuracy_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        right = generator.random(150) < 0.8
        probabilities = np.tile([0.9, 0.1], (150, 1))
        low, high = bootstrap_intervals(probabilities, (~right).astype(int), ("a", "b"), samples=200, seed=0)[
            "accuracy"
        ]
        covered += low <= 0.8 <= high
    assert 0.89 <= covered / 100 <= 0.99


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("metric", ["macro_f1", "roc_auc", "ece", "f1/good"])
def test_a_model_differs_from_itself_by_exactly_nothing(metric: str, multi_label: bool) -> None:
    probabilities, targets = make_rows(50, multi_label=multi_label)
    difference = paired_difference(
        probabilities, probabilities, targets, NAMES, metric=metric, samples=50, seed=0, multi_label=multi_label
    )
    assert difference == (0.0, 0.0, 0.0)


def test_paired_difference_is_signed_and_sharper_than_two_intervals() -> None:
    probabilities, targets = make_rows(300)
    worse = probabilities.copy()
    worse[:15] = np.roll(worse[:15], 1, axis=1)
    difference, low, high = paired_difference(
        probabilities, worse, targets, NAMES, metric="accuracy", samples=500, seed=0
    )
    metrics = [classification_metrics(values, targets, NAMES)["accuracy"] for values in (probabilities, worse)]
    assert difference == pytest.approx(metrics[0] - metrics[1], abs=1e-12)
    assert low <= difference <= high
    own_low, own_high = bootstrap_intervals(probabilities, targets, NAMES, samples=500, seed=0)["accuracy"]
    assert high - low < (own_high - own_low) / 2


def test_a_difference_needs_a_metric_that_exists_here() -> None:
    probabilities, targets = make_rows(20)
    with pytest.raises(DataError, match="there is no metric 'f2'"):
        paired_difference(probabilities, probabilities, targets, NAMES, metric="f2", samples=10, seed=0)
    with pytest.raises(DataError, match="undefined on these 20 rows"):
        paired_difference(probabilities, probabilities, np.zeros(20, int), NAMES, metric="roc_auc", samples=10, seed=0)


def test_calibration_error_of_one_bin_is_the_gap_and_edges_belong_to_the_lower_bin() -> None:
    probabilities = np.tile([0.8, 0.2], (10, 1))
    targets = np.array([0] * 6 + [1] * 4)
    assert expected_calibration_error(probabilities, targets) == pytest.approx(0.2)
    bins = reliability(np.array([[0.2, 0.0, 1.0]]), np.array([[0, 0, 1]]))
    assert np.flatnonzero(bins.counts).tolist() == [0, 2, 14]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered_from_labels_drawn_at_it(temperature: float, multi_label: bool) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, size=(20_000, 3))
    if multi_label:
        targets = (generator.random(logits.shape) < to_probabilities(logits / temperature, True)).astype(int)
    else:
        targets = (logits / temperature + generator.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(logits, targets, multi_label=multi_label) == pytest.approx(temperature, rel=0.05)


def test_temperature_stays_within_its_bounds_and_needs_rows() -> None:
    logits, targets = np.array([[0.5, 0.0], [0.0, 0.5]]), np.array([0, 1])
    assert 0.05 <= fit_temperature(logits, targets, multi_label=False) < 0.051
    assert 19.9 < fit_temperature(logits, 1 - targets, multi_label=False) <= 20
    with pytest.raises(DataError, match="0 found"):
        fit_temperature(logits[:0], targets[:0], multi_label=False)


def test_probabilities_survive_huge_logits() -> None:
    logits = np.array([[1e4, -1e4, 0.0]], dtype=np.float32)
    assert to_probabilities(logits, False).tolist() == [[1.0, 0.0, 0.0]]
    assert to_probabilities(logits, True).tolist() == [[1.0, 0.0, 0.5]]
    assert to_decisions(to_probabilities(logits, True), True).tolist() == [[1, 0, 1]]
    assert np.isfinite(log_losses(to_probabilities(logits, False), np.array([1]), False)).all()


def test_lower_is_better_for_errors_only_and_a_tie_or_nan_never_is() -> None:
    lower = ClassificationEvaluation().lower_is_better
    assert lower == {"ece", "loss"}
    assert is_better(0.6, 0.5, lower=False)
    assert is_better(0.5, 0.6, lower=True)
    assert not is_better(0.6, 0.5, lower=True)
    assert not is_better(0.5, 0.5, lower=False) and not is_better(0.5, 0.5, lower=True)
    assert not is_better(math.nan, 0.5, lower=True)


def test_equal_metrics_go_to_the_lower_loss() -> None:
    old = {"macro_f1": 0.5, "rmse": 2.0, "loss": 0.7}
    assert is_better_by("macro_f1", old | {"loss": 0.6}, old, lower=False)
    assert is_better_by("rmse", old | {"loss": 0.6}, old, lower=True)
    assert not is_better_by("macro_f1", old | {"loss": 0.8}, old, lower=False)
    assert not is_better_by("macro_f1", old, old, lower=False)
    assert is_better_by("macro_f1", old | {"macro_f1": 0.6, "loss": 0.8}, old, lower=False)
    assert not is_better_by("macro_f1", old | {"macro_f1": 0.4, "loss": 0.1}, old, lower=False)
    assert not is_better_by("f1", {"f1": 0.5}, {"f1": 0.5}, lower=False)  # a task without a loss among its metrics


def test_confusion_matrix_has_truth_in_rows_and_every_class() -> None:
    probabilities = np.eye(4)[[0, 1, 1, 2]]
    matrix = confusion_matrix(probabilities, np.array([0, 0, 1, 2]))
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
