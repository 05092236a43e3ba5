"""The repository that a model goes to: is it there, may we write, and who sees it."""

from typing import Any

from huggingface_hub import HfApi

from hftoolkit.contracts import Emit, Message
from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.hub.faults import FIRST_WAITS_SECONDS, hub_faults, with_retries
from hftoolkit.recipe import Hub


def check_push_access(hub: Hub | None, *, create: bool, emit: Emit) -> None:
    """Check before a long run that its model can be pushed, so that a missing permission costs no training.

    Args:
        hub: that section of the recipe; without it, nothing is to be pushed.
        create: make the repository if it does not exist; otherwise only check that this account could.
        emit: gets what was found.

    Raises:
        RecipeError: the repository exists, and who sees it differs from ``hub.private``.
        EnvironmentFault: no token, no permission, no network.
    """
    if hub is None:
        return
    with hub_faults(f"cannot use hub.repo {hub.repo}", "Nothing was trained yet; or leave out the section hub"):
        exists = with_retries(
            lambda: ready_repository(hub.repo, private=hub.private, create=create), emit, FIRST_WAITS_SECONDS
        )
    found = "is there" if exists else "was made" if create else "does not exist yet, and can be made"
    emit(Message(f"hub: {hub.repo} ({visibility(hub.private)}) {found}; the model goes there at the end"))


def ready_repository(repository: str, *, private: bool, create: bool) -> bool:
    """Return whether the repository existed; make it if it did not, and check who sees it and that we may write."""
    api = HfApi()
    user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise EnvironmentFault("the Hub token may only read; make one that may write, and type `hf auth login`")
    exists = api.repo_exists(repository)
    if not exists:
        _check_owner(repository, user)
        if not create:
            return False
        api.create_repo(repository, private=private, exist_ok=True)
    if api.model_info(repository).private != private:
        raise RecipeError(_other_visibility(repository, private))
    api.auth_check(repository, write=True)
    return bool(exists)


def visibility(private: bool) -> str:
    """Return the Hub's word for who sees a repository."""
    return "private" if private else "public"


def _check_owner(repository: str, user: dict[str, Any]) -> None:
    names = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    owner, _, name = repository.partition("/")
    if owner.casefold() not in map(str.casefold, names):
        choices = ", ".join(f"{each}/{name}" for each in names)
        raise EnvironmentFault(f"it does not exist, and this account cannot make it; choose one of {choices}")


def _other_visibility(repository: str, private: bool) -> str:
    """Say how to agree on who sees the repository; a push changes that for nobody."""
    if private:
        how = "everybody would see the model; add --public (hub.private: false) if that is meant"
    else:
        how = "leave out --public (hub.private: true), or change it in the settings of the repository"
    return f"{repository} exists and is {visibility(not private)}: {how}"
