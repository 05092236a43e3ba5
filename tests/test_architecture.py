"""The house rules: layers, library owners, one loop, no dead knob, lint, types."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from doubles.paths import ROOT
from hftoolkit.recipe import ALL_RECIPES, is_reinforcement_recipe, load_recipe, load_reinforcement_recipe
from hftoolkit.recipe.kinds import RECIPES

PACKAGE = ROOT / "hftoolkit"
TESTS = ROOT / "tests"
DOUBLES = TESTS / "doubles"
MAX_FILE_LINES = 500  # the contract of a task and the tasks themselves are read whole
MAX_FUNCTION_LINES = 60
MAX_ENTRIES = 18  # of the package, modules and folders
MAX_LAYERS = 12
KINDS = [kind for kind, recipe in RECIPES.items() if hasattr(recipe, "implementation")]  # a wing is no kind
MAX_FILES_OF_A_KIND = 5  # what a new kind may cost, the file with its line in recipe/kinds.py among them
FILES_OF_OLDER_KINDS = {  # that cost more, measured when the limit came: it may become less, and not more
    "text-classification": 6,  # the first kind: recipe/__init__ names its recipe, and only it caches features
}
# What runs whichever kind there is, or is none of these kinds: where the way to code of a kind does not begin.
SHARED_ROOMS = {"cli", "commands", "export", "hub", "recommend", "rl", "runs", "train"}


def run_tool(*command: str) -> None:
    ended = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def python_files() -> list[Path]:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    return files


def test_lint_and_library_owners_hold() -> None:
    run_tool("ruff", "check", ".")


def test_code_is_formatted() -> None:
    run_tool("ruff", "format", "--check", ".")


def test_types_are_strict() -> None:
    run_tool("mypy")


def test_layers_hold() -> None:
    code = "from importlinter.cli import lint_imports_command as c; c()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", ended.stdout), ended.stdout


def test_the_package_has_few_rooms_and_few_layers() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert 10 < len(entries) <= MAX_ENTRIES, entries
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["name"] == "layers"]
    assert 5 < len(layers) <= MAX_LAYERS, layers


def branches_on_kinds(source: str) -> list[int]:
    """Return the lines that ask of which kind a recipe is; assertions that tell mypy so are no branches."""
    tree = ast.parse(source)
    asserted = {node for check in ast.walk(tree) if isinstance(check, ast.Assert) for node in ast.walk(check.test)}
    return sorted({node.lineno for node in ast.walk(tree) if node not in asserted and asks_for_a_kind(node)})


def asks_for_a_kind(node: ast.AST) -> bool:
    """Tell whether a node compares with a class of recipes or the name of a kind, or is a table with such keys."""
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, classes]):
            return names_a_recipe(classes)
        case ast.MatchClass(cls=cls):
            return names_a_recipe(cls)
        case ast.MatchValue(value=value):
            return names_a_kind(value)
        case ast.Compare():
            return any(names_a_kind(side) or names_a_recipe(side) for side in (node.left, *node.comparators))
        case ast.Dict():
            return any(key is not None and (names_a_kind(key) or names_a_recipe(key)) for key in node.keys)
    return False


def names_a_recipe(node: ast.AST) -> bool:
    names = [part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in ast.walk(node)]
    return any(name in {"Recipe", *(recipe.__name__ for recipe in ALL_RECIPES)} for name in names)


def names_a_kind(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Constant) and part.value in RECIPES for part in ast.walk(node))


def test_nothing_outside_the_recipes_asks_for_the_kind_of_one() -> None:
    allowed = {"recommend/predictor.py": 1}  # what recommends nothing is refused by name
    outside = [file for file in python_files() if file.relative_to(PACKAGE).parts[0] != "recipe"]
    found = {file.relative_to(PACKAGE).as_posix(): branches_on_kinds(file.read_text()) for file in outside}
    assert {file: lines for file, lines in found.items() if len(lines) > allowed.get(file, 0)} == {}
    assert [file for file, count in allowed.items() if len(found[file]) < count] == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("if isinstance(recipe, (Section, TextRecipe)): pass", 1),
        ("x = isinstance(recipe, recipe_module.ImageRecipe | None)", 1),
        ("match recipe:\n    case RecommendationRecipe(task=t):\n        pass", 1),
        ("match kind:\n    case 'text-classification' | 'other':\n        pass", 1),
        ("x = recipe.task.kind in ('image-classification',)", 1),
        ("x = type(recipe) is TextRecipe", 1),
        ("x = {'text-classification': 1}[recipe.task.kind]", 1),
        ("assert isinstance(recipe, Recipe)", 0),
        ("def load(recipe: TextRecipe, title='text-classification'): return TextRecipe.implementation", 0),
    ],
)
def test_branches_on_kinds_are_found(code: str, count: int) -> None:
    assert len(branches_on_kinds(code)) == count


def implementation_of(kind: str) -> tuple[str, str]:
    """Return the module and the class of a kind's task."""
    module, _, name = RECIPES[kind].implementation.partition(":")
    return module, name


def names_that(source: str, kind: str) -> bool:
    """Tell whether code names a kind, its recipe or its task; the Hub's name of a task may be that of several kinds."""
    tree = ast.parse(source)
    hub = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and is_pipeline_tag(node)}
    module, task = implementation_of(kind)
    classes, texts = {RECIPES[kind].__name__, task}, {kind, f"{module}:{task}"}
    for node in (node for node in ast.walk(tree) if id(node) not in hub):
        match node:
            case ast.Constant(value=str(text)) if text in texts:
                return True
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) | ast.ClassDef(name=name):
                if name in classes:
                    return True
    return False


def is_pipeline_tag(node: ast.AnnAssign) -> bool:
    return isinstance(node.target, ast.Name) and node.target.id == "pipeline_tag"


def modules_imported(file: Path, modules: Mapping[str, Path]) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules.keys()


def files_of_a_kind(kind: str) -> set[str]:
    """Return the files that name a kind, and those that nothing but its task leads to."""
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in python_files()
    }
    imports = {name: modules_imported(file, modules) for name, file in modules.items()}

    def reached(todo: list[str]) -> set[str]:
        found: set[str] = set()
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += imports[name]
        return found

    tasks = {other: implementation_of(other)[0] for other in KINDS}
    shared = [name for name in modules if name.split(".")[1:2] and name.split(".")[1] in SHARED_ROOMS]
    others = [module for other, module in tasks.items() if other != kind]
    alone = {modules[name] for name in reached([tasks[kind]]) - reached(["hftoolkit", *shared, *others])}
    named = {file for file in modules.values() if names_that(file.read_text(), kind)}
    return {file.relative_to(PACKAGE).as_posix() for file in alone | named}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_costs_few_files_of_the_package(kind: str) -> None:
    files = files_of_a_kind(kind)
    module, _ = implementation_of(kind)
    assert {"recipe/kinds.py", f"{module.removeprefix('hftoolkit.').replace('.', '/')}.py"} < files
    assert len(files) <= FILES_OF_OLDER_KINDS.get(kind, MAX_FILES_OF_A_KIND), sorted(files)


def test_older_kinds_have_no_higher_limit_than_they_need() -> None:
    costs = {kind: len(files_of_a_kind(kind)) for kind in FILES_OF_OLDER_KINDS}
    assert [kind for kind, cost in costs.items() if cost <= MAX_FILES_OF_A_KIND] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("if recipe.task.kind == 'text-regression': pass", True),
        ("from hftoolkit.tasks.text_regression import TextRegressionTask", True),
        ("x = hftoolkit.recipe.regression.TextRegressionRecipe", True),
        ("title = 'a text-regression of mine'", False),
        ("from hftoolkit.recipe.regression import Regression", False),
    ],
)
def test_code_that_names_a_kind_is_found(code: str, found: bool) -> None:
    assert names_that(code, "text-regression") is found


def test_the_name_of_a_task_on_the_hub_is_no_kind() -> None:
    code = "class Task:\n    pipeline_tag: ClassVar[str] = 'text-classification'"
    assert not names_that(code, "text-classification")
    assert names_that(code.replace("pipeline_tag", "kind"), "text-classification")


def test_there_is_one_training_loop_and_that_of_dqn() -> None:
    found = {file.name for file in python_files() if ".backward(" in file.read_text()}
    assert found == {"loop.py", "dqn.py", "speedups.py"}  # the last one is dqn's chain rule, and no loop


def test_files_and_functions_fit_a_reader() -> None:
    long = []
    for file in python_files():
        source = file.read_text()
        if source.count("\n") > MAX_FILE_LINES:
            long.append(f"{file.name}: {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{file.name}:{node.name}: {lines} lines")
    assert not long


def test_code_is_ascii() -> None:
    assert not [file.name for file in python_files() if not file.read_text().isascii()]


def section_classes(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        stack: list[object] = [field.annotation]
        while stack:
            annotation = stack.pop()
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                found |= section_classes(annotation)
            stack += getattr(annotation, "__args__", ())
    return found


def names_read(tree: ast.AST) -> set[str]:
    """Return the attributes that code reads, in expressions and in patterns."""
    nodes = list(ast.walk(tree))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {name for node in nodes if isinstance(node, ast.MatchClass) for name in node.kwd_attrs}


def test_every_knob_is_read_outside_the_recipe_package() -> None:
    trees = {file: ast.parse(file.read_text()) for file in python_files()}
    recipes = [tree for file, tree in trees.items() if "recipe" in file.relative_to(PACKAGE).parts]
    outside = [tree for tree in trees.values() if tree not in recipes]
    read = set().union(*map(names_read, outside))
    for node in (node for tree in recipes for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        is_property = any(isinstance(name, ast.Name) and name.id == "property" for name in node.decorator_list)
        if is_property and node.name in read:
            read |= names_read(node)
    knobs = {name for recipe in ALL_RECIPES for section in section_classes(recipe) for name in section.model_fields}
    assert len(knobs) > 40
    assert not knobs - read, knobs - read


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid(path: Path) -> None:
    load = load_reinforcement_recipe if is_reinforcement_recipe(path) else load_recipe
    load(path)


def test_recipes_are_shipped() -> None:
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} >= {
        "sentiment",
        "sentiment-lora",
        "vision",
        "vision-lora",
        "recommendation",
        "dqn",
        "dqn-acrobot",
        "dqn-mountaincar",
        "dqn-lunarlander",
        "q-learning",
        "sarsa",
    }


def test_the_folders_of_tests_are_those_of_the_package() -> None:
    tests = sorted(TESTS.rglob("test_*.py"))
    assert len(tests) > 50
    assert len({file.name for file in tests}) == len(tests)  # pytest imports them by their names alone
    folders = {file.parent.relative_to(TESTS) for file in tests} - {Path("scripts")}  # which mirrors scripts/
    assert not [folder for folder in folders if not (PACKAGE / folder / "__init__.py").is_file()]
    packages = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert packages == {folder.parts[0] for folder in folders if folder.parts}


def test_what_tests_share_is_in_doubles_and_no_test_module_imports_another() -> None:
    files = sorted(TESTS.rglob("*.py"))
    own = {file.stem for file in files if DOUBLES not in file.parents}
    assert len(own) > 50
    assert not [name for name in own if not name.startswith("test_") and name != "conftest"]
    borrowed = {(file.stem, name) for file in files for name in own.intersection(names_imported(file))}
    assert not borrowed


def names_imported(file: Path) -> set[str]:
    """Return every part of the names in the import statements of a file, those inside of functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {part for name in names for part in name.split(".")}


def test_importing_the_command_line_does_not_import_torch() -> None:
    code = (
        "import sys, hftoolkit.cli, hftoolkit.recipe; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
