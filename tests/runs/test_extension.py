"""More epochs for a finished run, and which run a command that is repeated is about."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from doubles.reviews import RECIPE
from hftoolkit.contracts import Event, Message
from hftoolkit.errors import DataError, EnvironmentFault, RecipeError
from hftoolkit.recipe import AnyRecipe, load_recipe
from hftoolkit.runs import resume, revisions
from hftoolkit.runs.checkpoint import save_best, save_state
from hftoolkit.runs.directory import RunDir, read_json, write_json
from hftoolkit.runs.extension import begin_extension, end_hand_over, hand_over
from hftoolkit.runs.lifecycle import locked, run_lifecycle, write_status
from hftoolkit.runs.resume import open_finished, open_run, run_to_resume, write_manifest

Recipes = Callable[..., AnyRecipe]


def silent(event: Event) -> None:
    pass


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipes:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(table="t.csv", backbone="./bert"))
    return lambda *changes: load_recipe(path, ["train.epochs=2", *changes])


def train(recipe: AnyRecipe, run: RunDir, step: int) -> None:
    """Write what a training writes: its checkpoints, and a model that says what it is."""
    write_manifest(recipe, run, silent)
    best = save_best(run.checkpoints, step=step, weights={"w": torch.ones(1)}, metrics={"f1": 0.5})
    save_state(run.checkpoints, step=step, tensors={"w": torch.ones(1)}, values={}, best=best)
    run.model.mkdir(exist_ok=True)
    (run.model / "config.json").write_text(f"after step {step}")
    write_json(run.results, {"steps": step})


@pytest.fixture
def run(recipes: Recipes, tmp_path: Path) -> RunDir:
    """A finished run of two epochs, twenty steps."""
    run = RunDir.create("tiny", tmp_path / "run")
    with run_lifecycle(run):
        train(recipes(), run, 20)
        (run.model / "left over").touch()
    return run


def remains(run: RunDir) -> dict[str, bytes]:
    return {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for path in run.root.rglob("*")
        if path.is_file() and not path.is_relative_to(run.extension().root) and path != run.lock
    }


def extend(recipes: Recipes, run: RunDir, *changes: str) -> RunDir:
    return open_run(recipes(*changes), "tiny", run.root, resume=True, emit=silent)


def test_an_extension_that_fails_or_is_killed_leaves_the_finished_run_as_it_was(recipes: Recipes, run: RunDir):
    before = remains(run)
    longer = extend(recipes, run, "train.epochs=3")
    with pytest.raises(DataError), run_lifecycle(longer):
        write_manifest(recipes("train.epochs=3"), longer, silent)
        raise DataError("the data is gone")
    assert remains(run) == before
    train(recipes("train.epochs=3"), longer, 25)  # and then a kill
    write_status(longer, "running")
    assert remains(run) == before
    assert open_finished(run.root).is_done()
    with pytest.raises(RecipeError, match=r"is done; .*its extension is not: add --set train\.epochs=3"):
        run_to_resume(recipes(), "tiny", run.root)
    assert extend(recipes, run, "train.epochs=3").root == longer.root
    assert sorted(path.name for path in longer.checkpoints.glob("step-*")) == ["step-000020", "step-000025"]


def test_a_done_extension_takes_the_place_of_the_run(recipes: Recipes, run: RunDir):
    longer = extend(recipes, run, "train.epochs=3")
    with run_lifecycle(longer):
        train(recipes("train.epochs=3"), longer, 30)
    assert hand_over(longer) == run
    assert (run.model / "config.json").read_text() == "after step 30"
    assert not (run.model / "left over").exists()  # nothing of the old model is mixed with the new one
    assert "epochs: 3" in run.recipe.read_text() and read_json(run.results) == {"steps": 30}
    assert run.is_done() and not longer.root.exists() and not list(run.root.glob(".*-old"))
    assert extend(recipes, run, "train.epochs=4").root == longer.root  # and it can be extended again


@pytest.mark.parametrize("moves", range(8))
def test_a_kill_while_files_change_places_is_mended_by_the_next_command(
    recipes: Recipes, run: RunDir, monkeypatch: pytest.MonkeyPatch, moves: int
):
    longer = extend(recipes, run, "train.epochs=3")
    with run_lifecycle(longer):
        train(recipes("train.epochs=3"), longer, 30)
    left, replace = iter(range(moves)), os.replace

    def die(source: Path, target: Path) -> None:
        next(left)  # raises StopIteration
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises((StopIteration, RuntimeError)):
        patch.setattr(os, "replace", die)
        end_hand_over(run)
    assert open_finished(run.root).is_done()
    assert (run.model / "config.json").read_text() == "after step 30"
    assert "epochs: 3" in run.recipe.read_text() and read_json(run.results) == {"steps": 30}
    assert not longer.root.exists()


def test_an_extension_without_a_step_can_be_another_one(recipes: Recipes, run: RunDir):
    longer = extend(recipes, run, "train.epochs=300")
    write_status(longer, "failed")
    assert extend(recipes, run, "train.epochs=3").root == longer.root
    assert "epochs: 3\n" in longer.recipe.read_text()
    train(recipes("train.epochs=3"), longer, 25)
    with pytest.raises(RecipeError, match=r"is being extended by another recipe:\n  train\.epochs: 3 -> 4"):
        extend(recipes, run, "train.epochs=4")


def test_a_run_without_its_states_is_not_extended(recipes: Recipes, run: RunDir):
    shutil.rmtree(run.checkpoints)
    with pytest.raises(DataError, match="is gone, and with it what"):
        extend(recipes, run, "train.epochs=3")
    assert not run.extension().root.exists()


def test_checkpoints_are_copied_where_links_are_not_possible(recipes: Recipes, run: RunDir, monkeypatch):
    def refuse(source: str, target: str) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    longer = begin_extension(run, recipes("train.epochs=3"))
    assert (longer.checkpoints / "step-000020" / "MANIFEST.json").is_file()


def test_a_run_of_several_seeds_is_extended_in_copies_of_them(recipes: Recipes, run: RunDir):
    seed = RunDir(run.root.rename(run.root.with_name("one")))
    outer = RunDir.create("tiny", run.root)
    with run_lifecycle(outer):
        write_manifest(recipes(), outer, silent)
        outer.seeds.mkdir()
        shutil.copytree(seed.root, outer.seed(0).root)
        (outer.seed(0).root / "train.log").write_text("two epochs")
    before = remains(outer)
    longer = extend(recipes, outer, "train.epochs=3")
    train(recipes("train.epochs=3"), longer.seed(0), 30)
    with (longer.seed(0).root / "train.log").open("a") as log:
        log.write(", and a third")
    assert remains(outer) == before
    write_status(longer, "done")
    assert open_run(recipes("train.epochs=3"), "tiny", outer.root, resume="auto", emit=silent) == outer
    assert (outer.seed(0).root / "train.log").read_text() == "two epochs, and a third"


# One command for a scheduler


def repeat(recipe: AnyRecipe, exact: Path | None = None) -> RunDir:
    return open_run(recipe, "tiny", exact, resume="auto", emit=silent)


@pytest.mark.parametrize("exact", [Path("mine"), None])
def test_auto_starts_resumes_and_then_has_nothing_to_do(recipes: Recipes, exact: Path | None):
    first = repeat(recipes(), exact)
    assert not first.recipe.exists()
    train(recipes(), first, 5)
    write_status(first, "running")  # killed
    assert repeat(recipes(), exact) == first and not first.is_done()
    write_status(first, "done")
    assert repeat(recipes(), exact) == first and first.is_done()
    assert repeat(recipes("train.epochs=3"), exact) == first.extension()


def test_auto_finds_the_run_of_its_own_recipe(recipes: Recipes):
    other = repeat(recipes("train.seed=5"))
    train(recipes("train.seed=5"), other, 5)
    mine = repeat(recipes())
    assert mine.root == Path("runs/tiny-2")
    train(recipes(), mine, 5)
    write_status(mine, "done")
    os.utime(other.recipe)  # newer, and unfinished
    assert repeat(recipes()) == mine
    assert repeat(recipes("train.seed=5")) == other


def test_auto_goes_on_with_an_extension(recipes: Recipes, run: RunDir):
    longer = repeat(recipes("train.epochs=3"), run.root)
    write_status(longer, "running")
    assert repeat(recipes("train.epochs=3"), run.root) == longer
    assert repeat(recipes(), run.root) == run


def test_auto_begins_again_after_a_start_that_failed_and_refuses_a_run_of_another_recipe(recipes: Recipes):
    first = repeat(recipes(), Path("mine"))
    write_manifest(recipes(), first, silent)
    write_status(first, "failed")
    assert list(repeat(recipes("train.seed=5"), Path("mine")).root.iterdir()) == []
    train(recipes(), first, 5)
    write_status(first, "running")
    with pytest.raises(RecipeError, match="with another recipe"):
        repeat(recipes("train.seed=5"), Path("mine"))


# The same command once more


def test_the_same_command_after_a_kill_names_the_unfinished_run_and_the_way_back(recipes: Recipes):
    told: list[Event] = []

    def start(*changes: str) -> RunDir:
        return open_run(recipes(*changes), "tiny", None, resume=False, emit=told.append)

    killed = start()
    train(recipes(), killed, 5)
    write_status(killed, "running")
    with locked(killed):
        pass
    assert told == [] and start().root == Path("runs/tiny-2")
    (message,) = told
    assert isinstance(message, Message) and message.level == "warning"
    assert "runs/tiny is an unfinished run of this recipe" in message.text
    assert "add --resume --run-dir runs/tiny" in message.text
    start("train.seed=5")  # another recipe could not resume it
    write_status(killed, "done")
    start()
    assert len(told) == 1


# What the environment and the Hub were when the run began


def test_a_resumed_run_tells_of_other_packages_threads_and_processors(recipes: Recipes, run: RunDir):
    before = read_json(run.environment)
    write_json(run.environment, before | {"threads": 64, "packages": before["packages"] | {"torch": "0.1"}})
    told: list[Event] = []
    write_manifest(recipes(), run, told.append)
    (message,) = told
    assert isinstance(message, Message) and message.level == "warning"
    assert "torch 0.1 -> " in message.text and f"threads 64 -> {before['threads']}" in message.text
    told.clear()
    write_manifest(recipes(), run, told.append)
    assert told == []


def test_what_an_unpinned_hub_address_means_is_asked_once(recipes: Recipes, run: RunDir, monkeypatch):
    asked: list[str] = []

    def commit(address: str, kind: str) -> str | None:
        asked.append(f"{kind} {address}")
        return f"{len(asked):040x}" if "/" in address and not address.startswith(".") else None

    monkeypatch.setattr(revisions, "movable_commit", commit)
    moving = recipes("model.backbone=some/bert@main", "data.source=some/reviews")
    first = revisions.pinned(moving, run)
    assert (first.model.backbone, first.data.source) == (f"some/bert@{2:040x}", f"some/reviews@{1:040x}")
    assert revisions.pinned(moving, run) == first == revisions.as_begun(moving, run)
    assert asked == ["dataset some/reviews", "model some/bert@main"]
    assert revisions.pinned(recipes(), run) == recipes()
    assert json.loads(run.revisions.read_text()).keys() == {"some/reviews", "some/bert@main"}


def test_a_lock_that_is_held_keeps_an_extension_where_it_is(recipes: Recipes, run: RunDir, monkeypatch):
    longer = extend(recipes, run, "train.epochs=3")
    train(recipes("train.epochs=3"), longer, 30)
    write_status(longer, "done")
    monkeypatch.setattr(RunDir, "is_at_work", lambda self: True)
    assert open_finished(run.root).is_done()
    assert (run.model / "config.json").read_text() == "after step 20"


def test_a_folder_for_an_extension_that_cannot_be_made_is_a_fault_of_the_environment(recipes, run, monkeypatch):
    monkeypatch.setattr(resume.shutil, "copytree", lambda *_, **__: os.rename("nowhere", "there"))
    with pytest.raises(EnvironmentFault, match="to extend"):
        extend(recipes, run, "train.epochs=3")
    assert not list(run.root.glob(".extension*"))
