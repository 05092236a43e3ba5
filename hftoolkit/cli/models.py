"""Commands on models that are fine-tuned: train, measure, predict, recommend, push."""

import codecs
import csv
import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from hftoolkit.cli.options import (
    AllowCode,
    OnBadRows,
    Overrides,
    RecipeFile,
    ResumeChoice,
    RunDirectory,
    RunFolder,
    check_not_both,
    commands_of,
    commands_of_any_run,
    commands_of_run,
    is_rank_zero,
)
from hftoolkit.errors import DataError, RecipeError


def finetune(
    recipe: RecipeFile,
    set_: Overrides = None,
    run_dir: RunDirectory = None,
    resume: Annotated[
        Optional[ResumeChoice],
        typer.Option(
            "--resume",
            metavar="[auto]",
            help="Resume the unfinished run, exactly. With a larger train.epochs, extend a finished one: the "
            "learning rate is from there on that of a run of so many epochs. With auto, one command to repeat: start "
            "the run if there is none, resume it if it is unfinished, do nothing if it is done.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and do one real step; leave nothing behind.")
    ] = False,
    allow_code: AllowCode = False,
) -> None:
    """Fine-tune a model: train, export, check and measure it."""
    from hftoolkit.recipe import load_recipe

    parsed = load_recipe(recipe, set_ or [])
    check_not_both(dry_run, resume)
    from hftoolkit.cli.render import render_events

    commands = commands_of(parsed)
    with render_events() as emit:
        if dry_run:
            loss = commands.dry_run(parsed, run_dir=run_dir, emit=emit, allow_code=allow_code)
            if is_rank_zero():
                typer.echo(f"the recipe is good: one step ran, loss {loss:.4f}; nothing was written")
            return
        where = commands.finetune(
            parsed,
            name=recipe.stem,
            run_dir=run_dir,
            emit=emit,
            resume=ResumeChoice.value_of(resume),
            allow_code=allow_code,
        )
    if where is None:  # rank zero prints the result
        return
    typer.echo(f"\nmodel     {where / 'model'}\nresults   {where / 'results.json'}")
    if (where / "report").is_dir():
        typer.echo(f"report    {where / 'report'}")
    typer.echo(f"use it    hftoolkit {parsed.usage.format(shlex.quote(str(where)))}")


def evaluate(
    run_folder: RunFolder,
    split: Annotated[Optional[str], typer.Option(help="train, validation or test. Default: test.")] = None,
    data: Annotated[
        Optional[str],
        typer.Option(help="Evaluate on all rows of another table or image folder like that of the run."),
    ] = None,
    on_bad_rows: OnBadRows = "skip",
    allow_code: AllowCode = False,
) -> None:
    """Measure the model of a run again, on one of its splits or on other data.

    The figures are also written into the run, evaluations/NAME.json.
    """
    if split is not None and data is not None:
        raise RecipeError("--data measures all rows of a table and --split some rows of the run's own; leave out one")
    from hftoolkit.cli.render import render_events

    with render_events() as emit:
        commands_of_run(run_folder).evaluate(
            run_folder,
            split=split or "test",
            source=data,
            emit=emit,
            allow_code=allow_code,
            on_bad_rows=on_bad_rows,
        )


def report(run_folder: RunFolder, allow_code: AllowCode = False) -> None:
    """Make the report of a finished run again: what failed is tried once more, tables and pictures are made anew."""
    from hftoolkit.cli.render import render_events

    with render_events() as emit:
        commands_of_any_run(run_folder).report(run_folder, emit=emit, allow_code=allow_code)
    typer.echo(f"\nresults   {run_folder / 'results.json'}\nreport    {run_folder / 'report'}")


def predict(
    run_folder: RunFolder,
    input_: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A table (CSV, JSONL, Parquet); for images also a file, folder or pattern; - reads a text or a file "
            "name a line.",
        ),
    ],
    output: Annotated[
        Optional[Path],
        typer.Option(help="A .csv, .jsonl or .parquet file. Default: CSV on standard output."),
    ] = None,
    top_k: Annotated[
        Optional[int],
        typer.Option(
            min=1,
            help="Write the K most probable classes instead of the probability of each; of a recommender, the K best "
            "items, by default 10.",
        ),
    ] = None,
    keep: Annotated[
        Optional[str],
        typer.Option(
            metavar="COLUMN,...",
            help="Columns of the table to put beside the predictions. Default: one called id, where there is one.",
        ),
    ] = None,
    on_bad_rows: OnBadRows = "skip",
) -> None:
    """Write the label and the probability of each class for each row, in the same order.

    Rows that cannot be used are left blank, and counted in a warning. A recommender
    reads a table of interactions, and writes the best items for each of its users.
    """
    from hftoolkit.cli.render import render_events

    commands = commands_of_run(run_folder)
    lines = _read_lines() if input_ == "-" else None  # before there are bars, which would cover what is typed
    with render_events(stderr=True) as emit:
        text = commands.predict(
            run_folder,
            Path(input_),
            lines=lines,
            output=output,
            top_k=top_k,
            emit=emit,
            on_bad_rows=on_bad_rows,
            keep=_names(keep),
        )
    if text:
        _print_table(text)


def recommend(  # noqa: PLR0913 - each is an option of the command
    run_folder: RunFolder,
    user: Annotated[Optional[str], typer.Option(metavar="ID", help="A user of the log of the run.")] = None,
    history: Annotated[
        Optional[str],
        typer.Option(metavar="ID,ID,...", help="Items that anybody chose, oldest first."),
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Write a table for all users of the log.")] = False,
    output: Annotated[
        Optional[Path],
        typer.Option(help="With --all-users: a .csv, .jsonl or .parquet file. Default: CSV on standard output."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Length of each list.")] = 10,
    include_seen: Annotated[
        bool, typer.Option("--include-seen/--exclude-seen", help="Also recommend what is in the history.")
    ] = False,
    candidates: Annotated[
        Optional[Path],
        typer.Option(help="A file with an item id a line: the only items to choose from."),
    ] = None,
    new_items: Annotated[
        Optional[Path],
        typer.Option(help="A table of items like that of the run, which are recommended by their texts."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each part adds to a score, and which items of the history.")
    ] = False,
) -> None:
    """Recommend items to a user of the log, to anybody with a history, or to all users."""
    if [user is not None, history is not None, all_users].count(True) != 1:
        raise RecipeError("say to whom: one of --user ID, --history ID,ID,... and --all-users")
    if (output is not None and not all_users) or (explain and all_users):
        raise RecipeError("--output goes with --all-users, and --explain with --user or --history")
    from hftoolkit.cli.render import render_events
    from hftoolkit.recommend import commands as run_recommend

    choice = run_recommend.Choice(top_k, include_seen, candidates, new_items, explain)
    if all_users:
        with render_events(stderr=True) as emit:
            text = run_recommend.recommend_to_all(run_folder, output=output, choice=choice, emit=emit)
        _print_table(text)
        return
    items = None if history is None else [item.strip() for item in history.split(",") if item.strip()]
    with render_events() as emit:
        run_recommend.recommend(run_folder, user=user, history=items, choice=choice, emit=emit)


def push(
    run_folder: RunFolder,
    repository: Annotated[str, typer.Argument(metavar="USER/REPO", help="A Hub repository; made if there is none.")],
    public: Annotated[bool, typer.Option("--public", help="Everybody sees the model. Default: a private one.")] = False,
) -> None:
    """Push the model of a finished run, with its card, to the Hugging Face Hub."""
    from hftoolkit.cli.render import render_events
    from hftoolkit.hub.push import push as push_run

    with render_events() as emit:
        push_run(run_folder, repository, private=not public, emit=emit)


def _print_table(text: str) -> None:
    """Print a table as it is, but to a terminal nothing that it would obey."""
    from hftoolkit.contracts.names import visible

    typer.echo(visible(text, lines=True) if sys.stdout.isatty() else text, nl=False)


def _names(listed: str | None) -> list[str] | None:
    """Return the names of a list with commas; one that has a comma itself stands in double quotes."""
    if listed is None:
        return None
    return [name.strip() for name in next(csv.reader([listed], skipinitialspace=True), []) if name.strip()]


def _read_lines() -> list[str]:
    """Return the lines of standard input; only a line feed ends one, so that a row is a row as in ``wc -l``.

    Bytes that are not UTF-8 become lone surrogates, which cost a text its row, and are right in the name of a file.
    """
    content = sys.stdin.buffer.read()
    if b"\0" in content:
        raise DataError("standard input has zero bytes, so it is not UTF-8; convert it: iconv -f UTF-16 -t UTF-8")
    text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
    return text.removesuffix("\n").split("\n") if text else []
