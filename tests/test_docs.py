"""README and docs: reference pages are those of the code, links lead somewhere, the Python API is listed whole."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hftoolkit
from doubles.paths import ROOT
from hftoolkit import errors

DOCS = ROOT / "docs"
FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)(?:(?: {4}|\t).*\n?|\n)+")  # a block of code, which needs an empty line before it
CODE = re.compile(r"`[^`\n]+`|<code>.*?</code>|<!--.*?-->", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def pages() -> list[Path]:
    found = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    assert len(found) > 15
    return found


def anchors(text: str) -> list[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    titles = [re.sub(r"[`*]|\[|\]\([^)]*\)", "", title) for title in HEADING.findall(FENCE.sub("", text))]
    return [re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles]


def links(text: str) -> list[str]:
    """Return where the links and pictures outside of code lead."""
    return ["".join(pair) for pair in LINK.findall(CODE.sub("", INDENTED.sub("", FENCE.sub("", text))))]


def dead_links(page: Path) -> list[str]:
    """Return the links of a page that lead to no file, or to no heading of it; links out of docs/ do so on the site."""
    dead = []
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        inside = page == ROOT / "README.md" or target.is_relative_to(DOCS)
        if not inside or not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_and_anchor_leads_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_dead_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A `page`: its title\n\n[good](#a-page-its-title) [file](page.md) ![no picture](no.svg) [bad](#no-heading)\n"
        '[out](../x.md) [web](https://example.com) `[code](none.md)` <img src="none.png">\n\n    [code](no.md)\n'
    )
    assert dead_links(page) == ["no.svg", "#no-heading", "../x.md", "none.png"]


def test_there_are_links_to_follow() -> None:
    assert sum(len(links(page.read_text(encoding="utf-8"))) for page in pages()) > 100


def test_headings_have_the_anchors_of_github_and_of_the_site() -> None:
    for page in pages():
        found = anchors(page.read_text(encoding="utf-8"))
        assert len(set(found)) == len(found), page  # of two equal ones, each numbers the second in its own way
        assert not [anchor for anchor in found if "--" in anchor], page


def check_reference(folder: Path) -> int:
    command = [sys.executable, "scripts/docs_reference.py", "--check", "--into", str(folder)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode


def test_the_reference_pages_are_those_of_the_code() -> None:
    assert check_reference(DOCS / "reference") == 0, "type: python scripts/docs_reference.py"


@pytest.mark.parametrize("name", ["recipes.md", "cli.md"])
def test_a_stale_reference_page_is_found(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(DOCS / "reference", tmp_path / "reference")
    page = folder / name
    page.write_text(page.read_text(encoding="utf-8").replace("train", "Train", 1), encoding="utf-8")
    assert check_reference(folder) == 1


def test_what_is_public_is_what_the_docs_list() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^## `hftoolkit\.(\w+)", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(hftoolkit.__all__)
    assert all(hasattr(hftoolkit, name) for name in listed)


def test_every_exception_is_listed_with_its_exit_code() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \| (\d+|128 plus the signal) \|", text, flags=re.MULTILINE))
    expected = {error.__name__: str(error.exit_code) for error in errors.HFToolkitError.__subclasses__()}
    assert listed == expected | {"Interrupted": "128 plus the signal"}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "scripts" / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:\n")[2]
    listed = re.findall(r": ([\w./-]+\.md)$", navigation, flags=re.MULTILINE)
    assert sorted(listed) == [page.relative_to(DOCS).as_posix() for page in pages()[1:]]
