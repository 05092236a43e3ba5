"""Machines as they are: no network, disks that cannot be written, odd names. Each command works or says why not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from doubles.commands import hft, read_json, refused
from doubles.paths import ROOT
from doubles.pictures import PICTURE_RECIPE, write_pictures
from doubles.pushes import POLICY_RECIPE
from doubles.recommend_tables import RECIPE as RECOMMENDER
from doubles.recommend_tables import write_world
from doubles.reviews import RECIPE, review_rows
from hftoolkit.export import gate as export

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 600
# Runs commands one after the other, and writes down every socket that goes further than this machine, and stops it.
WATCHED = """
import json, socket, sys
reached = []

def notice(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = str(arguments[0])
    else:
        return
    if not host.startswith("127.") and host not in ("localhost", "::1", "None"):
        reached.append(f"{event} {host}")
        raise PermissionError("no network here")

sys.addaudithook(notice)
from hftoolkit.cli import main
codes = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["hftoolkit", *command]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
found = {"codes": codes, "reached": list(reached)}
try:
    socket.create_connection(("192.0.2.1", 9))  # which the watch must see
except PermissionError:
    print(json.dumps(found))
"""


def watched(folder: Path, commands: list[list[str]], *before: str, **environment: str) -> dict[str, list[object]]:
    """Run commands in one process; return their exit codes, and what they tried to reach."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ended = subprocess.run(
        [*before, sys.executable, "-c", WATCHED, json.dumps(commands)],
        cwd=folder,
        env=kept | {"HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ended.stdout.strip(), ended.stderr
    found: dict[str, list[object]] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found | {"err": [ended.stderr]}


def write_texts(folder: Path, backbone: Path) -> None:
    rows = "".join(f"{text},{label}\n" for text, label in review_rows(60))
    (folder / "t.csv").write_text("text,label\n" + rows, encoding="utf-8")
    text = RECIPE.format(table="t.csv", backbone=backbone).replace("epochs: 4", "epochs: 1")
    (folder / "t.yaml").write_text(text, encoding="utf-8")


TEXTS = [
    ["finetune", "t.yaml", "--run-dir", "texts"],
    ["evaluate", "texts"],
    ["predict", "texts", "t.csv", "--output", "p.csv"],
]
OTHERS = [
    ["finetune", "i.yaml", "--run-dir", "images"],
    ["predict", "images", "pictures", "--output", "q.csv"],
    ["finetune", "r.yaml", "--run-dir", "recommender"],
    ["recommend", "recommender", "--user", "u1"],
    ["rl", "train", "p.yaml", "--run-dir", "policy"],
    ["rl", "evaluate", "policy"],
]


# --- no network -----------------------------------------------------------------------------------------------------


def test_offline_local_texts_need_no_socket(tmp_path: Path, lively_backbone: Path):
    write_texts(tmp_path, lively_backbone)
    found = watched(tmp_path, TEXTS, HF_HUB_OFFLINE="1")
    assert found["codes"] == [0, 0, 0], found["err"]
    assert found["reached"] == []


@pytest.mark.faults
@pytest.mark.parametrize("offline", ["1", "0"])
def test_all_kinds_of_runs_need_no_network_at_all(tmp_path: Path, lively_backbone: Path, offline: str):
    """In a network without even a loopback, where the system lets this user make one; children included."""
    alone = ["unshare", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot make an empty network")
    write_texts(tmp_path, lively_backbone)
    write_pictures(tmp_path / "pictures", 12)
    write_world(tmp_path)
    (tmp_path / "i.yaml").write_text(PICTURE_RECIPE.format(source="pictures"))
    (tmp_path / "r.yaml").write_text(RECOMMENDER.format(folder=".", backbone=lively_backbone))
    (tmp_path / "p.yaml").write_text(POLICY_RECIPE)
    found = watched(tmp_path, TEXTS + OTHERS, *alone, HF_HUB_OFFLINE=offline)
    assert found["codes"] == [0] * 9, found["err"]
    assert found["reached"] == []


@pytest.mark.faults
def test_the_watch_sees_who_goes_out(tmp_path: Path):
    """A negative control: with the Hub switched on, a model of the Hub is asked for."""
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in review_rows(60)))
    (tmp_path / "t.yaml").write_text(RECIPE.format(table="t.csv", backbone="some/model"))
    found = watched(tmp_path, [["finetune", "t.yaml"]], HF_HUB_OFFLINE="0", HF_ENDPOINT="http://192.0.2.1")
    assert found["codes"] == [4] and any("192.0.2.1" in str(each) for each in found["reached"])


# --- disks and names ------------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that nobody can write, where the system lets this user make one."""
    path = tmp_path / "read only"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(path)], capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_run_directory_that_cannot_be_made_is_named(write_recipe, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "run", tmp_path / "file" / "a" / "b"):
        refused(hft("finetune", write_recipe(), "--run-dir", place), 4, "cannot make the run directory", "file")
    refused(hft("finetune", write_recipe(), "--run-dir", tmp_path / "file"), 2, "exists already")


def test_a_disk_that_cannot_be_written_is_named(write_recipe, read_only: Path, tiny_run: Path, tmp_path: Path):
    refused(hft("finetune", write_recipe(), "--run-dir", read_only / "run"), 4, str(read_only / "run"))
    table = tmp_path / "in.csv"
    table.write_text("text\ngood\n")
    ended = hft("predict", tiny_run, table, "--output", read_only / "p.csv")
    refused(ended, 4, str(read_only))
    (tmp_path / "policy.yaml").write_text(POLICY_RECIPE)
    refused(hft("rl", "train", tmp_path / "policy.yaml", "--run-dir", read_only / "run"), 4, str(read_only / "run"))


def test_missing_folders_are_made_and_names_may_be_anything(
    lively_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "check_round_trip", lambda *_, **__: export.GateReport(0, 0.0, None, None, 0.0))
    folder = tmp_path / "mit Leerzeichen" / "d\u00e9j\u00e0 \u6570\u636e" / "[a-z]* 'quoted' {x} $HOME #1"
    folder.mkdir(parents=True)
    shutil.copytree(lively_backbone, folder / "back bone")
    write_texts(folder, folder / "back bone")
    text = (folder / "t.yaml").read_text(encoding="utf-8").replace(str(folder), str(folder).replace("'", "''"))
    text = text.replace("source: t.csv", f"source: '{folder}/t.csv'".replace("'quoted'", "''quoted''"))
    text = text.replace("backbone: ", "backbone: '").replace("back bone", "back bone'")
    (folder / "t.yaml").write_text(text, encoding="utf-8")
    run = folder / "runs \u00e9" / "new" / "run"
    ended = hft("finetune", folder / "t.yaml", "--run-dir", run)
    assert ended.code == 0, ended
    longer = hft("finetune", folder / "t.yaml", "--run-dir", run, "--resume", "--set", "train.epochs=2")
    assert longer.code == 0, longer
    assert hft("evaluate", run).code == 0
    ended = hft("predict", run, folder / "t.csv", "--output", folder / "out put.csv")
    assert ended.code == 0 and (folder / "out put.csv").exists(), ended
    assert str(tmp_path) not in (run / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.faults
def test_a_cache_that_cannot_be_written_stops_only_who_needs_it(tmp_path: Path, lively_backbone: Path):
    (tmp_path / "file").write_text("x")
    write_texts(tmp_path, lively_backbone)
    write_pictures(tmp_path / "pictures", 12)
    (tmp_path / "i.yaml").write_text(PICTURE_RECIPE.format(source="pictures"))
    found = watched(tmp_path, [TEXTS[0], OTHERS[0]], HF_HOME=str(tmp_path / "file" / "home"), HF_HUB_OFFLINE="1")
    (said,) = found["err"]
    assert found["codes"] == [0, 4] and "Traceback" not in str(said), said
    assert str(tmp_path / "file") in str(said) and "HF_HOME" in str(said)
    assert read_json(tmp_path / "texts" / "status.json")["state"] == "done"
