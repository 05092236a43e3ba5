"""Golden runs: tiny runs of every kind through the command line, as hashes that show whether a change kept the numbers.

    python scripts/golden.py --save golden.json               before a change
    python scripts/golden.py --compare golden.json            after it: prints each difference, and exits with 1 if any
    python scripts/golden.py --only text-full q-learning      some of the cases
    python scripts/golden.py --package ../base                run the hftoolkit of another checkout

Of each run are kept: every tensor of model/ by name and bytes, results.json and metrics.jsonl without what a clock or a
machine says, predictions/test.csv, the list of its files, and what ``predict`` and ``evaluate`` print. Runs that are
resumed or of two processes are not predicted with: they differ from others in how they are trained. A killed run must
also equal one that nobody killed. Hashes hold on one machine with one set of libraries: save and compare there.

Nothing is imported from hftoolkit, so that this works on any layout of the package. Exits with 1 too if a case fails.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden_inputs import DQN, IMAGES, Q_LEARNING, RECOMMENDATION, TEXT, WRITERS

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 300  # for one command
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
SURROUNDINGS = ONE_THREAD | {
    "CUDA_VISIBLE_DEVICES": "",  # on a machine with a GPU too
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
INHERITED = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")
MEASURED = re.compile(r"(^|_)(seconds?|bytes|version|path|time)$")  # keys of what differs from run to run
Record = dict[str, dict[str, Any]]  # group, such as "weights" -> thing, such as a tensor's name -> hash, number or line


class CaseFailedError(Exception):
    """A command failed, or a run did not keep a promise."""


@dataclass(frozen=True)
class Case:
    """One recipe, and what is done with it."""

    recipe: str
    inputs: tuple[str, ...]  # of WRITERS
    work: Callable[["Bench", str, "Case"], Record]
    predict_on: str | None = None  # what ``predict`` reads; None: the kind has no such command


@dataclass(frozen=True)
class Bench:
    """A temporary folder in which all commands run, with paths relative to it, and the package that they run."""

    folder: Path
    package: Path

    def start(self, case: str, *arguments: str) -> "subprocess.Popen[str]":
        """Start Python with these arguments, in surroundings that make its numbers repeatable."""
        kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
        own = {
            "PYTHONPATH": str(self.package),
            "HF_HOME": str(self.folder / "home" / case),
            "ACCELERATE_USE_CPU": "true",
        }
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=kept | SURROUNDINGS | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that what it starts can be killed with it
        )

    def python(self, case: str, *arguments: str) -> str:
        """Run Python to its end; return what it printed.

        Raises:
            CaseFailedError: its exit code is not 0.
            subprocess.TimeoutExpired: it took too long.
        """
        process = self.start(case, *arguments)
        try:
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if process.returncode != 0:
            raise CaseFailedError(f"exit code {process.returncode}: {' '.join(arguments)}\n{err[-2000:]}")
        return out

    def hftoolkit(self, case: str, *arguments: str) -> str:
        """Run a command of hftoolkit to its end; return what it printed."""
        return self.python(case, "-m", "hftoolkit", *arguments)


# What is done with a recipe


def train_and_use(bench: Bench, name: str, case: Case) -> Record:
    """Fine-tune, predict and evaluate."""
    run = f"runs/{name}"
    bench.hftoolkit(name, "finetune", f"{name}.yaml", "--run-dir", run)
    record = recorded(bench.folder / run)
    if case.predict_on is not None:
        record["predict"] = {"output": digest(bench.hftoolkit(name, "predict", run, case.predict_on).encode())}
    return record | {"evaluate": numbered(bench.hftoolkit(name, "evaluate", run))}


def train_agent(bench: Bench, name: str, _: Case) -> Record:
    """Train an agent and evaluate its policy."""
    run = f"runs/{name}"
    bench.hftoolkit(name, "rl", "train", f"{name}.yaml", "--run-dir", run)
    record = recorded(bench.folder / run)
    return record | {"evaluate": numbered(bench.hftoolkit(name, "rl", "evaluate", run))}


def extend(bench: Bench, name: str, _: Case) -> Record:
    """Fine-tune for an epoch, then resume the finished run with more of them."""
    command = ("finetune", f"{name}.yaml", "--run-dir", f"runs/{name}")
    bench.hftoolkit(name, *command, "--set", "train.epochs=1")
    bench.hftoolkit(name, *command, "--resume")
    return recorded(bench.folder / "runs" / name)


def kill_and_resume(bench: Bench, name: str, _: Case) -> Record:
    """Kill a run after its first checkpoint and resume it.

    Raises:
        CaseFailedError: the run ended before it was killed, or does not equal one that was not killed.
    """
    run = bench.folder / "runs" / name
    command = ("-m", "hftoolkit", "finetune", f"{name}.yaml", "--run-dir")
    bench.python(name, *command, f"runs/{name}-whole")
    process = bench.start(name, *command, f"runs/{name}")
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not any(run.glob("checkpoints/step-*/MANIFEST.json")):
            if process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.002)
    finally:
        process.kill()
        _, err = process.communicate()
    if (run / "results.json").exists() or not any(run.glob("checkpoints/step-*")):
        raise CaseFailedError(f"the run was not killed between its first checkpoint and its end\n{err[-2000:]}")
    bench.python(name, *command, f"runs/{name}", "--resume")
    record, whole = recorded(run), recorded(bench.folder / "runs" / f"{name}-whole")
    if differing := differences(whole, record):
        raise CaseFailedError("\n".join(["killed and resumed, it differs from the whole run", *differing]))
    return record


def train_with_two(bench: Bench, name: str, _: Case) -> Record:
    """Fine-tune with two processes on the CPU."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hftoolkit")
    bench.python(name, *launcher, "finetune", f"{name}.yaml", "--run-dir", f"runs/{name}")
    return recorded(bench.folder / "runs" / name)


# What is kept of a run


def recorded(run: Path) -> Record:
    """Return what a finished run left, without what a clock or a machine says."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    predictions = run / "predictions" / "test.csv"
    return {
        "files": {path.relative_to(run).as_posix(): "" for path in sorted(run.rglob("*")) if path.is_file()},
        "weights": weights_of(run),
        "results": flat(repeatable(results)),
        "metrics": {
            f"line {place}": json.dumps(repeatable(line), sort_keys=True) for place, line in enumerate(metrics, 1)
        },
        "predictions": {"test.csv": digest(predictions.read_bytes())} if predictions.is_file() else {},
    }


def weights_of(run: Path) -> dict[str, str]:
    """Return the hash of each tensor under model/, of its type, shape and bytes; metadata of files do not count."""
    found = {}
    for path in sorted((run / "model").rglob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")  # the header's length comes first, as 8 bytes
        for name, entry in sorted(json.loads(raw[8:start]).items()):
            if name != "__metadata__":
                low, high = entry["data_offsets"]
                kind = f"{entry['dtype']} {entry['shape']} ".encode()
                found[f"{path.relative_to(run).as_posix()}: {name}"] = digest(kind + raw[start + low : start + high])
    if not found:
        raise CaseFailedError(f"no tensors in {run.name}/model")
    return found


def repeatable(value: Any) -> Any:
    """Return a value of JSON without seconds, speeds, bytes of memory, paths and versions."""
    if isinstance(value, dict):
        return {key: repeatable(inner) for key, inner in value.items() if not MEASURED.search(key)}
    return [repeatable(inner) for inner in value] if isinstance(value, list) else value


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their path; a list is a leaf."""
    if not isinstance(value, dict) or not value:
        return {place: value}
    return {path: leaf for key, inner in value.items() for path, leaf in flat(inner, f"{place}/{key}").items()}


def numbered(text: str) -> dict[str, str]:
    """Return the lines of a text by their number."""
    return {f"line {place}": line.rstrip() for place, line in enumerate(text.splitlines(), 1)}


def digest(content: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(content).hexdigest()[:16]


def differences(before: Record, after: Record) -> list[str]:
    """Return a line for each thing that two records of a case do not have alike."""
    found = []
    for group in sorted(before.keys() | after.keys()):
        old, new = before.get(group, {}), after.get(group, {})
        for thing in [*old, *(name for name in new if name not in old)]:
            if thing not in new or thing not in old:
                found.append(f"{group}: {thing}: {'gone' if thing in old else 'new'}")
            elif old[thing] != new[thing]:
                found.append(f"{group}: {thing}: {old[thing]} -> {new[thing]}")
    return found


# The cases


def text_case(
    tuning: str = "method: full",
    *,
    work: Callable[[Bench, str, Case], Record] = train_and_use,
    table: str = "reviews.csv",
    task: str = "",
    **knobs: Any,
) -> Case:
    """Return a case of text classification."""
    values = {"dropout": 0.1, "epochs": 2, "every": 7, "baselines": "true"} | knobs
    return Case(TEXT.format(tuning=tuning, table=table, task=task, **values), ("bert", table), work, table)


def image_case(model: str, tuning: str = "method: full", inputs: tuple[str, ...] = ("pictures",)) -> Case:
    """Return a case of image classification."""
    return Case(IMAGES.format(model=model, tuning=tuning), inputs, train_and_use, "pictures")


def recommendation_case(protocol: str, parts: str) -> Case:
    """Return a case of recommendation."""
    recipe = RECOMMENDATION.format(protocol=protocol, parts=parts)
    return Case(recipe, ("bert", "world"), train_and_use, "world/log.csv")


CASES = {
    "text-full": text_case(),
    "text-lora": text_case("method: lora, rank: 4"),
    "text-probe": text_case("method: linear-probe", dropout=0.0),
    # The TF-IDF baseline fails on the 0 and 1 of multi-label targets, which are floats, once all is trained.
    "text-multi-label": text_case(table="tags.csv", task=", multi_label: true", baselines="false"),
    "timm-full": image_case("pretrained: false, architecture: resnet10t"),
    "timm-lora": image_case("pretrained: false, architecture: test_vit", "method: lora, rank: 4"),
    "transformers-image": image_case("backbone: vit", inputs=("pictures", "vit")),
    "recommendation": recommendation_case("leave-one-out", "text, ease, popularity, groups, attributes"),
    "recommendation-cold": recommendation_case("cold-items", "text, ials, attributes"),
    "dqn": Case(DQN, (), train_agent),
    "q-learning": Case(Q_LEARNING, (), train_agent),
    "extended": text_case(work=extend, epochs=3),
    "killed": text_case(work=kill_and_resume, epochs=10, every=1),  # long enough to be killed in
    "two-processes": text_case(work=train_with_two),
}


def public_names(bench: Bench) -> list[str]:
    """Return the names that the package offers in Python.

    Raises:
        SystemExit: Python finds the package somewhere else.
    """
    shown = "[n for n, v in vars(p).items() if n[0] != '_' and getattr(v, '__module__', '').startswith('hftoolkit')]"
    code = f"import hftoolkit as p, json; print(json.dumps([p.__file__, {shown}]))"
    where, names = json.loads(bench.python("names", "-c", code))
    if not Path(where).resolve().is_relative_to(bench.package):
        raise SystemExit(f"error: hftoolkit is imported from {where}; --package names a checkout that has it")
    return sorted(names)


def run_case(bench: Bench, name: str) -> Record:
    """Write the inputs of a case that are not there yet, and its recipe; return what is kept of its runs."""
    case = CASES[name]
    for source in case.inputs:
        if not (bench.folder / source).exists():
            WRITERS[source](bench.folder / source)
    (bench.folder / f"{name}.yaml").write_text(case.recipe, encoding="utf-8")
    return case.work(bench, name, case)


def run_cases(package: Path, names: list[str]) -> tuple[dict[str, Any], int]:
    """Run cases, and print a line on each; return what is kept of them, and how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve(), package)
        kept: dict[str, Any] = {"names": public_names(bench), "cases": {}}
        for name in names:
            began = time.monotonic()
            try:
                record = kept["cases"][name] = run_case(bench, name)
                shown = "  ".join(f"{group} {digest(json.dumps(record[group]).encode())[:8]}" for group in record)
            except (CaseFailedError, subprocess.TimeoutExpired) as error:
                shown = f"FAILED {error}"
            print(f"{name:<20} {time.monotonic() - began:5.1f} s  {shown}", flush=True)
    return kept, len(names) - len(kept["cases"])


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a line for each difference in the public names and in the cases that ran."""
    found = [f"names: {name}: gone" for name in before["names"] if name not in after["names"]]
    found += [f"names: {name}: new" for name in after["names"] if name not in before["names"]]
    for name, record in after["cases"].items():
        if name in before["cases"]:
            found += [f"{name}: {line}" for line in differences(before["cases"][name], record)]
        else:
            found.append(f"{name}: there is nothing to compare it with")
    return found


def main() -> None:
    """Read the arguments, run the cases, and save or compare what is kept of them."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CASES, default=[*CASES], help=", ".join(CASES))
    parser.add_argument("--save", type=Path, metavar="FILE", help="write what is kept of the runs, as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="print each difference to what --save wrote")
    parser.add_argument("--package", type=Path, metavar="DIR", default=ROOT, help="checkout whose hftoolkit runs")
    given = parser.parse_args()
    before = json.loads(given.compare.read_text(encoding="utf-8")) if given.compare else None
    kept, failed = run_cases(given.package.resolve(), given.only)
    if given.save:
        given.save.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    found = [] if before is None else compare(before, kept)
    print("\n".join([*found, f"{len(found)} differences" if before is not None else ""]).strip())
    raise SystemExit(1 if failed or found else 0)


if __name__ == "__main__":
    main()
