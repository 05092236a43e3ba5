"""Commits of Hub addresses that a recipe does not pin: found out once, when the run begins, and kept for resume."""

from typing import Any, TypeVar

from hftoolkit.data.sources.resolve import movable_commit
from hftoolkit.recipe import AnyRecipe
from hftoolkit.runs.directory import RunDir, read_json, write_json

R = TypeVar("R", bound=AnyRecipe)
ADDRESSES = {"backbone": "model", "source": "dataset"}  # knobs with an address, and what is there on the Hub


def pinned(recipe: R, run: RunDir) -> R:
    """Return the recipe with a commit in each Hub address: the one that it named when the run began.

    Raises:
        DataError, EnvironmentFault: the Hub does not say which commit that is.
    """
    kept = _kept(run)
    found = kept | {
        address: commit
        for address, kind in _addresses(recipe)
        if address not in kept and (commit := movable_commit(address, kind)) is not None
    }
    if found != kept:
        write_json(run.revisions, found)
    pinned_recipe: R = _with_commits(recipe, found)
    return pinned_recipe


def as_begun(recipe: R, run: RunDir) -> R:
    """Return the recipe with the commits that the run noted, without asking anybody."""
    begun: R = _with_commits(recipe, _kept(run))
    return begun


def _kept(run: RunDir) -> dict[str, str]:
    return read_json(run.revisions) if run.revisions.is_file() else {}


def _addresses(section: Any) -> list[tuple[str, str]]:
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if hasattr(type(value), "model_fields"):
            found += _addresses(value)
        elif name in ADDRESSES and isinstance(value, str) and getattr(section, "sha256", None) is None:
            found.append((value, ADDRESSES[name]))
    return found


def _with_commits(section: Any, commits: dict[str, str]) -> Any:
    changed = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if hasattr(type(value), "model_fields"):
            changed[name] = _with_commits(value, commits)
        elif name in ADDRESSES and value in commits:
            changed[name] = f"{value.partition('@')[0]}@{commits[value]}"
    return section.model_copy(update=changed)
