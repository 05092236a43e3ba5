"""Recipes: what one run does, as strict, frozen, complete sections. Imports no torch."""

from hftoolkit.recipe.load import differences, dump_recipe, json_schema, load_recipe
from hftoolkit.recipe.sections import (
    Columns,
    Data,
    Evaluation,
    FullTuning,
    LastLayers,
    LinearProbe,
    LoraTuning,
    Model,
    Recipe,
    Split,
    TextClassification,
    Train,
    Tuning,
)
from hftoolkit.recipe.shipped import ShippedRecipe, copy_recipe, list_recipes, read_recipe_text

__all__ = [
    "Columns",
    "Data",
    "Evaluation",
    "FullTuning",
    "LastLayers",
    "LinearProbe",
    "LoraTuning",
    "Model",
    "Recipe",
    "ShippedRecipe",
    "Split",
    "TextClassification",
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
