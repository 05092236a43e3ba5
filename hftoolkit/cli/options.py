"""Options and checks that several commands share."""

import os
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from typer.core import TyperCommand

from hftoolkit.errors import RecipeError

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Overrides = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe; repeatable."),
]
RunDirectory = Annotated[
    Optional[Path],
    typer.Option("--run-dir", help="Where the run goes, exactly. Default: runs/RECIPE, then runs/RECIPE-2, ..."),
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Run Python code that the recipe names: evaluation.extra_metrics; of rl, environment.module.",
    ),
]
OnBadRows = Annotated[
    Literal["skip", "error"],
    typer.Option(
        "--on-bad-rows",
        help="What becomes of rows that cannot be used: skip goes on without them and says how many; error refuses.",
    ),
]


class ResumeChoice(StrEnum):
    """What ``--resume`` says."""

    YES = "yes"
    AUTO = "auto"

    @staticmethod
    def value_of(choice: "ResumeChoice | None") -> "bool | Literal['auto']":
        """Return what the commands take."""
        return "auto" if choice is ResumeChoice.AUTO else choice is not None


class Resumable(TyperCommand):
    """A command whose ``--resume`` may stand alone, as a flag, or before ``auto``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write the value of ``--resume`` as options with values are read."""
        return super().parse_args(ctx, spell_out_resume(args))


def spell_out_resume(args: list[str]) -> list[str]:
    """Return command line arguments with ``--resume auto`` in one word, and ``yes`` after a lone ``--resume``."""
    end = args.index("--") if "--" in args else len(args)
    spelled: list[str] = []
    for position, word in enumerate(args[:end]):
        if word == "--resume":
            is_auto = args[position + 1 : position + 2] == ["auto"]
            spelled.append("--resume=auto" if is_auto else "--resume=yes")
        elif not (word == "auto" and position and args[position - 1] == "--resume"):
            spelled.append(word)
    return spelled + args[end:]


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def commands_of(recipe: Any) -> Any:
    """Return the module with the commands for a recipe; the recipe's class names it."""
    return import_module(recipe.commands)


def commands_of_run(folder: Path) -> Any:
    """Return the module with the commands for a finished run of ``finetune``.

    Raises:
        DataError: there is none, it did not finish, or it is one of reinforcement learning.
    """
    from hftoolkit.recipe import load_recipe
    from hftoolkit.runs.resume import open_finished

    return commands_of(load_recipe(open_finished(folder).recipe))


def commands_of_any_run(folder: Path) -> Any:
    """Return the module with the commands for a run of any kind.

    Raises:
        DataError: there is none.
    """
    from hftoolkit.recipe import load_any_recipe
    from hftoolkit.runs.directory import RunDir

    return commands_of(load_any_recipe(RunDir.open(folder).recipe))


def check_not_both(dry_run: bool, resume: ResumeChoice | None) -> None:
    """Raise RecipeError for ``--dry-run --resume``."""
    if dry_run and resume is not None:
        raise RecipeError("--dry-run leaves no run behind that --resume could continue; leave out one")


def is_rank_zero() -> bool:
    """Return whether this is the only process, or rank 0 of those that a launcher started: the one that prints."""
    return os.environ.get("RANK", "0") == "0"
