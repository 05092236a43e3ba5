"""The hashes of a finished model: whatever is changed, cut, removed or added is found before it is loaded."""

import hashlib
import os
from pathlib import Path

import pytest

from hftoolkit.data.sources.resolve import resolve_model
from hftoolkit.data.sources.sealing import check_model_folder, check_seal, seal, sync_folder
from hftoolkit.errors import DataError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "model"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "README.md").write_text("# card")
    (folder / "confusion.png").write_bytes(b"picture")
    (folder.parent / "recipe.yaml").write_text("task: {}")
    seal(folder)
    return folder


def test_the_hashes_are_those_that_sha256sum_reads(model: Path):
    lines = [line.split("  ", 1) for line in (model.parent / "model.sha256").read_text().splitlines()]
    assert {name for _, name in lines} == {
        "model/adapter/adapter_config.json",
        "model/config.json",
        "model/model.safetensors",
    }
    for digest, name in lines:
        assert hashlib.sha256((model.parent / name).read_bytes()).hexdigest() == digest
    assert check_seal(model)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)


def add(path: Path) -> None:
    (path.parent / "pytorch_model.bin").write_bytes(b"pickle")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "adapter/adapter_config.json"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip, "has changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has changed"),
        (lambda path: path.write_bytes(b""), "has changed"),
        (Path.unlink, "is gone"),
        (add, "was added"),
    ],
)
def test_whatever_happens_to_a_file_is_found(model: Path, name: str, change, said: str):
    change(model / name)
    with pytest.raises(DataError, match=f"{said}.* since the run ended.*Restore the run from a copy or train it again"):
        check_seal(model)
    with pytest.raises(DataError, match=said):
        check_model_folder(model)
    for address in (model, model.parent):  # training may start from a run, too
        with pytest.raises(DataError, match=said):
            resolve_model(str(address))


def test_cards_pictures_and_hidden_files_may_be_edited(model: Path):
    (model / "README.md").write_text("# a better card")
    (model / "samples.png").write_bytes(b"another picture")
    (model / "LICENSE").write_text("CC0")
    (model / ".DS_Store").write_bytes(b"?")
    assert check_seal(model)


def test_a_model_without_hashes_is_not_called_checked(model: Path):
    (model.parent / "model.sha256").unlink()
    assert not check_seal(model)


@pytest.mark.parametrize("content", [b"", b"no hash  model/config.json\n", b"\xff\n"])
def test_damaged_hashes_are_not_passed_over(model: Path, content: bytes):
    (model.parent / "model.sha256").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.sha256"):
        check_seal(model)


def test_a_line_that_is_lost_leaves_a_file_that_is_not_expected(model: Path):
    record = model.parent / "model.sha256"
    record.write_text("".join(line for line in record.open() if "config.json" in line))
    with pytest.raises(DataError, match=r"model\.safetensors was added"):
        check_seal(model)


def test_a_folder_of_data_beside_a_list_of_hashes_is_no_model(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model.sha256").write_text("a list of another kind")
    check_model_folder(tmp_path / "model")


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_all_files_get_the_mode_of_the_umask(model: Path, mask: int):
    (model / "model.safetensors").chmod(0o600)
    before = os.umask(mask)
    try:
        seal(model)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in model.rglob("*") if path.is_file()} == {0o666 & ~mask}


def test_every_file_and_folder_of_a_model_is_synced(model: Path, monkeypatch: pytest.MonkeyPatch):
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.readlink(f"/proc/self/fd/{descriptor}")))
    sync_folder(model)
    assert synced == {str(path) for path in (*model.rglob("*"), model, model.parent)}
