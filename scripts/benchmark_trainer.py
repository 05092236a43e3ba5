"""hftoolkit against HF Trainer, alternately: same model, data, split, batch size, rate and number of steps.

    python scripts/benchmark_trainer.py --examples 1920 --rounds 5     rates only, a few minutes
    python scripts/benchmark_trainer.py --rounds 1                     the whole recipe: rates, macro-F1, paired test

HF Trainer runs at its best settings for this task: bf16 where the hardware has it, batches grouped by length, dynamic
padding. Everything else of it and of the model is as it comes. Each side is a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run both sides in turn and print rates, their ratio, and quality where all examples were used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "sentiment.yaml")
    parser.add_argument("--examples", type=int, default=None, help="use only this many training examples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=["trainer", "hftoolkit"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = run_trainer if options.side == "trainer" else run_hftoolkit
        side(options.recipe, options.examples, options.seed, options.output)
    else:
        compare(options.recipe, options.examples, options.rounds, options.seed)


def compare(recipe: Path, examples: int | None, rounds: int, seed: int) -> None:
    """Alternate both sides; the second round starts with the other one, so that drift of the machine cancels."""
    results: dict[str, list[dict[str, Any]]] = {"trainer": [], "hftoolkit": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for side in ("trainer", "hftoolkit")[:: 1 if number % 2 == 0 else -1]:
                output = Path(folder) / f"{side}-{number}"
                command = [sys.executable, __file__, "--side", side, "--recipe", str(recipe), "--output", str(output)]
                command += ["--seed", str(seed + number)] + (["--examples", str(examples)] if examples else [])
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                result = json.loads(output.with_suffix(".json").read_text())
                if examples is None:
                    result["probabilities"] = np.load(output.with_suffix(".npy"))
                results[side].append(result)
                print(f"round {number + 1} {side:<10} {result['rate']:6.1f} examples/s", flush=True)
        report(results, with_quality=examples is None)


def report(results: dict[str, list[dict[str, Any]]], *, with_quality: bool) -> None:
    """Print the ratio of rates (median over rounds) and, for whole recipes, both macro-F1."""
    ours, theirs = results["hftoolkit"], results["trainer"]
    ratios = [a["rate"] / b["rate"] for a, b in zip(ours, theirs, strict=True)]
    print(f"hftoolkit over HF Trainer: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    if not with_quality:
        return
    from hftoolkit.metrics.bootstrap import paired_difference

    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        difference, low, high = paired_difference(
            a["probabilities"],
            b["probabilities"],
            np.array(a["targets"]),
            a["names"],
            metric="macro_f1",
            samples=2000,
            seed=0,
        )
        for name, result in (("hftoolkit", a), ("HF Trainer", b)):
            print(f"seed {number} {name:<10} accuracy {result['accuracy']:.4f} macro-F1 {result['macro_f1']:.4f}")
        print(
            f"seed {number} difference of macro-F1 {difference:+.4f} [{low:+.4f}, {high:+.4f}] (paired bootstrap, test)"
        )


def load(recipe_path: Path, examples: int | None, seed: int) -> tuple[Any, Any, Any]:
    """Return the recipe, its splits (each cut to ``examples``) and its weights."""
    from hftoolkit.data import load_text_splits
    from hftoolkit.recipe import load_recipe
    from hftoolkit.sources import resolve_data, resolve_model

    recipe = load_recipe(recipe_path, [f"train.seed={seed}"])
    table = resolve_data(recipe.data.source, sha256=recipe.data.sha256)
    splits = load_text_splits(table.path, recipe.data, recipe.task)
    if examples:
        parts = {
            field: {name: rows[:examples] for name, rows in getattr(splits, field).items()}
            for field in ("texts", "targets", "row_numbers")
        }
        splits = replace(splits, **parts)
    return recipe, splits, resolve_model(recipe.model.backbone, sha256=recipe.model.sha256)


def write(output: Path, rate: float, splits: Any, probabilities: np.ndarray | None) -> None:
    """Leave what ``compare`` reads; without probabilities, the rate alone."""
    kept: dict[str, Any] = {"rate": rate}
    if probabilities is not None:
        from hftoolkit.metrics.classification import classification_metrics

        targets = splits.targets["test"]
        metrics = classification_metrics(probabilities, targets, splits.labels.names)
        np.save(output.with_suffix(".npy"), probabilities)
        kept |= {"targets": targets.tolist(), "names": splits.labels.names}
        kept |= {"accuracy": metrics["accuracy"], "macro_f1": metrics["macro_f1"]}
    output.with_suffix(".json").write_text(json.dumps(kept))


def run_hftoolkit(recipe_path: Path, examples: int | None, seed: int, output: Path) -> None:
    """Train as ``finetune`` does and predict the test split."""
    from hftoolkit.job import prepare_with, train
    from hftoolkit.rundir import RunDir

    recipe, splits, weights = load(recipe_path, examples, seed)
    job = prepare_with(recipe, splits, weights, emit=lambda event: None)
    with tempfile.TemporaryDirectory() as folder:
        fitted = train(recipe, job, RunDir(Path(folder)), emit=lambda event: None)
    write(output, fitted.examples_per_second, splits, None if examples else job.probabilities("test"))


def run_trainer(recipe_path: Path, examples: int | None, seed: int, output: Path) -> None:
    """Train with HF Trainer and predict the test split."""
    import torch
    from datasets import Dataset
    from scipy.special import softmax
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from hftoolkit.devices import choose_precision

    recipe, splits, weights = load(recipe_path, examples, seed)
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(weights.path)
    model = AutoModelForSequenceClassification.from_pretrained(
        weights.path, num_labels=len(splits.labels.names), dtype=torch.float32
    )

    def encode(split: str) -> Dataset:
        encoded = tokenizer(splits.texts[split], truncation=True, max_length=recipe.model.max_length)
        return Dataset.from_dict(dict(encoded) | {"labels": splits.targets[split].tolist()})

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=recipe.train.epochs,
            per_device_train_batch_size=recipe.train.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=recipe.train.learning_rate,
            weight_decay=recipe.train.weight_decay,
            warmup_steps=recipe.train.warmup_ratio,
            lr_scheduler_type=recipe.train.schedule,
            max_grad_norm=recipe.train.max_gradient_norm,
            bf16=choose_precision("auto", torch.device(device)) == "bf16",
            use_cpu=device == "cpu",
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=encode("train"),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        probabilities = None if examples else softmax(trainer.predict(encode("test")).predictions, axis=1)
    write(output, recipe.train.epochs * len(splits.texts["train"]) / seconds, splits, probabilities)


if __name__ == "__main__":
    main()
