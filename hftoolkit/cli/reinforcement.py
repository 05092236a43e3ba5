"""Commands on agents: train, measure, watch."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from hftoolkit.cli.options import (
    AllowCode,
    Overrides,
    RecipeFile,
    Resumable,
    ResumeChoice,
    RunDirectory,
    RunFolder,
    check_not_both,
)

app = typer.Typer(help="Reinforcement learning: DQN, Q-learning, SARSA.", no_args_is_help=True)

EvaluationSeed = Annotated[
    Optional[int],
    typer.Option("--seed", min=0, help="Seed of the episodes. Default: evaluation.seed of the run."),
]


@app.command(cls=Resumable)
def train(
    recipe: RecipeFile,
    set_: Overrides = None,
    run_dir: RunDirectory = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Train so many agents, from train.seed on.")] = 1,
    resume: Annotated[
        Optional[ResumeChoice],
        typer.Option(
            "--resume",
            metavar="[auto]",
            help="Resume the unfinished run, exactly, or extend a finished one. With auto, one command to repeat: "
            "start the run if there is none, resume it if it is unfinished, do nothing if it is done.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, act and learn once; leave nothing behind.")
    ] = False,
    allow_code: AllowCode = False,
) -> None:
    """Train an agent in an environment, and measure its final policy."""
    from hftoolkit.recipe import load_reinforcement_recipe

    parsed = load_reinforcement_recipe(recipe, set_ or [])
    check_not_both(dry_run, resume)
    _import_from_here(allow_code)
    from hftoolkit.cli.render import render_events
    from hftoolkit.rl import commands as run_rl
    from hftoolkit.runs.directory import RunDir

    with render_events() as emit:
        if dry_run:
            value = run_rl.dry_run(parsed, run_dir=run_dir, allow_code=allow_code, emit=emit)
            typer.echo(f"the recipe is good: one update ran, one episode returned {value:g}; nothing was written")
            return
        where = run_rl.train(
            parsed,
            name=recipe.stem,
            run_dir=run_dir,
            seeds=seeds,
            resume=ResumeChoice.value_of(resume),
            allow_code=allow_code,
            emit=emit,
        )
    typer.echo(f"\nresults   {where / 'results.json'}\nreport    {where / 'report'}")
    shown = where if seeds == 1 else RunDir(where).seed(parsed.train.seed).root
    typer.echo(f"watch it  hftoolkit rl play {shlex.quote(str(shown))} --video replay.mp4")


@app.command()
def evaluate(
    run_folder: RunFolder,
    episodes: Annotated[
        Optional[int],
        typer.Option(min=1, help="How many. Default: evaluation.episodes of the run."),
    ] = None,
    seed: EvaluationSeed = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure the final policy of a run again, greedily."""
    _import_from_here(allow_code)
    from hftoolkit.cli.render import render_events
    from hftoolkit.rl import commands as run_rl

    with render_events() as emit:
        run_rl.evaluate(run_folder, episodes=episodes, seed=seed, allow_code=allow_code, emit=emit)


@app.command()
def play(
    run_folder: RunFolder,
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    video: Annotated[Optional[Path], typer.Option(help="Write a .mp4 or .gif file. Default: a window.")] = None,
    seed: EvaluationSeed = None,
    allow_code: AllowCode = False,
) -> None:
    """Watch the final policy of a run, in the episodes that it was measured on."""
    _import_from_here(allow_code)
    from hftoolkit.cli.render import render_events
    from hftoolkit.rl import commands as run_rl

    with render_events() as emit:
        run_rl.play(run_folder, episodes=episodes, seed=seed, video=video, allow_code=allow_code, emit=emit)


def _import_from_here(allow_code: bool) -> None:
    """Let environment.module lie in the current folder, as with ``python -m``."""
    if allow_code and "" not in sys.path:
        sys.path.insert(0, "")
