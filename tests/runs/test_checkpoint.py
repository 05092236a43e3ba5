"""Checkpoints through full disks, kills and damage. ``pytest -m faults`` repeats the samples of damage in number."""

import errno
import hashlib
import importlib
import json
import os
import random
import shutil
from itertools import count

import pytest
import torch
from safetensors import SafetensorError

from hftoolkit.errors import DataError, EnvironmentFault
from hftoolkit.runs.checkpoint import FACTS, MANIFEST, TENSORS, load_weights, newest_state, prune, save_best, save_state

FILES = (TENSORS, FACTS, MANIFEST)
FULL = OSError(errno.ENOSPC, "No space left on device")


def tensors_of(value):
    return {"layer.weight": torch.full((3, 2), float(value)), "layer.bias": torch.arange(3.0) + value}


def save(parent, step, value=None, *, best=None, keep=2):
    tensors = tensors_of(step if value is None else value)
    return save_state(parent, step=step, tensors=tensors, values={"clock": step / 10}, best=best, keep=keep)


def best_of(parent, step):
    return save_best(parent, step=step, weights=tensors_of(-step), metrics={"macro_f1": step / 10})


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def never(sentence):
    raise AssertionError(sentence)


def assert_newest(parent, step, value=None, warn=never):
    state = newest_state(parent, warn)
    assert (state.step, state.values) == (step, {"clock": step / 10})
    expected = tensors_of(step if value is None else value)
    assert state.tensors.keys() == expected.keys()
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in expected.items())
    return state


def test_tensors_come_back_as_they_were(tmp_path):
    tensors = {
        "strided": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "count": torch.tensor(7),
    }
    path = save_state(tmp_path / "deep" / "er", step=12, tensors=tensors, values={"a": [1, 0.1, None]})
    assert path == tmp_path / "deep" / "er" / "step-000012"
    state = newest_state(tmp_path / "deep" / "er", never)
    assert (state.path, state.step, state.values, state.best) == (path, 12, {"a": [1, 0.1, None]}, None)
    for name, tensor in tensors.items():
        assert torch.equal(state.tensors[name], tensor) and state.tensors[name].dtype == tensor.dtype


def test_later_changes_of_the_model_do_not_reach_the_checkpoint(tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(4))
    saved = save_best(tmp_path, step=1, weights={"w": parameter}, metrics={})
    with torch.no_grad():
        parameter.add_(1)
    assert not load_weights(saved.path)["w"].any()


def test_a_folder_without_checkpoints_has_no_state(tmp_path):
    assert newest_state(tmp_path, never) is None
    assert newest_state(tmp_path / "missing", never) is None


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_states_are_left_and_the_best_weights_they_name(tmp_path, keep):
    first = best_of(tmp_path, 3)
    save(tmp_path, 3, best=first, keep=keep)
    save(tmp_path, 10, best=first, keep=keep)
    second = best_of(tmp_path, 12)
    save(tmp_path, 12, best=second, keep=keep)
    states = ["step-000010", "step-000012"][-keep:]
    assert names_in(tmp_path) == sorted([*states, *(["best-000003"] if keep == 2 else []), "best-000012"])
    state = assert_newest(tmp_path, 12)
    assert state.best == second and state.best.metrics == {"macro_f1": 1.2}
    assert torch.equal(load_weights(second.path)["layer.bias"], tensors_of(-12)["layer.bias"])


def test_best_weights_without_a_state_yet_do_not_push_out_what_a_kill_needs(tmp_path):
    first = best_of(tmp_path, 3)
    save(tmp_path, 3, best=first)
    best_of(tmp_path, 6)  # killed before its state was saved
    assert assert_newest(tmp_path, 3).best == first


def test_a_step_can_be_saved_again_without_touching_what_is_there(tmp_path):
    assert save(tmp_path, 5, value=1).name == "step-000005"
    assert save(tmp_path, 5, value=2).name == "step-000005.2"
    assert_newest(tmp_path, 5, value=2)
    for again in range(3, 12):
        save(tmp_path, 5, value=again)
    assert_newest(tmp_path, 5, value=11)
    assert len(names_in(tmp_path)) == 2


def test_steps_are_ordered_as_numbers(tmp_path):
    save(tmp_path, 999_999)
    save(tmp_path, 1_000_000)
    assert_newest(tmp_path, 1_000_000)


def test_remains_of_a_killed_save_are_removed_and_other_folders_are_not(tmp_path):
    save(tmp_path, 3)
    for name in (".tmp-step-000005", ".tmp-best-000005"):
        (tmp_path / name).mkdir()
        (tmp_path / name / TENSORS).write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    assert_newest(tmp_path, 3)
    assert names_in(tmp_path) == ["notes", "step-000003"]
    save(tmp_path, 5)
    assert names_in(tmp_path) == ["notes", "step-000003", "step-000005"]
    assert names_in(tmp_path / "step-000005") == sorted(FILES)


def test_prune_never_removes_the_last_state(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "step-000003" / TENSORS).unlink()
    prune(tmp_path, 1)
    assert names_in(tmp_path) == ["step-000003"]


# Full disks and kills

WRITES = ["save_file", "os.fsync", "os.rename", "Path.write_text", "Path.mkdir"]


def nth_call_fails(monkeypatch, name, number, error):
    """Let the ``number``-th call of one of ``WRITES`` from now on raise; return whether it happened."""
    place = "pathlib." + name if name.startswith("Path.") else f"hftoolkit.runs.checkpoint.{name}"
    module, _, attribute = place.rpartition(".")
    owner = (
        __import__("pathlib").Path if name.startswith("Path.") else importlib.import_module("hftoolkit.runs.checkpoint")
    )
    owner = owner.os if module.endswith(".os") else owner
    honest, calls, happened = getattr(owner, attribute), count(1), []

    def call(*arguments, **options):
        if next(calls) == number:
            happened.append(name)
            raise error
        return honest(*arguments, **options)

    monkeypatch.setattr(owner, attribute, call)
    return happened


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_at_any_write_leaves_the_previous_checkpoint_and_no_remains(
    tmp_path, monkeypatch, name, number, keep
):
    save(tmp_path, 1, best=best_of(tmp_path, 1), keep=keep)
    before = names_in(tmp_path)
    with monkeypatch.context() as patch:
        happened = nth_call_fails(patch, name, number, FULL)
        try:
            save(tmp_path, 2, keep=keep)
        except EnvironmentFault as fault:
            assert "step-000002: " in str(fault) and "No space left on device; free some space" in str(fault)
        else:
            assert not happened
    if happened:
        renamed = (name, number) == ("os.fsync", 5)  # of the parent, when all else was done
        assert names_in(tmp_path) == [*before, *(["step-000002"] if renamed else [])]
    assert_newest(tmp_path, 1 if happened and not renamed else 2)
    save(tmp_path, 3, keep=keep)
    assert_newest(tmp_path, 3)


def test_every_write_of_a_save_was_among_those_that_failed(tmp_path, monkeypatch):
    for name in WRITES:
        assert nth_call_fails(monkeypatch, name, 1, FULL) == []
        with pytest.raises(EnvironmentFault):
            save(tmp_path, 1)
        monkeypatch.undo()


def test_the_error_that_safetensors_has_of_its_own_for_a_full_disk_is_known(tmp_path, monkeypatch):
    def write_half(_, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })")

    save(tmp_path, 1)
    monkeypatch.setattr("hftoolkit.runs.checkpoint.save_file", write_half)
    with pytest.raises(EnvironmentFault):
        save(tmp_path, 2)
    assert names_in(tmp_path) == ["step-000001"]
    assert_newest(tmp_path, 1)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", WRITES)
def test_a_kill_at_any_write_leaves_a_whole_checkpoint(tmp_path, monkeypatch, name, number):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        happened = nth_call_fails(patch, name, number, KeyboardInterrupt())  # like a kill, it passes every handler
        try:
            save(tmp_path, 2)
        except KeyboardInterrupt:
            assert happened
    state = newest_state(tmp_path, never)
    assert_newest(tmp_path, state.step)
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_files_are_on_disk_before_the_checkpoint_gets_its_name_and_old_ones_go_last(tmp_path, monkeypatch):
    done = []
    rename, fsync, rmtree = os.rename, os.fsync, shutil.rmtree
    monkeypatch.setattr(
        "hftoolkit.runs.checkpoint.os.fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr("hftoolkit.runs.checkpoint.os.rename", lambda a, b: (done.append("rename"), rename(a, b)))
    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(
        "hftoolkit.runs.checkpoint.shutil.rmtree", lambda path, **_: (done.append(f"remove {path.name}"), rmtree(path))
    )
    (tmp_path / ".tmp-step-000002").mkdir()
    done.clear()
    save(tmp_path, 2, keep=1)
    part = str(tmp_path / ".tmp-step-000002")
    assert done.pop(0) == "remove .tmp-step-000002"
    assert set(done[:3]) == {f"{part}/{name}" for name in FILES}
    assert done[3:] == [part, "rename", str(tmp_path), "remove step-000001"]


def test_a_parent_that_cannot_be_a_folder_is_a_fault_of_the_environment(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write the checkpoint"):
        save(tmp_path / "file", 1)


# Damage


@pytest.fixture
def two(tmp_path):
    """Two states; the newer one is to be damaged."""
    folder = tmp_path / "checkpoints"
    best = best_of(folder, 1)
    save(folder, 1, best=best)
    save(folder, 2, best=best)
    return folder


def assert_falls_back(folder):
    warnings = []
    assert_newest(folder, 1, warn=warnings.append)
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert "step-000002" in warnings[0] and "resuming from step-000001" in warnings[0]
    assert names_in(folder) == ["best-000001", "step-000001"]
    assert_newest(folder, 1)  # and no warning again


def flip(path, generator):
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def assert_every_flip_is_found(folder, name, number):
    generator, sound = random.Random(name), shutil.copytree(folder, folder.with_name("sound"))
    for _ in range(number):
        flip(folder / "step-000002" / name, generator)
        assert_falls_back(folder)
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_the_state_before_is_taken(two, name):
    assert_every_flip_is_found(two, name, 15)


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
def test_many_flipped_bits_are_all_found(two, name):
    assert_every_flip_is_found(two, name, 200)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, 20, -1])
def test_a_cut_file_is_found(two, name, keep):
    path = two / "step-000002" / name
    path.write_bytes(path.read_bytes()[:keep])
    assert_falls_back(two)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(two, name):
    (two / "step-000002" / name).unlink()
    assert_falls_back(two)


def test_an_empty_directory_is_found(two):
    for name in FILES:
        (two / "step-000002" / name).unlink()
    assert_falls_back(two)


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"sha256": null}', '{"tensors": {}}', "not json", "\xff"])
def test_a_manifest_of_another_shape_is_found(two, content):
    (two / "step-000002" / MANIFEST).write_text(content, encoding="latin-1")
    assert_falls_back(two)


@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_a_hash_that_differs_in_its_last_character_is_another_one(two, name):
    path = two / "step-000002" / MANIFEST
    manifest = json.loads(path.read_text())
    digest = manifest[name]["sha256"]
    manifest[name]["sha256"] = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    path.write_text(json.dumps(manifest))
    assert_falls_back(two)


def test_tensors_that_are_no_safetensors_file_are_found_even_with_the_right_hash(two):
    path = two / "step-000002"
    (path / TENSORS).write_bytes(b"pickle")
    manifest = json.loads((path / MANIFEST).read_text())
    manifest[TENSORS] = {"bytes": 6, "sha256": hashlib.sha256(b"pickle").hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert_falls_back(two)


def test_a_state_whose_best_weights_are_damaged_is_none(two):
    second = best_of(two, 3)
    save(two, 3, best=second)
    flip(second.path / TENSORS, random.Random(0))
    warnings = []
    assert newest_state(two, warnings.append).step == 2
    assert "best-000003" in warnings[0]


def test_without_a_whole_state_nothing_is_removed_and_the_error_says_what_to_do(two):
    for step in (1, 2):
        (two / f"step-{step:06d}" / TENSORS).write_bytes(b"")
    before = names_in(two)
    with pytest.raises(DataError, match=r"can be resumed: .*step-000002 .*step-000001 .*Start a new run") as caught:
        newest_state(two, never)
    assert caught.value.exit_code == 3
    assert names_in(two) == before


def test_damaged_best_weights_are_not_loaded(tmp_path):
    best = best_of(tmp_path, 1)
    flip(best.path / TENSORS, random.Random(1))
    with pytest.raises(DataError, match="is damaged"):
        load_weights(best.path)


def test_retention_does_not_count_a_state_that_is_cut(two):
    (two / "step-000002" / TENSORS).write_bytes(b"")
    save(two, 3, best=newest_best(two))
    assert [name for name in names_in(two) if name.startswith("step")] == ["step-000001", "step-000003"]


def newest_best(folder):
    return newest_state(shutil.copytree(folder, folder.with_name("copy")), lambda _: None).best
