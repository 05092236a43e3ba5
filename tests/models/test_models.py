"""Backbones, adapters and probes over the architectures people use, as tiny random models made here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LongformerConfig,
    LongformerForSequenceClassification,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
    ViTForImageClassification,
)

from doubles.bert import VOCABULARY
from doubles.reviews import CLASSES
from hftoolkit.contracts import HeadSpec
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.models.backbones import (
    Backbone,
    enable_gradient_checkpointing,
    encoder_layers,
    load_text_model,
    parameter_layers,
)
from hftoolkit.models.kernels import set_attention
from hftoolkit.models.lora import is_lora, merge, save_adapter
from hftoolkit.models.tuning import apply_tuning, trainable_table
from hftoolkit.recipe import FullTuning, LastLayers, LinearProbe, LoraTuning
from hftoolkit.train.speedups.cls_only import cls_position_only
from hftoolkit.train.speedups.cpu import block_stack, faster_steps

pytestmark = pytest.mark.smoke

SIZE = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = SIZE | {"intermediate_size": 32, "max_position_embeddings": 64}
CONFIGS = {
    "bert": BertConfig(**WIDE),
    "roberta": RobertaConfig(**WIDE, pad_token_id=0),
    "distilbert": DistilBertConfig(
        vocab_size=len(VOCABULARY), dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=64
    ),
    "deberta-v2": DebertaV2Config(**WIDE, pooler_hidden_size=16, relative_attention=True),
    "modernbert": ModernBertConfig(
        **WIDE,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
        global_attn_every_n_layers=2,
    ),
    "gpt2": GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0),
}
BATCH = {
    "input_ids": torch.tensor([[2, 5, 9, 10, 3], [2, 7, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained backbone without a head, of each architecture."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    AutoModel.from_config(CONFIGS[request.param]).save_pretrained(path)
    BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)}).save_pretrained(path)
    return path


def load(path: Path, labels: tuple[str, ...] = CLASSES, **changes: Any) -> Backbone:
    options = {"max_length": 16, "dropout": 0.0, "seed": 0} | changes
    kind = "multi_label_classification" if options.pop("multi_label", False) else "single_label_classification"
    return load_text_model(path, "AutoModelForSequenceClassification", HeadSpec(labels, kind), **options)


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model.eval()(**BATCH).logits.numpy()


def train_a_little(model: torch.nn.Module, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        torch.nn.functional.cross_entropy(model(**BATCH).logits, torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_every_architecture_gets_a_head_for_the_labels_and_keeps_its_pretrained_weights(folder: Path) -> None:
    backbone = load(folder)
    assert logits(backbone.model).shape == (2, 3)
    assert backbone.model.config.id2label == dict(enumerate(CLASSES))
    expected = {"roberta": "classifier.out_proj", "gpt2": "score"}.get(backbone.model.config.model_type, "classifier")
    assert backbone.output_layers == (expected,) and expected in backbone.fresh_modules
    pretrained = AutoModel.from_pretrained(folder).state_dict()
    loaded = backbone.model.base_model.state_dict()
    shared = [name for name in pretrained if name in loaded]
    assert len(shared) > 10
    assert all(torch.equal(pretrained[name], loaded[name]) for name in shared)


def test_the_head_is_drawn_from_the_seed(folder: Path) -> None:
    assert np.array_equal(logits(load(folder).model), logits(load(folder).model))
    assert not np.allclose(logits(load(folder).model), logits(load(folder, seed=1).model))


def test_a_lora_adapter_reloaded_by_plain_peft_and_merged_gives_the_trained_logits(
    folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    model = apply_tuning(load(folder), LoraTuning(method="lora", rank=4, target_modules="all-linear")).model
    assert is_lora(model)
    train_a_little(model)
    trained = logits(model)
    save_adapter(model, tmp_path, base="some/backbone")
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert np.abs(logits(PeftModel.from_pretrained(base, tmp_path)) - trained).max() < 1e-5
    assert np.abs(logits(merge(model)) - trained).max() < 1e-4
    assert not (tmp_path / "config.json").exists()


def test_variants_of_lora_reload_and_merge(tiny_backbone: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    for name in ("dora", "rslora", "norms"):
        switches = {name: True}
        model = apply_tuning(load(tiny_backbone), LoraTuning(method="lora", rank=4, **switches)).model
        train_a_little(model)
        trained = logits(model)
        save_adapter(model, tmp_path / name, base="some/backbone")
        base = AutoModelForSequenceClassification.from_pretrained(tiny_backbone, num_labels=3)
        assert np.abs(logits(PeftModel.from_pretrained(base, tmp_path / name)) - trained).max() < 1e-5
        assert np.abs(logits(merge(model)) - trained).max() < 1e-4


@pytest.mark.parametrize("switches", [{}, {"dora": True}, {"rslora": True}])
def test_under_autocast_adapters_take_their_input_as_it_comes(tiny_backbone: Path, switches: dict[str, bool]) -> None:
    model = apply_tuning(load(tiny_backbone), LoraTuning(method="lora", rank=2, **switches)).model
    seen = []
    adapter = next(module for name, module in model.named_modules() if name.endswith("value.lora_A.default"))
    adapter.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with faster_steps(model), torch.autocast("cpu", dtype=torch.bfloat16):
        model(**BATCH).logits.sum().backward()
    assert torch.bfloat16 in seen  # DoRA also runs an fp32 identity through it
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trained)


def test_lora_trains_adapters_and_what_stands_above_the_blocks_and_nothing_else(tiny_backbone: Path) -> None:
    model = apply_tuning(load(tiny_backbone), LoraTuning(method="lora", rank=2)).model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_a_little(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert {name.partition(".modules_to_save")[0] for name in moved if ".lora_" not in name} == {
        "base_model.model.classifier",
        "base_model.model.bert.pooler.dense",
    }


def test_auto_targets_are_the_linear_layers_of_the_blocks(tiny_backbone: Path) -> None:
    model = apply_tuning(load(tiny_backbone), LoraTuning(method="lora", rank=2)).model
    targets = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(targets) == 2 * 6
    assert all("encoder.layer" in name for name in targets)
    everything = apply_tuning(load(tiny_backbone), LoraTuning(method="lora", rank=2, target_modules="all-linear")).model
    wider = {name.partition(".lora_A")[0] for name, _ in everything.named_parameters() if ".lora_A" in name}
    assert wider == targets  # the pooler is trained in full


def test_a_target_that_matches_nothing_lists_what_exists(tiny_backbone: Path) -> None:
    with pytest.raises(RecipeError, match=r"q_proj.*bert\.encoder\.layer\.\*\.attention\.self\.query \(2\)"):
        apply_tuning(load(tiny_backbone), LoraTuning(method="lora", target_modules=r".*\.q_proj"))
    with pytest.raises(RecipeError, match="not a regular expression"):
        apply_tuning(load(tiny_backbone), LoraTuning(method="lora", target_modules="(("))


def test_lora_plus_and_layer_decay_and_head_scale_set_the_rates(tiny_backbone: Path) -> None:
    tuned = apply_tuning(
        load(tiny_backbone),
        LoraTuning(method="lora", rank=2, lora_plus_ratio=8.0, layer_decay=0.5, head_learning_rate_scale=3.0),
    )
    rates = {name.replace("base_model.model.", ""): scale for name, scale in tuned.rate_scales.items()}
    query = "bert.encoder.layer.{}.attention.self.query.lora_{}.default.weight"
    assert rates[query.format(1, "A")] == 0.5
    assert rates[query.format(1, "B")] == 4.0
    assert rates[query.format(0, "A")] == 0.25
    assert rates["classifier.modules_to_save.default.weight"] == 3.0
    assert rates["bert.pooler.dense.modules_to_save.default.weight"] == 3.0


def test_layers_cover_every_parameter_once_and_in_depth_order(folder: Path) -> None:
    model = load(folder).model
    layers = parameter_layers(model, ["classifier"])
    names = [name for layer in layers for name in layer]
    assert len(layers) == 3
    assert len(names) == len(set(names))
    assert any(name.endswith("weight") for name in layers[0])
    assert not any(".0." in name or ".1." in name for name in layers[0])
    above = {name for name, _ in model.named_parameters()} - set(names)
    assert not any(".0." in name or ".1." in name for name in above)


def test_last_layers_trains_the_last_block_and_the_top(tiny_backbone: Path) -> None:
    model = apply_tuning(load(tiny_backbone), LastLayers(method="last-layers", layers=1)).model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[3] for name in trained if "encoder.layer" in name} == {"1"}
    assert not any("embeddings" in name for name in trained)
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= trained
    with pytest.raises(RecipeError, match="3 is more than the 2"):
        apply_tuning(load(tiny_backbone), LastLayers(method="last-layers", layers=3))


def test_a_linear_probe_trains_the_head_only(tiny_backbone: Path) -> None:
    model = apply_tuning(load(tiny_backbone), LinearProbe(method="linear-probe")).model
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}


def test_a_head_for_the_same_labels_is_kept_and_any_other_is_replaced(tiny_backbone: Path, tmp_path: Path) -> None:
    first = load(tiny_backbone)
    train_a_little(first.model)
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    same = load(tmp_path)
    assert np.allclose(logits(same.model), logits(first.model), atol=1e-6)
    assert same.replaced_labels == ()
    for others in (("x", "y", "z"), ("x", "y"), CLASSES[::-1]):
        replaced = load(tmp_path, others)
        assert replaced.replaced_labels == CLASSES
        assert set(replaced.output_layers) <= set(replaced.fresh_modules)
        assert logits(replaced.model).shape == (2, len(others))
        assert not np.allclose(replaced.model.classifier.weight.detach()[0], first.model.classifier.weight.detach()[0])


def test_dropout_reaches_the_config_and_changes_training_only(tiny_backbone: Path) -> None:
    model = load(tiny_backbone, dropout=0.5).model
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.5
    assert np.array_equal(logits(model), logits(load(tiny_backbone).model))
    model.train()
    torch.manual_seed(0)
    noisy = model(**BATCH).logits
    assert not torch.equal(noisy, model(**BATCH).logits)


def test_a_folder_that_is_no_text_model_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot load"):
        load(tmp_path)


def test_weights_of_another_architecture_are_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    backbone = load(tiny_backbone)
    backbone.tokenizer.save_pretrained(tmp_path)
    CONFIGS["roberta"].save_pretrained(tmp_path)
    weights = {f"other.{name}": tensor for name, tensor in backbone.model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="not in its files"):
        load(tmp_path)


def test_layers_are_unfrozen_from_the_head_down_to_the_embeddings(tiny_backbone: Path) -> None:
    tuned = apply_tuning(load(tiny_backbone), FullTuning(unfreeze_epochs=1.5))
    epochs = {name: tuned.unfreeze_at.get(name, 0.0) for name, _ in tuned.model.named_parameters()}
    assert {epoch for name, epoch in epochs.items() if "classifier" in name or "pooler" in name} == {0.0}
    assert {epoch for name, epoch in epochs.items() if "layer.1." in name} == {0.5}
    assert {epoch for name, epoch in epochs.items() if "layer.0." in name} == {1.0}
    assert {epoch for name, epoch in epochs.items() if "embeddings" in name} == {1.5}
    assert not apply_tuning(load(tiny_backbone), FullTuning()).unfreeze_at


def test_a_length_beyond_the_positions_is_refused(tiny_backbone: Path) -> None:
    with pytest.raises(RecipeError, match="more than the 64 positions"):
        load(tiny_backbone, max_length=65)


def test_the_plain_attention_kernel_is_chosen_on_cpus(tiny_backbone: Path) -> None:
    model = load(tiny_backbone).model
    before = logits(model)
    assert set_attention(model, torch.device("cpu")) == "eager"
    assert np.abs(logits(model) - before).max() < 1e-5


def test_the_parameter_table_adds_up(tiny_backbone: Path) -> None:
    model = apply_tuning(load(tiny_backbone), FullTuning()).model
    rows = trainable_table(model).rows
    total = sum(parameter.numel() for parameter in model.parameters())
    assert rows[-1] == ("all", f"{total:,}", f"{total:,}")
    assert sum(int(row[1].replace(",", "")) for row in rows[:-1]) == total
    assert encoder_layers(model)[0] == "bert.encoder.layer"


def test_gradient_checkpointing_gives_the_same_gradients_also_under_lora(tiny_backbone: Path) -> None:
    for tuning in (FullTuning(), LoraTuning(method="lora", rank=2)):
        gradients = []
        for checkpointing in (False, True):
            backbone = load(tiny_backbone)
            if checkpointing:
                enable_gradient_checkpointing(backbone.model)
            torch.manual_seed(0)
            model = apply_tuning(backbone, tuning).model.train()
            torch.nn.functional.cross_entropy(model(**BATCH).logits, torch.tensor([0, 2])).backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 2
        assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_lora_trains_no_decoder_in_full(tmp_path: Path) -> None:
    configs = {
        "bart": BartConfig(vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=1, max_position_embeddings=64),
        "t5": T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=2),
    }
    configs["t5"].update({"decoder_start_token_id": 0, "eos_token_id": 3})  # the tokenizer ends a text with 3
    for name, config in configs.items():
        AutoModel.from_config(config).save_pretrained(tmp_path / name)
        BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)}).save_pretrained(tmp_path / name)
        backbone = load(tmp_path / name)
        model = apply_tuning(backbone, LoraTuning(method="lora", rank=2)).model
        trained = [name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name]
        assert trained and all("classification_head." in name for name in trained)


@pytest.mark.parametrize("padding", [0, 3])
def test_a_shortened_block_keeps_its_length_for_what_cuts_padding_off_later(padding: int) -> None:
    torch.manual_seed(0)
    sizes = SIZE | {"intermediate_size": 32, "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0}
    model = LongformerForSequenceClassification(LongformerConfig(**sizes, attention_window=4)).eval()
    few = {name: values[:, : 8 - padding] for name, values in long_batch(8).items()}
    with cls_position_only(model, lambda: model(**few).logits):
        for length in (8, 13):
            model(**long_batch(length)).logits.sum().backward()


def long_batch(length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(2 * length).reshape(2, length) % 7 + 4, "attention_mask": torch.ones(2, length)}


@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(method="lora", rank=2)])
def test_a_last_block_shortened_to_what_the_head_reads_gives_the_same_gradients(folder: Path, tuning: Any) -> None:
    model = apply_tuning(load(folder), tuning).model.train()
    widths: list[int] = []
    block = encoder_layers(model)[1][-1]
    inside = dict(block.named_modules())
    feed_forward = next(inside[name] for name in ("intermediate", "ffn", "mlp") if name in inside)
    feed_forward.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))

    def gradients() -> dict[str, Any]:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(**BATCH).logits, torch.tensor([0, 2])).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    with cls_position_only(model, lambda: model(**BATCH).logits):
        assert model.training
        widths.clear()
        shortened = gradients()
        shortens = widths == [1]
    assert shortens == (type(block).__name__ not in ("GPT2Block", "ModernBertEncoderLayer"))
    torch.testing.assert_close(shortened, expected, rtol=1e-4, atol=1e-6)
    widths.clear()
    gradients()
    assert widths == [5]


def vision_transformer(kind: str) -> torch.nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "num_labels": 3}
    if kind == "transformers":
        return ViTForImageClassification(ViTConfig(**SIZE | sizes, intermediate_size=32))
    options = {"img_size": 32, "global_pool": "avg" if kind == "timm, mean of all" else "token"}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2, patch_size=8, **options)


@pytest.mark.parametrize(("kind", "shortens"), [("timm", True), ("transformers", True), ("timm, mean of all", False)])
def test_a_vision_transformer_is_shortened_where_its_head_reads_the_class_token(kind: str, shortens: bool) -> None:
    torch.manual_seed(0)
    model = vision_transformer(kind).train()
    images = torch.randn(2, 3, 32, 32)
    widths: list[int] = []
    block_stack(model)[-1].mlp.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))

    def logits() -> torch.Tensor:
        output = model(images)
        return output if isinstance(output, torch.Tensor) else output.logits

    def gradients() -> dict[str, Any]:
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits(), torch.tensor([0, 2])).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    with cls_position_only(model, logits):
        widths.clear()
        shortened = gradients()
    assert widths == [1 if shortens else 17]  # 16 patches and the class token
    torch.testing.assert_close(shortened, expected, rtol=1e-4, atol=1e-6)
