"""Commands on the recipes that come with hftoolkit."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The recipes that come with hftoolkit.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Name the recipes."""
    from hftoolkit.recipe import list_recipes

    for shipped in list_recipes():
        typer.echo(f"{shipped.name:<24} {shipped.title}")


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe."""
    from hftoolkit.recipe import read_recipe_text

    typer.echo(read_recipe_text(name), nl=False)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A folder, or a new file.")],
) -> None:
    """Copy a recipe, to edit it."""
    from hftoolkit.recipe import copy_recipe

    typer.echo(f"wrote {copy_recipe(name, destination)}")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    import json

    from hftoolkit.recipe import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
