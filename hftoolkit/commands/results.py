"""Measured outputs of any task: what results.json holds of them, the closing tables, predictions/test.csv."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.contracts import Details, Emit, HasPairs, Message, Table, Task
from hftoolkit.metrics.extra import ExtraMetric, compute_extra_metrics, extra_values
from hftoolkit.metrics.statistics import Resamples, RowStatistics, intervals, measure, paired_lead, resample
from hftoolkit.runs.prediction_tables import write_csv
from hftoolkit.runs.tables import results_table


def measure_outputs(
    statistics: RowStatistics,
    baselines: Mapping[str, RowStatistics],
    *,
    compared_by: str,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Return the test metrics of a model and of its baselines, with intervals and paired leads.

    Args:
        statistics: of the model.
        baselines: by name, on the same rows.
        compared_by: metric of the leads.
        samples: resamples behind each interval.
        seed: of the resamples.
    """
    ours = resample(statistics, samples=samples, seed=seed)
    found: dict[str, Any] = {}
    for name, other in baselines.items():
        theirs = resample(other, samples=samples, seed=seed)
        lead = paired_lead(ours, theirs, compared_by)
        found[name] = measured(theirs) | {"difference": {compared_by: lead}}
    return {"test": measured(ours), "baselines": found}


def measured(resamples: Resamples) -> dict[str, Any]:
    """Return the number of rows, every metric, and its interval."""
    return {
        "examples": resamples.statistics.num_rows,
        "metrics": measure(resamples.statistics),
        "intervals": intervals(resamples),
    }


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
    return {**test, "metrics": test["metrics"] | values} | ({"extra_metrics_failed": failed} if failed else {})


def result_tables(
    task: Task, results: Mapping[str, Any], outputs: Sequence[Any], rows: Sequence[Any], title: str
) -> Iterator[Table]:
    """Yield the table of model and baselines, and what else the task has to show."""
    yield replace(results_table(results, task.headline), title=title)
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
