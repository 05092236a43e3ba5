"""Options and checks that several commands share."""

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

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
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def check_not_both(dry_run: bool, resume: bool) -> None:
    """Raise RecipeError for ``--dry-run --resume``."""
    if dry_run and resume:
        raise RecipeError("--dry-run leaves no run behind that --resume could continue; leave out one")


def is_rank_zero() -> bool:
    """Return whether this is the only process, or rank 0 of those that a launcher started: the one that prints."""
    return os.environ.get("RANK", "0") == "0"
