"""Recipes that chance spoiled: each is refused in one message that names the key, and nothing in them ever runs.

Two hundred run always, ``pytest -m faults`` runs thousands. What may come of a mutation is known from how it was made,
not from what the checker says.
"""

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from doubles.commands import Ended, hft
from doubles.paths import ROOT
from hftoolkit import recipe
from hftoolkit.commands import finetune as run
from hftoolkit.errors import RecipeError
from hftoolkit.recipe import load_recipe
from hftoolkit.recommend import commands as run_recommend
from hftoolkit.rl import commands as run_rl

SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
LIMIT_SECONDS = 5.0  # of processor time, which a busy machine does not change
SAMPLE, MANY = 200, 3000
# What no field takes: a mapping, lists of lists, numbers that are none, text where a number or a choice belongs.
NEVER_GOOD = ("{zzz: 1}", "[[1]]", ".nan", "-.inf", "1e999", "9" * 30, '"\\u0000"', "[[[]]]", "{}")
FREE_TEXT = {"options", "labels"}  # mappings whose keys and values are the user's
RUNS_CODE = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "shutil.rmtree"}
watching: list[str] | None = None


def notice(event: str, _: Any) -> None:
    if watching is not None and event in RUNS_CODE:
        watching.append(event)


sys.addaudithook(notice)  # cannot be taken out again; it only looks while ``watching`` is a list


@dataclass(frozen=True)
class Spoiled:
    """A recipe and what is wrong with it: ``key`` must be in the message; None where chance decides if it is wrong."""

    text: bytes
    key: str | None
    how: str


# --- mutations ------------------------------------------------------------------------------------------------------


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        if key in FREE_TEXT:
            continue
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def sections(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for key, value in node.items():
        if isinstance(value, dict) and key not in FREE_TEXT:
            yield from sections(value, (*path, key))


def at(node: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


class Raw(str):
    """YAML that is written as it is."""


def dumped(node: Any, depth: int = 0) -> str:
    lines = []
    for key, value in node.items():
        if isinstance(value, dict) and value:
            lines.append(f"{'  ' * depth}{key}:\n{dumped(value, depth + 1)}")
        else:
            text = value if isinstance(value, Raw) else yaml.safe_dump(value, default_flow_style=True, width=10**6)
            lines.append(f"{'  ' * depth}{key}: {text.removesuffix(chr(10)).removesuffix('...').strip()}\n")
    return "".join(lines)


def swapped(draw: random.Random, data: Any) -> Spoiled:
    path = draw.choice(list(leaves(data)))
    value = draw.choice(NEVER_GOOD)
    at(data, path[:-1])[path[-1]] = Raw(value)
    return Spoiled(dumped(data).encode(), path[-1], f"{'.'.join(path)} = {value}")


def unknown(draw: random.Random, data: Any) -> Spoiled:
    path = draw.choice(list(sections(data)))
    key = draw.choice(("zzz", "lerning_rate", "image_sise", "token", "__class__", "Epochs", "1.5", "kind2"))
    at(data, path)[key] = Raw(draw.choice(("1", "x", "{a: 1}", "[1]")))
    return Spoiled(dumped(data).encode(), key, f"{'.'.join((*path, key))} added")


def doubled(draw: random.Random, data: Any) -> Spoiled:
    lines = dumped(data).splitlines(keepends=True)
    index = draw.choice([i for i, line in enumerate(lines) if re.match(r"\s*[a-z_]+: \S", line)])
    key = lines[index].split(":")[0].strip()
    return Spoiled("".join([*lines[:index], lines[index], *lines[index:]]).encode(), key, f"{key} twice")


def out_of_range(draw: random.Random, data: Any) -> Spoiled:
    """Numbers that have no sense as counts; fields that are text or choices refuse them as well."""
    names = {"epochs", "batch_size", "steps", "max_length", "rank", "image_size", "episodes", "learning_rate", "items"}
    numbers = [path for path in leaves(data) if path[-1] in names]
    if not numbers:
        return unknown(draw, data)
    path, value = draw.choice(numbers), draw.choice(("-1", "-0.5", "-1e9", "0"))
    at(data, path[:-1])[path[-1]] = Raw(value)
    return Spoiled(dumped(data).encode(), path[-1], f"{'.'.join(path)} = {value}")


def hostile(draw: random.Random, data: Any) -> Spoiled:
    """YAML that makes other readers call functions, or fill the memory."""
    path = draw.choice(list(leaves(data)))
    value = draw.choice(
        (
            "!!python/object/apply:os.system ['touch canary']",
            "!!python/object/new:subprocess.Popen [['touch', 'canary']]",
            "!!python/name:os.system",
            "!include /etc/passwd",
            "&a [x, x]",
            "*nothing",
            "&a {<<: *a}",
            "!!binary aGVsbG8=",
        )
    )
    at(data, path[:-1])[path[-1]] = Raw(value)
    return Spoiled(dumped(data).encode(), path[-1], f"{'.'.join(path)} = {value}")


def bomb(draw: random.Random, data: Any) -> Spoiled:
    levels = ["lol0: &lol0 [x, x, x, x, x, x, x, x, x]\n"]
    levels += [f"lol{i}: &lol{i} [{', '.join([f'*lol{i - 1}'] * 9)}]\n" for i in range(1, draw.randint(2, 12))]
    return Spoiled(("".join(levels) + dumped(data)).encode(), "lol0", f"{len(levels)} levels of aliases")


def no_text(draw: random.Random, data: Any) -> Spoiled:
    content = bytearray(dumped(data).encode())
    place = draw.randrange(len(content))
    content[place:place] = draw.choice((b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80"))
    return Spoiled(bytes(content), "is not UTF-8", f"byte {place}")


def missing(draw: random.Random, data: Any) -> Spoiled:
    """A required section is left out, or is empty."""
    key = draw.choice([name for name in ("data", "model", "environment", "algorithm") if name in data])
    if draw.random() < 0.5 and len(data) > 2:
        del data[key]
    else:
        data[key] = Raw("")
    return Spoiled(dumped(data).encode(), key, f"{key} is missing")


def shuffled(draw: random.Random, data: Any) -> Spoiled:
    """Any damage to the text; it may even stay a recipe."""
    content = bytearray(dumped(data).encode())
    for _ in range(draw.randint(1, 12)):
        place = draw.randrange(len(content))
        match draw.randrange(4):
            case 0:
                del content[place : place + draw.randint(1, 30)]
            case 1:
                content[place:place] = bytes(draw.choices(b":{}[]&*!|>'\"%@`,#-? \n\t0aZ~", k=draw.randint(1, 8)))
            case 2:
                content[place] = draw.randrange(256)
            case _:
                start = draw.randrange(len(content))
                content[place:place] = content[start : start + draw.randint(1, 60)]
        content = content or bytearray(b"x")
    return Spoiled(bytes(content), None, "shuffled")


MUTATIONS: tuple[Callable[[random.Random, Any], Spoiled], ...] = (
    *(swapped, unknown, doubled, out_of_range, hostile, bomb, no_text, missing, shuffled),
)


def spoil(seed: int) -> tuple[Spoiled, bool]:
    """Return a spoiled recipe and whether it was one of reinforcement learning; each seed gives another."""
    draw = random.Random(seed)
    shipped = draw.choice(SHIPPED)
    data = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    return MUTATIONS[seed % len(MUTATIONS)](draw, data), "environment" in data


# --- what must come of them -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A recipe that is still good would get a dry run, which takes data and a model."""
    monkeypatch.chdir(tmp_path)
    for module in (run, run_recommend, run_rl):
        monkeypatch.setattr(module, "dry_run", lambda *_, **__: 0.0)


def check(spoiled: Spoiled, is_rl: bool, folder: Path) -> int:
    """Give a spoiled recipe to the command line; return its exit code."""
    global watching
    path = folder / "fuzzed.yaml"
    path.write_bytes(spoiled.text)
    watching, start = [], time.process_time()
    try:
        ended = hft(*(("rl", "train") if is_rl else ("finetune",)), path, "--dry-run")
        happened = watching
    finally:
        watching = None
    assert time.process_time() - start < LIMIT_SECONDS, spoiled
    assert not happened and not (folder / "canary").exists(), (spoiled, happened)
    judge(spoiled, ended)
    return ended.code


def judge(spoiled: Spoiled, ended: Ended) -> None:
    if spoiled.key is None and ended.code == 0:
        return
    assert ended.code == 2, (spoiled, ended)
    assert ended.err.startswith("error: ") and "Traceback" not in ended.err, (spoiled, ended)
    assert spoiled.key is None or spoiled.key in ended.err, (spoiled, ended)


def test_two_hundred_spoiled_recipes_are_refused_by_name(tmp_path: Path):
    codes = [check(*spoil(seed), tmp_path) for seed in range(SAMPLE)]
    assert codes.count(2) > 0.9 * SAMPLE


@pytest.mark.faults
def test_thousands_of_spoiled_recipes_are_refused_by_name(tmp_path: Path):
    codes = [check(*spoil(seed), tmp_path) for seed in range(SAMPLE, SAMPLE + MANY)]
    assert codes.count(2) > 0.9 * MANY


def test_spoiled_overrides_are_refused_by_name(tmp_path: Path):
    draw, refused = random.Random(0), 0
    for _ in range(60):
        shipped = draw.choice(SHIPPED)
        data = yaml.safe_load(shipped.read_text(encoding="utf-8"))
        path, value = draw.choice(list(leaves(data))), draw.choice(NEVER_GOOD[:6])
        command = ("rl", "train") if "environment" in data else ("finetune",)
        ended = hft(*command, shipped, "--dry-run", "--set", f"{'.'.join(path)}={value}")
        judge(Spoiled(b"", path[-1], f"{path} = {value}"), ended)
        refused += ended.code == 2
    assert refused == 60


def test_the_real_command_line_refuses_them_in_time(tmp_path: Path):
    for seed in range(4, 7):  # hostile tags, an alias bomb, bytes that are no text
        spoiled, is_rl = spoil(seed)
        (tmp_path / "fuzzed.yaml").write_bytes(spoiled.text)
        command = ["rl", "train"] if is_rl else ["finetune"]
        code = "import resource, sys; from hftoolkit.cli import main\ntry: main()\nfinally:\n"
        code += " print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 'torch' in sys.modules)"
        ended = subprocess.run(
            [sys.executable, "-c", code, *command, "fuzzed.yaml"], capture_output=True, text=True, check=False
        )
        judge(spoiled, Ended(ended.returncode, "", ended.stderr))
        seconds, has_torch = ended.stdout.split()[-2:]
        assert float(seconds) < LIMIT_SECONDS and has_torch == "False"
        assert not (tmp_path / "canary").exists()


# --- negative controls: each detector fails where its guard is gone -------------------------------------------------


def accepts_anything(path: Path, _: Any) -> Any:
    return load_recipe(ROOT / "recipes" / "sentiment.yaml")


def names_nothing(path: Path, _: Any) -> Any:
    raise RecipeError("something is wrong")


def crashes(path: Path, _: Any) -> Any:
    raise KeyError("task")


def runs_what_it_reads(path: Path, _: Any) -> Any:
    yaml.unsafe_load(path.read_text().replace("canary", str(path.with_name("canary"))))
    raise RecipeError(path.read_text())


@pytest.mark.parametrize("loader", [accepts_anything, names_nothing, crashes, runs_what_it_reads])
def test_a_loader_without_its_guards_would_be_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loader: Any):
    text = b"task: !!python/object/apply:os.system ['touch canary']\n"
    spoiled = Spoiled(text, "task", "a tag")
    assert check(spoiled, False, tmp_path) == 2
    monkeypatch.setattr(recipe, "load_recipe", loader)
    with pytest.raises((AssertionError, KeyError)):
        check(spoiled, False, tmp_path)
