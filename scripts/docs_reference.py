"""Write docs/reference/recipes.md from the schema of recipes and docs/reference/cli.md from the command line.

python scripts/docs_reference.py            write both
python scripts/docs_reference.py --check    write nothing; exit 1 if one of them is stale
--into FOLDER                               default: docs/reference
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from hftoolkit.cli import app
from hftoolkit.recipe import ReinforcementRecipe, list_recipes, write_value
from hftoolkit.recipe.kinds import RECIPES
from hftoolkit.recipe.reading.problems import Node, expected, recipe_schema, resolve, variants

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by scripts/docs_reference.py; a test fails when it is stale. Do not edit. -->"
REINFORCEMENT = "reinforcement learning"
KINDS = {**RECIPES, REINFORCEMENT: ReinforcementRecipe}


@dataclass(frozen=True)
class Table:
    """A section of a recipe: where it stands, its class in the schema, and the tag that chooses it from several."""

    path: str
    name: str
    tag: str
    node: Node

    @property
    def title(self) -> str:
        return f"{self.path} ({self.name})"

    def link(self, shown: "Table") -> str:
        """Return a link to where the section is shown, which may be its place in another kind."""
        return f"[{self.tag or self.path}](#{slug(shown.title)})"


def main() -> None:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "reference")
    options = parser.parse_args()
    pages = {options.into / "recipes.md": recipes_page(), options.into / "cli.md": cli_page()}
    if not options.check:
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        return
    stale = [path.name for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text]
    if stale:
        sys.exit(f"error: {', '.join(stale)} is stale; type: python scripts/docs_reference.py")


def cli_page() -> str:
    """Return what Typer says of all commands."""
    command = typer.main.get_command(app)
    docs = get_docs_for_click(obj=command, ctx=typer.Context(command), name="hftoolkit", title="Command line")
    title, _, rest = docs.partition("\n")
    return f"{title}\n\n{NOTE}\n{rest.rstrip()}\n"


def recipes_page() -> str:
    """Return a table for each section of each kind of recipe; sections that several kinds share come last."""
    found = {kind: list(tables(recipe_schema(recipe))) for kind, recipe in KINDS.items()}
    users: dict[str, list[str]] = {}
    shown: dict[str, Table] = {}
    for kind, listed in found.items():
        for table in listed:
            if kind not in users.setdefault(table.name, []):
                users[table.name].append(kind)
            shown.setdefault(table.name, table)
    parts = [f"# Recipe reference\n\n{NOTE}\n\n{OPENING}\n\n{kinds_table()}\n\n{shipped_table()}"]
    for kind, listed in found.items():
        parts.append(kind_section(kind, listed, shown))
        parts += [section(table) for table in listed if len(users[table.name]) == 1]
    parts.append("## Sections that several kinds share")
    shared = {name: table for name, table in shown.items() if len(users[name]) > 1}
    parts += [section(table, f"Of {', '.join(users[name])}. ") for name, table in shared.items()]
    return "\n\n".join(parts) + "\n"


OPENING = """\
A recipe is a YAML file of sections. Here is every knob, with the values it takes, its default and its meaning. Anything
else in a recipe is an error, which names the line and the nearest knob. `--set section.key=value` changes one knob on
the command line. `hftoolkit recipes schema` prints the same as a JSON Schema, for editors that complete and check
YAML."""


def kinds_table() -> str:
    """Return which kinds there are."""
    lines = ["| `task.kind` | command | what it is |", "|---|---|---|"]
    for kind, recipe in KINDS.items():
        command, name = ("rl train", f"none: {kind}") if kind == REINFORCEMENT else ("finetune", code(kind))
        lines.append(f"| [{name}](#{slug(kind)}) | `hftoolkit {command}` | {summary(recipe_schema(recipe))} |")
    return "\n".join(lines)


def shipped_table() -> str:
    """Return which recipes come with the package."""
    lines = [f"| {code(recipe.name)} | {escaped(recipe.title)} |" for recipe in list_recipes()]
    return "\n".join(
        ["Shipped recipes (`hftoolkit recipes copy NAME DEST` copies one):\n", "| name | what |", "|---|---|", *lines]
    )


def kind_section(kind: str, listed: list[Table], shown: dict[str, Table]) -> str:
    """Return the heading of a kind and links to its sections."""
    links = ", ".join((f"{each.path} " if each.tag else "") + each.link(shown[each.name]) for each in listed)
    return f"## {kind}\n\n{summary(recipe_schema(KINDS[kind]))} Sections: {links}."


def section(table: Table, users: str = "") -> str:
    """Return the table of a section."""
    chosen = f"With `{table.tag}`. " if table.tag else ""
    lines = [f"### {table.title}", "", f"{users}{chosen}{summary(table.node)}", ""]
    lines += ["| knob | value | default | meaning |", "|---|---|---|---|"]
    required = table.node.get("required", ())
    for name, child in table.node["properties"].items():
        cells = code(name), values(child), default(child, name in required), escaped(child.get("description", ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(node: Node, path: str = "") -> Iterator[Table]:
    """Yield the sections inside of a section, in the order of the source."""
    for name, child in node["properties"].items():
        place = f"{path}.{name}" if path else name
        inner = section_of(child)
        if inner is None:
            continue
        if "discriminator" in inner:
            tag = inner["discriminator"]["propertyName"]
            for value, member in variants(inner).items():
                yield Table(place, member["title"], f"{tag}: {value}", member)
                yield from tables(member, place)
        else:
            yield Table(place, inner["title"], "", inner)
            yield from tables(inner, place)


def section_of(node: Node) -> Node | None:
    """Return the section, or the sections to choose from, that a knob holds; None if it holds a value."""
    members = [resolve(member) for member in node.get("anyOf", [node])]
    return next((member for member in members if "properties" in member or "discriminator" in member), None)


def values(node: Node) -> str:
    """Return what a knob takes."""
    inner = section_of(node)
    if "const" in node:
        return code(node["const"])
    if inner is None:
        text = escaped(expected(node))
        patterns = [member["pattern"] for member in node.get("anyOf", [node]) if "pattern" in member]
        return text.replace(escaped(patterns[0]), code(patterns[0])) if patterns else text
    if "discriminator" in inner:
        tag = inner["discriminator"]["propertyName"]
        return f"a section; `{tag}`: {', '.join(variants(inner))}"
    return "a section, or null" if "anyOf" in node else "a section"


def default(node: Node, required: bool) -> str:
    """Return the default of a knob."""
    if required:
        return "required"
    if "default" in node:
        return code(write_value(node["default"]))
    inner = section_of(node)
    if inner is None:
        return code("{}")  # the one default that pydantic makes anew for each recipe, and leaves out of the schema
    if "discriminator" not in inner:
        return "its defaults"
    tag = inner["discriminator"]["propertyName"]
    return next(
        code(f"{tag}: {name}") for name, node in variants(inner).items() if "default" in node["properties"][tag]
    )


def summary(node: Node) -> str:
    """Return the docstring of a section in one paragraph."""
    return escaped(" ".join(str(node.get("description", "")).split()))


def code(text: str) -> str:
    """Return a text as code, also with a bar in it, which would end a cell."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def escaped(text: Any) -> str:
    """Return a text that no table and no HTML is made of."""
    return str(text).replace("``", "`").replace("|", "&#124;").replace("<", "&lt;")


def slug(title: str) -> str:
    """Return the anchor of a heading, as GitHub and MkDocs make it."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


if __name__ == "__main__":
    main()
