"""The files that say what is installed: pyproject.toml, constraints.txt, constraints-lowest.txt, and who reads them."""

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
LOWEST = ROOT / "constraints-lowest.txt"
DOCS = ROOT / "scripts" / "docs-requirements.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
USER_EXTRAS = ("faiss", "rl", "trackers")
PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)


def pins(text: str) -> dict[str, Version]:
    found = {canonicalize_name(name): Version(version) for name, version in PIN.findall(text)}
    assert len(found) > 90
    return found


def requirements(*extras: str) -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    return [Requirement(text) for text in texts if not text.startswith("hftoolkit")]


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
    return Version(bound)


def selected(extras: str = "") -> str:
    command = [sys.executable, "scripts/pins.py", extras]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_dependency_is_in_the_tested_set_and_allowed() -> None:
    tested = pins(CONSTRAINTS.read_text(encoding="utf-8"))
    asked = requirements(*EXTRAS)
    assert len(asked) > 30
    for requirement in asked:
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement


def test_the_lowest_set_has_the_lower_bounds_of_all_that_a_user_has() -> None:
    lowest = pins(LOWEST.read_text(encoding="utf-8"))
    for requirement in requirements(*USER_EXTRAS):
        assert lowest[canonicalize_name(requirement.name)] == lower_bound(requirement), requirement


@pytest.mark.parametrize(("file", "at_least"), [(CONSTRAINTS, 90), (DOCS, 25)], ids=["tested", "docs"])
def test_every_version_has_its_hashes(file: Path, at_least: int) -> None:
    entries = re.split(r"^(?=\w)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(entries) > at_least
    assert not [entry.split()[0] for entry in entries if not re.search(r"^    --hash=sha256:[0-9a-f]{64}", entry, re.M)]


@pytest.mark.parametrize(
    "file", [CONSTRAINTS, LOWEST, DOCS, *sorted((ROOT / "scripts").glob("*.sh"))], ids=lambda f: f.name
)
def test_no_index_and_no_path_of_a_machine_is_written_down(file: Path) -> None:
    found = re.findall(
        r"https?://|file://|--(?:extra-)?index|--find-links|/(?:home|root|opt|work|tmp)/", file.read_text()
    )
    assert not found


def needs(name: str) -> list[str]:
    """Return what a package says it needs; of one that is not installed here, this is not known."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def closure(extras: tuple[str, ...]) -> set[str]:
    """Return all that the requirements bring here, as the metadata of what is installed says it."""
    waiting = [(each, extra) for each in requirements(*extras) for extra in ("", *each.extras)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in needs(name):
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, each) for each in ("", *needed.extras)]
    return {name for name, _ in seen}


@pytest.mark.parametrize(
    "extras", [(), ("faiss",), ("rl",), ("test",), ("faiss", "rl")], ids=lambda e: "+".join(e) or "none"
)
def test_the_entries_for_some_extras_are_all_that_these_bring(extras: tuple[str, ...]) -> None:
    needed = closure(extras)
    assert len(needed) > 60
    assert needed <= set(pins(selected(",".join(extras))))


def test_a_plain_user_gets_no_test_tools_and_no_extras() -> None:
    plain = set(pins(selected()))
    assert not plain & {"pytest", "mypy", "ruff", "hypothesis", "gymnasium", "wandb", "tensorboard", "faiss-cpu"}
    assert set(pins(selected("all"))) == set(pins(CONSTRAINTS.read_text(encoding="utf-8")))


def test_an_unknown_extra_is_refused_with_the_choice() -> None:
    command = [sys.executable, "scripts/pins.py", "gpu"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "choose from faiss, rl" in ended.stderr


def test_the_source_distribution_has_tests_scripts_and_tested_versions(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {
        "tests/conftest.py",
        "scripts/pins.py",
        "docs/architecture.md",
        "recipes/sentiment.yaml",
        "pyproject.toml",
    }
    assert (
        wanted | {"constraints.txt", "constraints-lowest.txt", "README.md", "LICENSE", "hftoolkit/cli/entry.py"}
        <= names
    )
    assert not [name for name in names if "__pycache__" in name or name.startswith(("runs/", ".git/", ".venv/"))]
