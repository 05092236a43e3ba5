"""Measured outputs of any task: what results.json holds of them, the closing tables, predictions/test.csv."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.contracts import Details, Emit, HasClasses, HasPairs, Message, Table, Task
from hftoolkit.contracts.names import listed
from hftoolkit.metrics.extra import ExtraMetric, compute_extra_metrics, extra_values
from hftoolkit.metrics.statistics import Resamples, RowStatistics, intervals, measure, paired_lead, resample
from hftoolkit.runs.prediction_tables import write_csv
from hftoolkit.runs.tables import results_table


def measure_baselines(
    ours: Resamples, baselines: Mapping[str, RowStatistics], *, compared_by: str, samples: int, seed: int
) -> dict[str, Any]:
    """Return the metrics of baselines on the same rows, with intervals and the paired lead of ours over each.

    Args:
        ours: resampled as often, with the same seed.
        baselines: by name.
        compared_by: metric of the leads.
        samples: resamples behind each interval.
        seed: of the resamples.
    """
    found: dict[str, Any] = {}
    for name, other in baselines.items():
        theirs = resample(other, samples=samples, seed=seed)
        found[name] = measured(theirs) | {"difference": {compared_by: paired_lead(ours, theirs, compared_by)}}
    return found


def measured(resamples: Resamples) -> dict[str, Any]:
    """Return the number of rows, every metric, and its interval."""
    return {
        "examples": resamples.statistics.num_rows,
        "metrics": measure(resamples.statistics),
        "intervals": intervals(resamples),
    }


def measured_rows(resamples: Resamples, task: Task, rows: Sequence[Any]) -> dict[str, Any]:
    """Return what ``measured`` does, and the classes that no row has: ``unmeasured``."""
    missing = task.unmeasured(rows) if isinstance(task, HasClasses) else []
    return measured(resamples) | ({"unmeasured": missing} if missing else {})


def with_extra_metrics(
    test: dict[str, Any],
    extra: Sequence[ExtraMetric],
    task: Task,
    outputs: Sequence[Any],
    rows: Sequence[Any],
    emit: Emit,
) -> dict[str, Any]:
    """Return measured metrics with those of ``evaluation.extra_metrics``, without intervals.

    One that fails is a warning, and ``extra_metrics_failed`` of the results has its address and the reason.
    """
    if not extra:
        return test
    assert isinstance(task, HasPairs)
    values, failed = compute_extra_metrics(extra, *task.pairs(outputs, rows))
    for address, reason in failed.items():
        text = f"evaluation.extra_metrics: {address} failed ({reason}); all else is measured. Mend it, and type: "
        emit(Message(f"{text}hftoolkit evaluate RUN --allow-code", "warning"))
    kept = {name: value for name, value in test.items() if name != "extra_metrics_failed"}
    return {**kept, "metrics": test["metrics"] | values} | ({"extra_metrics_failed": failed} if failed else {})


def result_tables(
    task: Task, results: Mapping[str, Any], outputs: Sequence[Any], rows: Sequence[Any], title: str
) -> Iterator[Table]:
    """Yield the table of model and baselines, and what else the task has to show."""
    missing = results["test"].get("unmeasured")
    without = f"; not measured (no rows): {listed(missing)}" if missing else ""
    yield replace(results_table(results, task.headline), title=f"{title}{without}")
    extra = extra_values(results["test"]["metrics"])
    if extra:
        cells = tuple((name, f"{value:.4g}") for name, value in extra.items())
        yield Table("Extra metrics of the fine-tuned model, without intervals", ("metric", "value"), cells)
    if isinstance(task, Details):
        yield from task.details(results["test"], outputs, rows)


def write_test_predictions(
    task: Task, outputs: Sequence[Any], rows: Sequence[Any], row_numbers: np.ndarray, path: Path
) -> None:
    """Write one CSV line a row: its number in the source, what was read, the truth, and what was predicted."""
    truth, answered = task.truth(rows), task.columns(task.answers(outputs, rows))
    predicted = {"predicted" if name in truth else name: cells for name, cells in answered.items()}
    write_csv({"row": row_numbers.tolist(), **truth, **predicted}, path)
