"""From a recipe file and ``--set`` values to a checked ``Recipe``, and back to text."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic.json_schema import models_json_schema

from hftoolkit.errors import RecipeError
from hftoolkit.recipe.kinds import ALL_RECIPES, RECIPES, AnyFineTuning, AnyRecipe
from hftoolkit.recipe.reading.problems import Node, Problem, explain, recipe_schema, resolve, shown, wrong_choice
from hftoolkit.recipe.reading.shipped import list_recipes
from hftoolkit.recipe.reading.yaml_file import (
    MAX_DEPTH,
    Document,
    Key,
    KeyPath,
    dotted,
    read_scalar,
    read_value,
    read_yaml,
    read_yaml_file,
    write_value,
    write_yaml,
)
from hftoolkit.recipe.reinforcement import ReinforcementRecipe
from hftoolkit.recipe.sections import Section

MAX_PROBLEMS_SHOWN = 50
R = TypeVar("R", bound=Section)


class Place(NamedTuple):
    """Where the user wrote something; places sort as the user reads them, the file before the command line."""

    source: int  # 0: the file, 1: the command line
    position: int  # line, or number of the override
    text: str


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> AnyFineTuning:
    """Return the fine-tuning recipe of a file: defaults, then the file, then the overrides.

    Args:
        path: a YAML file.
        overrides: ``section.key=value``, as ``--set`` takes them; the value is YAML.

    Raises:
        RecipeError: the file is missing or no YAML, or anything in it or in the overrides is wrong. One message names
            all wrong keys.
    """
    document = _read(path)
    if _is_reinforcement_learning(document):
        raise RecipeError(
            f"{path} is a reinforcement-learning recipe (it has 'environment' or 'algorithm'), and finetune does not "
            f"run those; type: hftoolkit rl train {path}"
        )
    draft = _draft(path, document, overrides)
    return _check(draft, _kind(draft))


def load_reinforcement_recipe(path: Path, overrides: Sequence[str] = ()) -> ReinforcementRecipe:
    """Return the reinforcement-learning recipe of a file, as ``load_recipe`` does for the others."""
    document = _read(path)
    if not _is_reinforcement_learning(document) and document.data.keys() & {"task", "data", "model"}:
        raise RecipeError(f"{path} is no reinforcement-learning recipe; type: hftoolkit finetune {path}")
    return _check(_draft(path, document, overrides), ReinforcementRecipe)


def load_any_recipe(path: Path) -> AnyRecipe:
    """Return the recipe of a file, of whatever kind."""
    return _any(_read(path), path)


def load_alike(path: Path, recipe: AnyRecipe) -> AnyRecipe:
    """Return the recipe of a file by the loader of another recipe, which refuses files that are for other commands."""
    return (load_reinforcement_recipe if isinstance(recipe, ReinforcementRecipe) else load_recipe)(path)


def parse_any_recipe(text: str, origin: Path) -> AnyRecipe:
    """Return the recipe in a text, of whatever kind; ``origin`` is named in errors."""
    return _any(read_yaml(text, str(origin)), origin)


def _any(document: Document, path: Path) -> AnyRecipe:
    draft = _draft(path, document, ())
    if _is_reinforcement_learning(document):
        return _check(draft, ReinforcementRecipe)
    return _check(draft, _kind(draft))


def is_reinforcement_recipe(path: Path) -> bool:
    """Return whether a recipe file is one of reinforcement learning.

    Raises:
        RecipeError: it is missing or no YAML.
    """
    return _is_reinforcement_learning(_read(path))


def _draft(path: Path, document: Document, overrides: Sequence[str]) -> "_Draft":
    draft = _Draft(str(path), document)
    for number, override in enumerate(overrides):
        draft.override(override, number)
    return draft


def _kind(draft: "_Draft") -> type[AnyFineTuning]:
    """Return the class of the recipe; where ``task.kind`` is no kind, note that, and take the one that is closest."""
    task = draft.data.get("task")
    if not isinstance(task, dict) or "kind" not in task:
        names = ", ".join(RECIPES)
        draft.note(("task", "kind"), f"missing; choose one of {names}")
        return next(iter(RECIPES.values()))
    name = task["kind"]
    if isinstance(name, str) and name in RECIPES:
        return RECIPES[name]
    draft.note(("task", "kind"), wrong_choice(list(RECIPES), name))
    close = difflib.get_close_matches(str(name), RECIPES, n=1, cutoff=0.0)
    return RECIPES[close[0]]


def _check(draft: "_Draft", kind: type[R]) -> R:
    _fill_empty_sections(draft.data, recipe_schema(kind))
    try:
        recipe = kind.model_validate(draft.data)
    except ValidationError as error:
        reported = {problem.path for _, problem in draft.problems}
        problems, num_more = explain(error.errors(include_url=False), kind, MAX_PROBLEMS_SHOWN)
        unsaid = [problem for problem in problems if problem.path not in reported]
        raise RecipeError(draft.report(unsaid, num_more)) from error
    if draft.problems:
        raise RecipeError(draft.report([]))
    return recipe


def _read(path: Path) -> Document:
    try:
        return read_yaml_file(path)
    except FileNotFoundError as error:
        names = ", ".join(recipe.name for recipe in list_recipes())
        raise RecipeError(
            f"{path} does not exist; write one, or copy a shipped recipe (there are: {names}): "
            "hftoolkit recipes copy NAME DEST"
        ) from error


def _is_reinforcement_learning(document: Document) -> bool:
    keys = document.data.keys()
    return bool(keys & {"environment", "algorithm"}) and not keys & {"data", "model"}


class _Draft:
    """The values of a recipe before they are checked, and where each was written."""

    def __init__(self, file: str, document: Document) -> None:
        self.file = file
        self.data = document.data
        self.places = {_names(path): self._line(line) for path, line in document.lines.items()}
        self.problems: list[tuple[Place, Problem]] = []

    def _line(self, line: int) -> Place:
        return Place(0, line, f"{self.file}:{line}")

    def override(self, override: str, number: int) -> None:
        """Put one ``section.key=value`` into the data, or its problem on the list.

        Raises:
            RecipeError: the value is no YAML.
        """
        name, equals, text = override.partition("=")
        place = Place(1, number, f"--set {name}")
        try:
            if not equals:
                raise ValueError("there is no value; write --set section.key=value")
            self._put(_split(name), read_value(text, place.text), place)
        except ValueError as error:
            self.problems.append((place, Problem((), str(error), ())))

    def note(self, path: KeyPath, sentence: str) -> None:
        """Put a problem with one key on the list."""
        self.problems.append((self._place(path), Problem(path, sentence, path)))

    def _put(self, path: KeyPath, value: Any, place: Place) -> None:
        section = self.data
        for depth, key in enumerate(path[:-1], start=1):
            if section.get(key) is None:
                section[key] = {}
                self.places[_names(path[:depth])] = place
            section = section[key]
            if not isinstance(section, dict):
                raise ValueError(f"{dotted(path[:depth])} is {shown(section)}, which has no keys in it")
        section[path[-1]] = value
        name = _names(path)
        self.places = {key: old for key, old in self.places.items() if key[: len(name)] != name} | {name: place}

    def report(self, problems: Sequence[Problem], num_more: int = 0) -> str:
        """Return one message: these problems and those of the overrides, in the order of the file, then the rest."""
        found = [*self.problems, *((self._place(problem.culprit), problem) for problem in problems)]
        total = len(found) + num_more
        lines = [f"{self.file} is not a valid recipe ({total} {'problem' if total == 1 else 'problems'}):"]
        for place, problem in sorted(found, key=lambda each: each[0]):
            key = f"{dotted(problem.path)}: " if problem.path else ""
            lines.append(f"  {place.text}: {key}{problem.sentence}")
        return "\n".join([*lines, *([f"  and {num_more} more"] if num_more else [])])

    def _place(self, path: KeyPath) -> Place:
        names = _names(path)
        prefixes = (names[:length] for length in range(len(names), 0, -1))
        return next((self.places[prefix] for prefix in prefixes if prefix in self.places), self._line(1))


def _names(path: KeyPath) -> tuple[str, ...]:
    """Return a path as pydantic reports it, where keys that are no whole numbers became text."""
    return tuple(map(str, path))


def _split(name: str) -> KeyPath:
    parts = name.split(".")
    if not all(parts):
        raise ValueError("a key is empty; write --set section.key=value")
    if len(parts) > MAX_DEPTH:
        raise ValueError(f"the key has more than {MAX_DEPTH} parts")
    return tuple(map(read_scalar, parts))


def _fill_empty_sections(data: dict[Key, Any], schema: Node) -> None:
    """Let ``train:`` with nothing under it mean its defaults, and report a section without them key by key."""
    for name, child in schema["properties"].items():
        node, value = resolve(child), data.get(name)
        if not ("properties" in node or "discriminator" in node) or name not in data:
            continue
        if value in (None, {}) and name not in schema.get("required", ()):
            del data[name]
        elif value is None:
            data[name] = {}
        elif isinstance(value, dict) and "properties" in node:
            _fill_empty_sections(value, node)


def dump_recipe(recipe: AnyRecipe) -> str:
    """Return YAML with every knob written out, which the loader of its kind reads back to an equal recipe."""
    return write_yaml(recipe.model_dump())


def differences(a: AnyRecipe, b: AnyRecipe, *, ignored: Sequence[str] = ()) -> list[str]:
    """Return ``section.key: value in a -> value in b`` for each knob that differs; the order of labels counts.

    Args:
        a: a recipe.
        b: another.
        ignored: knobs, and sections, that may differ.
    """
    left, right = dict(_knobs(a)), dict(_knobs(b))
    keys = dict.fromkeys([*left, *right])
    return [
        f"{key}: {left.get(key, '(absent)')} -> {right.get(key, '(absent)')}"
        for key in keys
        if left.get(key) != right.get(key) and not any(key == name or key.startswith(f"{name}.") for name in ignored)
    ]


def _knobs(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _knobs(value, f"{prefix}{name}.")
        else:
            yield prefix + name, write_value(value)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of recipes, for editors that complete and check YAML."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    references, definitions = models_json_schema([(kind, "validation") for kind in ALL_RECIPES])
    kinds = [references[kind, "validation"] for kind in ALL_RECIPES]
    return {"$schema": dialect, "title": "hftoolkit recipe", "oneOf": kinds, **definitions}
