"""The kinds of recipes: those of ``finetune`` by ``task.kind``, and that of ``rl train``."""

from hftoolkit.recipe.image_classification import ImageRecipe
from hftoolkit.recipe.recommendation import RecommendationRecipe
from hftoolkit.recipe.regression import ImageRegressionRecipe, TextRegressionRecipe
from hftoolkit.recipe.reinforcement import ReinforcementRecipe
from hftoolkit.recipe.sections import Recipe
from hftoolkit.recipe.text_classification import TextRecipe
from hftoolkit.recipe.token_classification import TokenRecipe

AnyFineTuning = Recipe | RecommendationRecipe
AnyRecipe = AnyFineTuning | ReinforcementRecipe
RECIPES: dict[str, type[AnyFineTuning]] = {
    "text-classification": TextRecipe,
    "image-classification": ImageRecipe,
    "token-classification": TokenRecipe,
    "text-regression": TextRegressionRecipe,
    "image-regression": ImageRegressionRecipe,
    "recommendation": RecommendationRecipe,
}
ALL_RECIPES: tuple[type[AnyRecipe], ...] = (*RECIPES.values(), ReinforcementRecipe)
