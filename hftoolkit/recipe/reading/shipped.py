"""The recipes that come with hftoolkit: name them, read them, copy them."""

import difflib
from pathlib import Path
from typing import NamedTuple

from hftoolkit.errors import EnvironmentFault, RecipeError


class ShippedRecipe(NamedTuple):
    """What ``recipes list`` shows: the file name without ``.yaml``, and what its first comment says it does."""

    name: str
    title: str


def recipes_directory() -> Path:
    """Return the folder of the shipped recipes: inside the package if installed, beside it in a clone.

    Raises:
        EnvironmentFault: the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise EnvironmentFault(f"there is no recipes folder in {package} or beside it; install hftoolkit again")


def list_recipes() -> list[ShippedRecipe]:
    """Return the shipped recipes by name."""
    return sorted(ShippedRecipe(path.stem, _title(path)) for path in recipes_directory().glob("*.yaml"))


def _title(path: Path) -> str:
    """Return the first comment line, up to the wide gap before its command."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").partition("   ")[0].strip() if first.startswith("#") else ""


def read_recipe_text(name: str) -> str:
    """Return the text of a shipped recipe, comments included.

    Raises:
        RecipeError: there is none of that name.
    """
    names = [recipe.name for recipe in list_recipes()]
    if name not in names:
        close = difflib.get_close_matches(name.removesuffix(".yaml"), names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
        raise RecipeError(f"{name!r} is no shipped recipe; {hint}")
    return (recipes_directory() / f"{name}.yaml").read_text(encoding="utf-8")


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a shipped recipe and return the new file; nothing is ever overwritten.

    Args:
        name: as ``list_recipes`` gives it.
        destination: a new file ending in .yaml or .yml, else a folder; missing folders are made.

    Raises:
        RecipeError: no such recipe, or the file exists.
        EnvironmentFault: the file cannot be written.
    """
    text = read_recipe_text(name)
    is_file = destination.suffix in (".yaml", ".yml") and not destination.is_dir()
    target = destination if is_file else destination / f"{name}.yaml"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RecipeError(f"{error.filename} exists and is kept; choose another name") from error
    except OSError as error:
        raise EnvironmentFault(f"cannot write {target}: {error.strerror}") from error
    return target
