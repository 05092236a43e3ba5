"""``model/`` as plain libraries want it, and the gate: reloaded in a fresh process, the same predictions or exit 6."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hftoolkit.errors import ArtifactError, EnvironmentFault
from hftoolkit.models.lora import is_lora, merge, save_adapter
from hftoolkit.rundir import RunDir

SAVED_TOLERANCE = 1e-5  # largest difference of fp32 logits, saved against reloaded
MERGED_TOLERANCE = 1e-4  # largest difference of fp32 logits, adapter merged against unmerged
LOGIT_SCALE = 10.0  # logits beyond this have coarser fp32 steps; tolerances grow with them
GATE_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class GateRows:
    """Validation rows that both processes predict: raw texts for the fresh one, logits of this one."""

    texts: tuple[str, ...]
    logits: Callable[[nn.Module], np.ndarray]  # fp32, on the CPU, (N, C)


@dataclass(frozen=True, slots=True)
class GateReport:
    """Largest absolute differences of logits; None where there is no adapter."""

    rows: int
    saved: float
    merged: float | None
    adapter: float | None

    def to_json(self) -> dict[str, float | int | None]:
        """Return the report as results.json keeps it."""
        return asdict(self)


def export_model(
    model: nn.Module,
    run: RunDir,
    *,
    save: Callable[[nn.Module, Path], None],
    rows: GateRows,
    labels: Sequence[str],
    backbone: Path,
    adapter_base: str,
) -> GateReport:
    """Write ``model/`` (merged) and, for LoRA, ``model/adapter/``; then prove that a fresh process agrees.

    Args:
        model: trained; moved to the CPU, and its adapters are merged.
        run: where to write.
        save: writes a plain model with its tokenizer into a directory.
        rows: what is compared.
        labels: class names that the reloaded model must have, in order.
        backbone: folder of the pretrained weights, under the adapter when it is reloaded.
        adapter_base: Hub id or source address that the adapter names as its base.

    Raises:
        ArtifactError: the reloaded model differs; everything stays on disk.
        EnvironmentFault: the files could not be written, or the fresh process could not run.
    """
    model = model.cpu().eval()
    unmerged = rows.logits(model) if is_lora(model) else None
    part = run.root / ".model-part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        if is_lora(model):
            save_adapter(model, part / run.adapter.name, base=adapter_base)
            (part / run.adapter.name / "README.md").write_text(_adapter_readme(adapter_base, labels), encoding="utf-8")
            model = merge(model)
        save(model, part)
        os.replace(part, run.model)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {run.model}: {error}; the trained weights are in checkpoints/") from error
    return check_round_trip(run, rows.texts, labels, backbone, merged=rows.logits(model), unmerged=unmerged)


def check_round_trip(
    run: RunDir,
    texts: Sequence[str],
    labels: Sequence[str],
    backbone: Path,
    *,
    merged: np.ndarray,
    unmerged: np.ndarray | None,
) -> GateReport:
    """Reload ``model/`` and its adapter without hftoolkit and compare logits, (N, C), and label names.

    Raises:
        ArtifactError: a difference is above its tolerance, or the labels differ.
        EnvironmentFault: the fresh process did not end in time.
    """
    adapter = run.adapter if unmerged is not None else None
    reloaded = _reload(run.model, texts, adapter, backbone, len(labels))
    report = GateReport(
        rows=len(texts),
        saved=_difference(reloaded["logits"], merged),
        merged=None if unmerged is None else _difference(merged, unmerged),
        adapter=None if unmerged is None else _difference(reloaded["adapter_logits"], unmerged),
    )
    problems = _problems(report, scale=max(1.0, float(np.abs(merged).max()) / LOGIT_SCALE))
    if reloaded["labels"] != list(labels):
        problems.append(f"label names are {reloaded['labels']}, trained were {list(labels)}")
    if problems:
        raise ArtifactError(
            f"the model in {run.model} does not give the predictions of the trained one: {'; '.join(problems)}. "
            "Everything is kept on disk; do not use or push this model"
        )
    return report


def _problems(report: GateReport, scale: float) -> list[str]:
    checks = (
        ("saved against reloaded", report.saved, SAVED_TOLERANCE),
        ("merged against unmerged", report.merged, MERGED_TOLERANCE),
        ("adapter against reloaded", report.adapter, SAVED_TOLERANCE),
    )
    return [
        f"{name}: logits differ by {value:.2g}, at most {limit * scale:.2g} is allowed"
        for name, value, limit in checks
        if value is not None and not value <= limit * scale  # a NaN fails too
    ]


def _reload(model: Path, texts: Sequence[str], adapter: Path | None, backbone: Path, num_labels: int) -> dict[str, Any]:
    script = Path(__file__).with_name("fresh_process.py")
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        answer = Path(folder) / "answer.json"
        content = {
            "model": str(model),
            "texts": list(texts),
            "adapter": str(adapter) if adapter else None,
            "backbone": str(backbone),
            "num_labels": num_labels,
        }
        request.write_text(json.dumps(content), encoding="utf-8")
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-I", str(script), str(request), str(answer)]
        try:
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=GATE_TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault(f"reloading {model} took over {GATE_TIMEOUT_SECONDS} s and was stopped") from error
        if ended.returncode != 0:
            reason = ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"exit {ended.returncode}"
            raise ArtifactError(f"a fresh process cannot load {model}: {reason}. Everything is kept on disk")
        result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return result


def _difference(left: Any, right: Any) -> float:
    return float(np.abs(np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)).max())


def _adapter_readme(base: str, labels: Sequence[str]) -> str:
    return f"""# LoRA adapter

The folder above holds the merged model, which most users want. This is the adapter alone:

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={len(labels)})
model = PeftModel.from_pretrained(base, "adapter")
```

Classes, in order: {", ".join(labels)}.
"""
