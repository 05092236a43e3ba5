"""What each reinforcement-learning command does, from the recipe to the run directory."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftoolkit.contracts import Emit, Message, Table
from hftoolkit.data.sources.resolve import resolve_model
from hftoolkit.data.sources.sealing import seal
from hftoolkit.errors import DataError, EnvironmentFault, HFToolkitError, RecipeError
from hftoolkit.export.manifest import Manifest
from hftoolkit.hub.push import publish
from hftoolkit.hub.repository import check_push_access
from hftoolkit.metrics.returns import return_intervals, return_metrics, seed_metrics
from hftoolkit.recipe import Dqn, MlpNetwork, ReinforcementRecipe, is_reinforcement_recipe, load_reinforcement_recipe
from hftoolkit.rl.artifact import check_saved, load_policy, load_weights, save_policy
from hftoolkit.rl.card import write_policy_card
from hftoolkit.rl.dqn import DqnAgent
from hftoolkit.rl.environments import Environments, Translation, check_environment, make_environment, register
from hftoolkit.rl.evaluation import Episodes, Policy, RandomPolicy, evaluate_policy
from hftoolkit.rl.tabular import TabularAgent
from hftoolkit.rl.training import LARGE_STATE_BYTES, Training
from hftoolkit.rl.video import check_video, record_video, show
from hftoolkit.runs.attempts import Attempts, complete_report
from hftoolkit.runs.checkpoint import keep_newest
from hftoolkit.runs.directory import RunDir, read_json, write_json
from hftoolkit.runs.extension import hand_over
from hftoolkit.runs.figures import write_learning_curve_png
from hftoolkit.runs.lifecycle import (
    finished_run_lifecycle,
    run_lifecycle,
    truncate_log,
    with_recording,
    write_status,
)
from hftoolkit.runs.resume import Resume, check_model, open_run, write_manifest
from hftoolkit.runs.tables import return_text
from hftoolkit.train.tracking import tracked

Agent = DqnAgent | TabularAgent


def train(
    recipe: ReinforcementRecipe,
    *,
    name: str,
    run_dir: Path | None,
    seeds: int,
    resume: Resume,
    allow_code: bool,
    emit: Emit,
) -> Path:
    """Train one agent, or several that differ in their seed; measure them; return the run directory.

    Args:
        recipe: what to do; ``train.seed`` is the first seed.
        name: run name, used when ``run_dir`` is None.
        run_dir: exactly where the run goes, or is.
        seeds: how many agents; more than one are runs of their own in ``seeds/``.
        resume: go on with the run of that name or directory that is not done; ``auto``: start it if there is none, and
            do nothing if it is done.
        allow_code: import the module that the recipe names.
        emit: gets everything a user or a log wants to see.

    Raises:
        HFToolkitError: see ``errors``; status.json says what happened.
    """
    if recipe.hub is not None and seeds > 1:
        raise RecipeError(
            "hub.repo holds one policy; leave out the section hub, and push the seed of your choice later"
        )
    _prepare(recipe, allow_code=allow_code, emit=emit)
    run = open_run(recipe, name, run_dir, resume=resume, emit=emit)
    if resume:
        _refuse_another_count(run, seeds)
    if run.is_done():
        complete_report(run, partial(report, run.root, emit=emit), emit)
        publish(recipe.hub, run, emit=emit)
        return run.root
    if seeds == 1:
        _train_one(recipe, run, emit)
    else:
        _train_seeds(recipe, run, seeds, emit)
    return hand_over(run).root


def dry_run(recipe: ReinforcementRecipe, *, run_dir: Path | None, allow_code: bool, emit: Emit) -> float:
    """Make the agent, act, update once and play one evaluation episode; write nothing; return that episode's return."""
    if run_dir is not None:
        RunDir.check_free(run_dir)
    check_push_access(recipe.hub, create=False, emit=emit)
    _prepare(recipe, allow_code=allow_code, emit=emit)
    with _agent(recipe) as agent:
        _begin_from(recipe, agent)
        agent.advance()
        if isinstance(agent, DqnAgent):
            agent.learn(1)
        agent.environments.close()  # some simulators allow one copy at a time
        return float(_play(recipe, agent, episodes=1, seed=recipe.evaluation.seed).returns[0])


def evaluate(folder: Path, *, episodes: int | None, seed: int | None, allow_code: bool, emit: Emit) -> dict[str, Any]:
    """Measure the saved policy of a run again; default: the episodes that the run ended with."""
    recipe, policy = _saved(folder, allow_code, emit)
    settings = recipe.evaluation
    played = _play(recipe, policy, episodes=episodes or settings.episodes, seed=settings.seed if seed is None else seed)
    measured = _measured(recipe, played)
    emit(_table(f"{folder}, {len(played.returns)} greedy episodes", {"policy": measured}))
    return measured


def play(folder: Path, *, episodes: int, seed: int | None, video: Path | None, allow_code: bool, emit: Emit) -> None:
    """Replay the policy of a run in a window, or into a video file.

    Raises:
        RecipeError: the video exists, or its format is unknown.
        EnvironmentFault: there is no display for a window.
    """
    recipe, policy = _saved(folder, allow_code, emit)
    make = partial(make_environment, recipe.environment)
    if video is not None:
        check_video(video)
    elif not _has_display():
        raise EnvironmentFault("there is no display for a window; add --video FILE.mp4 or FILE.gif")
    first = recipe.evaluation.seed if seed is None else seed
    if video is None:
        returns = show(policy, lambda: make("human"), episodes=episodes, seed=first)
    else:
        returns = record_video(policy, lambda: make("rgb_array"), video, episodes=episodes, seed=first)
        emit(Message(f"wrote {video}"))
    for number, value in enumerate(returns):
        emit(Message(f"episode {number}: return {value:g}"))


def _train_one(recipe: ReinforcementRecipe, run: RunDir, emit: Emit) -> None:
    """Train one agent in a run directory, from where it was left."""
    listen = with_recording(run, emit)
    with run_lifecycle(run) as ending:
        write_manifest(recipe, run, listen)
        check_push_access(recipe.hub, create=True, emit=listen)
        with _agent(recipe) as agent, tracked(recipe.train.trackers, run, listen) as listen_and_track:
            _learn_and_measure(recipe, agent, run, listen_and_track)
        ending.update(_describe(recipe, run, listen))
    keep_newest(run.checkpoints, most_bytes=LARGE_STATE_BYTES)
    publish(recipe.hub, run, emit=listen)


def _learn_and_measure(recipe: ReinforcementRecipe, agent: Agent, run: RunDir, listen: Emit) -> None:
    def evaluate(look: Callable[[], None]) -> Episodes:
        settings = recipe.evaluation
        return _play(recipe, agent, episodes=settings.curve_episodes, seed=settings.seed + 1, look=look)

    training = Training(
        agent=agent,
        settings=recipe.train,
        curve_points=recipe.evaluation.curve_points if _has_room(recipe, listen) else 0,
        evaluate=evaluate,
        checkpoints=run.checkpoints,
        emit=listen,
    )
    if not training.resume():
        _begin_from(recipe, agent)
    truncate_log(run, agent.step)
    training.run()
    agent.environments.close()  # some simulators allow one copy at a time
    save_policy(run.model, agent, recipe)
    check_saved(run.model, agent)
    Manifest(without_paths(recipe)).write(run.model)
    seal(run.model)
    played = _play(recipe, agent, episodes=recipe.evaluation.episodes, seed=recipe.evaluation.seed)
    write_json(run.results, _results(recipe, agent, training, played))


def report(folder: Path, *, emit: Emit, allow_code: bool = False) -> None:
    """Draw and describe a finished run again, of one seed or several, from its results; no environment is made.

    Raises:
        DataError: it did not finish.
        HFToolkitError: a part of the report failed again.
    """
    run = RunDir.open(folder)
    if not run.is_done():
        run.check_finished()
    with finished_run_lifecycle(run):
        ending = _describe(load_reinforcement_recipe(run.recipe), run, with_recording(run, emit))
        write_status(run, "done", exit_code=0, **ending)
    if ending:
        raise HFToolkitError(f"failed again: {', '.join(ending['without'])}; {run.log} says why")


def _describe(recipe: ReinforcementRecipe, run: RunDir, listen: Emit) -> dict[str, list[str]]:
    """Draw and describe what results.json says; return what status.json says of parts that failed."""
    results, attempts = read_json(run.results), Attempts(run, listen)
    with attempts.at("learning curve"):
        seeds = {name: read_json(run.seed(int(name)).results) for name in results.get("seeds", ())}
        _draw_curves(recipe, run, seeds or {str(recipe.train.seed): results})
    with attempts.at("closing table"):
        listen(_results_table(results))
    if "seeds" not in results:
        with attempts.at("model card"):
            write_policy_card(run, without_paths(recipe), results, Translation(**results.get("translation", {})))
    attempts.warn_of_missing()
    return attempts.ending()


def _has_room(recipe: ReinforcementRecipe, emit: Emit) -> bool:
    """Return whether another copy of the environment can be made beside those that learn, to evaluate the policy in."""
    if recipe.evaluation.curve_points == 0:
        return True
    try:
        make_environment(recipe.environment).close()
    except EnvironmentFault as error:
        text = (
            f"no more copies of {recipe.environment.id} can be made while the agent learns ({error}), so there is no "
            "learning curve; the policy is evaluated at the end"
        )
        emit(Message(text, "warning"))
        return False
    return True


def _begin_from(recipe: ReinforcementRecipe, agent: Agent) -> None:
    """Give the agent the weights or the table of another run, if the recipe names one."""
    source = recipe.train.start_from
    if source is None:
        return
    run = RunDir(Path(source))
    if run.recipe.is_file():
        run.check_finished()
        folder = run.model
    else:
        folder = run.root if run.root.is_dir() else resolve_model(source).path
    agent.begin_with(load_weights(folder))


def _train_seeds(recipe: ReinforcementRecipe, run: RunDir, seeds: int, emit: Emit) -> None:
    """Train one agent after the other, and report over all."""
    listen = with_recording(run, emit)
    with run_lifecycle(run) as ending:
        write_manifest(recipe, run, listen)
        found: dict[str, dict[str, Any]] = {}
        for number in range(recipe.train.seed, recipe.train.seed + seeds):
            one = run.seed(number)
            if not one.is_done() or load_reinforcement_recipe(one.recipe).train.steps < recipe.train.steps:
                one.root.mkdir(parents=True, exist_ok=True)
                listen(Message(f"seed {number}"))
                _train_one(_with_seed(recipe, number), one, emit)
            found[str(number)] = read_json(one.results)
        write_json(run.results, _results_over_seeds(recipe, found))
        ending.update(_describe(recipe, run, listen))


def _draw_curves(recipe: ReinforcementRecipe, run: RunDir, found: dict[str, dict[str, Any]]) -> None:
    """Draw the learning curves of seeds, from their results by name, if they were evaluated on the way."""
    curves = {name: results["curve"] for name, results in found.items() if results["curve"]}
    if curves:
        run.report.mkdir(exist_ok=True)
        write_learning_curve_png(curves, recipe.environment.id, run.learning_curve)


def _prepare(recipe: ReinforcementRecipe, *, allow_code: bool, emit: Emit = lambda _: None) -> None:
    """Make the environment known, and keep what draws it from looking for a display where there is none."""
    if not _has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    register(recipe.environment, allow_code=allow_code)
    for sentence in check_environment(recipe.environment):
        emit(Message(sentence, "warning"))


@contextmanager
def _agent(recipe: ReinforcementRecipe) -> Iterator[Agent]:
    """Make environments and agent, and close the environments afterwards; small networks get one processor."""
    environments = Environments(recipe.environment, seed=recipe.train.seed)
    is_small = not isinstance(recipe.algorithm, Dqn) or isinstance(recipe.algorithm.network, MlpNetwork)
    threads = torch.get_num_threads()
    try:
        if is_small:
            torch.set_num_threads(1)  # dividing matrices this small takes longer than multiplying them
        device = torch.device("cuda" if torch.cuda.is_available() and not is_small else "cpu")
        yield _build(recipe, environments, device)
    finally:
        torch.set_num_threads(threads)
        environments.close()


def _has_display() -> bool:
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


def _build(recipe: ReinforcementRecipe, environments: Environments, device: torch.device) -> Agent:
    seed, steps = recipe.train.seed, recipe.train.steps
    match recipe.algorithm:
        case Dqn() as section:
            return DqnAgent(
                section,
                environments,
                pixels=recipe.environment.pixels,
                seed=seed,
                total_steps=steps,
                device=device,
                speedups=recipe.train.speedups == "auto",
            )
        case section:
            return TabularAgent(section, environments, seed=seed, total_steps=steps)


def _play(
    recipe: ReinforcementRecipe,
    policy: Policy,
    *,
    episodes: int,
    seed: int,
    look: Callable[[], None] = lambda: None,
) -> Episodes:
    make = partial(make_environment, recipe.environment)
    return evaluate_policy(policy, make, episodes=episodes, seed=seed, look=look)


def _results(recipe: ReinforcementRecipe, agent: Agent, training: Training, played: Episodes) -> dict[str, Any]:
    random = RandomPolicy(agent.environments.num_actions, recipe.evaluation.seed)
    baseline = _play(recipe, random, episodes=recipe.evaluation.episodes, seed=recipe.evaluation.seed)
    trained: dict[str, Any] = {
        "seconds": training.seconds,
        "steps": agent.step,
        "steps_per_second": agent.step / training.seconds,
    }
    if training.extended:
        trained["extended_at_steps"] = training.extended
    number, lowest, highest = agent.environments.returns
    if number > 1 and lowest == highest:
        trained["only_return"] = lowest
    return {
        "task": "reinforcement-learning",
        "environment": recipe.environment.id,
        "test": _measured(recipe, played),
        "baselines": {"random actions": _measured(recipe, baseline)},
        "train": trained,
        "curve": training.curve,
        "translation": asdict(agent.environments.translation),
    }


def _results_over_seeds(recipe: ReinforcementRecipe, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    means = np.array([each["test"]["metrics"]["mean_return"] for each in found.values()])
    intervals = return_intervals(
        means,
        ("mean_return", "iqm_return"),
        samples=recipe.evaluation.bootstrap_samples,
        seed=recipe.evaluation.seed,
    )
    return {
        "task": "reinforcement-learning",
        "environment": recipe.environment.id,
        "test": {"examples": len(means), "metrics": seed_metrics(means), "intervals": intervals},
        "baselines": next(iter(found.values()))["baselines"],
        "train": {name: sum(each["train"][name] for each in found.values()) for name in ("seconds", "steps")},
        "seeds": {name: each["test"] for name, each in found.items()},
    }


def _measured(recipe: ReinforcementRecipe, played: Episodes) -> dict[str, Any]:
    settings = recipe.evaluation
    return {
        "examples": len(played.returns),
        "metrics": return_metrics(played.returns, played.lengths),
        "intervals": return_intervals(
            played.returns, ("mean_return",), samples=settings.bootstrap_samples, seed=settings.seed
        ),
    }


def _results_table(results: dict[str, Any]) -> Table:
    seeds = {f"seed {name}": measured for name, measured in results.get("seeds", {}).items()}
    rows = {("all seeds" if seeds else "policy"): results["test"], **seeds, **results["baselines"]}
    what = "greedy episodes of the final policy" if not seeds else "seeds, each measured on its final policy"
    title = f"{results['environment']}, {results['test']['examples']} {what}, 95 % intervals"
    return _table(title + _nothing_seen(results), rows)


def _nothing_seen(results: dict[str, Any]) -> str:
    """Return what to say of a training in which no episode was better than any other; else nothing."""
    if "only_return" not in results["train"]:
        return ""
    return (
        f". Every episode of training returned {results['train']['only_return']:g}, of which nothing can be learned: "
        "let it explore more (algorithm.epsilon_fraction; for dqn, repeat_exponent=1.5), or reward the way"
    )


def _table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    columns = {"mean_return": "mean return", "iqm_return": "IQM", "min_return": "lowest", "max_return": "highest"}
    shown = [name for name in columns if any(name in measured["metrics"] for measured in rows.values())]
    cells = tuple((name, *(_cell(measured, metric) for metric in shown)) for name, measured in rows.items())
    return Table(title, ("", *(columns[metric] for metric in shown)), cells)


def _cell(measured: dict[str, Any], metric: str) -> str:
    if metric not in measured["metrics"]:
        return "-"
    value = return_text(measured["metrics"][metric])
    if metric not in measured["intervals"]:
        return value
    low, high = map(return_text, measured["intervals"][metric])
    return f"{value} [{low}, {high}]"


def load_run(folder: Path, emit: Emit = lambda _: None) -> Policy:
    """Return the greedy policy of a finished run; its environment is not made.

    Raises:
        DataError: the run did not finish, or its policy cannot be read.
    """
    run = RunDir.open(folder)
    check_model(run, emit)
    return load_policy(run.model)


def load_model(folder: Path, manifest: Manifest, emit: Emit) -> Policy:
    """Return the greedy policy of a model folder."""
    return load_policy(folder)


def _saved(folder: Path, allow_code: bool, emit: Emit) -> tuple[ReinforcementRecipe, Policy]:
    run = RunDir.open(folder)
    if not is_reinforcement_recipe(run.recipe):
        raise DataError(f"{folder} is no reinforcement-learning run; type: hftoolkit evaluate {folder}")
    recipe = load_reinforcement_recipe(run.recipe)
    check_model(run, emit)
    _prepare(recipe, allow_code=allow_code)
    return recipe, load_policy(run.model)


def _refuse_another_count(run: RunDir, seeds: int) -> None:
    if run.seeds.is_dir() and seeds == 1:
        raise RecipeError(f"{run.root} holds several seeds; say how many with --seeds")
    if run.checkpoints.is_dir() and seeds > 1:
        raise RecipeError(f"{run.root} is a run of one seed; leave out --seeds")


def without_paths(recipe: ReinforcementRecipe) -> ReinforcementRecipe:
    """Return the recipe as it is published: without a folder of the machine that trained it."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"start_from": None})})


def _with_seed(recipe: ReinforcementRecipe, seed: int) -> ReinforcementRecipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
