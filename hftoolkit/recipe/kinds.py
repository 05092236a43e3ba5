"""The kinds of recipes: those of ``finetune`` by ``task.kind``, and that of ``rl train``."""

from hftoolkit.recipe.images import ImageRecipe
from hftoolkit.recipe.recommendation import RecommendationRecipe
from hftoolkit.recipe.reinforcement import ReinforcementRecipe
from hftoolkit.recipe.sections import Recipe
from hftoolkit.recipe.text import TextRecipe

AnyFineTuning = Recipe | RecommendationRecipe
AnyRecipe = AnyFineTuning | ReinforcementRecipe
RECIPES: dict[str, type[AnyFineTuning]] = {
    "text-classification": TextRecipe,
    "image-classification": ImageRecipe,
    "recommendation": RecommendationRecipe,
}
ALL_RECIPES: tuple[type[AnyRecipe], ...] = (*RECIPES.values(), ReinforcementRecipe)
