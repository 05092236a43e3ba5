"""A batch in two halves, each in a thread, against the same batch as a whole."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import BertConfig, BertForSequenceClassification

from doubles.reviews import CLASSES
from hftoolkit.contracts import HeadSpec
from hftoolkit.models.backbones import load_text_model
from hftoolkit.models.tuning import apply_tuning
from hftoolkit.recipe import LoraTuning
from hftoolkit.train.speedups.batch_halves import batch_halves_in_threads
from hftoolkit.train.speedups.cpu import MIN_ELEMENTS, row_gradients

ROWS = 5


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def text_model(**knobs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": MIN_ELEMENTS // 16, "num_labels": len(CLASSES), "hidden_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes | {"attention_probs_dropout_prob": 0.0} | knobs)).train()


def texts(rows: int = ROWS) -> dict[str, torch.Tensor]:
    ids = torch.arange(rows * 7).reshape(rows, 7) % 11  # the same words in both halves
    return {"input_ids": ids, "attention_mask": (ids != 3).long()}


def step(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the logits and all gradients of one backward pass."""
    model.zero_grad()
    output = model(**inputs)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % len(CLASSES)).backward()
    gradients = {name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


def is_divided(model: torch.nn.Module) -> bool:
    return type(model.forward).__name__ == "_Halves"


def test_logits_and_gradients_are_those_of_the_whole_batch() -> None:
    model = text_model()
    with row_gradients(model):  # rows of the table come sparse from each half
        whole = step(model, texts())
        with batch_halves_in_threads(model, lambda: model(**texts(4)).logits):
            assert is_divided(model)
            divided = step(model, texts())
    assert not is_divided(model)
    assert len(whole) == 1 + len(list(model.parameters()))
    torch.testing.assert_close(divided, whole, rtol=1e-4, atol=1e-6)
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2


def test_adapters_too(tiny_backbone: Path) -> None:
    backbone = load_text_model(
        tiny_backbone, "AutoModelForSequenceClassification", HeadSpec(CLASSES), max_length=16, dropout=0.0, seed=3
    )
    model = apply_tuning(backbone, LoraTuning(method="lora", rank=2, dropout=0.0)).model.train()
    few = {name: tensor[:, :5] for name, tensor in texts().items()}
    whole = step(model, few)
    with batch_halves_in_threads(model, lambda: model(**few).logits):
        assert is_divided(model)
        torch.testing.assert_close(step(model, few), whole, rtol=1e-4, atol=1e-6)
    assert any("lora_B" in name for name in whole)


def test_repeated_the_result_is_the_same_to_the_last_bit() -> None:
    model = text_model()
    with batch_halves_in_threads(model, lambda: model(**texts(4)).logits):
        first = step(model, texts(16))
        for _ in range(20):
            again = step(model, texts(16))
            assert all(torch.equal(first[name], again[name]) for name in first)


def test_frozen_parameters_get_no_gradient_and_bf16_is_that_of_the_caller() -> None:
    model = text_model()
    model.bert.requires_grad_(False)
    model.bert.pooler.requires_grad_(True)
    with batch_halves_in_threads(model, lambda: model(**texts(4)).logits), torch.autocast("cpu", dtype=torch.bfloat16):
        divided = step(model, texts())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = step(model, texts())
    assert divided["logits"].dtype == whole["logits"].dtype == torch.bfloat16
    assert (
        divided.keys()
        == whole.keys()
        == {
            "logits",
            "bert.pooler.dense.weight",
            "bert.pooler.dense.bias",
            "classifier.weight",
            "classifier.bias",
        }
    )
    torch.testing.assert_close(divided, whole, rtol=0.05, atol=0.01)


def test_images_too() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=len(CLASSES), depth=2, img_size=32, patch_size=8
    ).train()
    images = torch.randn(ROWS, 3, 32, 32)
    calling = torch.nn.Module()
    calling.model, calling.forward = model, lambda images: model(images)
    whole = step(calling, {"images": images})
    with batch_halves_in_threads(calling, lambda: calling(images=images)):
        assert is_divided(calling)
        torch.testing.assert_close(step(calling, {"images": images}), whole, rtol=1e-4, atol=1e-6)


def test_a_model_that_draws_random_numbers_or_mixes_rows_is_left_alone() -> None:
    random = text_model(hidden_dropout_prob=0.1)
    state = torch.get_rng_state()
    with batch_halves_in_threads(random, lambda: random(**texts(4)).logits):
        assert not is_divided(random)
    assert torch.equal(torch.get_rng_state(), state)

    class Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x - x.mean(dim=0))

    for mixing in (Mixing(), torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))):
        with batch_halves_in_threads(mixing, lambda mixing=mixing: mixing(torch.eye(4)[:, :2])):
            assert not is_divided(mixing)
    assert mixing[1].num_batches_tracked == 0  # nor were its statistics touched to find that out


def test_one_thread_one_row_and_inference_go_the_usual_way() -> None:
    model = text_model()
    torch.set_num_threads(1)
    with batch_halves_in_threads(model, lambda: model(**texts(4)).logits):
        assert not is_divided(model)
    torch.set_num_threads(2)
    sizes: list[int] = []
    model.bert.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(len(inputs["attention_mask"])), with_kwargs=True
    )
    with batch_halves_in_threads(model, lambda: model(**texts(4)).logits):
        sizes.clear()
        step(model, texts(1))
        with torch.inference_mode():
            model(**texts(4))
        assert sizes == [1, 4]
        step(model, texts(4))
        assert sizes == [1, 4, 2, 2]


def test_what_fails_in_a_thread_fails_in_the_step() -> None:
    model = text_model()

    def run_out(_: Any, inputs: Any) -> None:
        raise RuntimeError("not enough memory")

    with batch_halves_in_threads(model, lambda: model(**texts(4)).logits):
        assert is_divided(model)
        model.classifier.register_forward_pre_hook(run_out)
        with pytest.raises(RuntimeError, match="not enough memory"):
            step(model, texts())
    assert not is_divided(model)
