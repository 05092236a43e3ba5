"""``hftoolkit.json`` in a model folder: the recipe, and what the data fixed. ``hftoolkit.load`` reads it.

Plain libraries pass over it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hftoolkit.errors import DataError, RecipeError
from hftoolkit.recipe import AnyRecipe, dump_recipe, parse_any_recipe
from hftoolkit.runs.directory import read_json, write_json


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model folder says of itself.

    Attributes:
        recipe: without folders of the machine that trained it.
        schema: what the data fixed, such as the classes, in plain JSON types.
    """

    recipe: AnyRecipe
    schema: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def path(folder: Path) -> Path:
        """Return the file of the manifest in a model folder."""
        return folder / "hftoolkit.json"

    def write(self, folder: Path) -> None:
        """Write the manifest into a model folder."""
        write_json(self.path(folder), {"recipe": dump_recipe(self.recipe), "schema": dict(self.schema)})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read it back.

        Raises:
            DataError: it is missing or damaged, or its recipe is not valid in this version.
        """
        stored = read_json(cls.path(folder))
        try:
            text, schema = stored["recipe"], stored["schema"]
        except KeyError as error:
            raise DataError(f"{cls.path(folder)} lacks {error}; fetch the model again") from error
        if not isinstance(text, str) or not isinstance(schema, dict):
            raise DataError(f"{cls.path(folder)} holds no recipe and schema; fetch the model again")
        try:
            return cls(parse_any_recipe(text, cls.path(folder)), schema)
        except RecipeError as error:
            raise DataError(f"this version of hftoolkit cannot use the recipe of a model: {error}") from error
