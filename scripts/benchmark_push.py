"""What ``hub.push_every`` costs the training: runs with and without it, alternately.

    python scripts/benchmark_push.py [--rows 1800] [--rounds 3]

Both train recipes/sentiment.yaml on some of its rows, with an evaluation every quarter of an epoch. One pushes the best
model so far as often as it can, which is more often than anybody would, to the Hub of the tests, which runs on the same
machine. Printed are the seconds of all steps, without evaluations, and the number of pushes.

Measured with --rounds 2 on two cores (2026-11-23): steps took 1.000 and 1.074 times as long with seven pushes in two
minutes, which left hardly a moment without one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from hftoolkit.data.sources.resolve import resolve_data
from hftoolkit.recipe import load_recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
RECIPE = ROOT / "recipes" / "sentiment.yaml"
PUSHING, TOKEN = "hub={repo: ada/best, push_every: 1}", "hf_benchmark"


def main() -> None:
    """Run both sides in turn and print the ratio of each round."""
    from doubles.loopback_hub import Account, LoopbackHub

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1800)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    data = load_recipe(RECIPE).data
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = pd.read_parquet(resolve_data(data.source, sha256=data.sha256).path)
        table.sample(options.rows, random_state=0).to_csv(folder / "reviews.csv", index=False)
        with LoopbackHub.running(folder / "xet") as hub:
            hub.accounts[TOKEN] = Account("ada")
            environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
            environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
            for number in range(options.rounds):
                pushing = seconds_of_steps(folder / f"pushing-{number}", environment, PUSHING)
                plain = seconds_of_steps(folder / f"plain-{number}", environment)
                ratios.append(pushing / plain)
                log = (folder / f"pushing-{number}" / "train.log").read_text(encoding="utf-8")
                pushes = log.count("the best model so far, of step")
                print(f"{plain:.0f} s without, {pushing:.0f} s with {pushes} pushes: {ratios[-1]:.3f}", flush=True)
    print(f"median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def seconds_of_steps(run: Path, environment: dict[str, str], *more: str) -> float:
    """Train in a process of its own; return the seconds of all steps together."""
    settings = [f"data.source={run.parent}/reviews.csv", "data.sha256=null", "train.epochs=2"]
    settings += ["evaluation.times_per_epoch=4", "evaluation.best_by=loss", *more]
    command = [sys.executable, "-m", "hftoolkit", "finetune", str(RECIPE), "--run-dir", str(run)]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    batch = load_recipe(run / "recipe.yaml").train.batch_size
    return sum(batch / step["examples_per_second"] for step in steps)


if __name__ == "__main__":
    main()
