"""A push under faults: the Hub holds the old tree or the new one, never a mixture, and the next push converges.

A sample runs always, the rest with ``-m faults``.
"""

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from doubles.commands import Ended, refused
from doubles.loopback_hub import Account, Client, LoopbackHub, Repository, small
from doubles.pushes import commits, make_run, model_files, remote_files

pytestmark = pytest.mark.slow

TOKEN = "hf_canary_77c2e0"
ID = "ada/reviews"
LASTING, PASSING = (401, 403, 404), (409, 412, 429, 500, 503)
EVERYWHERE = {
    "card": "POST /api/validate-yaml",
    "account": "GET /api/whoami-v2",
    "repository": f"GET /api/models/{ID}$",
    "permission": f"GET /api/models/{ID}/auth-check/write",
    "tree": f"GET /api/models/{ID}/tree/",
    "modes": f"POST /api/models/{ID}/preupload/",
    "commit": f"POST /api/models/{ID}/commit/",
}
PLACES = {
    "lfs": EVERYWHERE | {"batch": "POST .*/objects/batch", "put": "PUT /large/", "verify": "POST /large/.*/verify"},
    "xet": EVERYWHERE | {"token": "GET .*/xet-write-token/"},
}
MATRIX = [
    (mode, place, what) for mode in PLACES for place in PLACES[mode] for what in (*LASTING, *PASSING, "before", "after")
]
STOPS = {(place, what) for place in (*PLACES["lfs"], "token") for what in LASTING}
STOPS |= {("token", 409), ("token", 412)}  # which hf_xet does not try again, and the Hub does not say there
STOPS -= {("repository", 401)}  # what the Hub says of a repository that does not exist
SAMPLE = {
    ("lfs", "commit", "after"),
    ("lfs", "commit", 403),
    ("xet", "commit", "after"),
    ("lfs", "put", 503),
    ("xet", "commit", 412),
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub.running(tmp_path / "xet") as hub:
        hub.accounts[TOKEN] = Account("ada")
        repository = hub.repositories[ID] = Repository(private=True)
        repository.add({".gitattributes": small(b""), "README.md": small(b"old"), "old.json": small(b"{}")}, "old push")
        yield hub


@pytest.fixture
def client(hub: LoopbackHub, tmp_path: Path) -> Iterator[Client]:
    client = Client(hub, tmp_path, TOKEN)
    yield client
    assert client.leaks() == []


def check_never_mixed(repository: Repository, run: Path) -> None:
    """Assert that after the old push there is at most one commit, and that it is the whole model."""
    assert commits(repository) <= 1
    if commits(repository) == 1:
        assert remote_files(repository) == model_files(run)


def push_again(client: Client, run: Path) -> None:
    """Assert that without faults a push converges, and that there is exactly one commit."""
    client.hub.faults.clear()
    ended = client.run("push", run, ID)
    assert ended.code == 0, ended
    assert commits(client.hub.repositories[ID]) == 1
    assert remote_files(client.hub.repositories[ID]) == model_files(run)


@pytest.mark.parametrize(
    ("mode", "place", "what"),
    [pytest.param(*case, marks=() if case in SAMPLE else pytest.mark.faults) for case in MATRIX],
)
def test_one_fault_leaves_the_old_tree_or_the_new_one(
    client: Client, tmp_path: Path, mode: str, place: str, what: int | str
):
    client.xet = mode == "xet"
    run, repository = make_run(tmp_path / "run"), client.hub.repositories[ID]
    fault = {"drop": what} if isinstance(what, str) else {"status": what}
    client.hub.fail(PLACES[mode][place], **fault)

    ended = client.run("push", run, ID)

    assert client.hub.faults[0].times == 0, "the fault was never met"
    check_never_mixed(repository, run)
    assert (ended.code == 0) == ((place, what) not in STOPS), ended
    if ended.code == 0:
        assert commits(repository) == 1
    else:
        refused(ended, 4, f"cannot push {run / 'model'} to {ID}: ", f"type: hftoolkit push {run} {ID}")
        push_again(client, run)


@pytest.mark.parametrize("mode", ["lfs", "xet"])
@pytest.mark.parametrize("place", ["commit", pytest.param("modes", marks=pytest.mark.faults)])
def test_a_hub_that_stays_down_is_told_once_and_nothing_changes(client: Client, tmp_path: Path, mode: str, place: str):
    client.xet = mode == "xet"
    run = make_run(tmp_path / "run")
    client.hub.fail(EVERYWHERE[place], status=503, times=1000)
    ended = client.run("push", run, ID)
    refused(ended, 4, "the Hub answered 503", str(run / "model"), f"type: hftoolkit push {run} {ID}")
    assert ended.out.count("trying again in") == 6
    assert commits(client.hub.repositories[ID]) == 0
    push_again(client, run)


def test_the_wait_that_the_hub_asks_for_is_kept_unless_it_is_endless(client: Client, tmp_path: Path):
    run = make_run(tmp_path / "run")
    client.hub.fail(EVERYWHERE["commit"], status=429, headers={"Retry-After": "3600"})
    refused(client.run("push", run, ID), 4, "the Hub answered 429")
    client.hub.fail(EVERYWHERE["commit"], status=429, headers={"Retry-After": "77"})
    ended = client.run("push", run, ID)
    assert ended.code == 0 and "the Hub answered 429 (a fault of the test); trying again in 77 s" in ended.out
    assert commits(client.hub.repositories[ID]) == 1


def test_a_commit_of_somebody_else_is_not_replaced_unseen(client: Client, tmp_path: Path):
    run, repository = make_run(tmp_path / "run"), client.hub.repositories[ID]
    theirs = {"README.md": small(b"theirs")}
    client.hub.fail(EVERYWHERE["commit"], meanwhile=lambda: repository.add(theirs, "by hand"))
    refused(client.run("push", run, ID), 4, "somebody else committed", repository.commits[-1][:12])
    assert repository.tree() == theirs
    assert client.run("push", run, ID).code == 0
    assert repository.messages == ["old push", "by hand", "Push with hftoolkit"]
    assert "README.md" in repository.tree() and "old.json" not in repository.tree()


def together(client: Client, runs: list[Path]) -> list[Ended]:
    """Push runs at once, and let no commit arrive before all are on their way."""
    client.hub.store_per_upload = True
    barrier = threading.Barrier(len(runs), timeout=120)
    client.hub.fail(EVERYWHERE["commit"], times=len(runs), meanwhile=barrier.wait)
    started = [client.start("push", run, ID) for run in runs]
    return [client.end(process) for process in started]


@pytest.mark.parametrize("mode", ["lfs", "xet"])
def test_two_processes_that_push_one_run_make_one_commit(client: Client, tmp_path: Path, mode: str):
    client.xet = mode == "xet"
    run = make_run(tmp_path / "run")
    assert [ended.code for ended in together(client, [run, run])] == [0, 0]
    assert commits(client.hub.repositories[ID]) == 1
    check_never_mixed(client.hub.repositories[ID], run)


@pytest.mark.faults
def test_of_two_runs_that_are_pushed_at_once_one_wins_and_the_other_says_so(client: Client, tmp_path: Path):
    runs = [make_run(tmp_path / "a", seed=1), make_run(tmp_path / "b", seed=2)]
    ended = together(client, runs)
    assert sorted(each.code for each in ended) == [0, 4]
    winner, loser = sorted((0, 1), key=lambda index: ended[index].code)
    refused(ended[loser], 4, "somebody else committed")
    check_never_mixed(client.hub.repositories[ID], runs[winner])


KILLED = [(mode, place, drop) for mode in PLACES for place in PLACES[mode] for drop in ("before", "after")]
KILL_SAMPLE = {("lfs", "put", "after"), ("xet", "commit", "after")}


@pytest.mark.parametrize(
    ("mode", "place", "drop"),
    [pytest.param(*case, marks=() if case in KILL_SAMPLE else pytest.mark.faults) for case in KILLED],
)
def test_a_push_that_is_killed_at_a_request_is_made_good_by_another(
    client: Client, tmp_path: Path, mode: str, place: str, drop: str
):
    client.xet = mode == "xet"
    run = make_run(tmp_path / "run")
    pids: list[int] = []
    client.hub.fail(PLACES[mode][place], drop=drop, meanwhile=lambda: os.kill(pids[0], signal.SIGKILL))
    process = client.start("push", run, ID)
    pids.append(process.pid)
    assert client.end(process).code == -signal.SIGKILL
    check_never_mixed(client.hub.repositories[ID], run)
    push_again(client, run)


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["lfs", "xet"])
def test_a_push_that_is_killed_at_any_time_is_made_good_by_another(client: Client, tmp_path: Path, mode: str):
    client.xet = mode == "xet"
    generator, repository = random.Random(0), client.hub.repositories[ID]
    killed = 0
    for number in range(10):
        run = make_run(tmp_path / f"run-{number}", seed=number, size=20_000_000)
        del repository.commits[1:]
        process = client.start("push", run, ID)
        timer = threading.Timer(generator.uniform(0.3, 2.5), process.kill)
        timer.start()
        killed += client.end(process).code == -signal.SIGKILL
        timer.cancel()
        check_never_mixed(repository, run)
        push_again(client, run)
    assert killed >= 5
