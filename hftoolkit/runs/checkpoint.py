"""Checkpoints: written beside, hashed, then named, so that a kill or a full disk costs nothing that was there before.

``step-N`` is a state: all that decides what comes after step N. ``best-N`` holds the best weights so far, which states
name. Of a fine-tuned model only what training changes is kept; the rest is in the backbone.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hftoolkit.data.sources.sealing import sync
from hftoolkit.errors import DataError, EnvironmentFault

TENSORS = "tensors.safetensors"
FACTS = "facts.json"
MANIFEST = "MANIFEST.json"
STATE, BEST, UNFINISHED = "step-", "best-", ".tmp-"
NAME = re.compile(r"(?:step|best)-(?P<step>\d+)(?:\.(?P<again>\d+))?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights on disk, and what they reached."""

    path: Path
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class State:
    """All that decides what comes after a step, read back and verified.

    Attributes:
        path: its directory.
        step: how far the run was.
        tensors: by name, on the CPU.
        values: what else there is, as JSON holds it.
        best: the best weights at that time, where the run chooses any.
    """

    path: Path
    step: int
    tensors: Mapping[str, torch.Tensor]
    values: Mapping[str, Any]
    best: Checkpoint | None


def save_best(
    parent: Path, *, step: int, weights: Mapping[str, torch.Tensor], metrics: Mapping[str, float]
) -> Checkpoint:
    """Write ``parent/best-NNNNNN``. The one before stays until no kept state names it.

    Raises:
        EnvironmentFault: it could not be written; what was there is untouched.
    """
    path = _write(parent, f"{BEST}{step:06d}", weights, {"step": step, "metrics": dict(metrics)})
    return Checkpoint(path, step, dict(metrics))


def save_state(
    parent: Path,
    *,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    values: Mapping[str, Any],
    best: Checkpoint | None = None,
    keep: int = 2,
) -> Path:
    """Write ``parent/step-NNNNNN``, then remove all but the newest states and the best weights that they name.

    Args:
        parent: the folder of all checkpoints of a run.
        step: how far the run is.
        tensors: by name.
        values: plain values that JSON can hold.
        best: the best weights so far.
        keep: how many states stay; with 2, a damaged one costs no more than the way from the one before.

    Raises:
        EnvironmentFault: it could not be written; what was there is untouched.
    """
    facts = {"step": step, "values": dict(values), "best": None if best is None else best.path.name}
    path = _write(parent, f"{STATE}{step:06d}", tensors, facts)
    prune(parent, keep)
    return path


def newest_state(parent: Path, warn: Callable[[str], None]) -> State | None:
    """Return the newest state that is whole, or None if none was ever written.

    What a kill left half-written is cleared away. Damaged ones that are newer are removed, with one warning, so that
    the run can pass their steps again.

    Raises:
        DataError: there are states, but none is whole.
    """
    _remove([*parent.glob(f"{UNFINISHED}*")])
    damaged: dict[Path, DataError] = {}
    for path in _newest_first(parent, STATE):
        try:
            state = _read_state(path)
        except DataError as error:
            damaged[path] = error
            continue
        if damaged:
            reasons = "; ".join(map(str, damaged.values()))
            warn(f"{reasons}. Removed; resuming from {path.name}, the one before")
            _remove(damaged)
        return state
    if damaged:
        reasons = "; ".join(map(str, damaged.values()))
        raise DataError(f"no checkpoint in {parent} can be resumed: {reasons}. Start a new run, without --resume")
    return None


def has_states(parent: Path) -> bool:
    """Return whether any state was ever saved there, whole or not."""
    return bool(_newest_first(parent, STATE))


def keep_newest(parent: Path, *, most_bytes: int) -> None:
    """Remove all states of a run that is done but the newest, which it can be extended from; if larger, that too."""
    prune(parent, 1)
    if sum(path.stat().st_size for path in parent.rglob("*") if path.is_file()) > most_bytes:
        shutil.rmtree(parent, ignore_errors=True)


def best_at(parent: Path, step: int) -> Path:
    """Return the best weights that were saved last at a step."""
    return next(path for path in _newest_first(parent, BEST) if _order(path)[0] == step)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint whose hashes agree with its manifest, on the CPU.

    Raises:
        DataError: a file is missing, cut or changed.
    """
    _verify(path)
    try:
        return load_file(path / TENSORS)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise DataError(f"checkpoint {path} cannot be read: {error}") from error


def read_best(path: Path) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """Return the best weights of a folder that ``save_best`` wrote, and what they reached.

    Raises:
        DataError: a file is missing, cut or changed.
    """
    tensors = load_weights(path)
    return _as_best(path), tensors


def prune(parent: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` states, and the best weights that none of these names."""
    whole = [path for path in _newest_first(parent, STATE) if _looks_whole(path)][:keep]
    if not whole:
        return
    kept = {*whole, *(parent / name for path in whole if (name := _facts(path)["best"]) is not None)}
    _remove(
        path for path in [*parent.iterdir()] if path not in kept and path.name.startswith((STATE, BEST, UNFINISHED))
    )


def _write(parent: Path, name: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Path:
    part = parent / f"{UNFINISHED}{name}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, part / TENSORS)
        (part / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        # Without blanks every byte counts, so that a change of any is found.
        manifest = json.dumps({file: _identity(part / file) for file in (TENSORS, FACTS)}, separators=(",", ":"))
        (part / MANIFEST).write_text(manifest, encoding="utf-8")
        for path in part.iterdir():
            sync(path)
        sync(part)
        target = _next_name(parent / name)
        os.rename(part, target)
        sync(parent)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        shutil.rmtree(part, ignore_errors=True)
        raise EnvironmentFault(
            f"cannot write the checkpoint {parent / name}: {error}; free some space, and the same command with "
            "--resume continues from the last one"
        ) from error
    return target


def _next_name(path: Path) -> Path:
    """Return a name after all that are taken: a run that resumes may pass a step, and save it, once more."""
    kind, (step, _) = path.name.partition("-")[0], _order(path)
    taken = [again for other, again in map(_order, _newest_first(path.parent, f"{kind}-")) if other == step]
    return path.with_name(f"{path.name}.{max(taken) + 1}") if taken else path


def _read_state(path: Path) -> State:
    tensors, facts = load_weights(path), _facts(path)
    best = None
    if facts["best"] is not None:
        best_path = path.with_name(facts["best"])
        _verify(best_path)
        best = _as_best(best_path)
    return State(path, facts["step"], tensors, facts["values"], best)


def _verify(path: Path) -> None:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if set(manifest) != {TENSORS, FACTS}:
            raise ValueError(f"{MANIFEST} is not one of a checkpoint")
        for file, identity in manifest.items():
            if _identity(path / file) != identity:
                raise DataError(f"checkpoint {path} is damaged: {file} does not have the hash in {MANIFEST}")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"checkpoint {path} cannot be read: {error}") from error


def _looks_whole(path: Path) -> bool:
    """Return whether all files are there in the right size, which costs nothing to find out."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sizes = {file: (path / file).stat().st_size for file in (TENSORS, FACTS)}
        return all(manifest[file]["bytes"] == size for file, size in sizes.items()) and "best" in _facts(path)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((path / FACTS).read_text(encoding="utf-8"))
    return facts


def _as_best(path: Path) -> Checkpoint:
    facts = _facts(path)
    return Checkpoint(path, facts["step"], facts["metrics"])


def _newest_first(parent: Path, kind: str) -> list[Path]:
    found = [path for path in parent.glob(f"{kind}*") if NAME.fullmatch(path.name)]
    return sorted(found, key=_order, reverse=True)


def _order(path: Path) -> tuple[int, int]:
    """Return the step of a checkpoint, and which one of this step it is."""
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match["step"]), int(match["again"] or 1)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
