"""``model/`` as plain libraries want it, and the gate: reloaded in a fresh process, the same predictions or exit 6."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hftoolkit.contracts import GateInputs, Tensors
from hftoolkit.contracts.names import markdown
from hftoolkit.errors import ArtifactError, EnvironmentFault
from hftoolkit.models.lora import is_lora, merge, save_adapter
from hftoolkit.runs.directory import RunDir

SAVED_TOLERANCE = 1e-5  # largest difference of fp32 outputs, saved against reloaded
MERGED_TOLERANCE = 1e-4  # largest difference of fp32 outputs, adapter merged against unmerged
LOGIT_SCALE = 10.0  # logits beyond this have coarser fp32 steps; tolerances grow with them
# A fresh process may compute in another order. Where equal weights differ in this one already, tolerances are this many
# times that, but never more than LOOSEST times the plain ones: a head that was spoiled is farther away.
NOISE_FACTOR, LOOSEST = 4.0, 10.0
GATE_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class GateReport:
    """Largest absolute differences of logits; None where there is no adapter. ``noise`` is that of equal weights."""

    rows: int
    saved: float
    merged: float | None
    adapter: float | None
    noise: float

    def to_json(self) -> dict[str, float | int | None]:
        """Return the report as results.json keeps it."""
        return asdict(self)


Forward = Callable[[nn.Module, Tensors], Tensors]


def export_model(  # noqa: PLR0913 - each is one thing that only the caller knows
    model: nn.Module,
    run: RunDir,
    *,
    save: Callable[[nn.Module, Path], None],
    inputs: GateInputs,
    forward: Forward,
    auto_class: str,
    names: Sequence[str],
    save_base: Callable[[Path], None],
    adapter_base: str | None,
) -> GateReport:
    """Write ``model/`` (merged) and, for LoRA, ``model/adapter/``; then prove that a fresh process agrees.

    Args:
        model: trained; moved to the CPU, and its adapters are merged.
        run: where to write.
        save: writes a plain model, with what it needs to read raw examples, into a directory.
        inputs: what both processes read.
        forward: returns the plain model's outputs for tensors, by name.
        auto_class: of transformers, that loads the model.
        names: of the outputs, which the reloaded model must have, in order.
        save_base: writes the pretrained weights, which go under the adapter when it is reloaded, into a folder.
        adapter_base: Hub id that the adapter names as its base; without one the base is written beside the adapter.

    Raises:
        ArtifactError: the reloaded model differs; everything stays on disk.
        EnvironmentFault: the files could not be written, or the fresh process could not run.
    """
    model = plain_layout(model.cpu().eval())
    unmerged = _outputs(model, inputs, forward) if is_lora(model) else None
    part = run.root / ".model-part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        if is_lora(model):
            base = adapter_base or f"{run.adapter.name}/{run.adapter_base.name}"
            save_adapter(model, part / run.adapter.name, base=base)
            if adapter_base is None:
                save_base(part / base)
            readme = _adapter_readme(base, names, auto_class)
            (part / run.adapter.name / "README.md").write_text(readme, encoding="utf-8")
            model = merge(model)
        save(model, part)
        put_in_place(part, run.model)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {run.model}: {error}; the trained weights are in checkpoints/") from error
    plain_layout(model)
    merged, answers = _outputs(model, inputs, forward), None
    noise = measure_noise(model, inputs, forward)
    if inputs.pipeline is not None:
        with torch.inference_mode():
            answers = inputs.pipeline.expected(model)
    return check_round_trip(
        run, inputs, auto_class, names, save_base, merged=merged, unmerged=unmerged, answers=answers, noise=noise
    )


def plain_layout(model: nn.Module) -> nn.Module:
    """Lay out all weights in memory as a model that was just loaded has them, in place.

    ``Module.to`` looks at those of convolutions alone. The layout decides in which order sums are made, and so how they
    are rounded.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        plain = torch.empty(tensor.shape, device="meta")
        if tensor.stride() != plain.stride():
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return model


def measure_noise(model: nn.Module, inputs: GateInputs, forward: Forward) -> float:
    """Return the largest difference of outputs when this process computes them in another order.

    Orders are: all rows at once, each row by itself, and each row by itself with convolutions in the other layout.
    """
    whole = _outputs(model, inputs, forward)
    differences = [_difference(_row_by_row(model, inputs, forward), whole)]
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)
        differences += [
            _difference(found, whole)
            for found in (_outputs(model, inputs, forward), _row_by_row(model, inputs, forward))
        ]
        plain_layout(model)
    return max(differences)


def _row_by_row(model: nn.Module, inputs: GateInputs, forward: Forward) -> dict[str, torch.Tensor]:
    num_rows = len(next(iter(inputs.tensors.values())))
    rows = [{name: tensor[row : row + 1] for name, tensor in inputs.tensors.items()} for row in range(num_rows)]
    with torch.inference_mode():
        found = [forward(model, row) for row in rows]
    return _visible({name: torch.cat([output[name] for output in found]).float() for name in found[0]}, inputs)


def _outputs(model: nn.Module, inputs: GateInputs, forward: Forward) -> dict[str, torch.Tensor]:
    """Return the floating-point outputs of a model in this process, by name."""
    with torch.inference_mode():
        found = forward(model.eval(), inputs.tensors)
    return _visible({name: tensor.float().contiguous() for name, tensor in found.items()}, inputs)


def put_in_place(part: Path, target: Path) -> None:
    """Give a folder its name; one that has it, from before an interrupt or an extension, goes."""
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(part, target)
    shutil.rmtree(old, ignore_errors=True)


def check_round_trip(  # noqa: PLR0913 - what this process found, beside what the fresh one is asked
    run: RunDir,
    inputs: GateInputs,
    auto_class: str,
    names: Sequence[str],
    save_base: Callable[[Path], None],
    *,
    merged: Tensors,
    unmerged: Tensors | None,
    answers: list[Any] | None,
    noise: float = 0.0,
) -> GateReport:
    """Reload ``model/`` and its adapter without hftoolkit; compare outputs, and what the processor makes of raw rows.

    Raises:
        ArtifactError: a difference is above its tolerance, the processor reads rows differently, or names differ.
        EnvironmentFault: the fresh process did not end in time.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        request = _request(run, inputs, folder) | {
            "auto_class": auto_class,
            "outputs": list(merged),
            "num_labels": len(names),
            "answers": answers,
        }
        if unmerged is not None:
            base = run.adapter_base
            if not base.is_dir():
                base = folder / "base"
                save_base(base)
            request |= {"adapter": str(run.adapter), "backbone": str(base)}
        answer = reload_in_fresh_process(request, folder)
        reloaded = {who: _visible(load_file(path), inputs) for who, path in answer["outputs"].items()}
    adapter = reloaded.pop("adapter", None)
    report = GateReport(
        rows=len(next(iter(inputs.tensors.values()))),
        saved=max(_difference(found, merged) for found in reloaded.values()),
        merged=None if unmerged is None else _difference(merged, unmerged),
        adapter=None if unmerged is None or adapter is None else _difference(adapter, unmerged),
        noise=noise,
    )
    problems = _problems(report, scale=max(1.0, _largest(merged) / LOGIT_SCALE))
    problems += answer["pipeline"]
    problems += [f"{inputs.processor} reads the rows differently: {what}" for what in answer["processor"]]
    if names and answer["names"] != list(names):
        problems.append(f"label names are {answer['names']}, trained were {list(names)}")
    if problems:
        raise ArtifactError(
            f"the model in {run.model} does not give the predictions of the trained one: {'; '.join(problems)}. "
            "Everything is kept on disk; do not use or push this model"
        )
    return report


def _request(run: RunDir, inputs: GateInputs, folder: Path) -> dict[str, Any]:
    """Return what the fresh process is asked, the tensors in a file beside it."""
    tensors, check = folder / "tensors.safetensors", inputs.pipeline
    save_file({name: tensor.contiguous() for name, tensor in inputs.tensors.items()}, tensors)
    return {
        "model": str(run.model),
        "tensors": str(tensors),
        "processor": inputs.processor,
        "raw": dict(inputs.raw),
        "threads": torch.get_num_threads(),
        "adapter": None,
        "pipeline": check
        and {"task": check.task, "options": dict(check.options), "inputs": list(check.inputs), "keys": check.keys},
    }


def _problems(report: GateReport, scale: float) -> list[str]:
    checks = (
        ("saved against reloaded", report.saved, SAVED_TOLERANCE),
        ("merged against unmerged", report.merged, MERGED_TOLERANCE),
        ("adapter against reloaded", report.adapter, SAVED_TOLERANCE),
    )
    limits = [(name, value, tolerance(plain * scale, report.noise)) for name, value, plain in checks]
    return [
        f"{name}: logits differ by {value:.2g}, at most {limit:.2g} is allowed"
        for name, value, limit in limits
        if value is not None and not value <= limit  # a NaN fails too
    ]


def tolerance(plain: float, noise: float) -> float:
    """Return the largest difference that is allowed of a model whose own rounding makes this noise."""
    return min(max(plain, NOISE_FACTOR * noise), LOOSEST * plain)


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


def _visible(outputs: Tensors, inputs: GateInputs) -> dict[str, torch.Tensor]:
    """Return outputs without the positions that the attention mask hides, which mean nothing."""
    mask = inputs.tensors.get("attention_mask")
    return {
        name: tensor[mask.bool()] if mask is not None and tensor.shape[:2] == mask.shape else tensor
        for name, tensor in outputs.items()
    }


def _difference(left: Tensors, right: Tensors) -> float:
    """Return the largest absolute difference of outputs of one name; NaN where one is missing or of another shape."""
    differences = [
        float((left[name].double() - right[name].double()).abs().max())
        if name in left and left[name].shape == right[name].shape
        else math.nan
        for name in right
    ]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _largest(outputs: Tensors) -> float:
    return max(float(tensor.abs().max()) for tensor in outputs.values())


def _adapter_readme(base: str, names: Sequence[str], auto_class: str) -> str:
    head = f", num_labels={len(names)}, ignore_mismatched_sizes=True" if names else ""
    classes = f"\nClasses, in order: {markdown(', '.join(names))}.\n" if names else ""
    return f"""# LoRA adapter

The folder above holds the merged model, which most users want. This is the adapter alone:

```python
from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained("{base}"{head})
model = PeftModel.from_pretrained(base, "adapter")
```
{classes}"""
