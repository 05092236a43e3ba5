"""Tables of a run's results, for terminal and log. Nothing is printed here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hftoolkit.contracts import Metrics, Table

Intervals = Mapping[str, Sequence[float]]  # metric -> low, high

PER_CLASS = ("precision", "recall", "f1")


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


def per_class_table(metrics: Metrics, intervals: Intervals, names: Sequence[str]) -> Table:
    """Return precision, recall and F1 of each class; a class in neither targets nor decisions has dashes."""
    rows = tuple((name, *(_cell(metrics, intervals, f"{kind}/{name}") for kind in PER_CLASS)) for name in names)
    return Table("By class, 95 % intervals", ("class", "precision", "recall", "F1"), rows)


def confusion_table(matrix: np.ndarray, names: Sequence[str]) -> Table:
    """Return the counts with true classes down and predicted classes across.

    Args:
        matrix: ``(C, C)`` int.
        names: the C class names.
    """
    rows = tuple((name, *map(str, counts)) for name, counts in zip(names, matrix.tolist(), strict=True))
    return Table("Confusion: true class down, predicted class across", ("true", *names), rows)


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
