"""Tables of a run's results, for terminal, log and ``predictions/test.csv``. Nothing is printed here."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.contracts import Metrics, Table

Intervals = Mapping[str, Sequence[float]]  # metric -> low, high

HEADLINES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "ece": "ECE",
    "hr": "HR",
    "recall": "recall",
    "ndcg": "NDCG",
    "coverage": "coverage",
}
PER_CLASS = ("precision", "recall", "f1")


def results_table(results: Mapping[str, Any], ours: str = "fine-tuned") -> Table:
    """Return one row for ours, which is the fine-tuned model, and for each baseline, with 95 % intervals.

    Where a baseline has a paired ``difference``, a last column says how much better the fine-tuned model is.

    Args:
        results: what results.json holds; ``test`` and ``baselines`` are read.
    """
    test, baselines = results["test"], results.get("baselines", {})
    shown = [metric for metric in HEADLINES if metric in test["metrics"]]
    compared = sorted({metric for baseline in baselines.values() for metric in baseline.get("difference", {})})
    rows = [_result_row(ours, test, shown, compared)]
    rows += [_result_row(name, baseline, shown, compared) for name, baseline in baselines.items()]
    columns = ["model", *(HEADLINES[metric] for metric in shown)]
    columns += [f"lead in {HEADLINES.get(metric, metric)}" for metric in compared]
    return Table(f"Test split, {test['examples']} rows, 95 % intervals", tuple(columns), tuple(rows))


def gains_table(gains: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """Return one row for each pair of models: how much better the first is, with paired intervals."""
    metrics = list(next(iter(gains.values())))
    rows = tuple((name, *(_signed(gain[metric]) for metric in metrics)) for name, gain in gains.items())
    return Table("What fine-tuning adds, paired 95 % intervals", ("", *(HEADLINES[name] for name in metrics)), rows)


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


def write_predictions(
    path: Path,
    row_numbers: Sequence[int] | np.ndarray,
    examples: Mapping[str, Sequence[str]],
    *,
    labels: Sequence[str],
    predicted: Sequence[str],
    probabilities: np.ndarray,
    names: Sequence[str],
) -> None:
    """Write one CSV line a row: row, what stands for the example, label, predicted, and ``p(NAME)`` of each class.

    Args:
        path: is overwritten.
        row_numbers: 1-based rows in the source.
        examples: column name (text, image) -> one entry a row; may be empty.
        labels: true class names; multi-label: already joined.
        predicted: like ``labels``.
        probabilities: ``(N, C)``, written with 6 decimals.
        names: the C class names.
    """
    header = ["row", *examples, "label", "predicted"]
    columns: list[Sequence[Any] | np.ndarray] = [row_numbers, *examples.values(), labels, predicted]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *(f"p({name})" for name in names)])
        for *cells, shares in zip(*columns, probabilities, strict=True):
            writer.writerow([*cells, *(f"{share:.6f}" for share in shares)])


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
