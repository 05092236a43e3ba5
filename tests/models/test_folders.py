"""Folders of models that are damaged, or ask for what is not to be loaded: one sentence, and nothing fetched or run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hftoolkit.contracts import HeadSpec
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.models.backbones import load_text_model, readable_errors
from hftoolkit.models.folders import blames_files, check_config, reason_of
from hftoolkit.models.image_backbones import load_image_classifier


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_backbone, tmp_path / "bert"))


class Payload:
    """Code in a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def write_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": Payload(folder / "ran")}, folder / "pytorch_model.bin")


def edit(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return write


def cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep]) and None


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut": (cut("model.safetensors", -1000), "cannot load"),
    "weights empty": (cut("model.safetensors", 0), "cannot load"),
    "weights of no tensors": (lambda folder: (folder / "model.safetensors").write_text("hello" * 9) and None, "cannot"),
    "weights gone": (lambda folder: (folder / "model.safetensors").unlink(), "cannot load"),
    "code in a pickle": (write_pickle, "cannot load"),
    "size is text": (edit(hidden_size="x"), "hidden_size"),
    "size is nothing": (edit(hidden_size=None), "hidden_size"),
    "size is negative": (edit(hidden_size=-1), "cannot load"),
    "heads do not divide": (edit(num_attention_heads=7), "cannot load"),
    "activation unknown": (edit(hidden_act="evil"), "cannot load"),
    "type unknown": (edit(model_type="evil"), "cannot load"),
    "type is a list": (edit(model_type=["bert"]), "cannot load"),
    "labels are a list": (edit(id2label=["a", "b"]), "cannot load"),
    "attention of the Hub": (edit(attn_implementation="evil/kernel"), "code of the Hub"),
    "attention of the Hub, other name": (edit(_attn_implementation="evil/kernel"), "code of the Hub"),
    "attention of a part": (edit(text_config={"attn_implementation": {"": "evil/kernel"}}), "code of the Hub"),
    "quantized": (edit(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}), "bitsandbytes"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]") and None, "no JSON object"),
    "config is deep": (lambda folder: (folder / "config.json").write_text("[" * 99_999) and None, "cannot be read"),
    "config cut": (cut("config.json", 40), "config.json"),
    "tokenizer cut": (cut("tokenizer.json", 300), "cannot load"),
    "tokenizer of another kind": (lambda folder: (folder / "tokenizer.json").write_text("{}") and None, "cannot load"),
    "tokenizer settings cut": (cut("tokenizer_config.json", 30), "cannot load"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_or_hostile_folder_is_a_data_error_in_one_line(folder: Path, fault: str):
    spoil, said = FAULTS[fault]
    spoil(folder)
    head = HeadSpec(("bad", "good"))
    with pytest.raises(DataError, match=said) as caught:
        load_text_model(folder, "AutoModelForSequenceClassification", head, max_length=16, dropout=0.0, seed=0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not (folder / "ran").exists()


def test_a_whole_folder_is_loaded(folder: Path):
    head = HeadSpec(("bad", "good"))
    backbone = load_text_model(folder, "AutoModelForSequenceClassification", head, max_length=16, dropout=0.0, seed=0)
    assert backbone.model.config.id2label == {0: "bad", 1: "good"}
    assert load_file(folder / "model.safetensors")
    edit(_attn_implementation="sdpa", attn_implementation={"": "eager"}, quantization_config=None)(folder)
    check_config(folder)


def test_what_users_are_told_passes_and_the_rest_has_a_reason(tmp_path: Path):
    with pytest.raises(RecipeError, match="mine"), readable_errors(tmp_path, "text"):
        raise RecipeError("mine")
    with pytest.raises(KeyboardInterrupt), readable_errors(tmp_path, "text"):
        raise KeyboardInterrupt
    assert blames_files(Exception("tokenizers says so")) and not blames_files(DataError("ours"))
    assert reason_of(ValueError("Validation error:\n  size is text\n")) == "Validation error: size is text"
    assert reason_of(ValueError("")) == "ValueError" and len(reason_of(ValueError("x" * 999))) == 300


IMAGE_FAULTS: dict[str, dict[str, Any]] = {
    "arguments are a list": {"model_args": ["x"]},
    "arguments are unknown": {"model_args": {"evil": 1}},
    "architecture is a number": {"architecture": 5},
    "architecture of the Hub": {"architecture": "hf-hub:evil/model"},
    "classes are words": {"num_classes": "many"},
    "classes are negative": {"num_classes": -3},
    "names are a number": {"label_names": 5},
    "settings are text": {"pretrained_cfg": "x"},
    "size is text": {"pretrained_cfg": {"input_size": "large", "mean": None}},
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_a_damaged_or_hostile_image_folder_is_a_data_error(tmp_path: Path, fault: str):
    folder, config = tmp_path / "timm", {"architecture": "test_resnet", "num_classes": 2}
    folder.mkdir()
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | IMAGE_FAULTS[fault]))
    settings: dict[str, Any] = {"architecture": None, "image_size": None, "dropout": 0.0, "drop_path": 0.0, "seed": 0}
    with pytest.raises(DataError) as caught:
        load_image_classifier(folder, HeadSpec(("bad", "good")), **settings)
    assert "\n" not in str(caught.value)
