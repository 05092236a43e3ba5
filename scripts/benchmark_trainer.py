"""hftoolkit against HF Trainer, alternately: same model, data, split, batch size, rate and number of steps.

    python scripts/benchmark_trainer.py --examples 1920 --rounds 5     rates only, a few minutes
    python scripts/benchmark_trainer.py --rounds 1                     the whole recipe: rates, macro-F1, paired test
    python scripts/benchmark_trainer.py --recipe recipes/vision.yaml --set train.epochs=1 --trainer-precision fp32
    python scripts/benchmark_trainer.py --against no-speedups --examples 1920     itself with train.speedups: none
    python scripts/benchmark_trainer.py --against without-halves --examples 1920  itself without one of the speedups
    python scripts/benchmark_trainer.py --gpu --rounds 3               texts, then images, an epoch in bf16 on a GPU
    python scripts/benchmark_trainer.py --gpu --rounds 3 --rates-only \\
      --launch "accelerate launch --config_file docs/accelerate/fsdp2-8-gpus.yaml"      the same on several, divided

HF Trainer runs at its best settings for the task. Texts: bf16 where the hardware has it, batches grouped by length,
dynamic padding. Images: decoded and transformed one by one with torchvision, in the precision that is asked for.
Everything else of it and of the model is as it comes. Each side is a process of its own, or, with --launch, several;
the memory is that of the first.
"""

import argparse
import importlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
OURS, TRAINER, NO_SPEEDUPS = "hftoolkit", "trainer", "no-speedups"
SIDES = {OURS: "hftoolkit", TRAINER: "HF Trainer", NO_SPEEDUPS: "no speedups"}
ONE_SPEEDUP = {  # side -> module and name of what it does without
    "without-memory": ("hftoolkit.train.speedups.cpu", "keep_freed_memory"),
    "without-bf16-stream": ("hftoolkit.train.speedups.cpu", "low_precision_stream"),
    "without-row-gradients": ("hftoolkit.train.speedups.cpu", "row_gradients"),
    "without-cls-only": ("hftoolkit.train.speedups", "cls_position_only"),
    "without-halves": ("hftoolkit.train.speedups", "batch_halves_in_threads"),
}
SIDES |= {side: side.replace("-", " ") for side in ONE_SPEEDUP}


def main() -> None:
    """Run both sides in turn and print rates, their ratio, and quality where all examples were used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "sentiment.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for hftoolkit finetune")
    parser.add_argument("--examples", type=int, default=None, help="use only this many training texts")
    parser.add_argument("--rates-only", action="store_true", help="predict nothing afterwards; implied by --examples")
    parser.add_argument(
        "--trainer-precision", choices=["bf16", "fp32"], default=None, help="default: the recipe's auto"
    )
    parser.add_argument(
        "--gpu", action="store_true", help="one epoch of recipes/sentiment.yaml and of recipes/vision.yaml in bf16"
    )
    parser.add_argument(
        "--against",
        choices=[side for side in SIDES if side != OURS],
        default=TRAINER,
        help="the other side; default: %(default)s",
    )
    parser.add_argument("--launch", default="", metavar="COMMAND", help="what starts the processes of a side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rates_only |= options.examples is not None
    if options.side:
        if options.side == NO_SPEEDUPS:
            options.set = [*options.set, "train.speedups=none"]
        if options.side in ONE_SPEEDUP:
            module, name = ONE_SPEEDUP[options.side]
            setattr(importlib.import_module(module), name, lambda *arguments: nullcontext())
        side = run_trainer if options.side == TRAINER else run_hftoolkit
        side(options)
    elif options.gpu:
        compare_on_gpu(options)
    else:
        compare(options)


def compare_on_gpu(options: argparse.Namespace) -> None:
    """Compare an epoch of texts and one of images, in bf16; exit 4 where there is no GPU for it."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)):
        print("error: no GPU with bf16 was found; leave out --gpu to compare on this CPU", file=sys.stderr)
        sys.exit(4)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    for name in ("sentiment", "vision"):
        print(f"recipes/{name}.yaml")
        recipe = ["--recipe", str(ROOT / "recipes" / f"{name}.yaml"), "--trainer-precision", "bf16"]
        compare(options, [*recipe, "--set", "train.epochs=1", "--set", "train.precision=bf16"])


def compare(options: argparse.Namespace, more: Sequence[str] = ()) -> None:
    """Alternate both sides; the second round starts with the other one, so that drift of the machine cancels."""
    results: dict[str, list[dict[str, Any]]] = {options.against: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for side in (options.against, OURS)[:: 1 if number % 2 == 0 else -1]:
                output = Path(folder) / f"{side}-{number}"
                launcher = shlex.split(options.launch) or [sys.executable]
                command = [*launcher, *sys.argv, *more, "--side", side, "--output", str(output)]
                command += ["--seed", str(options.seed + number)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                result = json.loads(output.with_suffix(".json").read_text())
                if not options.rates_only:
                    result["probabilities"] = np.load(output.with_suffix(".npy"))
                results[side].append(result)
                memory = result["peak_memory_bytes"] / 1e6
                print(
                    f"round {number + 1} {side:<21} {result['rate']:8.1f} examples/s, peak memory {memory:,.0f} MB",
                    flush=True,
                )
        report(results, options.against, with_quality=not options.rates_only)


def report(results: dict[str, list[dict[str, Any]]], against: str, *, with_quality: bool) -> None:
    """Print the ratio of rates (median over rounds) and, for whole recipes, both macro-F1."""
    other, pairs = SIDES[against], list(zip(results[OURS], results[against], strict=True))
    ratios = [a["rate"] / b["rate"] for a, b in pairs]
    print(f"hftoolkit over {other}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    if not with_quality:
        return
    from hftoolkit.metrics.classification import classification_statistics
    from hftoolkit.metrics.statistics import paired_lead, resample

    for number, (a, b) in enumerate(pairs):
        both = [classification_statistics(side["probabilities"], np.array(a["targets"]), a["names"]) for side in (a, b)]
        ours, theirs = (resample(each, samples=2000, seed=0) for each in both)
        difference, low, high = paired_lead(ours, theirs, "macro_f1")
        for name, result in (("hftoolkit", a), (other, b)):
            print(f"seed {number} {name:<11} accuracy {result['accuracy']:.4f} macro-F1 {result['macro_f1']:.4f}")
        print(
            f"seed {number} difference of macro-F1 {difference:+.4f} [{low:+.4f}, {high:+.4f}] (paired bootstrap, test)"
        )


def load_rows(recipe: Any, examples: int | None) -> tuple[Any, Any]:
    """Return the weights of a recipe, and its data set, each split cut to ``examples``."""
    from hftoolkit.commands.setup import read_data

    weights, dataset = read_data(recipe, lambda event: None)
    if examples:
        dataset = replace(
            dataset,
            splits={name: rows[:examples] for name, rows in dataset.splits.items()},
            row_numbers={name: numbers[:examples] for name, numbers in dataset.row_numbers.items()},
        )
    return weights, dataset


def load(options: argparse.Namespace) -> Any:
    """Return the recipe with the seed of this round."""
    from hftoolkit.recipe import load_recipe

    return load_recipe(options.recipe, [*options.set, f"train.seed={options.seed}"])


def write(
    output: Path, rate: float, memory: int, targets: np.ndarray, names: Any, probabilities: np.ndarray | None
) -> None:
    """Leave what ``compare`` reads; without probabilities, rate and peak memory in bytes alone."""
    kept: dict[str, Any] = {"rate": rate, "peak_memory_bytes": memory}
    if probabilities is not None:
        from hftoolkit.metrics.classification import classification_metrics

        metrics = classification_metrics(probabilities, targets, names)
        np.save(output.with_suffix(".npy"), probabilities)
        kept |= {"targets": targets.tolist(), "names": names}
        kept |= {"accuracy": metrics["accuracy"], "macro_f1": metrics["macro_f1"]}
    output.with_suffix(".json").write_text(json.dumps(kept))


def run_hftoolkit(options: argparse.Namespace) -> None:
    """Train as ``finetune`` does and predict the test split."""
    from hftoolkit.commands.finetune import fit_setup
    from hftoolkit.commands.setup import build, join
    from hftoolkit.metrics.probabilities import to_probabilities
    from hftoolkit.runs.directory import RunDir
    from hftoolkit.train.distributed.collectives import broadcast, is_main, shut_down

    recipe = load(options)
    strategy = join(recipe)
    if not is_main():
        broadcast("prepared")  # the caches are filled
    setup = build(recipe, *load_rows(recipe, options.examples), lambda event: None)
    if is_main():
        broadcast("prepared")
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit_setup(setup, RunDir(Path(folder)), strategy, lambda event: None)
    probabilities = None
    if not options.rates_only:
        outputs = setup.learner.outputs(setup.tuned.model, setup.infer, "test", full_precision=True)
        probabilities = to_probabilities(np.stack(outputs), multi_label=False)
    shut_down()
    if not is_main():
        return
    rate = fitted.facts("examples")["examples_per_second"]
    memory, test = fitted.peak_memory_bytes, setup.dataset.splits["test"]
    targets = np.stack([row.target for row in test])
    write(options.output, rate, memory, targets, setup.dataset.schema.names, probabilities)


def run_trainer(options: argparse.Namespace) -> None:
    """Train with HF Trainer and predict the test split."""
    import torch
    from scipy.special import softmax
    from transformers import Trainer, TrainingArguments, set_seed

    from hftoolkit.train.devices import choose_precision, peak_memory_bytes

    recipe = load(options)
    set_seed(options.seed)
    parts = text_parts if recipe.task.kind == "text-classification" else image_parts
    model, datasets, targets, names, extra, arguments = parts(recipe, options.examples)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = options.trainer_precision or choose_precision("auto", torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=recipe.train.epochs,
            per_device_train_batch_size=recipe.train.batch_size // int(os.environ.get("WORLD_SIZE", 1)),
            per_device_eval_batch_size=64,
            learning_rate=recipe.train.learning_rate,
            weight_decay=recipe.train.weight_decay,
            warmup_steps=recipe.train.warmup_ratio,
            lr_scheduler_type=recipe.train.schedule,
            max_grad_norm=recipe.train.max_gradient_norm,
            bf16=precision == "bf16",
            use_cpu=device == "cpu",
            save_strategy="no",
            disable_tqdm=True,
            seed=options.seed,
            **arguments,
        )
        trainer = Trainer(model=model, args=settings, train_dataset=datasets["train"], **extra)
        started = time.perf_counter()
        trainer.train()
        seconds, memory = time.perf_counter() - started, peak_memory_bytes(torch.device(device))
        trainer.args.train_sampling_strategy = "random"  # by length, predictions come in another order than the rows
        logits = None if options.rates_only else trainer.predict(datasets["test"]).predictions
    if not trainer.is_world_process_zero():
        return
    probabilities = None if logits is None else softmax(logits, axis=1)
    rate = recipe.train.epochs * len(datasets["train"]) / seconds
    write(options.output, rate, memory, targets, names, probabilities)


def text_parts(recipe: Any, examples: int | None) -> tuple[Any, ...]:
    """Return model, tokenized splits, test targets, class names, and what Trainer and its arguments need for texts."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    weights, dataset = load_rows(recipe, examples)
    names = dataset.schema.names
    tokenizer = AutoTokenizer.from_pretrained(weights.path)
    model = AutoModelForSequenceClassification.from_pretrained(weights.path, num_labels=len(names), dtype=torch.float32)

    def encode(split: str) -> Dataset:
        rows = dataset.splits[split]
        encoded = tokenizer([row.text for row in rows], truncation=True, max_length=recipe.model.max_length)
        return Dataset.from_dict(dict(encoded) | {"labels": [int(row.target) for row in rows]})

    extra = {"processing_class": tokenizer, "data_collator": DataCollatorWithPadding(tokenizer)}
    datasets = {split: encode(split) for split in ("train", "test")}
    targets = np.stack([row.target for row in dataset.splits["test"]])
    return model, datasets, targets, names, extra, {"train_sampling_strategy": "group_by_length"}


def image_parts(recipe: Any, _: int | None) -> tuple[Any, ...]:
    """The same for images: each is decoded, resized, moved, scaled and normalized when it is asked for."""
    import torch
    from torchvision.transforms import v2

    from hftoolkit.contracts import HeadSpec
    from hftoolkit.data.image.cache import decode
    from hftoolkit.data.image.sources import open_images
    from hftoolkit.data.image.splits import load_image_splits
    from hftoolkit.data.sources.resolve import resolve_data, resolve_model
    from hftoolkit.models.image_backbones import load_image_classifier

    source = resolve_data(recipe.data.source, sha256=recipe.data.sha256).path
    weights = resolve_model(recipe.model.backbone, sha256=recipe.model.sha256).path if recipe.model.pretrained else None
    knobs = {name: getattr(recipe.model, name) for name in ("architecture", "resize", "dropout", "drop_path")}
    knobs["image_size"] = recipe.model.height_and_width
    size = load_image_classifier(weights, HeadSpec(("a", "b")), seed=0, **knobs).preprocessing
    splits = load_image_splits(source, recipe.data, recipe.task, size.geometry)
    backbone = load_image_classifier(weights, HeadSpec(splits.labels.names), seed=recipe.train.seed, **knobs)
    stored = open_images(source, recipe.data.columns, recipe.data.pixels)
    moved = (
        [v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1))] if recipe.augmentation.preset == "light" else []
    )
    fitted = [v2.ToImage(), v2.Resize(round(size.height / size.crop_pct), antialias=True)]
    ended = [v2.CenterCrop((size.height, size.width)), v2.ToDtype(torch.float32, scale=True)]
    normalized = v2.Normalize(size.mean, size.std)

    class Images:
        def __init__(self, split: str) -> None:
            self.rows, self.targets = splits.row_numbers[split] - 1, splits.targets[split]
            changes = moved if split == "train" else []
            self.transform = v2.Compose([*fitted, *changes, *ended, normalized])

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            picture = decode(stored[self.rows[index]])
            return {"pixel_values": self.transform(picture), "labels": int(self.targets[index])}

    datasets = {split: Images(split) for split in ("train", "test")}
    arguments = {"remove_unused_columns": False}
    return backbone.model, datasets, splits.targets["test"], splits.labels.names, {}, arguments


if __name__ == "__main__":
    main()
