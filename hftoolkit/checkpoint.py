"""Weights on disk during training: written beside, hashed, then swapped into place, so that a kill leaves the old
checkpoint or the new one. Of a fine-tuned model only trained weights are kept; the frozen ones are in the backbone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hftoolkit.errors import DataError, EnvironmentFault

WEIGHTS = "weights.safetensors"
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One complete checkpoint directory."""

    path: Path
    step: int
    metrics: Mapping[str, float]
    state: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(
    parent: Path,
    *,
    step: int,
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, float],
    state: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write ``parent/step-NNNNNN`` atomically, with a manifest of SHA-256 hashes, then remove all older ones.

    Args:
        parent: the folder of all checkpoints of a run.
        step: how far the run is.
        weights: tensors by name.
        metrics: what the weights reached.
        state: plain values that JSON can hold, for going on from here.

    Raises:
        EnvironmentFault: it could not be written; older checkpoints are untouched.
    """
    target, part = parent / f"step-{step:06d}", parent / f".tmp-step-{step:06d}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, part / WEIGHTS)
        manifest = {
            "step": step,
            "metrics": dict(metrics),
            "sha256": {WEIGHTS: _sha256(part / WEIGHTS)},
            "state": dict(state or {}),
        }
        (part / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _sync(part)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
        _sync_directory(parent)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        shutil.rmtree(part, ignore_errors=True)
        raise EnvironmentFault(
            f"cannot write the checkpoint {target}: {error}; free some space and start again"
        ) from error
    _remove_others(parent, keep=target)
    return Checkpoint(target, step, dict(metrics), dict(state or {}))


def latest_checkpoint(parent: Path) -> Checkpoint | None:
    """Return the checkpoint that is furthest, or None if there is none.

    Raises:
        DataError: its manifest cannot be read.
    """
    complete = sorted(
        (path for path in parent.glob("step-*") if (path / MANIFEST).is_file()),
        key=lambda path: int(path.name.removeprefix("step-")),
    )
    if not complete:
        return None
    manifest = _manifest(complete[-1])
    return Checkpoint(complete[-1], manifest["step"], manifest["metrics"], manifest.get("state", {}))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint whose hash agrees with its manifest, on the CPU.

    Raises:
        DataError: a file is missing, cut or changed.
    """
    manifest = _manifest(path)
    try:
        if _sha256(path / WEIGHTS) != manifest["sha256"][WEIGHTS]:
            raise DataError(f"checkpoint {path} is damaged: {WEIGHTS} does not have the hash in {MANIFEST}")
        return load_file(path / WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise DataError(f"checkpoint {path} cannot be read: {error}") from error


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if missing := {"step", "metrics", "sha256"} - manifest.keys():
            raise ValueError(f"{MANIFEST} lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"checkpoint {path} cannot be read: {error}") from error
    return manifest


def _remove_others(parent: Path, keep: Path) -> None:
    for entry in parent.iterdir():
        if entry != keep and entry.name.startswith(("step-", ".tmp-step-")):
            shutil.rmtree(entry, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
