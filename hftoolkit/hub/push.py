"""Push a model, mostly ``model/`` of a finished run: one commit makes the repository exactly that, whatever happens.

Each attempt looks at what the repository holds, and does only what is missing. An attempt whose answer was lost is
therefore simply made again.
"""

import hashlib
import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_session
from huggingface_hub.errors import BadRequestError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, hf_raise_for_status
from huggingface_hub.utils.logging import set_verbosity_error

from hftoolkit.contracts import Emit, Message
from hftoolkit.errors import DataError, EnvironmentFault, RecipeError
from hftoolkit.hub.faults import FIRST_WAITS_SECONDS, hub_faults, with_retries
from hftoolkit.hub.repository import ready_repository, visibility
from hftoolkit.recipe import Hub, check_repository
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.resume import check_model

CARD = "README.md"
KEPT = {".gitattributes"}  # the Hub's own, and it says which files are large
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Digest:
    """How the Hub knows a file: by the hash of a git blob, or of the bytes where it is stored as a large file."""

    git_sha1: str
    sha256: str

    def names(self, file: RepoFile) -> bool:
        """Return whether a file of the Hub has this content."""
        return bool(file.lfs.sha256 == self.sha256 if file.lfs else file.blob_id == self.git_sha1)


def publish(hub: Hub | None, run: RunDir, *, emit: Emit) -> None:
    """Push a run whose recipe says so, after it is done, so that a push that fails takes nothing from it."""
    if hub is not None:
        push(run.root, hub.repo, private=hub.private, emit=emit)


def push(folder: Path, repository: str, *, private: bool, emit: Emit) -> str:
    """Make the main branch of a Hub repository equal to ``model/`` of a finished run, and return its address.

    Args:
        folder: the run.
        repository: OWNER/NAME; made if it does not exist.
        private: whether only the owner sees it.
        emit: gets what is done.

    Raises:
        RecipeError: ``repository`` is malformed, or exists and is seen by others than ``private`` says.
        DataError: the run is not finished, its model is not what it was then, or the Hub does not take its card.
        EnvironmentFault: no token, no permission, no network, somebody else's commit; the run is untouched.
    """
    try:
        check_repository(repository)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    run = RunDir.open(folder)
    check_model(run, emit)
    _quieten()
    again = shlex.join(["hftoolkit", "push", str(folder), repository, *([] if private else ["--public"])])
    advice = f"The model is complete in {run.model}; to try again, type: {again}"
    with hub_faults(f"cannot push {run.model} to {repository}", advice):
        commit = _send(run.model, repository, private=private, title="Push with hftoolkit", emit=emit)
    address = f"{constants.ENDPOINT}/{repository}"
    emit(Message(f"hub       {address} ({visibility(private)}, commit {commit[:12]})"))
    emit(Message(f'load it   hftoolkit.load("{repository}")'))
    return address


def push_unfinished(folder: Path, hub: Hub, *, step: int, emit: Emit) -> None:
    """Make the main branch of a Hub repository equal to ``folder``, the best model so far of a run that goes on.

    Raises:
        HFToolkitError: as ``push`` does.
    """
    _quieten()
    with hub_faults(hub.repo, "The run goes on, and pushes its finished model in any case"):
        _send(folder, hub.repo, private=hub.private, title=f"Best so far, step {step}, with hftoolkit", emit=emit)


def _send(folder: Path, repository: str, *, private: bool, title: str, emit: Emit) -> str:
    """Make the main branch equal to a folder, in one commit of this title; return the commit that holds it."""
    local = _digests(folder)
    with_retries(lambda: _validate(folder / CARD), emit, FIRST_WAITS_SECONDS)
    with_retries(lambda: ready_repository(repository, private=private, create=True), emit, FIRST_WAITS_SECONDS)
    upload = _Upload(folder, repository, local, title, emit)
    commit = with_retries(upload.converge, emit)
    upload.verify(commit)
    return commit


class _Upload:
    """One push. ``converge`` may be called until it succeeds."""

    def __init__(self, folder: Path, repository: str, local: dict[str, Digest], title: str, emit: Emit) -> None:
        self._folder = folder
        self._repository = repository
        self._local = local
        self._title = title
        self._emit = emit
        self._api = HfApi()
        self._parent: str | None = None  # what the first attempt found, and all of them build on

    def converge(self) -> str:
        """Return the commit that holds the local files: one that is there, or a new one.

        Raises:
            EnvironmentFault: somebody else committed since the first attempt.
        """
        head: str = self._api.model_info(self._repository).sha
        remote = self._remote(head)
        if not self._differing(remote):
            self._emit(Message(f"{self._repository} holds exactly this model, {len(self._local)} files"))
            return head
        if self._parent not in (None, head):
            raise EnvironmentFault(
                f"somebody else committed to it meanwhile ({head[:12]}), and that was left as it is; "
                "look at it, because another push replaces it"
            )
        self._parent = head
        return self._commit(head, stale=sorted(remote.keys() - self._local.keys()))

    def verify(self, commit: str) -> None:
        """Compare what the Hub holds at a commit with the files that were to be sent.

        Raises:
            EnvironmentFault: there is a difference.
        """
        differing = self._differing(with_retries(lambda: self._remote(commit), self._emit))
        if differing:
            raise EnvironmentFault(f"what the Hub has at {commit[:12]} differs from here in {', '.join(differing)}")

    def _remote(self, commit: str) -> dict[str, RepoFile]:
        entries = self._api.list_repo_tree(self._repository, recursive=True, revision=commit)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path not in KEPT}

    def _differing(self, remote: dict[str, RepoFile]) -> list[str]:
        same = {path for path, digest in self._local.items() if path in remote and digest.names(remote[path])}
        return sorted((self._local.keys() | remote.keys()) - same)

    def _commit(self, parent: str, stale: list[str]) -> str:
        additions = [CommitOperationAdd(path, str(self._folder / path)) for path in self._local]
        size = sum(addition.upload_info.size for addition in additions)
        self._emit(Message(f"uploading {len(additions)} files, {size / 1e6:.1f} MB, to {self._repository}"))
        # A .gitignore in the repository would keep files out of the commit without a word.
        self._api.preupload_lfs_files(
            self._repository, additions, gitignore_content="# nothing is ignored\n", free_memory=False
        )
        deletions = [CommitOperationDelete(path, is_folder=False) for path in stale]
        made = self._api.create_commit(
            self._repository, [*additions, *deletions], commit_message=self._title, parent_commit=parent
        )
        if stale:
            self._emit(
                Message(f"removed what is not part of the model, kept in commit {parent[:12]}: {', '.join(stale)}")
            )
        return str(made.oid)


def _digests(folder: Path) -> dict[str, Digest]:
    """Return the files to send by their path in the repository; hidden ones come and go and are none of the model's.

    Raises:
        DataError: there is no card, or a link, which could lead anywhere.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink():
            raise DataError(f"{path} is a link, and a push sends only files of the model; put the file there instead")
        if path.is_file():
            found[name.as_posix()] = _digest(path)
    if CARD not in found:
        raise DataError(f"{folder} has no {CARD}, the model card; type: hftoolkit report {folder.parent}")
    return found


def _digest(path: Path) -> Digest:
    git, plain = hashlib.sha1(b"blob %d\0" % path.stat().st_size), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            git.update(chunk)
            plain.update(chunk)
    return Digest(git.hexdigest(), plain.hexdigest())


def _validate(card: Path) -> None:
    """Let the Hub check the metadata of the card, as it is on disk, before anything is made or sent.

    Raises:
        DataError: it refuses them.
    """
    content = {"repoType": "model", "content": card.read_text(encoding="utf-8")}
    try:
        hf_raise_for_status(get_session().post(f"{constants.ENDPOINT}/api/validate-yaml", json=content))
    except BadRequestError as error:
        said = error.server_message or "no reason given"
        raise DataError(f"the Hub does not take the metadata of {card}: {said}; correct them and push again") from error


def _quieten() -> None:
    """Keep bars out of files and pipes, and leave it to ``with_retries`` to tell about attempts that failed."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    if not logger.isEnabledFor(logging.INFO):
        set_verbosity_error()
