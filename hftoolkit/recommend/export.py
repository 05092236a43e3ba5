"""``model/`` of a recommender: the item tower as plain libraries load it, the rest beside it, and the gate for both."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hftoolkit.errors import ArtifactError, EnvironmentFault
from hftoolkit.export.gate import MERGED_TOLERANCE, SAVED_TOLERANCE, put_in_place, reload_in_fresh_process
from hftoolkit.models.lora import is_lora, merge, save_adapter
from hftoolkit.recommend.recommender import Recommender
from hftoolkit.recommend.scorers import Queries
from hftoolkit.recommend.tower import ItemTower, save_tower
from hftoolkit.runs.directory import RunDir

GATE_ROWS = 64


@dataclass(frozen=True, slots=True)
class TowerFiles:
    """What is saved with a tower.

    Attributes:
        tokenizer: of its encoder.
        pooler: of its encoder, unused.
        base: what an adapter names as its base: a Hub id; None: the base is written beside the adapter.
        save_base: writes the encoder as it was before training into a folder.
    """

    tokenizer: Any
    pooler: nn.Module | None
    base: str | None
    save_base: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class TowerGate:
    """Items whose vectors must come out the same, and users whose scores must.

    Attributes:
        texts: N of them.
        vectors: (N, D) fp32 vectors of the trained tower, adapters not merged.
        queries: some users.
        allowed: (B, I) what may be recommended to them.
    """

    texts: Sequence[str]
    vectors: np.ndarray
    queries: Queries
    allowed: np.ndarray


def export_recommender(
    tower: ItemTower, recommender: Recommender, run: RunDir, *, files: TowerFiles, gate: TowerGate
) -> dict[str, Any]:
    """Write ``model/`` (adapters merged) and ``model/recommender/``, then prove that both read back as they were.

    Args:
        tower: trained; moved to the CPU, and its adapters are merged.
        recommender: what scores items; it gets the bias of the tower.
        run: where to write.
        files: what is saved with the tower.
        gate: what is compared.

    Returns:
        The largest differences, as results.json keeps them.

    Raises:
        ArtifactError: something differs; everything stays on disk.
        EnvironmentFault: the files could not be written, or the fresh process could not run.
    """
    tower.cpu().eval()
    adapted = is_lora(tower.backbone)
    part = run.root / ".model-part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        if is_lora(tower.backbone):
            base = files.base or f"{run.adapter.name}/{run.adapter_base.name}"
            save_adapter(tower.backbone, part / run.adapter.name, base=base)
            if files.base is None:
                files.save_base(part / base)
            tower.backbone = merge(tower.backbone)
        save_tower(tower, files.tokenizer, files.pooler, part)
        bias = None if tower.bias is None else tower.bias.weight.detach().numpy()[0]
        replace(recommender, text_bias=bias).save(part / run.recommender.name)
        put_in_place(part, run.model)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {run.model}: {error}; the trained weights are in checkpoints/") from error
    return _check(run, recommender, files, gate, adapted=adapted)


def _check(
    run: RunDir, recommender: Recommender, files: TowerFiles, gate: TowerGate, *, adapted: bool
) -> dict[str, Any]:
    chosen = np.argsort([-len(text) for text in gate.texts], kind="stable")
    chosen = chosen[:: max(1, len(chosen) // GATE_ROWS)][:GATE_ROWS]
    with tempfile.TemporaryDirectory() as folder:
        request: dict[str, Any] = {"model": str(run.model), "texts": [gate.texts[index] for index in chosen]}
        request["adapter"] = str(run.adapter) if adapted else None
        if adapted:
            base = run.adapter_base
            if not base.is_dir():
                base = Path(folder) / "base"
                files.save_base(base)
            request["backbone"] = str(base)
        answer = reload_in_fresh_process(request, Path(folder), "fresh_tower.py")
    limit = MERGED_TOLERANCE if adapted else SAVED_TOLERANCE
    differences = {name: _difference(vectors, gate.vectors[chosen]) for name, vectors in answer.items()}
    reloaded = Recommender.load(run.recommender).scores(gate.queries, gate.allowed)
    scores = _difference(reloaded, recommender.scores(gate.queries, gate.allowed))
    problems = [f"vectors by {name} differ by {value:.2g}" for name, value in differences.items() if not value <= limit]
    if not scores <= SAVED_TOLERANCE:
        problems.append(f"scores differ by {scores:.2g}, at most {SAVED_TOLERANCE} is allowed")
    if problems:
        raise ArtifactError(
            f"what is in {run.model} is not what was trained: {'; '.join(problems)} (at most {limit:g} for vectors). "
            "Everything is kept on disk; do not use or push this model"
        )
    return {"rows": len(chosen), "vectors": differences, "scores": scores}


def _difference(left: Any, right: np.ndarray) -> float:
    return float(np.abs(np.asarray(left, dtype=np.float64) - right).max())
