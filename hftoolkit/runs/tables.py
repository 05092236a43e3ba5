"""Tables of a run's results, for terminal and log. Nothing is printed here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hftoolkit.contracts import Metrics, Table
from hftoolkit.contracts.names import NAME_LENGTH, short_names

Intervals = Mapping[str, Sequence[float]]  # metric -> low, high

PER_CLASS = ("precision", "recall", "f1")
MOST_CLASSES = 30  # of which all are shown
FEWER_CLASSES = 20  # shown of more: the weakest
MOST_COLUMNS, MATRIX_WIDTH = 12, 120  # classes of a confusion matrix, and characters of their names
MOST_CONFUSIONS = 15


def results_table(results: Mapping[str, Any], headline: Mapping[str, str], ours: str = "fine-tuned") -> Table:
    """Return one row for ours, which is the fine-tuned model, and for each baseline, with 95 % intervals.

    Where a baseline has a paired ``difference``, a last column says how much better the fine-tuned model is.

    Args:
        results: what results.json holds; ``test`` and ``baselines`` are read.
        headline: the metrics to show, and what people call them.
        ours: what the fine-tuned model is called.
    """
    test, baselines = results["test"], results.get("baselines", {})
    shown = [metric for metric in headline if metric in test["metrics"]]
    compared = sorted({metric for baseline in baselines.values() for metric in baseline.get("difference", {})})
    rows = [_result_row(ours, test, shown, compared)]
    rows += [_result_row(name, baseline, shown, compared) for name, baseline in baselines.items()]
    columns = ["model", *(headline[metric] for metric in shown)]
    columns += [f"lead in {headline.get(metric, metric)}" for metric in compared]
    return Table(f"Test split, {test['examples']} rows, 95 % intervals", tuple(columns), tuple(rows))


def gains_table(gains: Mapping[str, Mapping[str, Sequence[float]]], headline: Mapping[str, str]) -> Table:
    """Return one row for each pair of models: how much better the first is, with paired intervals."""
    metrics = list(next(iter(gains.values())))
    rows = tuple((name, *(_signed(gain[metric]) for metric in metrics)) for name, gain in gains.items())
    return Table("What fine-tuning adds, paired 95 % intervals", ("", *(headline[name] for name in metrics)), rows)


def per_class_table(metrics: Metrics, intervals: Intervals, names: Sequence[str], counts: Sequence[int]) -> Table:
    """Return precision, recall and F1 of each class; of more than 30, those of the weakest 20.

    Args:
        metrics: ``f1/NAME`` and the like.
        intervals: of these metrics.
        names: of the classes.
        counts: test rows, or entities, of each class; what has none is not measured.
    """
    places, title = list(range(len(names))), "By class, 95 % intervals"
    if len(names) > MOST_CLASSES:
        have = [place for place in places if counts[place]]
        lacking = len(names) - len(have)
        without = f"; {lacking} have none in test, and are not measured" if lacking else ""
        places = sorted(have, key=lambda place: metrics.get(f"f1/{names[place]}", 0.0))[:FEWER_CLASSES]
        title = f"The weakest {len(places)} of {len(names)} classes, 95 % intervals (results.json has all{without})"
    shown = short_names(names)
    rows = tuple(
        (
            shown[place],
            *(
                _cell(metrics, intervals, f"{kind}/{names[place]}") if counts[place] else "not measured"
                for kind in PER_CLASS
            ),
            str(counts[place]),
        )
        for place in places
    )
    return Table(title, ("class", "precision", "recall", "F1", "in test"), rows)


def confusion_table(matrix: np.ndarray, names: Sequence[str]) -> Table:
    """Return the counts with true classes down and predicted classes across; of many classes, the largest off-diagonal.

    Args:
        matrix: ``(C, C)`` int.
        names: the C class names.
    """
    shown = short_names(names, NAME_LENGTH)
    if len(names) > MOST_COLUMNS or sum(map(len, shown)) > MATRIX_WIDTH:
        return _most_frequent_errors(matrix, shown)
    rows = tuple((name, *map(str, counts)) for name, counts in zip(shown, matrix.tolist(), strict=True))
    return Table("Confusion: true class down, predicted class across", ("true", *shown), rows)


def _most_frequent_errors(matrix: np.ndarray, names: Sequence[str]) -> Table:
    errors = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-errors, axis=None, kind="stable")[:MOST_CONFUSIONS]
    found = [divmod(int(place), len(names)) for place in order]
    rows = tuple(
        (names[true], names[predicted], f"{errors[true, predicted]} of {matrix[true].sum()}")
        for true, predicted in found
        if errors[true, predicted]
    )
    title = f"Confusion: the most frequent of {errors.sum()} errors (confusion.png has all)"
    return Table(title, ("true", "predicted", "rows"), rows)


def return_text(value: float) -> str:
    """Return a return of an episode as tables show it: one decimal, three below 10."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _result_row(name: str, result: Mapping[str, Any], shown: list[str], compared: list[str]) -> tuple[str, ...]:
    differences = result.get("difference", {})
    cells = [_cell(result["metrics"], result.get("intervals", {}), metric) for metric in shown]
    return (name, *cells, *(_signed(differences[metric]) if metric in differences else "-" for metric in compared))


def _cell(metrics: Mapping[str, float], intervals: Intervals, metric: str) -> str:
    if metric not in metrics:
        return "-"
    value = f"{metrics[metric]:.3f}"
    return f"{value} [{intervals[metric][0]:.3f}, {intervals[metric][1]:.3f}]" if metric in intervals else value


def _signed(difference: Sequence[float]) -> str:
    value, low, high = difference
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
