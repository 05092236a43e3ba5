"""Print the entries of constraints.txt, with their hashes, that hftoolkit needs with some extras.

    python scripts/pins.py [EXTRAS]             for example: python scripts/pins.py rl,trackers
    python scripts/pins.py --lowest [EXTRAS]    the lower bounds of pyproject.toml, each as NAME==BOUND

pip checks hashes only in lists that hold all that is to be installed. constraints.txt holds the packages of all extras
and says of each who needs it ("via"); this follows those words back to pyproject.toml. Needs nothing but Python.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OWN_EXTRAS = re.compile(r"hftoolkit\[(.+)\]")


def main(arguments: list[str]) -> None:
    """Print the entries, or the lower bounds, that the arguments ask for."""
    lowest = arguments[:1] == ["--lowest"]
    extras = [extra for argument in arguments[lowest:] for extra in argument.split(",") if extra]
    if lowest:
        print("\n".join(sorted(lower_bounds(requirements(extras)))))
        return
    print("".join(selected((ROOT / "constraints.txt").read_text(encoding="utf-8"), requirements(extras))), end="")


def requirements(extras: list[str]) -> list[str]:
    """Return what pyproject.toml asks for, and what builds the package, which pip would else fetch unchecked."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    offered = pyproject["project"]["optional-dependencies"]
    found = [*pyproject["build-system"]["requires"], *pyproject["project"]["dependencies"]]
    for extra in extras:
        if extra not in offered:
            raise SystemExit(f"error: there is no extra {extra!r}; choose from {', '.join(offered)}")
        for requirement in offered[extra]:
            own = OWN_EXTRAS.fullmatch(requirement)
            found += requirements(own[1].split(",")) if own else [requirement]
    return found


def lower_bounds(wanted: list[str]) -> set[str]:
    """Return each requirement with its lower bound as its version."""
    return {re.sub(r">=([^,]+).*", r"==\1", requirement) for requirement in wanted}


def selected(constraints: str, wanted: list[str]) -> list[str]:
    """Return the entries that the requirements need, directly or by way of others, in the order of the file."""
    entries = re.split(r"^(?=\w)", constraints, flags=re.MULTILINE)[1:]  # each begins at the margin; [0] is the header
    needed_by = {name_of(entry): users(entry) for entry in entries}
    needed = {name_of(requirement) for requirement in wanted}
    if missing := needed - set(needed_by):
        raise SystemExit(f"error: constraints.txt lacks {', '.join(sorted(missing))}; type: bash scripts/lock.sh")
    while more := {name for name, by in needed_by.items() if by & needed} - needed:
        needed |= more
    return [entry for entry in entries if name_of(entry) in needed]


def users(entry: str) -> set[str]:
    """Return the packages that an entry says need it."""
    return {name_of(line) for line in re.findall(r"^ +#(?: via)? +(\w.*)$", entry, re.MULTILINE)} - {"hftoolkit"}


def name_of(text: str) -> str:
    """Return the normalized name at the beginning of a requirement or an entry."""
    found = NAME.match(text)
    assert found, text
    return re.sub(r"[-_.]+", "-", found[0]).lower()


if __name__ == "__main__":
    main(sys.argv[1:])
