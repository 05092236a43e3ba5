"""One file a task: ``contracts.Task``, from rows to a model that plain libraries load."""

from importlib import import_module
from typing import Any

from hftoolkit.contracts import Task
from hftoolkit.recipe import Recipe


def task_of(recipe: Recipe) -> type[Task]:
    """Return the class of a recipe's kind of task: the only place that knows there are kinds."""
    module, _, name = recipe.implementation.partition(":")
    found: Any = getattr(import_module(module), name)
    kind: type[Task] = found
    return kind
