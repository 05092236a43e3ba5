"""``hub.push_every``: the best model so far goes to the Hub while training goes on, and nothing waits for it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from doubles.commands import hft, read_json, refused
from doubles.loopback_hub import FAST, Account, Client, LoopbackHub, card_errors
from doubles.pictures import write_pictures
from doubles.pushes import POLICY_RECIPE, commits, model_files, remote_files
from doubles.reviews import RECIPE, review_rows
from hftoolkit.commands import upload
from hftoolkit.contracts import Evaluated, Message, StepDone
from hftoolkit.errors import DataError, EnvironmentFault
from hftoolkit.hub import background
from hftoolkit.hub.background import BackgroundPushes
from hftoolkit.recipe import ClassifierHub
from hftoolkit.runs.checkpoint import save_best
from hftoolkit.runs.directory import RunDir

TOKEN = "hf_canary_b41d07"
ID = "ada/best"
PATIENCE_SECONDS = 180
# The training waits after each step that a file ``stop-STEP`` names, until that is gone. The gate has tests of its own,
# and so has the low priority of a push, with which it would not get far while the machine has other work.
STOPPING = f"""
import pathlib, time
from hftoolkit.export import gate as export
from hftoolkit.runs import lifecycle
export.check_round_trip = lambda *_, **__: export.GateReport(0, 0.0, None, None, 0.0)
from hftoolkit.hub import background
background.LOWEST_PRIORITY = 0
record, wait = lifecycle.record_event, time.sleep

def stopping(run, event):
    record(run, event)
    stop = pathlib.Path(f"stop-{{getattr(event, 'step', None)}}")
    while type(event).__name__ == "StepDone" and stop.exists():
        wait(0.05)

lifecycle.record_event = stopping
{FAST}"""
HUB = f"hub: {{repo: {ID}, push_every: 1}}\n"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub.running(tmp_path / "xet") as hub:
        hub.accounts[TOKEN] = Account("ada")
        yield hub


@pytest.fixture
def client(hub: LoopbackHub, tmp_path: Path) -> Iterator[Client]:
    (tmp_path / "work").mkdir()
    client = Client(hub, tmp_path / "work", TOKEN)
    yield client
    assert client.leaks() == []


def wait_for(happened: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    start = time.monotonic()
    while not happened():
        assert time.monotonic() - start < PATIENCE_SECONDS
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def children(run: Path) -> list[int]:
    """The processes that push from a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if background.MODULE.encode() in words and str(run).encode() in words:
            found.append(int(path.parent.name))
    return found


def has_children(process: int) -> bool:
    """Whether a process has children that did not end yet: one that is ending has no command line any more."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        is_ending = state == "Z" and len(list(path.parent.glob("task/*"))) > 1  # the first thread has ended, others not
        if int(parent) == process and (state != "Z" or is_ending):
            return True
    return False


def text_recipe(folder: Path, backbone: Path, extra: str) -> Path:
    """Sixty rows, six steps an epoch; the loss falls for some epochs."""
    (folder / "t.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in review_rows(60)))
    recipe = RECIPE.format(table=folder / "t.csv", backbone=backbone).replace(
        "evaluation: {", "evaluation: {best_by: loss, "
    )
    recipe = recipe.replace("task: {kind: text-classification}", "task: {kind: text-classification, calibrate: false}")
    (folder / "best.yaml").write_text(recipe + extra)
    return folder / "best.yaml"


# --- in the background of a run -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_best_adapter_so_far_goes_to_the_hub_merged_and_a_failed_push_is_one_warning(
    client: Client, lively_backbone: Path
):
    folder, run = client.folder, client.folder / "run"
    recipe = text_recipe(folder, lively_backbone, "tuning: {method: lora, rank: 2, alpha: 4}\n" + HUB)
    for step in (7, 13):
        (folder / f"stop-{step}").touch()
    client.hub.fail(f"POST /api/models/{ID}/commit/", status=403)
    process = client.start("finetune", recipe, "--run-dir", run, script=STOPPING)
    wait_for(lambda: client.hub.faults[0].times == 0, process)
    wait_for(lambda: not has_children(process.pid), process)
    assert commits(client.hub.repositories[ID]) == 0
    (folder / "stop-7").unlink()
    repository = client.hub.repositories[ID]
    wait_for(lambda: commits(repository) == 1, process)
    shutil.copytree(run / "checkpoints" / "best-000012", folder / "kept")
    shutil.copytree(run, folder / "then", ignore=shutil.ignore_patterns(".*"))
    (folder / "stop-13").unlink()
    ended = client.end(process)
    assert ended.code == 0, ended

    assert repository.messages[1] == "Best so far, step 12, with hftoolkit"
    assert repository.messages[-1] == "Push with hftoolkit" and remote_files(repository) == model_files(run)
    assert not (run / ".upload").exists() and not (folder / "then" / "model").exists()
    log = (run / "train.log").read_text()
    (warning,) = [line for line in log.splitlines() if " warning: " in line and "too few to choose" not in line]
    assert "of step 6, failed: ada/best: the Hub answered 403" in warning and "The run goes on" in warning
    assert "hub: the best model so far, of step 12, was pushed" in log

    tree = pushed(client.hub, repository.trees[repository.commits[1]])
    assert not any(str(folder.parent).encode() in content for content in tree.values())
    check_merged(load(tree["model.safetensors"]), load_file(folder / "kept" / "tensors.safetensors"), lively_backbone)
    check_card(tree["README.md"].decode(), 12, read_json(folder / "kept" / "facts.json")["metrics"]["loss"])
    labels = client.python(f"""
from transformers import pipeline
classify = pipeline("text-classification", model={ID!r}, revision={repository.commits[1]!r}, top_k=None)
print(sorted(each["label"] for each in classify(["word1 good"])[0]))
""")
    assert "['bad', 'fine', 'good']" in labels

    alone = folder / "alone"
    assert hft("finetune", recipe, "--run-dir", alone, "--set", "hub=null").code == 0
    assert load_file(alone / "model" / "model.safetensors").keys() > {"classifier.weight"}
    assert same(load_file(alone / "model" / "model.safetensors"), load_file(run / "model" / "model.safetensors"))


def pushed(hub: LoopbackHub, tree: dict) -> dict[str, bytes]:
    return {path: blob.data if blob.sha256 is None else hub.large[blob.sha256] for path, blob in tree.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check_merged(model: dict[str, torch.Tensor], checkpoint: dict[str, torch.Tensor], backbone: Path) -> None:
    """Add the low-rank products to the pretrained weights by hand; alpha 4, rank 2."""
    before = load_file(backbone / "model.safetensors")
    adapted = 0
    for name, b in checkpoint.items():
        if ".lora_B." in name:
            layer = name.removeprefix("base_model.model.").partition(".lora_B.")[0]
            expected = before[f"{layer.removeprefix('bert.')}.weight"] + 2 * b @ checkpoint[name.replace("_B.", "_A.")]
            torch.testing.assert_close(model[f"{layer}.weight"], expected, rtol=0, atol=1e-6)
            adapted += not torch.equal(model[f"{layer}.weight"], before[f"{layer.removeprefix('bert.')}.weight"])
    assert adapted > 2
    (head,) = [
        value for name, value in checkpoint.items() if name.endswith("classifier.modules_to_save.default.weight")
    ]
    assert torch.equal(model["classifier.weight"], head)


def check_card(card: str, step: int, loss: float) -> None:
    assert list(card_errors(card)) == []
    assert "Unfinished" in card and f"of step {step}," in card
    assert f"loss on the validation split, which chose them: {loss:.3f}" in card
    assert "model-index" not in card and "intervals" not in card and "- unfinished" in card.partition("\n---\n")[0]


@pytest.mark.faults
def test_images_are_pushed_with_their_running_statistics(client: Client):
    folder, run = client.folder, client.folder / "run"
    write_pictures(folder / "pictures", 12)
    (folder / "best.yaml").write_text(f"""\
task: {{kind: image-classification}}
data: {{source: {folder / "pictures"}}}
model: {{pretrained: false, architecture: test_efficientnet, image_size: 32}}
train: {{epochs: 2, batch_size: 8, precision: fp32}}
evaluation: {{best_by: loss, bootstrap_samples: 100, baselines: false}}
{HUB}""")
    (folder / "stop-5").touch()
    process = client.start("finetune", "best.yaml", "--run-dir", run, script=STOPPING)
    wait_for(lambda: client.hub.repositories.get(ID) and commits(client.hub.repositories[ID]) == 1, process)
    (best,) = (run / "checkpoints").glob("best-*")
    kept = load_file(best / "tensors.safetensors")
    (folder / "stop-5").unlink()
    ended = client.end(process)
    assert ended.code == 0, ended
    repository = client.hub.repositories[ID]
    tree = pushed(client.hub, repository.trees[repository.commits[1]])
    weights = load(tree["model.safetensors"])
    assert same(weights, {name.removeprefix("timm_model."): tensor for name, tensor in kept.items()})
    assert any("running_mean" in name for name in weights)
    assert remote_files(repository) == model_files(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "resumes"),
    [
        (signal.SIGTERM, False),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.faults),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.faults),
        pytest.param(signal.SIGKILL, True, marks=pytest.mark.faults),
    ],
)
def test_a_run_that_ends_early_leaves_no_process_and_no_mixture(
    client: Client, lively_backbone: Path, number: int, resumes: bool
):
    folder, run = client.folder, client.folder / "run"
    recipe = text_recipe(folder, lively_backbone, HUB)
    (folder / "stop-7").touch()
    client.hub.fail(f"POST /api/models/{ID}/commit/", meanwhile=lambda: wait_for(lambda: not children(run)))
    process = client.start("finetune", recipe, "--run-dir", run, script=STOPPING)
    wait_for(lambda: client.hub.faults and client.hub.faults[0].times == 0, process)
    assert len(children(run)) == 1
    process.send_signal(number)
    (folder / "stop-7").unlink()
    start = time.monotonic()
    assert client.end(process).code == (-9 if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not children(run))
    assert time.monotonic() - start < 30
    assert (run / ".upload").exists() == (number == signal.SIGKILL)
    if not resumes:
        return
    ended = client.end(client.start("finetune", recipe, "--run-dir", run, "--resume", script=STOPPING))
    assert ended.code == 0, ended
    assert remote_files(client.hub.repositories[ID]) == model_files(run)
    assert not (run / ".upload").exists()


@pytest.mark.slow
def test_the_process_with_the_token_imports_nothing_from_the_current_folder(tmp_path: Path):
    (tmp_path / "queue.py").write_text("open('ran', 'w').write('x')\n")
    (tmp_path / "hftoolkit.py").write_text("open('ran', 'w').write('x')\n")
    command = [sys.executable, "-m", background.MODULE, str(tmp_path), str(os.getpid())]
    environment = background.background_env(os.environ)
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "is not a run directory" in ended.stderr, ended.stderr
    assert not (tmp_path / "ran").exists()


# --- when what is pushed --------------------------------------------------------------------------------------------


class Uploads:
    """Pushes of a run whose process only waits for a file, and then exits with the code in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, every: int | str) -> None:
        self.run, self.events, self.started, self.started_after = RunDir(folder / "run"), [], [], []
        self.end = folder / "end"
        popen = subprocess.Popen

        def start(command, **options):
            self.started.append(read_json(self.run.upload / "best" / "facts.json")["step"])
            self.started_after.append(self.now)
            code = f"import pathlib, time\nend = pathlib.Path({str(self.end)!r})\n"
            code += "while not end.exists(): time.sleep(0.01)\nimport sys\nprint('one\\nreason', file=sys.stderr)\n"
            code += "sys.exit(int(end.read_text()))"
            return popen([sys.executable, "-c", code], **options)

        monkeypatch.setattr(background.subprocess, "Popen", start)
        self.pushes = BackgroundPushes(ClassifierHub(repo=ID, push_every=every), self.run, self.events.append)

    def step(self, number: int, better: bool | None = None) -> None:
        """Tell of a step, and of its evaluation if there was one."""
        self.now = number
        self.pushes.listen(StepDone(number, 100, 0.1, 1.0, 0.1, 1.0))
        if better:
            save_best(self.run.checkpoints, step=number, weights={"w": torch.ones(1)}, metrics={"loss": 1 / number})
        if better is not None:
            self.pushes.listen(Evaluated(number, {"loss": 1 / number}, is_best=better))

    def let_it_end(self, code: int = 0) -> None:
        (process,) = [self.pushes._process]
        self.end.write_text(str(code))
        process.wait()
        self.end.unlink()

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(event.level, event.text) for event in self.events if isinstance(event, Message)]


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Uploads]]:
    made = []

    def make(every: int | str = 1) -> Uploads:
        made.append(Uploads(tmp_path, monkeypatch, every))
        return made[-1]

    yield make
    for each in made:
        each.pushes._stop()


def test_one_push_at_a_time_and_the_newest_best_is_next(uploads):
    up = uploads()
    with up.pushes:
        up.step(1, better=True)
        assert up.started == [1] and os.getpriority(os.PRIO_PROCESS, up.pushes._process.pid) == 19
        for number in (2, 3, 4):
            up.step(number, better=number != 4)
        assert up.started == [1]
        up.let_it_end()
        up.step(5)
        assert up.started == [1, 3]
        up.let_it_end()
        for number in (6, 7):
            up.step(number, better=False)
        assert up.started == [1, 3]
    assert [text for _, text in up.told] == [
        f"hub: the best model so far, of step {step}, was pushed" for step in (1, 3)
    ]


def test_so_many_steps_lie_between_two_starts(uploads):
    up = uploads(10)
    for number in range(31, 66):  # of a run that was resumed after step 30
        up.step(number, better=number in (32, 38, 41, 53))
        if up.pushes._process is not None:
            up.let_it_end()
    assert up.started == [38, 41, 53] and up.started_after == [40, 50, 60]


def test_a_push_that_fails_is_told_once_and_the_next_one_is_tried(uploads):
    up = uploads()
    up.step(1, better=True)
    up.let_it_end(4)
    up.step(2)
    up.step(3, better=True)
    up.let_it_end()
    up.pushes.finish()
    failed = "the push of the best model so far, of step 1, failed: reason"
    assert [("warning", failed)] == [each for each in up.told if each[0] == "warning"]
    assert "of step 3, was pushed" in up.told[-1][1]


def test_a_push_that_cannot_start_is_a_warning(uploads, monkeypatch):
    up = uploads()
    monkeypatch.setattr(background.os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(1, "Not permitted")))
    up.step(1, better=True)
    up.step(2)
    (told,) = up.told
    assert up.started == [] and told[0] == "warning" and told[1].endswith("could not be started (Not permitted)")
    assert not up.run.upload.exists()


def test_what_a_killed_process_left_behind_goes_before_anything_else(uploads):
    up = uploads()
    (up.run.upload / "model").mkdir(parents=True)
    with up.pushes:
        assert not up.run.upload.exists()


def test_never_starts_nothing(uploads):
    up = uploads("never")
    for number in range(1, 5):
        up.step(number, better=True)
    up.pushes.finish()
    assert up.started == [] and not up.told and len(up.events) == 8


@pytest.mark.parametrize("how", ["failure", "impatience", "interrupt"])
def test_no_process_outlives_the_run(uploads, monkeypatch, how):
    up = uploads()
    up.step(1, better=True)
    process = up.pushes._process
    if how == "failure":
        with pytest.raises(ZeroDivisionError), up.pushes:
            up.step(2, better=True)
            process = up.pushes._process
            raise ZeroDivisionError
    elif how == "impatience":
        monkeypatch.setattr(background, "FINAL_WAIT_SECONDS", 0.1)
        up.pushes.finish()
        assert "took over" in up.told[-1][1]
    else:
        monkeypatch.setattr(process, "wait", interrupted_once(process.wait))
        with pytest.raises(KeyboardInterrupt):
            up.pushes.finish()
    assert process.poll() == -signal.SIGKILL and not up.run.upload.exists()


def interrupted_once(wait: Callable[..., int]) -> Callable[..., int]:
    calls = []

    def interrupted(*arguments: float) -> int:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(*arguments)

    return interrupted


def test_the_process_is_told_nothing_of_launchers_and_gpus():
    told = background.background_env({"RANK": "0", "WORLD_SIZE": "8", "HF_TOKEN": "x", "CUDA_VISIBLE_DEVICES": "0"})
    assert told["HF_TOKEN"] == "x" and told["CUDA_VISIBLE_DEVICES"] == "" and told["OMP_NUM_THREADS"] == "1"
    assert not told.keys() & {"RANK", "WORLD_SIZE"}


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path):
    """The parent is killed while the push reads its weights from a pipe, which never ends."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(table="t.csv", backbone="a/b") + HUB)
    (tmp_path / ".upload" / "best").mkdir(parents=True)
    os.mkfifo(tmp_path / ".upload" / "best" / "MANIFEST.json")
    starter = f"import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-m', {background.MODULE!r}, "
    starter += f"{str(tmp_path)!r}, str(os.getpid())]); p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", starter])
    wait_for(lambda: children(tmp_path))
    parent.kill()
    parent.wait()
    wait_for(lambda: not children(tmp_path))


# --- what the process itself refuses --------------------------------------------------------------------------------


@pytest.fixture
def prepared(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose best weights are linked for an upload; what would be sent is noted in ``sent`` instead."""
    run = RunDir(tmp_path / "run")
    shutil.copytree(tiny_run, run.root)
    run.recipe.write_text(run.recipe.read_text(encoding="utf-8").replace("hub: null", HUB.strip()), encoding="utf-8")
    (best,) = run.checkpoints.glob("best-*")
    shutil.copytree(best, run.upload / "best")
    monkeypatch.setattr(upload, "push_unfinished", lambda folder, hub, **_: (tmp_path / "sent").write_text(hub.repo))
    return run


def test_it_pushes_and_cleans_up_and_changes_nothing_else(prepared: RunDir, tmp_path: Path):
    before = {path: path.read_bytes() for path in prepared.root.rglob("*") if path.is_file()}
    upload.push_best(prepared)
    assert (tmp_path / "sent").read_text() == ID
    after = {path: path.read_bytes() for path in prepared.root.rglob("*") if path.is_file()}
    linked = {path for path in before if prepared.upload in path.parents}
    assert len(linked) == 3 and after == {path: before[path] for path in before.keys() - linked}


def test_it_pushes_nothing_where_the_pretrained_weights_changed(prepared: RunDir, tmp_path: Path):
    prepared.backbone.write_text('{"revision": "other"}')
    with pytest.raises(DataError, match="pretrained weights changed"):
        upload.push_best(prepared)
    assert not (tmp_path / "sent").exists()


def test_it_leaves_room_on_the_disk_for_the_run(prepared: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (best,) = prepared.checkpoints.glob("best-*")
    size = (best / "tensors.safetensors").stat().st_size
    for factor, is_sent in ((9, False), (12, True)):  # the model, and twice a state and its best weights
        usage = type("Usage", (), {"free": factor * size})
        monkeypatch.setattr(upload.shutil, "disk_usage", lambda _, usage=usage: usage)
        if is_sent:
            upload.push_best(prepared)
        else:
            with pytest.raises(EnvironmentFault, match="the run itself may need them"):
                upload.push_best(prepared)
            shutil.copytree(best, prepared.upload / "best")
        assert (tmp_path / "sent").exists() == is_sent


# --- the knob -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "sometimes", "null"])
def test_the_knob_is_a_number_of_steps_or_never(write_recipe, value):
    refused(hft("finetune", write_recipe(extra=f"hub: {{repo: a/b, push_every: {value}}}\n")), 2, "hub.push_every")


def test_policies_and_recommenders_are_pushed_at_the_end_only(tmp_path: Path):
    (tmp_path / "policy.yaml").write_text(POLICY_RECIPE)
    for command in (("rl", "train", tmp_path / "policy.yaml"), ("finetune", "recipes/recommendation.yaml")):
        refused(hft(*command, "--set", "hub.repo=a/b", "--set", "hub.push_every=5"), 2, "hub.push_every: unknown key")
