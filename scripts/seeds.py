"""Run a recipe with several seeds and print the mean and the range of its test metrics.

    python scripts/seeds.py recipes/sentiment.yaml [--seeds 0 1 2] [--into runs/seeds]

The split is the same for every seed (data.split.seed is not changed). Finished runs in --into are read, not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

METRICS = ("accuracy", "macro_f1", "ece")


def main() -> None:
    """Train what is missing, then print one line a seed and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--into", type=Path, default=Path("runs/seeds"))
    options = parser.parse_args()
    found = [results(options.recipe, seed, options.into / f"{options.recipe.stem}-{seed}") for seed in options.seeds]
    for seed, result in zip(options.seeds, found, strict=True):
        print(f"seed {seed}  {line(result['test']['metrics'])}  {result['train']['seconds']:.0f} s of training")
    tests = [result["test"]["metrics"] for result in found]
    print(f"mean    {line({name: statistics.mean(test[name] for test in tests) for name in METRICS})}")
    for name in METRICS:
        values = [test[name] for test in tests]
        print(f"{name:<9} {min(values):.4f} to {max(values):.4f}")


def results(recipe: Path, seed: int, run: Path) -> dict[str, Any]:
    """Return the results of a run, which is made if it is not there."""
    if not (run / "results.json").is_file():
        command = [sys.executable, "-m", "hftoolkit", "finetune", str(recipe), "--run-dir", str(run)]
        subprocess.run([*command, "--set", f"train.seed={seed}"], check=True)
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def line(metrics: dict[str, float]) -> str:
    """Return the metrics in a row."""
    return "  ".join(f"{name} {metrics[name]:.4f}" for name in METRICS)


if __name__ == "__main__":
    main()
