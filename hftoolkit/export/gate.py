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
import torch
from torch import nn

from hftoolkit.errors import ArtifactError, EnvironmentFault
from hftoolkit.models.lora import is_lora, merge, save_adapter
from hftoolkit.runs.directory import RunDir

SAVED_TOLERANCE = 1e-5  # largest difference of fp32 logits, saved against reloaded
MERGED_TOLERANCE = 1e-4  # largest difference of fp32 logits, adapter merged against unmerged
LOGIT_SCALE = 10.0  # logits beyond this have coarser fp32 steps; tolerances grow with them
GATE_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class GateRows:
    """Validation rows that both processes predict.

    Attributes:
        request: writes the rows into a folder where JSON cannot hold them, and returns what the fresh process reads:
            ``texts``, or the file ``pixel_values``.
        logits: fp32 logits of the rows in this process, on the CPU, (N, C).
        auto_class: the class of transformers that loads the model.
    """

    request: Callable[[Path], dict[str, Any]]
    logits: Callable[[nn.Module], np.ndarray]
    auto_class: str


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
    save_base: Callable[[Path], None],
    adapter_base: str | None,
) -> GateReport:
    """Write ``model/`` (merged) and, for LoRA, ``model/adapter/``; then prove that a fresh process agrees.

    Args:
        model: trained; moved to the CPU, and its adapters are merged.
        run: where to write.
        save: writes a plain model, with what it needs to read raw examples, into a directory.
        rows: what is compared.
        labels: class names that the reloaded model must have, in order.
        save_base: writes the pretrained weights, which go under the adapter when it is reloaded, into a folder.
        adapter_base: Hub id that the adapter names as its base; without one the base is written beside the adapter.

    Raises:
        ArtifactError: the reloaded model differs; everything stays on disk.
        EnvironmentFault: the files could not be written, or the fresh process could not run.
    """
    model = model.cpu().eval().to(memory_format=torch.contiguous_format)
    unmerged = rows.logits(model) if is_lora(model) else None
    part = run.root / ".model-part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        if is_lora(model):
            base = adapter_base or f"{run.adapter.name}/{run.adapter_base.name}"
            save_adapter(model, part / run.adapter.name, base=base)
            if adapter_base is None:
                save_base(part / base)
            readme = _adapter_readme(base, labels, rows.auto_class)
            (part / run.adapter.name / "README.md").write_text(readme, encoding="utf-8")
            model = merge(model)
        save(model, part)
        put_in_place(part, run.model)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {run.model}: {error}; the trained weights are in checkpoints/") from error
    return check_round_trip(run, rows, labels, save_base, merged=rows.logits(model), unmerged=unmerged)


def put_in_place(part: Path, target: Path) -> None:
    """Give a folder its name; one that has it, from before an interrupt or an extension, goes."""
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(part, target)
    shutil.rmtree(old, ignore_errors=True)


def check_round_trip(
    run: RunDir,
    rows: GateRows,
    labels: Sequence[str],
    save_base: Callable[[Path], None],
    *,
    merged: np.ndarray,
    unmerged: np.ndarray | None,
) -> GateReport:
    """Reload ``model/`` and its adapter without hftoolkit and compare logits, (N, C), and label names.

    Raises:
        ArtifactError: a difference is above its tolerance, or the labels differ.
        EnvironmentFault: the fresh process did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = rows.request(Path(folder)) | {"model": str(run.model), "num_labels": len(labels), "adapter": None}
        if unmerged is not None:
            base = run.adapter_base
            if not base.is_dir():
                base = Path(folder) / "base"
                save_base(base)
            request |= {"adapter": str(run.adapter), "backbone": str(base)}
        reloaded = reload_in_fresh_process(request, Path(folder))
    report = GateReport(
        rows=len(merged),
        saved=max(_difference(logits, merged) for logits in reloaded["logits"].values()),
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


def reload_in_fresh_process(
    request: dict[str, Any], folder: Path, script_name: str = "fresh_process.py"
) -> dict[str, Any]:
    """Run a script of this folder where hftoolkit cannot be imported, and return its answer.

    Args:
        request: what it reads; ``model`` is the folder that it loads.
        folder: for the request and the answer.
        script_name: takes their two paths.

    Raises:
        ArtifactError: it failed.
        EnvironmentFault: it did not end in time.
    """
    script = Path(__file__).with_name(script_name)
    question, answer = folder / "request.json", folder / "answer.json"
    question.write_text(json.dumps(request), encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-I", str(script), str(question), str(answer)]
    model = request["model"]
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


def _adapter_readme(base: str, labels: Sequence[str], auto_class: str) -> str:
    return f"""# LoRA adapter

The folder above holds the merged model, which most users want. This is the adapter alone:

```python
from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained("{base}", num_labels={len(labels)}, ignore_mismatched_sizes=True)
model = PeftModel.from_pretrained(base, "adapter")
```

Classes, in order: {", ".join(labels)}.
"""
