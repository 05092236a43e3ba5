"""The command line: parse, call one function, render its events. Nothing heavy is imported before a command runs."""

import logging
import os
import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hftoolkit.cli import models, recipes, reinforcement
from hftoolkit.cli.options import Resumable, is_rank_zero
from hftoolkit.errors import HFToolkitError, Interrupted


class _Commands(TyperGroup):
    """All commands. typer itself ends an interrupted one without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted", signal.SIGINT) from error


app = typer.Typer(
    name="hftoolkit",
    cls=_Commands,
    help="Fine-tune a pretrained backbone from one recipe file; ship a model that plain libraries load.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(recipes.app, name="recipes")
app.add_typer(reinforcement.app, name="rl")
app.command(cls=Resumable)(models.finetune)
for command in (models.evaluate, models.report, models.predict, models.recommend, models.push):
    app.command()(command)
logger = logging.getLogger(__name__)


def main() -> None:
    """Run the command line and exit: expected errors are one message on stderr, bugs keep their traceback."""
    try:
        app()
    except HFToolkitError as error:
        from hftoolkit.contracts.names import visible

        logger.debug("the traceback behind the message", exc_info=True)
        speaker = "" if is_rank_zero() else f"process {os.environ['RANK']}: "
        typer.echo(f"{speaker}error: {visible(str(error), lines=True)}", err=True)
        raise SystemExit(error.exit_code) from error


def _print_version(wanted: bool) -> None:
    if wanted:
        from hftoolkit import __version__

        typer.echo(f"hftoolkit {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show library logs, and the traceback of errors.")] = False,
) -> None:
    logging.basicConfig(level=logging.DEBUG if verbose else logging.ERROR)
    logging.getLogger("httpcore2").setLevel(logging.INFO)  # it logs headers, and the Hub sends tokens in some


@app.command()
def doctor() -> None:
    """Print versions and devices: what a bug report needs."""
    import json

    from hftoolkit.runs.versions import describe_environment

    typer.echo(json.dumps(describe_environment(), indent=2))
