"""The metrics of a classifier: ``evaluate`` holds the rows, scikit-learn has the formulas.

The metrics are our own ``evaluate.Metric`` classes, so nothing is fetched and no code is run from a Hub. Predictions
are probabilities ``(N, C)``; references are ints ``(N,)``, or 0/1 ``(N, C)`` under ``config_name="multilabel"``, where
a class is predicted from probability 0.5 on. A class is scored if it occurs in the references or the decisions. What
is undefined on the rows is left out of the result: no metric is ever ``nan``.
"""

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value  # evaluate describes its inputs with these
from sklearn import metrics as formulas

from hftoolkit.contracts import Metrics
from hftoolkit.metrics.calibration import expected_calibration_error
from hftoolkit.metrics.probabilities import check_rows, log_losses, to_decisions, to_multi_hot

MULTI_LABEL = "multilabel"  # evaluate's own word for this config_name
Lists = Sequence[Any]  # rows as evaluate gives them back


def classification_metrics(
    probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str], *, multi_label: bool = False
) -> Metrics:
    """Return every metric of one split, flat: ``accuracy``, ``macro_f1``, ..., and ``f1/NAME`` for each class.

    Left out are ``roc_auc`` when no class has both positive and negative rows, and ``f1/``, ``precision/`` and
    ``recall/`` of a class that is in neither the targets nor the decisions.

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
    # Lists, because evaluate takes them seven times faster than arrays.
    rows = {"predictions": probabilities.tolist(), "references": targets.tolist()}
    options: dict[str, Any] = {"config_name": MULTI_LABEL if multi_label else None, "keep_in_memory": True, "seed": 0}
    metrics: Metrics = Accuracy(**options).compute(**rows)
    metrics |= F1(**options).compute(**rows, names=names)
    for metric in (MatthewsCorrelation, RocAuc, CalibrationError, LogLoss):
        metrics |= metric(**options).compute(**rows)
    return metrics


def confusion_matrix(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return ``(C, C)`` counts of single-label rows: true class down, predicted class across."""
    classes = range(probabilities.shape[1])
    return np.asarray(formulas.confusion_matrix(targets, to_decisions(probabilities, False), labels=classes))


def _info(metric: evaluate.Metric) -> evaluate.MetricInfo:
    one_label = metric.config_name != MULTI_LABEL
    references = Value("int64") if one_label else List(Value("int64"))
    features = Features({"predictions": List(Value("float64")), "references": references})
    return evaluate.MetricInfo(description=metric.__doc__, citation="", features=features)


def _build_data_dir(metric: evaluate.Metric) -> str:
    """Make no directory: evaluate makes one even with ``keep_in_memory``, which fails where HF_HOME is read-only."""
    assert metric.keep_in_memory
    return ""


def _arrays(metric: evaluate.Metric, predictions: Lists, references: Lists) -> tuple[np.ndarray, np.ndarray, bool]:
    return np.asarray(predictions, np.float64), np.asarray(references, np.int64), metric.config_name == MULTI_LABEL


def _occurring(targets: np.ndarray, decisions: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the classes that are in the targets or the decisions, ascending."""
    return np.flatnonzero((to_multi_hot(targets, num_classes) | to_multi_hot(decisions, num_classes)).any(axis=0))


class Accuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Share of rows that are right; multi-label: in every class."""

    _info = _info
    _build_data_dir = _build_data_dir

    def _compute(self, predictions: Lists, references: Lists) -> Metrics:
        probabilities, targets, multi_label = _arrays(self, predictions, references)
        return {"accuracy": float(formulas.accuracy_score(targets, to_decisions(probabilities, multi_label)))}


class F1(evaluate.Metric):  # type: ignore[misc]
    """F1, precision and recall of each class and their means over the classes that occur; 0 / 0 counts as 0."""

    _info = _info
    _build_data_dir = _build_data_dir

    def _compute(self, predictions: Lists, references: Lists, names: Sequence[str]) -> Metrics:
        probabilities, targets, multi_label = _arrays(self, predictions, references)
        decisions = to_decisions(probabilities, multi_label)
        classes = _occurring(targets, decisions, len(names))
        if len(classes) == 0:
            return {}
        precision, recall, f1, _ = formulas.precision_recall_fscore_support(
            targets, decisions, labels=classes, average=None, zero_division=0
        )
        by_kind = {"f1": f1, "precision": precision, "recall": recall}
        metrics = {f"macro_{kind}": float(values.mean()) for kind, values in by_kind.items()}
        for kind, values in by_kind.items():
            metrics |= {f"{kind}/{names[index]}": float(value) for index, value in zip(classes, values, strict=True)}
        return metrics


class MatthewsCorrelation(evaluate.Metric):  # type: ignore[misc]
    """Correlation of decision and truth over all classes; multi-label: mean of the binary ones of classes that occur.

    It is 0 where either never varies.
    """

    _info = _info
    _build_data_dir = _build_data_dir

    def _compute(self, predictions: Lists, references: Lists) -> Metrics:
        probabilities, targets, multi_label = _arrays(self, predictions, references)
        decisions = to_decisions(probabilities, multi_label)
        if not multi_label:
            return {"mcc": _correlation(targets, decisions)}
        classes = _occurring(targets, decisions, probabilities.shape[1])
        values = [_correlation(targets[:, index], decisions[:, index]) for index in classes]
        return {"mcc": float(np.mean(values))} if values else {}


def _correlation(targets: np.ndarray, decisions: np.ndarray) -> float:
    if len(np.union1d(targets, decisions)) < 2:
        return 0.0  # scikit-learn says the same, with a warning
    return float(formulas.matthews_corrcoef(targets, decisions))


class RocAuc(evaluate.Metric):  # type: ignore[misc]
    """Area under the ROC curve, one class against the rest, mean over the classes.

    Classes that no row has, or that every row has, have no curve and are left out of the mean.
    """

    _info = _info
    _build_data_dir = _build_data_dir

    def _compute(self, predictions: Lists, references: Lists) -> Metrics:
        probabilities, targets, _ = _arrays(self, predictions, references)
        truth = to_multi_hot(targets, probabilities.shape[1])
        classes = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
        values = [formulas.roc_auc_score(truth[:, index], probabilities[:, index]) for index in classes]
        return {"roc_auc": float(np.mean(values))} if values else {}


class CalibrationError(evaluate.Metric):  # type: ignore[misc]
    """Expected calibration error over 15 equal-width bins (Guo et al. 2017).

    One label a row: of the top probability. Multi-label: of all class probabilities.
    """

    _info = _info
    _build_data_dir = _build_data_dir

    def _compute(self, predictions: Lists, references: Lists) -> Metrics:
        probabilities, targets, _ = _arrays(self, predictions, references)
        return {"ece": expected_calibration_error(probabilities, targets)}


class LogLoss(evaluate.Metric):  # type: ignore[misc]
    """Mean negative log likelihood in nats; multi-label: mean over rows and classes of the binary ones."""

    _info = _info
    _build_data_dir = _build_data_dir

    def _compute(self, predictions: Lists, references: Lists) -> Metrics:
        return {"loss": float(log_losses(*_arrays(self, predictions, references)).mean())}


def classification_statistics(probabilities, targets, names, *, multi_label):
    from hftoolkit.metrics.bootstrap import _measure, _prepare
    from hftoolkit.metrics.statistics import RowStatistics

    rows = _prepare(probabilities, targets, names, multi_label=multi_label)
    return RowStatistics(
        len(targets),
        lambda c: _measure(rows, names, c),
        lambda: classification_metrics(probabilities, targets, names, multi_label=multi_label),
    )
