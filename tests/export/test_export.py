"""The artifact and its gate: a fresh process, in which hftoolkit cannot be imported, gives the same predictions."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from doubles.reviews import RECIPE, review_rows
from hftoolkit.commands import finetune as commands
from hftoolkit.commands.finetune import fit_setup
from hftoolkit.commands.setup import Setup, prepare
from hftoolkit.errors import ArtifactError
from hftoolkit.export import gate as export
from hftoolkit.recipe import load_recipe
from hftoolkit.runs.directory import RunDir
from hftoolkit.tasks import text_classification
from hftoolkit.train.distributed.strategy import WHOLE

pytestmark = pytest.mark.slow

LORA = "tuning: {method: lora, rank: 4, SWITCHES}\n"
TUNINGS = {
    "full": "",
    "lora": LORA.replace(", SWITCHES", ""),
    "dora": LORA.replace("SWITCHES", "dora: true"),
    "lora-plus": LORA.replace("SWITCHES", "lora_plus_ratio: 4.0, target_modules: all-linear"),
    "linear-probe": "tuning: {method: linear-probe}\n",
    "last-layers": "tuning: {method: last-layers, layers: 1, layer_decay: 0.9}\n",
}


def finetune(recipe: Path, run_dir: Path, *overrides: str) -> dict[str, Any]:
    commands.finetune(load_recipe(recipe, overrides), name="tiny", run_dir=run_dir, emit=lambda event: None)
    content: dict[str, Any] = json.loads((run_dir / "results.json").read_text())
    return content


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_gate_passes_for_every_method(tuning: str, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    results = finetune(write_recipe(60, TUNINGS[tuning]), tmp_path / "run", "train.epochs=1")
    gate = results["gate"]
    has_adapter = "lora" in TUNINGS[tuning]
    assert gate["rows"] >= 6
    assert gate["saved"] <= 1e-5
    assert (gate["merged"] is not None) == (gate["adapter"] is not None) == has_adapter
    files = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= files
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    if has_adapter:
        adapter = {path.name for path in (tmp_path / "run" / "model" / "adapter").iterdir()}
        assert adapter == {"adapter_config.json", "adapter_model.safetensors", "README.md", "base"}


def test_training_goes_on_with_the_position_that_the_head_reads(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(60), ["train.epochs=1"])
    job = prepare(recipe, lambda event: None)
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    layer = job.tuned.model.get_submodule("bert.encoder.layer.1.intermediate")
    layer.register_forward_pre_hook(lambda module, inputs: seen[module.training].add(inputs[0].shape[1]))
    fit_setup(job, RunDir.create("tiny", tmp_path / "run"), WHOLE, lambda event: None)
    assert seen[True] == {1}
    seen[False].clear()
    job.learner.outputs(job.tuned.model, job.infer, "validation")
    assert min(seen[False]) > 1


def test_an_adapter_stands_on_a_hub_id_or_brings_its_base(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(60, TUNINGS["lora"])
    finetune(recipe, tmp_path / "named", "train.epochs=1", "model.hub_id=some/backbone")
    finetune(recipe, tmp_path / "brought", "train.epochs=1")
    for run, base in (("named", "some/backbone"), ("brought", "adapter/base")):
        adapter = tmp_path / run / "model" / "adapter"
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == base
        assert f'from_pretrained("{base}"' in (adapter / "README.md").read_text()
        assert (adapter / "base").is_dir() == (run == "brought")
    whole = AutoModelForSequenceClassification.from_pretrained(adapter.parent)
    base_model = AutoModelForSequenceClassification.from_pretrained(adapter / "base")
    batch = {"input_ids": torch.tensor([[2, 5, 9, 3]])}
    with torch.inference_mode():
        expected = whole.eval()(**batch).logits
        assert (base_model.eval()(**batch).logits - expected).abs().max() > 1e-3
        adapted = PeftModel.from_pretrained(base_model, adapter).eval()(**batch).logits
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-4)


def test_a_head_spoiled_on_disk_fails_the_run_with_exit_6_and_keeps_everything(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = text_classification.save_text_model

    def spoil(model: Any, tokenizer: Any, folder: Path) -> None:
        honest(model, tokenizer, folder)
        weights = load_file(folder / "model.safetensors")
        weights["classifier.weight"] = weights["classifier.weight"] + 0.01
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(text_classification, "save_text_model", spoil)
    with pytest.raises(ArtifactError, match="saved against reloaded: logits differ by") as caught:
        finetune(write_recipe(60), tmp_path / "run", "train.epochs=1")
    assert caught.value.exit_code == 6
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 6
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert list((tmp_path / "run" / "checkpoints").glob("best-*/tensors.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda tensor: None, "cannot load"), (lambda tensor: tensor + 0.01, "adapter against reloaded")],
    ids=["lost", "changed"],
)
def test_an_adapter_whose_head_is_lost_or_changed_fails_the_gate(
    spoil: Callable[[Any], Any],
    message: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = export.save_adapter

    def save_spoiled(model: Any, directory: Path, *, base: str) -> None:
        honest(model, directory, base=base)
        path = directory / "adapter_model.safetensors"
        weights = load_file(path)
        spoiled = {name: spoil(tensor) for name, tensor in weights.items() if "classifier" in name}
        assert spoiled
        save_file({name: tensor for name, tensor in (weights | spoiled).items() if tensor is not None}, path)

    monkeypatch.setattr(export, "save_adapter", save_spoiled)
    with pytest.raises(ArtifactError, match=message):
        finetune(write_recipe(60, TUNINGS["lora"]), tmp_path / "run", "train.epochs=1")


def test_the_fresh_process_cannot_import_hftoolkit() -> None:
    script = Path(export.__file__).with_name("fresh_process.py")
    code = f"import runpy; runpy.run_path({str(script)!r}); import hftoolkit"
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "import of hftoolkit halted" in ended.stderr


def test_calibration_changes_confidence_but_no_decision(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(90)  # two epochs: far from perfect, so that there is a temperature to fit
    plain = finetune(recipe, tmp_path / "plain", "task.calibrate=false", "train.epochs=2")
    calibrated = finetune(recipe, tmp_path / "calibrated", "train.epochs=2")
    assert plain["temperature"] == 1.0 != calibrated["temperature"]
    assert plain["test"]["metrics"]["macro_f1"] == calibrated["test"]["metrics"]["macro_f1"]
    before, after = (read_probabilities(tmp_path / name) for name in ("plain", "calibrated"))
    logits = np.log(before) / calibrated["temperature"]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(after - expected).max() < 1e-4


def read_probabilities(run: Path) -> np.ndarray:
    import csv

    with (run / "predictions" / "test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("p(")]
    return np.array([[float(row[name]) for name in names] for row in rows])


def test_a_linear_probe_on_cached_features_equals_one_that_runs_the_backbone(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    recipe = write_recipe(60, TUNINGS["linear-probe"])
    finetune(recipe, tmp_path / "cached", "train.epochs=2", "train.length_buckets=false")
    monkeypatch.setattr(Setup, "probe", lambda *_: nullcontext())
    finetune(recipe, tmp_path / "whole", "train.epochs=2", "train.length_buckets=false")
    cached, whole = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("cached", "whole"))
    assert all(np.allclose(cached[name], whole[name], atol=1e-4) for name in cached)


def test_the_card_names_no_path_of_this_machine(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    finetune(write_recipe(60, TUNINGS["lora"]), tmp_path / "run", "train.epochs=1")
    model = tmp_path / "run" / "model"
    texts = [path.read_text() for path in model.rglob("*") if path.suffix in (".md", ".json")]
    assert len(texts) >= 5
    assert not [text for text in texts if str(tmp_path) in text or "pytest-of" in text]
    card = (model / "README.md").read_text()
    assert "model-index" in card and "macro-F1" in card and "Fingerprint" in card


def test_a_perfect_validation_split_leaves_the_temperature_alone_and_passes_the_gate(
    lively_backbone: Path, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "easy.yaml"
    recipe.write_text(RECIPE.format(table=write_csv(review_rows(150)), backbone=lively_backbone))
    results = finetune(recipe, tmp_path / "run", "train.epochs=8")
    assert results["validation"]["metrics"]["accuracy"] == 1.0
    assert results["temperature"] == 1.0
