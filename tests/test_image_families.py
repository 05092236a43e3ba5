"""Forty families of image classifiers: each is trained, saved and reloaded by plain libraries, or refused before that.

``pytest -m nightly`` runs them all; six of them run always.
"""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import hftoolkit
from doubles.image_families import FAMILIES, SIZE, save_family
from hftoolkit.commands.finetune import finetune
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.export import gate
from hftoolkit.recipe import load_recipe

ALWAYS = (
    "timm/beit_base_patch16_224",
    "timm/test_efficientnet",
    "transformers/clip",
    "transformers/dinov2",
    "transformers/mobilenet_v2",
    "transformers/siglip",
)
METHODS = {"full": "{method: full}", "lora": "{method: lora, rank: 2}", "probe": "{method: linear-probe}"}
RECIPE = """\
task: {{kind: image-classification, calibrate: false}}
data: {{source: {source}}}
model: {{backbone: {backbone}{size}}}
tuning: {tuning}
train: {{epochs: 1, batch_size: 8, learning_rate: 3.0e-3, precision: fp32}}
evaluation: {{bootstrap_samples: 100, baselines: false}}
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth pictures of two brightnesses in two classes, larger than the models see them."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, level in {"dark": 60, "light": 170}.items():
        (folder / name).mkdir()
        for number in range(10):
            waves = np.add.outer(np.sin(np.arange(40) / 9 + number), np.cos(np.arange(51) / 7))
            pixels = level + 12 * np.stack([waves, waves.T[:40, :40].mean() + 0 * waves, -waves], axis=-1)
            noisy = (pixels + generator.integers(0, 9, pixels.shape)).clip(0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate reload the model in this process: what a process more would add is tested elsewhere."""

    def reload(request: dict[str, Any], folder: Path, script: str = "fresh_process.py") -> Any:
        (folder / "request.json").write_text(json.dumps(request))
        with mock.patch.dict(sys.modules):  # the script makes hftoolkit impossible to import
            main = runpy.run_path(str(Path(gate.__file__).with_name(script)))["main"]
            main(str(folder / "request.json"), str(folder / "answer.json"))
        return json.loads((folder / "answer.json").read_text())

    monkeypatch.setattr(gate, "reload_in_fresh_process", reload)


def is_trained(family: str, tuning: str, size: str, folder: Path, pictures: Path) -> bool:
    """Finetune a family and compare its answers with those of a plain pipeline; or read why it was refused."""
    backbone, run = save_family(family, folder / "net"), folder / "run"
    (folder / "r.yaml").write_text(RECIPE.format(source=pictures, backbone=backbone, tuning=tuning, size=size))
    steps: list[str] = []
    try:
        finetune(
            load_recipe(folder / "r.yaml", []),
            name="r",
            run_dir=run,
            emit=lambda event: steps.append(type(event).__name__),
        )
    except (DataError, RecipeError) as refusal:
        assert "StepDone" not in steps
        assert re.search(r"model\.backbone|model\.image_size|set tuning\.method to", str(refusal)), refusal
        return False
    assert "StepDone" in steps
    names = [str(path) for path in sorted(pictures.rglob("*.png"))[::5]]
    ours = hftoolkit.load(run).predict(names)
    classify = pipeline("image-classification", model=str(run / "model"), device="cpu")
    for name, answer in zip(names, ours, strict=True):
        theirs = {found["label"]: found["score"] for found in classify(name)}
        assert theirs == pytest.approx(dict(answer.probabilities), abs=5e-3), name  # a level of 255 here and there
    return True


CASES = [
    pytest.param(family, method, marks=() if family in ALWAYS else pytest.mark.nightly)
    for family in FAMILIES
    for method in METHODS
]
# Their layers are read or changed in ways that an adapter cannot stand in for; that processor gives BGR.
REFUSED = {
    ("transformers/bit", "lora"),
    ("transformers/mobilenet_v1", "lora"),
    ("transformers/mobilenet_v2", "lora"),
    *(("transformers/mobilevit", method) for method in METHODS),
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(("family", "method"), CASES)
def test_a_family_is_trained_and_reloads_in_plain_libraries_or_is_refused(
    family: str, method: str, pictures: Path, tmp_path: Path
) -> None:
    assert is_trained(family, METHODS[method], "", tmp_path, pictures) == ((family, method) not in REFUSED)


@pytest.mark.slow
@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.nightly) for name in FAMILIES]
)
def test_another_image_size_is_taken_or_refused(family: str, pictures: Path, tmp_path: Path) -> None:
    taken = is_trained(family, METHODS["probe"], f", image_size: {2 * SIZE}", tmp_path, pictures)
    assert taken or family not in ALWAYS
