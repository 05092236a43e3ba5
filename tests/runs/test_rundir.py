import errno
import json
import math
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hftoolkit.contracts import Evaluated, Message, StepDone, Table
from hftoolkit.errors import DataError, EnvironmentFault, Interrupted, RecipeError, TrainingError
from hftoolkit.runs.directory import RunDir, read_json, write_json
from hftoolkit.runs.lifecycle import locked, record_event, run_lifecycle, write_status


def strict_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def run(tmp_path):
    return RunDir.create("tiny", tmp_path / "run")


# A new directory


def test_runs_of_one_recipe_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = [RunDir.create("tiny").root for _ in range(3)]
    assert roots == [Path("runs/tiny"), Path("runs/tiny-2"), Path("runs/tiny-3")]
    assert all(root.is_dir() for root in roots)


def test_a_number_that_is_free_is_taken_and_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").write_text("a file")
    (tmp_path / "runs" / "tiny-3").mkdir()
    assert [RunDir.create("tiny").root.name for _ in range(2)] == ["tiny-2", "tiny-4"]
    assert (tmp_path / "runs" / "tiny").read_text() == "a file"


def test_an_exact_directory_may_be_new_or_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunDir.create("tiny", tmp_path / "empty").root == tmp_path / "empty"
    assert RunDir.create("tiny", tmp_path / "deep" / "new").root.is_dir()


def test_an_exact_directory_with_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "recipe.yaml").write_text("old")
    with pytest.raises(RecipeError, match=r"used exists already .* choose another --run-dir"):
        RunDir.create("tiny", tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["recipe.yaml"]
    assert (tmp_path / "used" / "recipe.yaml").read_text() == "old"


def failed_start(root, *, state="failed", extra=None):
    run = RunDir.create("tiny", root)
    run.recipe.write_text("task: a mistake")
    record_event(run, Message("data: found"))
    write_status(run, state)
    if extra:
        record_event(run, extra)
    return run


def test_a_start_that_failed_makes_room_for_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed_start(tmp_path / "exact")
    assert list(RunDir.create("tiny", tmp_path / "exact").root.iterdir()) == []
    failed_start(tmp_path / "runs" / "tiny")
    assert RunDir.create("tiny").root == Path("runs/tiny")
    assert list(Path("runs/tiny").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"exact", "runs"}


def test_a_run_that_made_a_step_or_is_running_or_holds_something_else_is_kept(tmp_path):
    step = StepDone(1, 2, 0.5, 1.0, 1e-4, 10.0)
    roots = [
        failed_start(tmp_path / "stepped", extra=step).root,
        failed_start(tmp_path / "running", state="running").root,
        failed_start(tmp_path / "interrupted", state="interrupted").root,
        failed_start(tmp_path / "noted").root,
        failed_start(tmp_path / "damaged").root,
    ]
    (tmp_path / "noted" / "notes.txt").write_text("mine")
    (tmp_path / "damaged" / "status.json").write_text("{")
    for root in roots:
        before = {path.name for path in root.iterdir()}
        with pytest.raises(RecipeError, match="never overwritten"):
            RunDir.create("tiny", root)
        assert {path.name for path in root.iterdir()} == before


def test_a_run_that_another_process_begins_in_the_same_moment_is_put_back(tmp_path, monkeypatch):
    looks = iter([True, False])
    monkeypatch.chdir(tmp_path)
    run = failed_start(tmp_path / "runs" / "shared", state="running")
    monkeypatch.setattr(RunDir, "is_failed_start", lambda self: next(looks, False))
    assert RunDir.create("shared").root == Path("runs/shared-2")
    assert run.recipe.read_text() == "task: a mistake"
    assert sorted(path.name for path in Path("runs").iterdir()) == ["shared", "shared-2"]


@pytest.mark.parametrize("kind", ["link", "current folder", "top of a disk"])
def test_a_start_that_failed_makes_room_in_a_folder_that_cannot_be_renamed(tmp_path, monkeypatch, kind):
    real = failed_start(tmp_path / "real").root
    with locked(RunDir(real)):  # its lock stays behind
        pass
    (tmp_path / "link").symlink_to(real)
    if kind == "top of a disk":
        (real / "lost+found").mkdir()
        monkeypatch.setattr(Path, "rename", None)
    if kind == "current folder":
        monkeypatch.chdir(real)
    where = {"link": tmp_path / "link", "current folder": Path(), "top of a disk": real}[kind]
    RunDir.check_free(where)
    assert RunDir.create("tiny", where).root == where
    assert {path.name for path in real.iterdir()} <= {"lost+found"}
    assert RunDir.create("tiny", where).root == where  # empty, and so free
    assert kind != "link" or where.is_symlink()


@pytest.mark.parametrize("left", [[".lock"], [".lock", "status.json"], [".lock", "status.json", "recipe.yaml.part"]])
def test_a_start_that_was_killed_before_its_recipe_was_written_makes_room(tmp_path, monkeypatch, left):
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "exact", tmp_path / "runs" / "tiny"):
        root.mkdir(parents=True)
        for name in left:
            (root / name).write_text('{"state": "running"}')
    assert RunDir.create("tiny", tmp_path / "exact").root == tmp_path / "exact"
    assert RunDir.create("tiny").root == Path("runs/tiny")


def test_a_start_that_another_process_works_on_does_not_make_room(tmp_path):
    root = tmp_path / "begun"
    root.mkdir()
    (root / "status.json").write_text('{"state": "running"}')
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(root / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(RecipeError, match="never overwritten"):
            RunDir.create("tiny", root)
        other.stdin.close()
        other.wait()
    assert RunDir.create("tiny", root).root == root


def test_a_folder_of_somebody_else_never_looks_like_a_failed_start(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.json").write_text("{}")
    with pytest.raises(RecipeError, match="never overwritten"):
        RunDir.create("tiny", tmp_path / "mine")
    assert (tmp_path / "mine" / "data.json").is_file()


def test_a_link_to_nowhere_says_what_to_make(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(RecipeError, match=r"is a link to .*gone, which is not there; make that folder first"):
        RunDir.create("tiny", tmp_path / "link")


def test_an_unfinished_run_in_the_exact_directory_is_named_with_the_option_that_goes_on_with_it(tmp_path):
    run = failed_start(tmp_path / "run", state="interrupted")
    with pytest.raises(RecipeError, match="add --resume to go on with the unfinished run in it"):
        RunDir.create("tiny", run.root)
    write_status(run, "done")
    with pytest.raises(RecipeError, match=r"choose another --run-dir$"):
        RunDir.create("tiny", run.root)


def test_a_file_in_place_of_the_exact_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecipeError, match="never overwritten"):
        RunDir.create("tiny", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_environment(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentFault, match="cannot make the run directory runs"):
        RunDir.create("tiny")
    with pytest.raises(EnvironmentFault, match="cannot make the run directory"):
        RunDir.create("tiny", tmp_path / "runs" / "below")


def test_only_a_run_can_be_opened(tmp_path, run):
    with pytest.raises(DataError, match=r"is not a run directory \(no recipe\.yaml in it\)"):
        RunDir.open(run.root)
    with pytest.raises(DataError, match="nowhere is not a run directory"):
        RunDir.open(tmp_path / "nowhere")
    run.recipe.write_text("task: {}")
    assert RunDir.open(run.root) == run


def test_every_file_of_a_run_is_inside_it(run):
    names = [name for name, value in vars(RunDir).items() if isinstance(value, property)]
    paths = {getattr(run, name) for name in names}
    assert len(paths) == len(names) > 10
    assert all(path.is_relative_to(run.root) and path != run.root for path in paths)


# Events


def test_numbers_become_json_lines_and_sentences_become_the_log(run):
    events = [
        Message("starting", "warning"),
        StepDone(1, 2, 0.5, 1.25, 1e-3, 100.0),
        Evaluated(1, {"accuracy": 0.75}, is_best=True),
        Table("Data", ("split", "rows"), (("train", "90"), ("test", "10"))),
        Message("done, caf\xe9"),
    ]
    for event in events:
        record_event(run, event)
    assert [strict_json(line) for line in run.metrics.read_text().splitlines()] == [
        {
            "event": "step",
            "step": 1,
            "total_steps": 2,
            "loss": 0.5,
            "gradient_norm": 1.25,
            "learning_rate": 1e-3,
            "examples_per_second": 100.0,
        },
        {"event": "evaluation", "step": 1, "metrics": {"accuracy": 0.75}, "is_best": True},
    ]
    log = run.log.read_text(encoding="utf-8").splitlines()
    assert log[0].endswith(" warning: starting")
    assert log[1:4] == ["Data", "  split | rows", "  train | 90"]
    assert log[-1].endswith(" info: done, caf\xe9")


def test_a_step_that_fp16_skipped_is_still_valid_json(run):
    record_event(run, StepDone(1, 2, 0.5, math.inf, 1e-3, 100.0))
    assert strict_json(run.metrics.read_text())["gradient_norm"] is None


def test_the_status_has_its_time_in_utc_and_replaces_the_last_one(run):
    write_status(run, "running")
    write_status(run, "failed", exit_code=5, reason="loss nan")
    status = read_json(run.status)
    assert {name: status[name] for name in ("state", "exit_code", "reason")} == {
        "state": "failed",
        "exit_code": 5,
        "reason": "loss nan",
    }
    written = datetime.fromisoformat(status["time"])
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=5)


# What ends a run


def test_a_run_is_called_done_when_its_model_and_results_are_on_the_disk(run, monkeypatch):
    synced = {}

    def note(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(run.root).as_posix()
        synced[path] = read_json(run.status)["state"]

    monkeypatch.setattr(os, "fsync", note)
    with run_lifecycle(run):
        (run.model / "adapter").mkdir(parents=True)
        files = [run.model / "model.safetensors", run.model / "adapter" / "adapter_config.json", run.results]
        for path in (*files, run.recipe, run.model_hashes):
            path.write_text("{}")
    before = {"model/model.safetensors", "model/adapter/adapter_config.json", "model/adapter", "model", "results.json"}
    assert {path for path, state in synced.items() if state == "running"} == before | {"recipe.yaml", "model.sha256"}
    assert {path for path, state in synced.items() if state == "done"} == {"status.json", "."}


def test_a_run_is_running_and_then_done(run):
    with run_lifecycle(run):
        assert read_json(run.status)["state"] == "running"
    status = read_json(run.status)
    assert (status["state"], status["exit_code"]) == ("done", 0)


@pytest.mark.parametrize(
    ("error", "raised", "state", "exit_code"),
    [
        (TrainingError("loss nan"), TrainingError, "failed", 5),
        (Interrupted("SIGTERM at step 3", signal.SIGTERM), Interrupted, "interrupted", 143),
        (KeyboardInterrupt(), Interrupted, "interrupted", 130),
        (OSError(errno.ENOSPC, "No space left", "weights"), EnvironmentFault, "failed", 4),
        (PermissionError(errno.EACCES, "Permission denied", "weights"), EnvironmentFault, "failed", 4),
        (FileNotFoundError(errno.ENOENT, "No such file", "weights"), FileNotFoundError, "failed", 1),
        (ZeroDivisionError("a bug"), ZeroDivisionError, "failed", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_the_status_says_what_ended_the_run_and_the_error_goes_on(run, error, raised, state, exit_code):
    with pytest.raises(raised) as caught, run_lifecycle(run):
        raise error
    assert caught.value is error or caught.value.__cause__ is error
    status = read_json(run.status)
    assert (status["state"], status["exit_code"], status["reason"]) == (state, exit_code, str(caught.value))
    assert getattr(caught.value, "exit_code", 1) == exit_code


def test_sigterm_outside_the_training_loop_is_an_interruption_too(run):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, run_lifecycle(run):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == read_json(run.status)["exit_code"] == 143
    assert read_json(run.status)["state"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


# JSON files


def test_json_comes_back_and_makes_its_folder(tmp_path):
    content = {"name": "na\xefve", "values": [1, 2.5, None]}
    write_json(tmp_path / "deep" / "file.json", content)
    assert read_json(tmp_path / "deep" / "file.json") == content
    assert strict_json((tmp_path / "deep" / "file.json").read_text(encoding="utf-8")) == content


@pytest.mark.parametrize("broken", ["hftoolkit.runs.directory.os.replace", "pathlib.Path.write_text"])
def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch, broken):
    path = tmp_path / "status.json"
    write_json(path, {"state": "old"})

    def fail(*_, **__):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(EnvironmentFault, match=r"cannot write .*status\.json: No space left on device"):
            write_json(path, {"state": "new"})
    assert read_json(path) == {"state": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": math.nan})
    assert read_json(path) == {"loss": 1.0}
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_file_in_place_of_a_folder_is_a_fault_of_the_environment(tmp_path):
    (tmp_path / "file").write_text("")
    run = RunDir(tmp_path / "file")
    with pytest.raises(EnvironmentFault, match=r"cannot write .*results\.json"):
        write_json(run.results, {})
    with pytest.raises(EnvironmentFault, match=r"cannot write .*status\.json"):
        write_status(run, "running")
    for event in (Message("hello"), Evaluated(1, {})):
        with pytest.raises(EnvironmentFault, match=r"cannot write .*(train\.log|metrics\.jsonl)"):
            record_event(run, event)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_a_missing_or_damaged_file_is_a_data_error(tmp_path, content):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*data\.json"):
        read_json(path)
