"""Recipes: what one run does, as strict, frozen, complete sections. Imports no torch."""

from hftoolkit.recipe.images import (
    Augmentation,
    ImageClassification,
    ImageColumns,
    ImageData,
    ImageModel,
    ImageRecipe,
    Pixels,
)
from hftoolkit.recipe.kinds import RECIPES
from hftoolkit.recipe.load import differences, dump_recipe, json_schema, load_recipe
from hftoolkit.recipe.sections import (
    Classification,
    Data,
    Evaluation,
    FullTuning,
    LastLayers,
    LinearProbe,
    LoraTuning,
    Model,
    Recipe,
    Split,
    Train,
    Tuning,
)
from hftoolkit.recipe.shipped import ShippedRecipe, copy_recipe, list_recipes, read_recipe_text
from hftoolkit.recipe.text import TextClassification, TextColumns, TextData, TextModel, TextRecipe

__all__ = [
    "RECIPES",
    "Augmentation",
    "Classification",
    "Data",
    "Evaluation",
    "FullTuning",
    "ImageClassification",
    "ImageColumns",
    "ImageData",
    "ImageModel",
    "ImageRecipe",
    "LastLayers",
    "LinearProbe",
    "LoraTuning",
    "Model",
    "Pixels",
    "Recipe",
    "ShippedRecipe",
    "Split",
    "TextClassification",
    "TextColumns",
    "TextData",
    "TextModel",
    "TextRecipe",
    "Train",
    "Tuning",
    "copy_recipe",
    "differences",
    "dump_recipe",
    "json_schema",
    "list_recipes",
    "load_recipe",
    "read_recipe_text",
]
