import errno
import hashlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftoolkit.checkpoint import MANIFEST, WEIGHTS, load_weights, save_checkpoint
from hftoolkit.errors import DataError, EnvironmentFault


def weights_of(value):
    return {"layer.weight": torch.full((3, 2), float(value)), "layer.bias": torch.arange(3.0) + value}


def save(parent, step, value=None):
    value = step if value is None else value
    return save_checkpoint(parent, step=step, weights=weights_of(value), metrics={"macro_f1": step / 10})


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_holds(path, value):
    loaded = load_weights(path)
    assert loaded.keys() == weights_of(value).keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights_of(value).items())


def test_weights_come_back_as_they_were(tmp_path):
    strided = torch.arange(6.0).reshape(2, 3).T
    weights = {"strided": strided, "half": torch.ones(2, dtype=torch.bfloat16), "count": torch.tensor(7)}
    saved = save_checkpoint(tmp_path / "deep" / "er", step=12, weights=weights, metrics={"loss": 0.5})
    assert saved.path == tmp_path / "deep" / "er" / "step-000012"
    assert (saved.step, saved.metrics) == (12, {"loss": 0.5})
    loaded = load_weights(saved.path)
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in weights.items()
    )


def test_later_changes_of_the_model_do_not_reach_the_checkpoint(tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(4))
    saved = save_checkpoint(tmp_path, step=1, weights={"w": parameter}, metrics={})
    with torch.no_grad():
        parameter.add_(1)
    assert not load_weights(saved.path)["w"].any()


def test_only_the_newest_is_left(tmp_path):
    for step in (5, 10, 7):
        saved = save(tmp_path, step)
        assert names_in(tmp_path) == [f"step-{step:06d}"]
        assert_holds(saved.path, step)


def test_the_same_step_can_be_saved_again(tmp_path):
    save(tmp_path, 5, value=1)
    assert_holds(save(tmp_path, 5, value=2).path, 2)


def test_remains_of_a_killed_save_are_removed_and_other_folders_are_not(tmp_path):
    for step in (3, 5):
        (tmp_path / f".tmp-step-{step:06d}").mkdir()
        (tmp_path / f".tmp-step-{step:06d}" / WEIGHTS).write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    save(tmp_path, 5)
    assert names_in(tmp_path) == ["notes", "step-000005"]
    assert names_in(tmp_path / "step-000005") == sorted([MANIFEST, WEIGHTS])


@pytest.mark.parametrize(
    "broken", ["hftoolkit.checkpoint.save_file", "hftoolkit.checkpoint.os.replace", "hftoolkit.checkpoint.os.fsync"]
)
def test_a_full_disk_leaves_the_previous_checkpoint_and_no_remains(tmp_path, monkeypatch, broken):
    previous = save(tmp_path, 1)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(EnvironmentFault, match=r"step-000002: .*No space left on device; free some space"):
            save(tmp_path, 2)
    assert names_in(tmp_path) == ["step-000001"]
    assert_holds(previous.path, 1)
    assert_holds(save(tmp_path, 3).path, 3)


def test_a_disk_that_fills_up_in_the_weights_file_is_no_checkpoint(tmp_path, monkeypatch):
    previous = save(tmp_path, 1)

    def write_half(_, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hftoolkit.checkpoint.save_file", write_half)
    with pytest.raises(EnvironmentFault):
        save(tmp_path, 2)
    assert names_in(tmp_path) == ["step-000001"]
    assert_holds(previous.path, 1)


@pytest.mark.parametrize(
    "at", ["hftoolkit.checkpoint._sync", "hftoolkit.checkpoint.os.replace", "hftoolkit.checkpoint._sync_directory"]
)
def test_a_kill_at_any_point_leaves_a_whole_checkpoint(tmp_path, monkeypatch, at):
    save(tmp_path, 1)

    def die(*_):
        raise KeyboardInterrupt  # like a kill, it passes every handler of the save

    with monkeypatch.context() as patch:
        patch.setattr(at, die)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    whole = sorted(tmp_path.glob("step-*"))
    assert tmp_path / "step-000001" in whole
    for path in whole:
        assert_holds(path, int(path.name[-6:]))


def test_the_files_are_on_disk_before_the_checkpoint_gets_its_name(tmp_path, monkeypatch):
    done = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(
        "hftoolkit.checkpoint.os.fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr("hftoolkit.checkpoint.os.replace", lambda a, b: (done.append("replace"), replace(a, b)))
    save(tmp_path, 1)
    part = str(tmp_path / ".tmp-step-000001")
    assert set(done[:3]) == {part, f"{part}/{WEIGHTS}", f"{part}/{MANIFEST}"}
    assert done[3:] == ["replace", str(tmp_path)]


def test_a_parent_that_cannot_be_a_folder_is_a_fault_of_the_environment(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write the checkpoint"):
        save(tmp_path / "file", 1)


# Damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save(tmp_path_factory.mktemp("sound"), 1).path


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_of_the_weights_is_found(copy, data):
    original = (copy / WEIGHTS).read_bytes()
    damaged = bytearray(original)
    damaged[data.draw(st.integers(0, len(original) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (copy / WEIGHTS).write_bytes(damaged)
    with pytest.raises(DataError, match="is damaged"):
        load_weights(copy)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_manifest_never_lets_other_weights_in(sound, copy, data):
    original = (sound / MANIFEST).read_bytes()
    damaged = bytearray(original)
    damaged[data.draw(st.integers(0, len(original) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (copy / MANIFEST).write_bytes(damaged)
    try:
        assert_holds(copy, 1)  # the byte was in the step or the metrics
    except DataError:
        pass


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
@pytest.mark.parametrize("keep", [0, 1, 20, -1])
def test_a_cut_file_is_found(copy, name, keep):
    (copy / name).write_bytes((copy / name).read_bytes()[:keep])
    with pytest.raises(DataError, match="copy"):
        load_weights(copy)


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_a_missing_file_is_found(copy, name):
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"cannot be read: .*{name}"):
        load_weights(copy)


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"sha256": null}', '{"sha256": {}}', "not json", "\xff"])
def test_a_manifest_of_another_shape_is_found(copy, content):
    (copy / MANIFEST).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(copy)


def test_weights_that_are_no_safetensors_file_are_found_even_with_the_right_hash(copy):
    (copy / WEIGHTS).write_bytes(b"pickle")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["sha256"][WEIGHTS] = hashlib.sha256(b"pickle").hexdigest()
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(copy)
