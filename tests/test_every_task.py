"""What holds for every kind of task: see ``doubles/tiny``, where a kind enters by a tiny recipe.

That every knob of every kind is read, and that few files are there for a kind, is in ``test_architecture.py``, which
takes all kinds there are.
"""

import ast
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import hftoolkit
from doubles import tiny as tiny_recipes
from doubles import toy_kind
from doubles.bert import save_bert
from doubles.commands import hft, read_json, refused
from doubles.paths import ROOT
from doubles.processes import together
from doubles.reviews import review_rows
from hftoolkit.commands.evaluate import evaluate
from hftoolkit.commands.finetune import finetune
from hftoolkit.commands.setup import Setup, prepare
from hftoolkit.contracts import Dataset, Event, HasPairs, StepDone
from hftoolkit.errors import Interrupted, RecipeError
from hftoolkit.metrics.statistics import measure
from hftoolkit.recipe import Recipe, dump_recipe, load_recipe
from hftoolkit.recipe.kinds import RECIPES
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.resume import run_to_resume
from hftoolkit.tasks import task_of
from hftoolkit.tasks.shared.learner import TaskLearner
from hftoolkit.train.distributed.collectives import process_index
from hftoolkit.train.loop import fit, one_step

KINDS = [name for name, recipe in RECIPES.items() if hasattr(recipe, "implementation")]
OVERFITTED_ROWS, OVERFITTED_STEPS = 8, 60
SAME_SUM = 1e-5  # relative, of losses and gradients of one step cut in several ways
SAME_STEP = 1e-6  # on weights, of one process and two
PLAIN = 1e-5  # on numbers of predict's table, relative beyond 1


@dataclass(frozen=True)
class Tiny:
    """The tiny recipe of a kind, and the run of it that all tests read and none changes."""

    kind: str
    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent

    def recipe(self, *overrides: str) -> Recipe:
        recipe = load_recipe(self.path, overrides)
        assert isinstance(recipe, Recipe) and recipe.task.kind == self.kind
        return recipe

    def setup(self, *overrides: str) -> Setup:
        return prepare(self.recipe(*overrides), ignore)

    @cached_property
    def source(self) -> Path:
        return Path(self.recipe().data.source)

    @cached_property
    def run(self) -> Path:
        ended = hft("finetune", self.path, "--run-dir", self.folder / "run")
        assert ended.code == 0, ended
        return self.folder / "run"

    @cached_property
    def results(self) -> Any:
        return read_json(self.run / "results.json")


def module_of(kind: str) -> ModuleType:
    return import_module(f"{tiny_recipes.__name__}.{kind.replace('-', '_')}")


def ignore(event: Event) -> None:
    """Take what a run tells."""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of images, and the one thread that makes sums repeatable, for these tests alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=KINDS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(request.param, module_of(request.param).write(tmp_path_factory.mktemp(request.param)))


def test_every_kind_has_a_tiny_recipe_and_every_tiny_recipe_a_kind() -> None:
    assert len(KINDS) >= 4
    files = {path.stem for path in Path(*tiny_recipes.__path__).glob("*.py")} - {"__init__"}
    assert files == {kind.replace("-", "_") for kind in KINDS}
    assert all(callable(getattr(module_of(kind), name)) for kind in KINDS for name in ("write", "plain"))


# --- the recipe and the package --------------------------------------------------------------------------------------


def test_a_recipe_that_is_written_out_is_read_back_equal(tiny: Tiny) -> None:
    recipe, copy = tiny.recipe(), tiny.folder / "copy.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe
    copy.write_text(dump_recipe(recipe).replace(f"kind: {tiny.kind}", "kind: none-such"), encoding="utf-8")
    refused(hft("finetune", copy), 2, "task.kind", tiny.kind)


LINE = "RECIPES: dict[str, type[AnyFineTuning]] = {\n"
ONE_AFTER_ANOTHER = """
import sys
from hftoolkit.cli import main
for command in sys.argv[1:]:
    sys.argv = ["hftoolkit", *command.split()]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.fixture(scope="module")
def with_toy_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has one kind more: two files, and a line with its import."""
    folder = tmp_path_factory.mktemp("toy")
    package = folder / "hftoolkit"
    shutil.copytree(ROOT / "hftoolkit", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(toy_kind.__path__[0]) / "recipe.py", package / "recipe" / "length.py")
    shutil.copy(Path(toy_kind.__path__[0]) / "task.py", package / "tasks" / "length.py")
    kinds = package / "recipe" / "kinds.py"
    text = kinds.read_text(encoding="utf-8")
    assert LINE in text
    added = f'from hftoolkit.recipe.length import LengthRecipe\n{LINE}    "text-length": LengthRecipe,\n'
    kinds.write_text(text.replace(LINE, added), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_new_kind_is_a_recipe_a_task_and_a_line(with_toy_kind: Path, tmp_path: Path) -> None:
    table, recipe, run = tmp_path / "texts.csv", tmp_path / "toy.yaml", tmp_path / "run"
    table.write_text("".join(f"{text}\n" for text, _ in [("text", ""), *review_rows(60)]), encoding="utf-8")
    recipe.write_text(
        "task: {kind: text-length}\n"
        f"data: {{source: {table}, columns: {{text: text}}}}\n"
        f"model: {{backbone: {save_bert(tmp_path / 'bert')}, max_length: 16}}\n"
        "train: {epochs: 2, batch_size: 8, precision: fp32}\nevaluation: {bootstrap_samples: 100}\n",
        encoding="utf-8",
    )

    commands = [
        ("finetune", recipe, "--dry-run"),
        ("finetune", recipe, "--run-dir", run),
        ("predict", run, table),
        ("evaluate", run),
    ]
    ended = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, *(" ".join(map(str, command)) for command in commands)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(with_toy_kind)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = read_json(run / "results.json")
    assert results["task"] == "text-length" and results["gate"]["rows"] >= 5
    assert "the recipe is good" in ended.stdout and "\nrow,length\n1," in ended.stdout
    assert ended.stdout.count(f"{results['test']['metrics']['mae']:.3f} [") == 2  # of finetune and of evaluate


# --- examples, batches and the loss ----------------------------------------------------------------------------------


def leaves(tree: Any) -> list[Any]:
    """Return what is at the ends of nested dicts, lists and tuples."""
    if isinstance(tree, dict):
        return leaves(list(tree.values()))
    if isinstance(tree, list | tuple):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


def test_batches_are_trees_of_tensors_and_outputs_have_none(tiny: Tiny) -> None:
    setup = tiny.setup()
    task, rows = setup.task, setup.dataset.splits["train"][:5]
    inputs = task.inputs(tiny.source)
    nameless = inputs.read(0, min(5, inputs.num_rows))  # without targets
    for training, raw in ((True, rows), (False, rows), (False, nameless)):
        examples = task.encode(raw)
        assert len(examples) == len(raw) if examples.owners is None else set(examples.owners) == set(range(len(raw)))
        assert examples.lengths is None or len(examples.lengths) == len(examples)
        batch = task.collate(list(examples.items), training=training)
        assert leaves(batch) and all(isinstance(leaf, torch.Tensor) for leaf in leaves(batch))
        with torch.inference_mode():
            outputs = task.predict(setup.tuned.model.eval(), batch)
        assert len(outputs) == len(examples)
        assert not any(isinstance(leaf, torch.Tensor) for leaf in leaves(list(outputs)))
    outputs, rows = setup.learner.outputs(setup.tuned.model, setup.infer, "test"), setup.dataset.splits["test"]
    statistics = task.score(outputs, rows)
    assert statistics.num_rows == len(rows) and measure(statistics).keys() == task.metric_names(rows)


def test_predictions_and_references_for_metrics_of_others_are_plain_and_alike(tiny: Tiny) -> None:
    setup = tiny.setup()
    rows = setup.dataset.splits["test"]
    if not isinstance(setup.task, HasPairs):
        refused(hft("finetune", tiny.path, "--set", "evaluation.extra_metrics=[mape]", "--allow-code"), 2, tiny.kind)
        return
    outputs = setup.learner.outputs(setup.tuned.model, setup.infer, "test")
    predictions, references = setup.task.pairs(outputs, rows)
    assert len(predictions) == len(references) == len(rows) > 5
    assert len(set(map(str, references))) > 1
    for prediction, reference in zip(predictions, references, strict=True):
        found, true = leaves(prediction), leaves(reference)
        assert len(found) == len(true)  # a word, or a class, each
        assert {type(leaf) for leaf in (*found, *true)} in ({int}, {float}, {str})


def summed(setup: Setup, pieces: Sequence[Sequence[Any]]) -> tuple[float, float, int, dict[str, torch.Tensor]]:
    """Return loss, weight, number of examples, and gradients of micro-batches, each added up."""
    model = setup.tuned.model.eval()  # dropout and batch norms see one micro-batch
    model.zero_grad()
    outputs = [setup.task.loss(model, setup.task.collate(piece, training=True)) for piece in pieces]
    for output in outputs:
        output.loss_sum.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients and any(gradient.abs().max() > 1e-4 for gradient in gradients.values())
    losses = sum(output.loss_sum.item() for output in outputs)
    return losses, sum(output.weight for output in outputs), sum(output.num_examples for output in outputs), gradients


@pytest.mark.parametrize("cuts", [(1, 2), (5, 11)], ids=str)
def test_the_loss_of_a_step_is_the_same_however_it_is_cut(cuts: tuple[int, int], tiny: Tiny) -> None:
    setup = tiny.setup()
    examples = list(setup.learner.examples("train").items)[:12]
    first, second = cuts
    loss, weight, count, gradients = summed(setup, [examples])
    assert weight > 0 and count == len(examples)
    cut = summed(setup, [examples[:first], examples[first:second], examples[second:]])
    assert cut[0] == pytest.approx(loss, rel=SAME_SUM)
    assert cut[1] == pytest.approx(weight, rel=SAME_SUM) and cut[2] == count
    torch.testing.assert_close(cut[3], gradients, rtol=SAME_SUM, atol=SAME_SUM)


@pytest.mark.slow
def test_eight_examples_are_learned_by_heart(tiny: Tiny, tmp_path: Path) -> None:
    setup = tiny.setup("model.dropout=0", "train.schedule=constant")
    rows = setup.dataset.splits["train"]
    eight = [rows[index] for index in np.linspace(0, len(rows) - 1, OVERFITTED_ROWS).astype(int).tolist()]
    splits, numbers = dict.fromkeys(("train", "validation"), eight), np.arange(OVERFITTED_ROWS) + 1
    learner = TaskLearner(setup.task, Dataset(splits, dict.fromkeys(splits, numbers), setup.dataset.schema, {}))
    all_at_once = {"batch_size": len(learner.examples("train")), "epochs": OVERFITTED_STEPS}
    losses: list[float] = []
    fit(
        learner,
        setup.tuned,
        train=setup.recipe.train.model_copy(update=all_at_once),
        evaluation=setup.recipe.evaluation,
        accelerator=setup.infer.accelerator,
        run=RunDir.create("eight", tmp_path / "run"),
        emit=lambda event: losses.append(event.loss) if isinstance(event, StepDone) else None,
    )
    assert len(losses) == OVERFITTED_STEPS
    assert losses[-1] < losses[0] / 10, losses


# --- one process, two, and one that is stopped -----------------------------------------------------------------------


def stepped(recipe: Recipe) -> dict[str, Any]:
    """Do one step of a recipe in this process; return its loss and the weights after it."""
    setup = prepare(recipe, ignore)
    before = {name: p.detach().clone() for name, p in setup.tuned.model.named_parameters()}
    loss = one_step(
        setup.learner,
        setup.tuned,
        train=recipe.train,
        evaluation=recipe.evaluation,
        accelerator=setup.infer.accelerator,
    )
    after = dict(setup.tuned.model.state_dict())
    return {"process": process_index(), "loss": loss, "before": before, "after": after}


def descent(
    parameters: Mapping[str, torch.nn.Parameter], scales: Mapping[str, float], *, learning_rate: float, **_: Any
) -> torch.optim.Optimizer:
    """Return plain descent; the first step of Adam is the sign of a gradient, even where that is rounding alone."""
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    return torch.optim.SGD([{"params": trained, "peak_lr": learning_rate}], lr=learning_rate)


@pytest.mark.slow
def test_two_processes_make_the_step_of_one(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hftoolkit.train.loop.build_optimizer", descent)  # also in the processes, which are forked
    recipe = tiny.recipe("model.dropout=0", "train.warmup_ratio=0", "train.learning_rate=1.0", "train.batch_size=7")
    alone, both = stepped(recipe), together(tmp_path, stepped, recipe)
    assert [answer["process"] for answer in both] == [0, 1]
    for answer in both:
        assert answer["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        torch.testing.assert_close(answer["before"], alone["before"], rtol=0, atol=0)
        torch.testing.assert_close(answer["after"], alone["after"], rtol=0, atol=SAME_STEP)
    moved = max(float((alone["after"][name] - old).abs().max()) for name, old in alone["before"].items())
    assert moved > 1000 * SAME_STEP


def remains(run: Path) -> dict[str, Any]:
    """Return what a run leaves behind that is no matter of time."""
    results = read_json(run / "results.json")
    for name in ("seconds", "examples_per_second", "peak_memory_bytes"):
        results["train"].pop(name, None)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "results": results,
        "metrics": [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines],
        "predictions": (run / "predictions" / "test.csv").read_bytes(),
        "model": {path.name: path.read_bytes() for path in (run / "model").glob("*.safetensors")},
    }


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_is_the_uninterrupted_one(tiny: Tiny, tmp_path: Path) -> None:
    whole = remains(tiny.run)
    steps = [line["step"] for line in whole["metrics"] if line["event"] == "step"]
    middle = steps[len(steps) * 3 // 4]  # of an epoch that is not the first

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == middle:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        finetune(tiny.recipe(), name="tiny", run_dir=tmp_path / "run", emit=stop)
    assert not (tmp_path / "run" / "results.json").exists()
    first: list[int] = []
    finetune(
        tiny.recipe(),
        name="tiny",
        run_dir=tmp_path / "run",
        emit=lambda event: first.append(event.step) if isinstance(event, StepDone) else None,
        resume=True,
    )
    assert first[0] == middle + 1
    resumed = remains(tmp_path / "run")
    assert whole["model"] and whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []


@pytest.mark.slow
def test_a_finished_run_is_extended_by_more_epochs_and_by_nothing_else(tiny: Tiny) -> None:
    refused(hft("finetune", tiny.path, "--run-dir", tiny.run, "--resume"), 2, "a larger train.epochs would extend it")
    longer = run_to_resume(tiny.recipe("train.epochs=99"), "", tiny.run).root
    assert longer == tiny.run / "extension" and not longer.exists()
    for changes in (["train.epochs=1"], ["train.epochs=99", "train.batch_size=5"]):
        with pytest.raises(RecipeError, match="with another recipe"):
            run_to_resume(tiny.recipe(*changes), "", tiny.run)


# --- what a finished run answers -------------------------------------------------------------------------------------


def test_predict_gives_the_answers_of_plain_libraries(tiny: Tiny) -> None:
    ended = hft("predict", tiny.run, tiny.source)
    assert ended.code == 0, ended
    rows = list(csv.DictReader(ended.out.splitlines()))
    expected = module_of(tiny.kind).plain(tiny.run / "model", tiny.source)
    assert expected and expected.keys() <= rows[0].keys()
    for name, cells in expected.items():
        shown = [row[name] for row in rows]
        assert len(set(shown)) > 1, f"a model that always says the same proves nothing: {name}"
        for number, (found, cell) in enumerate(zip(shown, cells, strict=True), start=1):
            assert_alike(found if isinstance(cell, str) else json.loads(found), cell, f"{name} of row {number}")


def assert_alike(found: Any, expected: Any, where: str) -> None:
    """Compare trees of plain JSON types, floats within a tolerance relative to numbers beyond 1."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected), (where, found, expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other, where)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=PLAIN, abs=PLAIN), where
    else:
        assert found == expected, where


def test_the_gate_passes(tiny: Tiny) -> None:
    gate = tiny.results["gate"]
    assert gate["rows"] >= 5 and 0 <= gate["saved"] < 1e-4  # 1e-5, but outputs far from 0 have coarser steps


@pytest.mark.slow
def test_a_spoiled_head_does_not_pass_the_gate(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = task_of(tiny.recipe())
    honest, spoiled = kind.save, []

    def save(self: Any, model: torch.nn.Module, folder: Path) -> None:
        honest(self, model, folder)
        path = folder / "model.safetensors"
        weights = load_file(path)
        last = list(model.state_dict())[-1]
        (name,) = [name for name in weights if f".{last}".endswith(f".{name}")]
        spoiled.append(name)
        save_file(weights | {name: weights[name] + 0.01}, path, metadata={"format": "pt"})

    monkeypatch.setattr(kind, "save", save)
    run = tiny.folder / "spoiled"
    ended = hft(
        "finetune", tiny.path, "--run-dir", run, "--set", "train.epochs=1", "--set", "evaluation.baselines=false"
    )
    assert spoiled
    refused(ended, 6, "saved against reloaded")
    assert read_json(run / "status.json")["exit_code"] == 6 and not (run / "results.json").exists()


def test_evaluate_repeats_the_numbers_of_the_run(tiny: Tiny) -> None:
    found = evaluate(tiny.run, split="test", source=None, emit=ignore)
    expected = tiny.results["test"]
    assert found.keys() == expected.keys() and found["examples"] == expected["examples"]
    assert found["metrics"] == expected["metrics"]
    assert found["intervals"].keys() == expected["intervals"].keys()
    for name, interval in found["intervals"].items():
        assert list(interval) == expected["intervals"][name], name


def test_the_snippet_of_the_card_runs(tiny: Tiny) -> None:
    card = (tiny.run / "model" / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "path/or/repository" in snippet and "hftoolkit" not in snippet
    *statements, last = ast.parse(snippet.replace("path/or/repository", str(tiny.run / "model"))).body
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    with chdir(tiny.folder):
        exec(compile(ast.Module(statements, []), "card", "exec"), names)
        assert isinstance(eval(compile(ast.Expression(last.value), "card", "eval"), names), list)


def test_intervals_hold_their_values(tiny: Tiny) -> None:
    test, task = tiny.results["test"], task_of(tiny.recipe())
    names = set(task.headline) & test["metrics"].keys() - {"ece"}  # which is biased upwards in resamples
    assert names and task.compared_by in test["metrics"]
    for name in names:
        low, high = test["intervals"][name]
        assert low <= test["metrics"][name] <= high, name
    assert any(low < high for low, high in test["intervals"].values())


def test_a_dry_run_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    def files() -> dict[Path, tuple[int, int]]:
        found = {path: path.stat() for folder in (tiny.folder, tmp_path) for path in folder.rglob("*")}
        return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}

    before = files()
    with chdir(tmp_path):
        ended = hft("finetune", tiny.path, "--dry-run", "--run-dir", tmp_path / "run")
    assert ended.code == 0 and "the recipe is good" in ended.out, ended
    assert files() == before


def test_a_run_and_its_model_answer_alike(tiny: Tiny) -> None:
    answers = []
    for place in (tiny.run, tiny.run / "model"):
        predictor = hftoolkit.load(place)
        answers.append(predictor.answers(predictor.task.inputs(tiny.source)))
    assert answers[0] == answers[1] and len(answers[0]) > 5
