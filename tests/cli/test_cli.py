"""The command line as its users meet it: what a run leaves behind, exit codes, messages, signals, the wheel."""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from doubles.commands import Ended, hft, read_json, refused
from doubles.paths import ROOT
from doubles.reviews import CLASSES, RECIPE, review_rows
from hftoolkit import __version__, cli
from hftoolkit.cli import render
from hftoolkit.cli.options import ResumeChoice, spell_out_resume
from hftoolkit.cli.render import render_events
from hftoolkit.commands import finetune as run
from hftoolkit.contracts import Event, InferenceProgress, Message, Table
from hftoolkit.recipe import load_recipe
from hftoolkit.runs import checkpoint, resume

HELP_CPU_SECONDS = 0.6  # the promise is 0.3 on a quiet machine
PATIENCE_SECONDS = 120

WriteRecipe = Callable[..., Path]
WriteCsv = Callable[..., Path]


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder by its relative name, folders included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


# --- finetune -------------------------------------------------------------------------------------------------------


def test_a_finished_run_holds_what_the_design_lists(tiny_run: Path):
    files = {"recipe.yaml", "environment.json", "data.json", "labels.json", "metrics.jsonl", "train.log"}
    files |= {"status.json", "results.json", "backbone.json", "model.sha256", ".lock"}
    folders = {"checkpoints", "model", "report", "predictions"}
    assert {path.name for path in tiny_run.iterdir()} == files | folders
    assert all((tiny_run / name).is_dir() for name in folders)
    assert read_json(tiny_run / "status.json")["state"] == "done"
    assert load_recipe(tiny_run / "recipe.yaml") == load_recipe(tiny_run.parent.parent / "tiny.yaml")
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(os.listdir(tiny_run / "model"))
    kept = {path.name for path in (tiny_run / "checkpoints").iterdir()}
    events = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    best = max((e for e in events if e["event"] == "evaluation"), key=lambda e: (e["metrics"]["macro_f1"], -e["step"]))
    assert kept == {f"best-{best['step']:06d}", "step-000060"}
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 61))  # 120 rows, 8 a step, 4 epochs


def test_results_have_the_promised_shape(tiny_run: Path):
    results = read_json(tiny_run / "results.json")
    assert results["task"] == "text-classification"
    assert results["test"]["examples"] == 15
    metrics, intervals = results["test"]["metrics"], results["test"]["intervals"]
    assert {"accuracy", "macro_f1", "mcc", "roc_auc", "ece"} <= set(metrics)
    assert {f"{kind}/{name}" for kind in ("f1", "precision", "recall") for name in CLASSES} <= set(metrics)
    low, high = intervals["macro_f1"]
    assert 0 <= low <= metrics["macro_f1"] <= high <= 1
    assert results["baselines"] == {}  # switched off in this recipe
    assert set(results["train"]) >= {"seconds", "examples_per_second", "steps", "peak_memory_bytes"}
    assert results["train"]["steps"] == 60
    assert all(value > 0 for value in results["train"].values())


def test_the_run_says_what_it_did_and_where_things_are(tiny_run: Path):
    shown = (tiny_run.parent.parent / "stdout.txt").read_text(encoding="utf-8")
    assert "rows: train 120, validation 15, test 15; classes: bad, fine, good" in shown
    assert "step 60/60" in shown and "(best so far)" in shown
    assert "in a fresh process without hftoolkit: same predictions" in shown
    for name in ("model", "results.json", "report"):
        assert f"runs/tiny/{name}\n" in shown
    log = (tiny_run / "train.log").read_text(encoding="utf-8")
    assert "classes: bad, fine, good" in log and "macro-F1" in log


def test_a_second_run_gets_a_directory_of_its_own(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lively_backbone: Path
):
    shutil.copytree(tiny_run.parent.parent, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    before = contents(Path("runs"))

    ended = hft("finetune", "tiny.yaml", "--set", "train.epochs=1", "--set", "evaluation.baselines=true")

    assert ended.code == 0, ended
    assert "runs/tiny-2/model\n" in ended.out
    after = contents(Path("runs"))
    assert {name: after[name] for name in before} == before
    assert load_recipe(Path("runs/tiny-2/recipe.yaml")).train.epochs == 1
    results = read_json(Path("runs/tiny-2/results.json"))
    assert results["train"]["steps"] == 15
    assert set(results["baselines"]) == {"majority", "tfidf_logreg"}
    assert {"examples", "metrics", "intervals"} <= set(results["baselines"]["majority"])


def test_an_exact_run_directory_is_never_overwritten(write_recipe: WriteRecipe, tiny_run: Path):
    before = contents(tiny_run)
    refused(hft("finetune", write_recipe(), "--run-dir", tiny_run), 2, str(tiny_run), "another --run-dir")
    assert contents(tiny_run) == before


def test_a_run_goes_exactly_where_it_is_told(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = tmp_path / "new folder" / "\u00fcbung [1]"
    refused(hft("finetune", write_recipe(), "--run-dir", where, "--set", "data.columns.text=txt"), 3)
    assert read_json(where / "status.json")["state"] == "failed"
    refused(hft("finetune", write_recipe(), "--run-dir", where, "--set", "data.columns.label=labl"), 3, "'label'")
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_does_a_real_step_and_leaves_nothing(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe()
    before = contents(tmp_path)
    ended = hft("finetune", recipe, "--dry-run")
    assert ended.code == 0, ended
    assert "one step ran, loss " in ended.out and "nothing was written" in ended.out
    assert contents(tmp_path) == before


def test_a_dry_run_finds_what_a_run_would_stop_at(write_recipe: WriteRecipe):
    refused(hft("finetune", write_recipe(), "--dry-run", "--set", "train.learning_rate=11"), 2, "--set", "at most 10")
    refused(hft("finetune", write_recipe(), "--dry-run", "--set", "data.columns.label=labl"), 3, "'label'")
    refused(hft("finetune", write_recipe(), "--dry-run", "--run-dir", write_recipe().parent), 2, "another --run-dir")


def test_an_earlier_run_as_backbone_keeps_its_head_for_the_same_labels(tiny_run: Path, write_recipe: WriteRecipe):
    said: list[Event] = []
    recipe = load_recipe(write_recipe(), [f"model.backbone={tiny_run}"])
    job = run.prepare(recipe, said.append)
    saved = load_file(tiny_run / "model" / "model.safetensors")
    assert torch.equal(job.tuned.model.state_dict()["classifier.weight"], saved["classifier.weight"])
    assert not [event for event in said if "replaced the head" in str(event)]


def test_an_earlier_run_as_backbone_gets_a_new_head_for_other_labels(
    tiny_run: Path, write_recipe: WriteRecipe, write_csv: WriteCsv
):
    table = write_csv([(text, "yes" if label == "good" else "no") for text, label in review_rows(60)])
    ended = hft("finetune", write_recipe(table=table), "--set", f"model.backbone={tiny_run}", "--dry-run")
    assert ended.code == 0, ended
    assert "replaced the head of the backbone, trained for bad, fine, good" in ended.out


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_typo_in_the_recipe_is_named_with_its_line(write_recipe: WriteRecipe):
    recipe = write_recipe()
    recipe.write_text(recipe.read_text().replace("learning_rate", "lerning_rate"))
    refused(hft("finetune", recipe), 2, f"{recipe}:6", "train.lerning_rate", "did you mean 'learning_rate'?")


def test_a_missing_recipe_names_the_shipped_ones(tmp_path: Path):
    refused(hft("finetune", tmp_path / "nope.yaml"), 2, "nope.yaml does not exist", "recipes copy", "sentiment")


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        ([*review_rows(30), ("", "good"), (" ", "bad")], ["text is empty: 2 (rows 31, 32)", "on_bad_rows: skip"]),
        ([*review_rows(30), ("fine", " ")], ["label is missing: 1 (row 31)"]),
        ([(text, "good") for text, _ in review_rows(30)], ["'good'", "needs two"]),
        (review_rows(1), ["too few", "Give more rows"]),
        ([], ["has no rows"]),
    ],
    ids=["empty texts", "no label", "one class", "one row", "header only"],
)
def test_unusable_rows_end_the_run(rows, fragments, write_recipe: WriteRecipe, write_csv: WriteCsv, tmp_path: Path):
    ended = hft("finetune", write_recipe(table=write_csv(rows)), "--run-dir", tmp_path / "run")
    refused(ended, 3, *fragments)
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert fragments[0] in status["reason"]


@pytest.mark.parametrize(
    ("override", "code", "fragments"),
    [
        ("data.columns.text=txt", 3, ["'txt' (did you mean 'text'?)", "Edit data.columns.text"]),
        ("data.source=./nope.csv", 3, ["no file or folder './nope.csv'"]),
        ("data.source=empty.csv", 3, ["empty.csv is empty"]),
        ("model.backbone=empty", 3, ["cannot load a transformers text model from empty"]),
        ("model.backbone=./nope", 3, ["no file or folder './nope'"]),
        ("model.max_length=65", 2, ["model.max_length: 65", "64 positions"]),
        ("tuning={method: lora, target_modules: nothing}", 2, ["'nothing' matches no", "attention.self.query"]),
        ("tuning={method: last-layers, layers: 3}", 2, ["tuning.layers: 3", "2 encoder blocks"]),
        ("train.epochs", 2, ["--set section.key=value"]),
    ],
)
def test_what_the_recipe_names_is_checked(override, code, fragments, write_recipe: WriteRecipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no model")
    refused(hft("finetune", write_recipe(), "--set", override), code, *fragments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is right on a GPU")
def test_fp16_is_refused_on_a_cpu(write_recipe: WriteRecipe, tmp_path: Path):
    ended = hft("finetune", write_recipe(), "--run-dir", tmp_path / "run", "--set", "train.precision=fp16")
    refused(ended, 2, "fp16 needs a GPU", "auto, bf16 or fp32")


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


def test_a_disk_that_fills_up_in_training_is_said_and_recorded(write_recipe: WriteRecipe, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", no_space)
    refused(hft("finetune", write_recipe(), "--run-dir", tmp_path / "run"), 4, "No space left", "free some space")
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["exit_code"]) == ("failed", 4)


@pytest.mark.parametrize(
    ("number", "fragment"), [(errno.ENOSPC, "disk is full (there)"), (errno.EACCES, "no permission to write there")]
)
def test_system_errors_outside_of_a_writer_have_their_exit_code(
    number, fragment, write_recipe: WriteRecipe, tmp_path: Path, monkeypatch
):
    def fail() -> None:
        raise OSError(number, os.strerror(number), "there")

    monkeypatch.setattr(resume, "describe_environment", fail)
    refused(hft("finetune", write_recipe(), "--run-dir", tmp_path / "run"), 4, fragment)
    assert read_json(tmp_path / "run" / "status.json")["exit_code"] == 4


def test_a_bug_keeps_its_traceback_and_is_recorded(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "prepare", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["hftoolkit", "finetune", str(write_recipe()), "--run-dir", str(tmp_path / "run")])
    with pytest.raises(ZeroDivisionError):
        cli.main()
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["exit_code"]) == ("failed", 1)


def test_a_bug_ends_the_process_with_1_and_a_traceback():
    code = (
        "import sys, hftoolkit.recipe, hftoolkit.cli; sys.argv = ['hftoolkit', 'recipes', 'list']; "
        "hftoolkit.recipe.list_recipes = lambda: 1 / 0; hftoolkit.cli.main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr and "ZeroDivisionError" in ended.stderr


def test_a_ctrl_c_before_training_is_an_interrupt_too(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "prepare", interrupt)
    refused(hft("finetune", write_recipe(), "--run-dir", tmp_path / "run"), 130, "interrupted")
    assert read_json(tmp_path / "run" / "status.json")["state"] == "interrupted"
    assert hft("finetune", write_recipe(), "--dry-run").code == 130


@pytest.mark.parametrize("command", [("finetune", "--dry-run"), ("evaluate",), ("predict", "-")])
def test_ctrl_c_is_told_by_commands_that_keep_nothing(command, write_recipe: WriteRecipe, tiny_run: Path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "prepare", interrupt)
    monkeypatch.setattr("hftoolkit.commands.evaluate.load_run", interrupt)
    monkeypatch.setattr("hftoolkit.commands.predict.load_run", interrupt)
    name, *rest = command
    refused(hft(name, write_recipe() if name == "finetune" else tiny_run, *rest), 130, "error: interrupted\n")


def test_verbose_shows_the_traceback_of_an_error(tmp_path: Path):
    command = [sys.executable, "-m", "hftoolkit", "--verbose", "finetune", str(tmp_path / "nope.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "Traceback" in ended.stderr and "error: " in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("finetune", "x.yaml", "--epochs", "3"), "No such option"),
        (("finetun",), "finetune"),
        (("predict", "x"), "Missing argument"),
    ],
)
def test_a_wrong_usage_exits_2(arguments, fragment):
    ended = hft(*arguments)
    assert ended.code == 2
    assert fragment in ended.err


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_runs(tmp_path_factory: pytest.TempPathFactory, lively_backbone: Path) -> dict[int, tuple[Path, int, str]]:
    """By signal: the run directory, exit code and stderr of a process that got it after its first evaluation."""
    folder = tmp_path_factory.mktemp("stopped")
    table = folder / "t.csv"
    table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in review_rows(60)))
    recipe = folder / "long.yaml"
    recipe.write_text(RECIPE.format(table=table, backbone=lively_backbone).replace("epochs: 4", "epochs: 100000"))
    processes = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-m", "hftoolkit", "finetune", recipe, "--run-dir", folder / f"run-{number}"]
        processes[number] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ended = {}
    for number, process in processes.items():
        where = folder / f"run-{number}"
        wait_for_evaluation(where, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
        ended[number] = (where, process.returncode, err)
    return ended


def wait_for_evaluation(where: Path, process: subprocess.Popen[str]) -> None:
    start = time.monotonic()
    while not (where / "metrics.jsonl").exists() or '"evaluation"' not in (where / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - start < PATIENCE_SECONDS, "no evaluation came"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_the_best_weights_and_the_logs(stopped_runs, number: int, code: int):
    where, returned, err = stopped_runs[number]
    assert returned == code, err
    assert "the same command with --resume continues there" in err and "Traceback" not in err
    status = read_json(where / "status.json")
    assert (status["state"], status["exit_code"]) == ("interrupted", code)
    *_, kept = sorted((where / "checkpoints").glob("best-*"))
    weights = checkpoint.load_weights(kept)
    assert weights["classifier.weight"].shape == (3, 16)
    *_, state = sorted((where / "checkpoints").glob("step-*"))
    assert f"at step {int(state.name[5:])};" in err
    assert '"evaluation"' in (where / "metrics.jsonl").read_text()
    assert "classes: bad, fine, good" in (where / "train.log").read_text()


@pytest.mark.slow
def test_an_interrupted_run_is_no_model(stopped_runs):
    where, *_ = stopped_runs[signal.SIGINT]
    refused(hft("predict", where, "-", stdin=b"good\n"), 3, "interrupted", "--resume")
    refused(hft("evaluate", where), 3, "interrupted")


# --- what is shown --------------------------------------------------------------------------------------------------


def test_names_that_look_like_markup_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]):
    names = ("[red]a", "b\\[c", ":warning:", "$d$/e", "f" * 90)
    with render_events() as emit:
        emit(Message(" and ".join(names), "warning"))
        emit(Table("[bold]title", ("true", *names), tuple((name, *"12345") for name in names)))
    shown = capsys.readouterr().out
    assert "warning: " + " and ".join(names) + "\n" in shown
    assert "[bold]title" in shown
    (header,) = [line for line in shown.splitlines() if "true" in line]
    assert all(name in header for name in names)
    assert all(sum(name in line for line in shown.splitlines()) == 3 for name in names)


def test_slow_inference_has_a_bar_until_it_is_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes this for a terminal
    with render_events() as emit:
        emit(InferenceProgress(64, 200))  # so far quick
    assert "inference" not in capsys.readouterr().out
    monkeypatch.setattr(render, "QUICK", 0.0)
    with render_events(stderr=True) as emit:
        emit(InferenceProgress(64, 200))
    shown = capsys.readouterr()
    assert "inference" in shown.err and "64/200" in shown.err and shown.out == ""
    with render_events() as emit:
        emit(InferenceProgress(64, 200))
        emit(InferenceProgress(200, 200))
        emit(Message("the end"))
    before, end, after = capsys.readouterr().out.partition("the end")
    assert "inference" in before and end and "inference" not in after


# --- the small commands ---------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = {"torch", "transformers", "numpy", "datasets"}
    code = (
        "import sys; sys.argv = ['hftoolkit', '--help']\ntry:\n    from hftoolkit.cli import main; main()\n"
        f"finally:\n    print('heavy:', sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "finetune" in ended.stdout and "predict" in ended.stdout
    assert ended.stderr == "heavy: []\n"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "hftoolkit", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < HELP_CPU_SECONDS, seconds


@pytest.mark.parametrize("command", ["finetune", "evaluate", "predict", "recipes", "doctor"])
def test_every_command_explains_itself(command: str):
    ended = hft(command, "--help")
    assert ended.code == 0
    assert f"hftoolkit {command}" in ended.out


def test_the_installed_script_is_this_command_line():
    (script,) = entry_points(group="console_scripts", name="hftoolkit")
    assert script.load() is cli.main
    assert hft("--version") == Ended(0, f"hftoolkit {__version__}\n", "")


def test_doctor_prints_versions_as_json():
    ended = hft("doctor")
    assert ended.code == 0
    assert json.loads(ended.out)["packages"]["hftoolkit"] == __version__
    assert json.loads(ended.out)["packages"]["torch"]


def test_recipes_are_listed_shown_and_copied_once(tmp_path: Path):
    listed = hft("recipes", "list").out
    names = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert {"sentiment", "sentiment-lora"} <= names
    assert {line.split()[0] for line in listed.splitlines()} == names

    text = (ROOT / "recipes" / "sentiment.yaml").read_text(encoding="utf-8")
    assert hft("recipes", "show", "sentiment").out == text
    mine = tmp_path / "mine.yaml"
    assert hft("recipes", "copy", "sentiment", mine) == Ended(0, f"wrote {mine}\n", "")
    assert mine.read_text(encoding="utf-8") == text
    mine.write_text("edited")
    refused(hft("recipes", "copy", "sentiment-lora", mine), 2, str(mine), "choose another name")
    assert mine.read_text() == "edited"
    refused(hft("recipes", "show", "sentimnt"), 2, "did you mean sentiment?")


def test_the_schema_is_json_and_knows_the_knobs():
    schema = json.loads(hft("recipes", "schema").out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert "learning_rate" in schema["$defs"]["Train"]["properties"]


def test_recipes_come_with_the_wheel(tmp_path: Path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("hftoolkit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    names = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert names
    assert {path.name for path in (tmp_path / "site" / "hftoolkit" / "recipes").iterdir()} == names

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import hftoolkit, hftoolkit.cli; print(hftoolkit.__file__); hftoolkit.cli.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "recipes", "list"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    where, *listed = ended.stdout.splitlines()
    assert where == str(tmp_path / "site" / "hftoolkit" / "__init__.py")
    assert {f"{line.split()[0]}.yaml" for line in listed} == names


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("finetune --resume t.yaml", "finetune --resume=yes t.yaml"),
        ("finetune t.yaml --resume", "finetune t.yaml --resume=yes"),
        ("finetune t.yaml --resume auto --set a=b", "finetune t.yaml --resume=auto --set a=b"),
        ("finetune --resume auto t.yaml", "finetune --resume=auto t.yaml"),
        ("finetune t.yaml --resume=auto", "finetune t.yaml --resume=auto"),
        ("finetune --resume --run-dir auto t.yaml", "finetune --resume=yes --run-dir auto t.yaml"),
        ("finetune -- --resume auto", "finetune -- --resume auto"),
    ],
)
def test_resume_stands_alone_or_before_auto(typed: str, read: str):
    assert spell_out_resume(typed.split()) == read.split()


def test_the_commands_get_what_resume_says():
    values = [ResumeChoice.value_of(each) for each in (None, ResumeChoice.YES, ResumeChoice.AUTO)]
    assert values == [False, True, "auto"]
    for command in (["finetune"], ["rl", "train"]):
        refused(hft(*command, "nowhere.yaml", "--resume", "auto"), 2, "nowhere.yaml")
        ended = hft(*command, "nowhere.yaml", "--resume=never")
        assert ended.code == 2 and "--resume" in ended.err and "auto" in ended.err


def test_modules_in_the_current_folder_are_none_of_ours(tmp_path: Path):
    for name in ("csv", "pip", "queue", "rich", "socket", "ssl", "tempfile", "typer", "yaml"):
        (tmp_path / f"{name}.py").write_text(f"open('ran', 'a').write('{name} ')")
    for command in (["--version"], ["recipes", "list"]):
        called = [sys.executable, "-m", "hftoolkit", *command]
        ended = subprocess.run(called, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "ran").exists()
