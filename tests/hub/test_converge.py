"""What a push sends and deletes, by what the Hub holds: against a Hub of a few lines, without a network."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.hf_api import RepoFile

from hftoolkit.contracts import Event
from hftoolkit.errors import EnvironmentFault
from hftoolkit.hub import push as hub_push
from hftoolkit.hub.push import Digest, _digests, _Upload

PLAIN, LARGE = b'{"a": 1}', b"weights"


class Hub:
    """Files of the main branch by path, and the commits that were made."""

    def __init__(self, files: dict[str, RepoFile]) -> None:
        self.files = files
        self.commits: list[list[Any]] = []

    def model_info(self, _: str) -> Any:
        return SimpleNamespace(sha=f"commit{len(self.commits)}")

    def list_repo_tree(self, *_: Any, **__: Any) -> list[RepoFile]:
        return list(self.files.values())

    def preupload_lfs_files(self, *_: Any, **__: Any) -> None:
        """Take them."""

    def create_commit(self, _: str, operations: list[Any], **__: Any) -> Any:
        self.commits.append([(type(each).__name__, each.path_in_repo) for each in operations])
        return SimpleNamespace(oid="made")


def plain(path: str, content: bytes, sha1: str | None = None) -> RepoFile:
    found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return RepoFile(path=path, size=len(content), oid=sha1 or found)


def large(path: str, content: bytes, sha256: str | None = None) -> RepoFile:
    found = sha256 or hashlib.sha256(content).hexdigest()
    return RepoFile(path=path, size=9, oid="pointer", lfs={"oid": found, "size": len(content), "pointerSize": 130})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in (("README.md", b"# Card"), ("config.json", PLAIN), ("model.safetensors", LARGE)):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def upload(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> tuple[_Upload, list[Event]]:
    told: list[Event] = []
    monkeypatch.setattr(hub_push, "HfApi", lambda: hub)
    return _Upload(folder, "ada/model", _digests(folder), "Push", told.append), told


def same_files() -> dict[str, RepoFile]:
    files = [plain("README.md", b"# Card"), plain("config.json", PLAIN), large("model.safetensors", LARGE)]
    return {file.path: file for file in files}


def test_a_repository_that_holds_exactly_the_model_gets_no_commit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(same_files() | {".gitattributes": plain(".gitattributes", b"x")})
    found, _ = upload(folder, hub, monkeypatch)
    assert found.converge() == "commit0" and hub.commits == []
    found.verify("commit0")


def test_one_file_more_on_the_hub_is_removed_and_one_that_stays_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(same_files() | {"old/extra.bin": plain("old/extra.bin", b"x")})
    found, told = upload(folder, hub, monkeypatch)
    assert found.converge() == "made"
    assert ("CommitOperationDelete", "old/extra.bin") in hub.commits[0] and len(hub.commits[0]) == 4
    assert any("old/extra.bin" in str(event) for event in told)
    with pytest.raises(EnvironmentFault, match=r"differs from here in old/extra\.bin"):
        found.verify("made")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_character_of_a_hash_makes_another_file(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(digest: str) -> str:
        return digest[:-1] + ("0" if digest[-1] != "0" else "1")

    files, digest = same_files(), _digests(folder)[name]
    spoiled = (
        large(name, LARGE, other(digest.sha256)) if files[name].lfs else plain(name, PLAIN, other(digest.git_sha1))
    )
    found, _ = upload(folder, Hub(files | {name: spoiled}), monkeypatch)
    assert found.converge() == "made"
    with pytest.raises(EnvironmentFault, match=f"differs from here in {name}"):
        found.verify("made")


def test_a_large_file_is_known_by_its_bytes_and_a_small_one_by_its_blob() -> None:
    digest = Digest(git_sha1="a" * 40, sha256="b" * 64)
    assert digest.names(RepoFile(path="x", size=1, oid="a" * 40))
    assert not digest.names(RepoFile(path="x", size=1, oid="b" * 40))
    assert digest.names(RepoFile(path="x", size=1, oid="c", lfs={"oid": "b" * 64, "size": 1, "pointerSize": 1}))
    assert not digest.names(RepoFile(path="x", size=1, oid="a" * 40, lfs={"oid": "c", "size": 1, "pointerSize": 1}))
