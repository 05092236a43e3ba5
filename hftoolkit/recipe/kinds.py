"""The kinds of recipes, by ``task.kind``."""

from hftoolkit.recipe.images import ImageRecipe
from hftoolkit.recipe.sections import Recipe
from hftoolkit.recipe.text import TextRecipe

RECIPES: dict[str, type[Recipe]] = {"text-classification": TextRecipe, "image-classification": ImageRecipe}
