"""The kinds of recipes: those of ``finetune`` by ``task.kind``, and that of ``rl train``."""

from hftoolkit.recipe.images import ImageRecipe
from hftoolkit.recipe.reinforcement import ReinforcementRecipe
from hftoolkit.recipe.sections import Recipe
from hftoolkit.recipe.text import TextRecipe

AnyRecipe = Recipe | ReinforcementRecipe
RECIPES: dict[str, type[Recipe]] = {"text-classification": TextRecipe, "image-classification": ImageRecipe}
ALL_RECIPES: tuple[type[AnyRecipe], ...] = (*RECIPES.values(), ReinforcementRecipe)
