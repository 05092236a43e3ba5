"""What follows the export of a model never costs it; ``hftoolkit report`` tries again what failed."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

import hftoolkit
from doubles.commands import hft, read_json, refused
from hftoolkit.commands import report as reports
from hftoolkit.errors import Interrupted
from hftoolkit.hub.push import CARD, _digests
from hftoolkit.runs.resume import run_to_resume

PATCHED = {  # what is broken, and what the run then lacks
    "test metrics": ("resample", ["test metrics", "baselines", "closing tables", "model card"]),
    "results.json": ("write_results", ["results.json"]),
    "learning curve": ("write_training_curve_png", ["learning curve"]),
    "test predictions": ("write_test_predictions", ["test predictions"]),
    "closing tables": ("result_tables", ["closing tables"]),
    "model card": ("write_card", ["model card"]),
}


def broken(*_: Any, **__: Any) -> NoReturn:
    raise ZeroDivisionError("a fault of the test")


def test_a_baseline_that_fails_costs_nothing_else(write_recipe: Any, tmp_path: Path, monkeypatch: Any) -> None:
    recipe, run = write_recipe(), tmp_path / "run"
    command = ("finetune", recipe, "--run-dir", run, "--set", "evaluation.baselines=true")
    short = ("--set", "train.epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("hftoolkit.tasks.text_classification.tfidf_logreg", broken)
        patch.setattr("hftoolkit.tasks.text_classification.TextClassificationTask.draw", broken)
        ended = hft(*command, *short)
    assert ended.code == 0 and "done, without baselines, pictures" in ended.out and "hftoolkit report" in ended.out
    status, results = read_json(run / "status.json"), read_json(run / "results.json")
    assert (status["state"], status["exit_code"], status["without"]) == ("done", 0, ["baselines", "pictures"])
    assert results["failed"]["baselines"] == "ZeroDivisionError: a fault of the test" and "baselines" not in results
    assert "Traceback" not in ended.out + ended.err and "in broken" in (run / "train.log").read_text()
    assert results["test"]["metrics"]
    assert (run / "model" / CARD).is_file() and (run / "predictions" / "test.csv").is_file()

    assert hft("predict", run, tmp_path / "t.csv").code == hft("evaluate", run).code == 0
    assert len(hftoolkit.load(run).predict(["good", "bad"])) == 2
    ended = hft(*command, *short, "--resume")  # is the report again
    assert ended.code == 0 and "tfidf_logreg" in ended.out, ended
    status, again = read_json(run / "status.json"), read_json(run / "results.json")
    assert "without" not in status and "failed" not in again and (run / "report" / "confusion.png").is_file()
    assert list(again)[:3] == ["task", "test", "baselines"] and set(again["baselines"]) == {"majority", "tfidf_logreg"}
    assert all(again[name] == content for name, content in results.items() if name != "failed")
    assert "tfidf_logreg" in (run / "model" / CARD).read_text()
    refused(hft(*command, *short, "--resume"), 2, "nothing to resume")


@pytest.mark.slow
def test_a_run_that_is_stopped_after_its_gate_is_done(write_recipe: Any, tmp_path: Path, monkeypatch: Any) -> None:
    recipe, run = write_recipe(), tmp_path / "run"
    command = ("finetune", recipe, "--run-dir", run, "--set", "train.epochs=1")

    def kill(*_: Any, **__: Any) -> NoReturn:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal came too late")

    with monkeypatch.context() as patch:
        patch.setattr("hftoolkit.commands.finetune.make_report", kill)
        refused(hft(*command), 143, "is finished", f"hftoolkit report {run}")
    status = read_json(run / "status.json")
    assert status["state"] == "done" and status["without"] == list(reports.PARTS)
    assert hft("predict", run, tmp_path / "t.csv").code == 0
    ended = hft(*command, "--resume")
    assert ended.code == 0 and "without" not in read_json(run / "status.json"), ended
    assert (run / "report" / "confusion.png").is_file() and (run / "model" / CARD).is_file()


@pytest.fixture
def finished(tiny_run: Path, tmp_path: Path) -> Path:
    """A run that may be changed."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.mark.parametrize("part", PATCHED)
def test_each_part_of_a_report_may_fail_alone(part: str, finished: Path, monkeypatch: Any) -> None:
    name, without = PATCHED[part]
    if part == "test metrics":
        results = read_json(finished / "results.json")
        for known in ("test", "baselines"):
            results.pop(known)
        reports.write_results(reports.RunDir(finished), results, {})
    card = finished / "model" / CARD
    card.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(reports, name, broken)
        ended = hft("report", finished)
    assert ended.code == 1 and ended.err.startswith("error: failed again: ") and "Traceback" not in ended.err, ended
    status = read_json(finished / "status.json")
    assert status["state"] == "done" and status["without"] == without
    assert card.is_file() and _digests(finished / "model")  # so that it can be pushed
    assert ("no results are shown" in card.read_text()) == ("model card" in without)
    assert len(hftoolkit.load(finished).predict(["good"])) == 1
    assert hft("report", finished).code == 0
    assert "without" not in read_json(finished / "status.json") and "## Results" in card.read_text()


def test_a_report_that_is_stopped_leaves_the_run_finished(finished: Path, monkeypatch: Any) -> None:
    def stop(*_: Any, **__: Any) -> NoReturn:
        raise Interrupted("terminated", signal.SIGTERM)

    monkeypatch.setattr(reports, "write_card", stop)
    assert hft("report", finished).code == 143
    assert read_json(finished / "status.json")["state"] == "done"


def test_a_report_repeats_numbers_and_files(finished: Path) -> None:
    kept = [path for path in finished.rglob("*") if path.suffix in (".csv", ".md", ".png", ".json")]
    before = {path: path.read_bytes() for path in kept if path.name not in ("status.json",)}
    assert len(before) > 8
    for path in (finished / "report").iterdir():
        path.unlink()
    assert hft("report", finished).code == 0
    assert [path.name for path, content in before.items() if path.read_bytes() != content] == []


def test_what_is_no_finished_run_has_no_report(tmp_path: Path) -> None:
    refused(hft("report", tmp_path), 3, "not a run directory")


def test_a_run_that_lacks_parts_can_be_resumed_and_extended(finished: Path) -> None:
    recipe = hftoolkit.load(finished).recipe
    status = finished / "status.json"
    status.write_text(status.read_text().replace('"exit_code": 0', '"exit_code": 0, "without": ["pictures"]'))
    assert run_to_resume(recipe, "", finished).root == finished
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 9})})
    assert run_to_resume(longer, "", finished).root == finished / "extension"
