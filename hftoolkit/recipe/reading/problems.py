"""Turn what pydantic reports into sentences: what was found, what is allowed, what to write instead.

Everything said about a key comes from the JSON schema of the recipe, so a message cannot contradict the check.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from pydantic_core import ErrorDetails

from hftoolkit.recipe.kinds import ALL_RECIPES
from hftoolkit.recipe.reading.yaml_file import Key, KeyPath, read_scalar, write_value
from hftoolkit.recipe.sections import Section

Node = dict[str, Any]  # a part of the JSON schema

KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "over", "maximum": "at most", "exclusiveMaximum": "under"}


class Problem(NamedTuple):
    """One sentence about one key.

    Attributes:
        path: the key.
        sentence: what is wrong with it.
        culprit: the key whose line to show, or the nearest section around it that is written somewhere.
    """

    path: KeyPath
    sentence: str
    culprit: KeyPath


@dataclass(frozen=True, slots=True)
class Spot:
    """Where the error of a key is in the schema.

    Attributes:
        path: the key, without the names of union members that pydantic puts into it.
        node: the schema of its value; None if there is no such key.
        section: the schema of the section around it.
        union: the schema of all variants of that section, if it has some.
        root: the schema of the recipe.
    """

    path: KeyPath
    node: Node | None
    section: Node
    union: Node | None
    root: Node


@cache
def recipe_schema(kind: type[Section]) -> Node:
    """Return the JSON schema of a kind of recipe, for reading only."""
    return kind.model_json_schema()


@cache
def _definitions() -> dict[str, Node]:
    """Return the sections of all kinds by name; those of one name are one class."""
    return {name: node for kind in ALL_RECIPES for name, node in recipe_schema(kind)["$defs"].items()}


def resolve(node: Node) -> Node:
    """Follow a reference to the definition it names."""
    return _definitions()[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


def variants(node: Node) -> dict[str, Node]:
    """Return the sections that a tagged union chooses from, by tag, in the order of the source."""
    tag = node["discriminator"]["propertyName"]
    members = [resolve(member) for member in node["oneOf"]]
    return {member["properties"][tag]["const"]: member for member in members}


def explain(errors: Sequence[ErrorDetails], kind: type[Section], at_most: int) -> tuple[list[Problem], int]:
    """Return one problem for each key that has errors, in pydantic's order, and how many were left out.

    Args:
        errors: what pydantic found.
        kind: the recipe it was looking for.
        at_most: number of problems to explain; searching for similar names takes a millisecond each.
    """
    groups: dict[KeyPath, tuple[Spot, ErrorDetails]] = {}
    for error in errors:
        spot = _find(error["loc"], recipe_schema(kind))
        # Each member of a union complains; what is allowed names them all.
        groups.setdefault(spot.path, (spot, error))
    # A list whose entries are wrong is also reported as too short.
    containers = {path[:depth] for path in groups for depth in range(len(path))}
    found = [group for path, group in groups.items() if path not in containers]
    return [_problem(spot, error) for spot, error in found[:at_most]], len(found[at_most:])


def _find(loc: Sequence[int | str], root: Node) -> Spot:
    path: list[Key] = []
    node: Node | None = root
    section, union = root, None
    for part in loc:
        node = _non_null(resolve(node or {}))
        if "discriminator" in node:
            union, node = node, variants(node)[str(part)]
            continue
        if "properties" in node:
            section, union = node, union if union and node in variants(union).values() else None
            children = node["properties"]
        elif lists := [member for member in (node, *node.get("anyOf", ())) if "items" in member]:
            children = {part: lists[0]["items"]}
        elif node.get("type") == "object":
            children = {part: node.get("additionalProperties")}
        else:
            break
        path.append(part)
        node = children.get(part)
    return Spot(tuple(path), resolve(node) if node else None, section, union, root)


def _non_null(node: Node) -> Node:
    """Return the one type of ``T | None``, which has no place of its own in pydantic's paths."""
    members = [member for member in node.get("anyOf", ()) if member.get("type") != "null"]
    return resolve(members[0]) if len(members) == 1 else node


def _problem(spot: Spot, error: ErrorDetails) -> Problem:
    path, sentence = _describe(spot, error)
    if error["type"] == "value_error":
        # A check of several keys starts its message with the one to change.
        return Problem(path, sentence, (*path, *sentence.split(" ", 1)[0].rstrip(":").split(".")))
    return Problem(path, sentence, path)


def _describe(spot: Spot, error: ErrorDetails) -> tuple[KeyPath, str]:
    value, path = error["input"], spot.path
    if error["type"] == "value_error":
        return path, str(error["ctx"]["error"])
    if "[key]" in error["loc"]:
        return (*path[:-1], value), "a key like this is not allowed; write text, a number, true or false"
    if error["type"] == "invalid_key":
        return (*path[:-1], value), _unknown_key(spot)
    if spot.node is None:
        return path, _unknown_key(spot)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(spot.path, spot.node, value)
    if error["type"] == "missing":
        return path, f"missing; expected {expected(spot.node)}"
    return path, _wrong_value(spot.node, value)


def _wrong_tag(path: KeyPath, union: Node, section: Any) -> tuple[KeyPath, str]:
    tag, names = union["discriminator"]["propertyName"], list(variants(union))
    if tag not in section:
        return (*path, tag), f"missing; choose one of {', '.join(names)}"
    return (*path, tag), wrong_choice(names, section[tag])


def _wrong_value(node: Node, value: Any) -> str:
    options = node.get("enum") or ([node["const"]] if "const" in node else None)
    if options:
        return wrong_choice(options, value)
    return f"{shown(value)} is not allowed; expected {expected(node)}{_remedy(node, value)}"


def wrong_choice(options: Sequence[str], value: Any) -> str:
    """Return what to say of a value that is none of the options."""
    close = difflib.get_close_matches(str(value).lower(), options, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"{shown(value)} is not allowed; choose one of {', '.join(options)}{hint}"


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, on one line, texts in quotes."""
    if value is None:
        return "an empty value"
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return write_value(value)


def expected(node: Node) -> str:
    """Return in plain words what a node of the schema allows."""
    node = resolve(node)
    if "anyOf" in node:
        return ", or ".join(map(expected, node["anyOf"]))
    if "discriminator" in node:
        tag = node["discriminator"]["propertyName"]
        return f"a section whose '{tag}' is one of {', '.join(variants(node))}"
    if "properties" in node:
        return f"a section with the keys {', '.join(node['properties'])}"
    if "enum" in node or "const" in node:
        return f"one of {', '.join(node.get('enum') or [node['const']])}"
    if "type" not in node:
        return "any value"
    if node["type"] == "array":
        some = "a list of at least one entry" if node.get("minItems") else "a list"
        return f"{some} (each: {expected(node['items'])})"
    if node["type"] == "object":
        return f"a mapping (each value: {expected(node['additionalProperties'])})"
    return KINDS[node["type"]] + _limits(node)


def _limits(node: Node) -> str:
    if "pattern" in node:
        return f" that matches {node['pattern']}"
    if node.get("minLength"):
        return " that is not empty"
    bounds = [f"{words} {write_value(node[name])}" for name, words in BOUNDS.items() if name in node]
    return ", " + " and ".join(bounds) if bounds else ""


def _remedy(node: Node, value: Any) -> str:
    """Return what to type when the value is right but for its YAML type."""
    kinds = {member.get("type") for member in node.get("anyOf", [node])}
    if value is None:
        return f"; leave the line out for the default, {write_value(node['default'])}" if "default" in node else ""
    if isinstance(value, dict | list):
        return ""
    if isinstance(value, str) and kinds & _kinds_when_unquoted(value):
        return "; drop the quotes"
    if "array" in kinds:
        return f"; write [{write_value(str(value))[:60]}]"
    if not isinstance(value, str) and "string" in kinds and not kinds & {"integer", "number"}:
        return f'; write "{write_value(value)}" if text is meant'
    return ""


def _kinds_when_unquoted(text: str) -> set[str]:
    try:
        value = read_scalar(text)
    except ValueError:
        return set()
    if isinstance(value, bool):
        return {"boolean"}
    return {int: {"integer", "number"}, float: {"number"}}.get(type(value), set())


def _unknown_key(spot: Spot) -> str:
    name = str(spot.path[-1])
    own = list(spot.section["properties"])
    start = "unknown key"
    if spot.union:
        tag = spot.union["discriminator"]["propertyName"]
        start += f" for {tag} '{spot.section['properties'][tag]['const']}'"
        owners = [value for value, section in variants(spot.union).items() if name in section["properties"]]
        if owners:
            return f"{start}; it belongs to {tag} {' and '.join(owners)}; allowed: {', '.join(own)}"
    close = _close_keys(name, own, spot.root)
    return f"{start}; did you mean {close}?" if close else f"{start}; allowed: {', '.join(own)}"


def _close_keys(name: str, own: list[str], root: Node) -> str:
    """Return a similar name of this section, else the keys of that name in other sections, else nothing."""
    elsewhere: dict[str, list[str]] = {}
    for key in dict.fromkeys(_all_keys(root)):
        elsewhere.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    spelled = name.lower().replace("-", "_").replace(" ", "_")
    if spelled in own:
        return f"'{spelled}'"
    if close := difflib.get_close_matches(spelled, own, n=1):
        return f"'{close[0]}'"
    close = difflib.get_close_matches(spelled, elsewhere, n=1, cutoff=0.75)
    return " or ".join(elsewhere[close[0]]) if close else ""


def _all_keys(node: Node, prefix: str = "") -> Iterator[str]:
    node = resolve(node)
    for section in variants(node).values() if "discriminator" in node else [node]:
        for name, child in section.get("properties", {}).items():
            yield prefix + name
            yield from _all_keys(child, f"{prefix}{name}.")
