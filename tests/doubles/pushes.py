"""Runs made without training, to be pushed, and what a repository on the loopback Hub holds afterwards."""

import hashlib
import random
from pathlib import Path

from doubles.loopback_hub import Repository
from doubles.reviews import RECIPE
from hftoolkit.data.sources.sealing import seal

POLICY_RECIPE = """\
environment: {id: CartPole-v1}
algorithm: {kind: dqn, network: {encoder: mlp, hidden_sizes: [8]}, learning_starts: 30, batch_size: 8, replay_size: 500}
train: {steps: 100}
evaluation: {episodes: 2, curve_points: 0, bootstrap_samples: 100}
"""
CARD = "---\nlibrary_name: transformers\ntags:\n- hftoolkit\n- full\n---\n\n# A model\n"


def make_run(folder: Path, seed: int = 0, size: int = 200_000) -> Path:
    """Write what a push reads of a finished run: the recipe, the state, and a model with two large files."""
    generator = random.Random(seed)
    files = {
        "recipe.yaml": RECIPE.format(table="t.csv", backbone="some/backbone").encode(),
        "status.json": b'{"state": "done"}',
        "checkpoints/step-000001/model.safetensors": generator.randbytes(2000),
        "model/README.md": CARD.encode(),
        "model/config.json": b'{"seed": %d}' % seed,
        "model/model.safetensors": generator.randbytes(size),
        "model/adapter/adapter_config.json": b"{}",
        "model/adapter/adapter_model.safetensors": generator.randbytes(1000),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    seal(folder / "model")
    return folder


def model_files(run: Path) -> dict[str, str]:
    """Return the sha256 of the files of ``model/`` by name."""
    model = run / "model"
    files = [path for path in model.rglob("*") if path.is_file()]
    assert files
    return {path.relative_to(model).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def remote_files(repository: Repository) -> dict[str, str]:
    """Return the same of the newest commit, without the Hub's own .gitattributes."""
    tree = repository.tree()
    assert tree is not None and ".gitattributes" in tree
    return {
        path: blob.sha256 or hashlib.sha256(blob.data or b"").hexdigest()
        for path, blob in tree.items()
        if path != ".gitattributes"
    }


def commits(repository: Repository) -> int:
    """Return how many commits came after the first one, which the Hub makes."""
    return len(repository.commits) - 1
