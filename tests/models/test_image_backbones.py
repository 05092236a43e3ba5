"""Image backbones of several families, as tiny random models made here, against plain timm, transformers and peft."""

import json
import socket
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import Conv2dSame, ScaledStdConv2d
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessor,
    LevitImageProcessor,
    PoolFormerImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from doubles.image_families import save_family
from doubles.reviews import CLASSES
from hftoolkit.contracts import HeadSpec
from hftoolkit.data.image.cache import Geometry, fit
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.models.backbones import divide_logits, enable_gradient_checkpointing, is_under
from hftoolkit.models.image_backbones import (
    ImageBackbone,
    image_parameter_layers,
    is_convolutional,
    load_image_classifier,
    load_saved_image_classifier,
    save_image_classifier,
    saved_preprocessing,
)
from hftoolkit.models.kernels import arrange_for_cpus
from hftoolkit.models.lora import irreplaceable_layers, lora_target_names, merge, save_adapter
from hftoolkit.models.preprocessing import Preprocessing, make_processor, normalize, processor_preprocessing
from hftoolkit.models.tuning import apply_tuning, frozen_statistics, trainable_table
from hftoolkit.recipe import FullTuning, LastLayers, LinearProbe, LoraTuning

SIZE = 32
OLD = tuple(f"old {index}" for index in range(7))
# Real architectures, made small where their constructors allow it.
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 24, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4},
    "tf_efficientnet_lite0": {},
    "resnet10t": {},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
    "mobilenetv3_small_050": {},
    "deit_tiny_distilled_patch16_224": {"depth": 2, "embed_dim": 24, "num_heads": 2},
    "levit_128s": {
        "embed_dim": (16, 24, 32),
        "key_dim": 4,
        "num_heads": (2, 2, 2),
        "depth": (1, 1, 1),
        "img_size": SIZE,
    },
}
# Several heads, or heads of several layers: arguments, pixels, and what gives the logits there.
HEADS: dict[str, tuple[dict[str, Any], int, set[str]]] = {
    "deit_tiny_distilled_patch16_224": (TIMM["deit_tiny_distilled_patch16_224"], SIZE, {"head", "head_dist"}),
    "levit_128s": (TIMM["levit_128s"], SIZE, {"head.linear", "head_dist.linear"}),
    "efficientformer_l1": (
        {"embed_dims": (8, 16, 16, 16), "depths": (1, 1, 1, 2), "num_vit": 1},
        224,
        {"head", "head_dist"},
    ),
    "repvit_m0_9": ({"embed_dim": (8, 16, 16, 16), "depth": (1, 1, 1, 1)}, 64, {"head.head.l", "head.head_dist.l"}),
    "caformer_s18": ({}, 64, {"head.fc.fc2"}),
    "crossvit_tiny_240": ({}, 240, {"head.0", "head.1"}),
    "volo_d1_224": ({"img_size": 64}, 64, {"head", "aux_head"}),
    "efficientvim_m1_dist": ({}, 64, {f"{heads}.{index}" for heads in ("heads", "heads_dist") for index in range(4)}),
}
VIT = ViTConfig(
    image_size=SIZE, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
DISTILLED = DeiTConfig(  # two heads, averaged
    image_size=SIZE, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], layer_type="bottleneck")
FAMILIES = [*TIMM, "transformers-vit", "transformers-deit", "transformers-resnet"]
LORA = partial(LoraTuning, method="lora", rank=4)


def save_backbone(name: str, folder: Path) -> Path:
    """Write random weights with a head for OLD, as timm or transformers would."""
    torch.manual_seed(1)
    labels = {"id2label": dict(enumerate(OLD)), "label2id": {label: index for index, label in enumerate(OLD)}}
    if name == "transformers-vit":
        VIT.update(labels)
        ViTForImageClassification(VIT).save_pretrained(folder)
        ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    elif name == "transformers-deit":
        DISTILLED.update(labels)
        DeiTForImageClassificationWithTeacher(DISTILLED).save_pretrained(folder)
        ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    elif name == "transformers-resnet":
        RESNET.update(labels)
        ResNetForImageClassification(RESNET).save_pretrained(folder)
        ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.8).save_pretrained(folder)
    else:
        model = timm.create_model(name, num_classes=len(OLD), **TIMM[name])
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_var.uniform_(0.5, 1.5)
        timm.models.save_for_hf(
            model, folder, model_config={"label_names": list(OLD)}, model_args=TIMM[name], safe_serialization=True
        )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_backbone(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def load(path: Path | None, labels: tuple[str, ...] = CLASSES, **changes: Any) -> ImageBackbone:
    options = {"architecture": None, "image_size": SIZE, "dropout": 0.0, "drop_path": 0.0, "seed": 0} | changes
    return load_image_classifier(path, HeadSpec(tuple(labels), "single_label_classification"), **options)


def images(size: int = SIZE) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def logits(model: Any, size: int = SIZE) -> np.ndarray:
    with torch.inference_mode():
        output = model.eval()(images(size))
    return getattr(output, "logits", output).numpy()


def train_a_little(model: torch.nn.Module, steps: int = 3, size: int = SIZE) -> None:
    model.train()
    for module in frozen_statistics(model):
        module.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(pixel_values=images(size)).logits, torch.tensor([0, 2, 1, 0]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def difference(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max()) / max(1.0, float(np.abs(right).max()))


def processed(processor: Any, image: Image.Image) -> torch.Tensor:
    return processor(image, return_tensors="pt")["pixel_values"]


def ours(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(fit(image, preprocessing.geometry).copy())
    return normalize(pixels.permute(2, 0, 1)[None], preprocessing)


def random_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8))


def pixel_error(left: torch.Tensor, right: torch.Tensor, preprocessing: Preprocessing) -> float:
    """The largest difference in units of 1/255 of the brightness."""
    return float(((left - right).abs() * torch.tensor(preprocessing.std).view(1, 3, 1, 1)).max() * 255)


def test_a_trained_model_reloads_in_plain_libraries_with_its_labels_and_preprocessing(
    folder: Path, tmp_path: Path
) -> None:
    backbone = load(folder)
    model = apply_tuning(backbone, FullTuning()).model
    assert not frozen_statistics(model)
    before = logits(model)
    train_a_little(model)
    trained = logits(model)
    assert difference(before, trained) > 1e-4
    save_image_classifier(model, backbone.preprocessing, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}

    plain = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert difference(logits(plain), trained) < 1e-5
    assert [plain.config.id2label[index] for index in range(3)] == list(CLASSES)
    image, own = random_image(), ours(backbone.preprocessing, random_image())
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert pixel_error(processed(processor, image), own, backbone.preprocessing) <= 1.001
    with torch.inference_mode():
        wanted = model(pixel_values=processed(processor, image)).logits.softmax(-1)[0]
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    scores = {entry["label"]: entry["score"] for entry in classify(image, top_k=3)}
    assert [scores[label] for label in CLASSES] == pytest.approx(wanted.tolist(), abs=1e-5)

    saved = load_saved_image_classifier(tmp_path)
    again, preprocessing = saved.model, saved.preprocessing
    assert preprocessing.geometry == backbone.preprocessing.geometry
    assert preprocessing.mean == pytest.approx(backbone.preprocessing.mean)
    assert difference(logits(again), trained) < 1e-5
    if backbone.architecture is not None:
        plain_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert difference(logits(plain_timm), trained) < 1e-5
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(plain_timm))
        assert pixel_error(transform(image)[None], own, backbone.preprocessing) <= 1.001
        assert "num_classes" not in json.loads((tmp_path / "config.json").read_text())["model_args"]


def test_a_lora_adapter_reloads_in_plain_peft_and_merges_and_moves_no_statistics(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    backbone = load(folder)
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path / "base")
    buffers = {name: tensor.clone() for name, tensor in backbone.model.named_buffers()}
    model = apply_tuning(backbone, LORA()).model
    has_batch_norm = any("running_mean" in name for name in buffers)
    assert bool(frozen_statistics(model)) == has_batch_norm
    train_a_little(model)
    now = dict(model.named_buffers())
    assert all(
        torch.equal(tensor, now[f"base_model.model.{name}"])
        for name, tensor in buffers.items()
        if "running" in name and not is_under(name, backbone.fresh_modules)
    )
    trained = logits(model)
    save_adapter(model, tmp_path / "adapter", base="some/backbone")
    base = AutoModelForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    assert difference(logits(base), trained) > 1e-4
    assert difference(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), trained) < 1e-5
    merged = merge(model)
    assert difference(logits(merged), trained) < 1e-4
    save_image_classifier(merged, backbone.preprocessing, tmp_path / "merged")
    assert difference(logits(AutoModelForImageClassification.from_pretrained(tmp_path / "merged")), trained) < 1e-4


def test_layer_norms_can_be_trained_beside_the_adapters_and_batch_norms_cannot(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    backbone = load(folder)
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path / "base")
    modules = dict(backbone.model.named_modules())
    norms = {name for name, module in modules.items() if isinstance(module, torch.nn.LayerNorm)}
    if not norms:
        with pytest.raises(RecipeError, match="no norms but batch norms"):
            apply_tuning(backbone, LORA(norms=True))
        return
    model = apply_tuning(backbone, LORA(norms=True)).model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_a_little(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert all(any(f".{norm}.modules_to_save" in name for name in moved) for norm in norms)
    save_adapter(model, tmp_path / "adapter", base="some/backbone")
    base = AutoModelForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    trained = logits(model)
    assert difference(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), trained) < 1e-5
    assert difference(logits(merge(model)), trained) < 1e-4


def test_automatic_targets_are_in_the_blocks_and_never_grouped(folder: Path) -> None:
    backbone = load(folder)
    layers = image_parameter_layers(backbone.model, backbone.fresh_modules)
    names = lora_target_names(backbone.model, frozenset().union(*layers[1:]), backbone.fresh_modules)
    assert names
    modules = {name: backbone.model.get_submodule(name) for name in names}
    assert all(getattr(module, "groups", 1) == 1 for module in modules.values())
    assert not any(name.endswith(("conv_stem", "conv_head", "patch_embed.proj")) for name in names)
    assert not any(name.startswith(backbone.fresh_modules) for name in names)
    if "transformers-vit" in folder.name or "vit_tiny" in folder.name:
        assert len(names) == 2 * (4 if backbone.architecture else 6)
    if "efficientnet" in folder.name:
        assert all(module.kernel_size == (1, 1) for module in modules.values())
    if "resnet10t" in folder.name:
        assert any(module.kernel_size == (3, 3) for module in modules.values())


def test_layers_cover_parameters_once_from_the_stem_up_and_leave_out_the_head(folder: Path) -> None:
    backbone = load(folder)
    layers = image_parameter_layers(backbone.model, backbone.fresh_modules)
    names = [name for layer in layers for name in layer]
    assert len(layers) >= 3
    assert len(names) == len(set(names))
    everything = [name for name, _ in backbone.model.named_parameters()]
    assert everything[0] in layers[0]
    assert not any(is_under(name, backbone.fresh_modules) for name in names)
    depth = {name: index for index, layer in enumerate(layers) for name in layer}
    weights = [depth[name] for name in everything if name in depth and name.endswith("weight")]
    assert np.mean(np.diff(weights) >= 0) > 0.85
    tuned = apply_tuning(load(folder), LORA(layer_decay=0.5))
    heads = {scale for name, scale in tuned.rate_scales.items() if is_under(name, backbone.fresh_modules)}
    assert heads == {1.0}
    assert min(tuned.rate_scales.values()) < 0.5


def test_last_layers_and_probe_train_what_they_say(folder: Path) -> None:
    backbone = load(folder)
    layers = image_parameter_layers(backbone.model, backbone.fresh_modules)
    model = apply_tuning(backbone, LastLayers(method="last-layers", layers=1)).model
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set().union(*layers[:-1])
    with pytest.raises(RecipeError, match="is more than the"):
        apply_tuning(load(folder), LastLayers(method="last-layers", layers=len(layers)))
    model = apply_tuning(load(folder), LinearProbe(method="linear-probe")).model
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(is_under(name, backbone.fresh_modules) for name in trained)
    assert all(any(is_under(name, [layer]) for name in trained) for layer in backbone.output_layers)


def test_the_parameter_table_adds_up(folder: Path) -> None:
    for tuning in (FullTuning(), LORA()):
        model = apply_tuning(load(folder), tuning).model
        rows = trainable_table(model).rows
        total = sum(parameter.numel() for parameter in model.parameters())
        assert sum(int(row[2].replace(",", "")) for row in rows[:-1]) == total
        assert len(rows) < 40
        assert not any("base_model" in row[0] or row[0] == "" for row in rows)


def test_a_head_for_the_same_labels_is_kept_and_any_other_is_drawn_from_the_seed(folder: Path) -> None:
    kept = load(folder, OLD)
    assert kept.replaced_labels == ()
    first, same, other = load(folder), load(folder), load(folder, seed=1)
    assert first.replaced_labels == (*OLD[:4], "and 3 more")
    assert np.array_equal(logits(first.model), logits(same.model))
    assert not np.allclose(logits(first.model), logits(other.model))
    assert load(folder, OLD[::-1]).replaced_labels
    if kept.architecture is not None and not any(name in folder.name for name in ("vit", "swin", "deit")):
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert difference(logits(kept.model), logits(plain)) < 1e-6


def test_all_linear_takes_convolutions_in_one_group_and_patterns_too(folders: dict[str, Path], tmp_path: Path) -> None:
    model = apply_tuning(load(folders["mobilenetv3_small_050"]), LORA(target_modules="all-linear")).model
    targets = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert any(name.endswith("conv_stem") for name in targets) and not any(name.endswith("conv_dw") for name in targets)
    only = apply_tuning(load(folders["resnet10t"]), LORA(target_modules=r".*layer4\.0\.conv2")).model
    assert sum(".lora_A" in name for name, _ in only.named_parameters()) == 1
    with pytest.raises(RecipeError, match="convolution in one group"):
        apply_tuning(load(folders["mobilenetv3_small_050"]), LORA(target_modules=r".*conv_dw"))


def test_dora_on_convolutions_merges(folders: dict[str, Path]) -> None:
    model = apply_tuning(load(folders["mobilenetv3_small_050"]), LORA(dora=True)).model
    train_a_little(model)
    trained = logits(model)
    assert difference(logits(merge(model)), trained) < 1e-4


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_bare_file_loads_by_name_or_by_position_and_says_which(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    # The file has no arguments, so the model must be the full architecture.
    full = timm.create_model(name, num_classes=5)
    state = full.state_dict()
    torch.save({"state_dict": state}, tmp_path / "named.pth")
    (tmp_path / "bare").mkdir()
    foreign = {f"part_{index:03}": tensor for index, tensor in enumerate(state.values())}
    torch.save(foreign, tmp_path / "bare" / "foreign.pth")
    wanted = None
    for path, how in ((tmp_path / "named.pth", "name"), (tmp_path / "bare", "position")):
        backbone = load(path, architecture=name, image_size=None)
        assert backbone.loaded_by == how
        assert backbone.preprocessing.height in (176, 224)
        inner = backbone.model.timm_model.state_dict()
        heads = [head.removeprefix("timm_model.") for head in backbone.fresh_modules]
        assert all(torch.equal(inner[key], state[key]) for key in state if not is_under(key, heads))
        wanted = inner if wanted is None else wanted
        assert all(torch.equal(inner[key], wanted[key]) for key in wanted)


def test_weights_that_do_not_fit_name_the_first_difference(tmp_path: Path) -> None:
    state = {f"p{index}": tensor for index, tensor in enumerate(timm.create_model("resnet10t").state_dict().values())}
    state["p6"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"first difference: p6 \[3, 3\] in the file, conv1\.3\.weight \[32, 24"):
        load(tmp_path / "w.pth", architecture="resnet10t")
    save_file({"p0": torch.zeros(24, 3, 3, 3)}, tmp_path / "short.safetensors")
    with pytest.raises(DataError, match="1 tensors against"):
        load(tmp_path / "short.safetensors", architecture="resnet10t")


def test_what_is_missing_or_unknown_says_what_to_write(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=r"model\.architecture is missing"):
        load(tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=r"did you mean .*resnet10t"):
        load(None, architecture="resnet10")
    for address in ("hf-hub:timm/resnet18", "local-dir:/tmp"):
        with pytest.raises(RecipeError, match="has no model"):
            load(None, architecture=address)
    with pytest.raises(RecipeError, match="leave the line out"):
        load(folders["resnet10t"], architecture="resnet18")
    with pytest.raises(RecipeError, match=r"model\.drop_path: vgg11"):
        load(None, architecture="vgg11", drop_path=0.1)
    with pytest.raises(RecipeError, match=r"model\.dropout: resnet"):
        load(folders["transformers-resnet"], dropout=0.1)
    with pytest.raises(RecipeError, match=r"model\.image_size: 8 does not suit"):
        load(folders["vit_tiny_patch16_224"], image_size=8)
    with pytest.raises(RecipeError, match=r"model\.image_size: 9 does not suit"):
        load(None, architecture="vit_tiny_patch16_224", image_size=9)
    (tmp_path / "two").mkdir()
    with pytest.raises(DataError, match="0 weights files"):
        load(tmp_path / "two", architecture="resnet10t")


def test_code_in_a_weights_file_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"cannot read weights from evil\.pth"):
        load(tmp_path / "evil.pth", architecture="resnet10t")
    assert not (tmp_path / "ran").exists()


def test_images_of_one_channel_are_refused(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=3, in_chans=1)
    timm.models.save_for_hf(model, tmp_path, model_args={"in_chans": 1}, safe_serialization=True)
    with pytest.raises(DataError, match="1 channels"):
        load(tmp_path)


def test_random_weights_are_those_of_the_seed_as_timm_draws_them() -> None:
    first, same, other = (load(None, architecture="resnet10t", seed=seed) for seed in (0, 0, 1))
    assert first.loaded_by == "none"
    assert np.array_equal(logits(first.model), logits(same.model))
    assert not np.allclose(logits(first.model), logits(other.model))
    spread = first.model.get_parameter("timm_model.layer4.0.conv1.weight").detach().std()
    assert abs(float(spread) / (2 / (512 * 9)) ** 0.5 - 1) < 0.05  # He, not transformers' 0.02


def test_dropout_and_drop_path_act_in_training_and_are_not_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, changes in (("convnext_atto", {"drop_path": 0.5}), ("resnet10t", {"dropout": 0.5})):
        plain, noisy = load(folders[name]), load(folders[name], **changes)
        assert np.array_equal(logits(plain.model), logits(noisy.model))
        noisy.model.train()
        for module in noisy.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        assert not torch.equal(noisy.model(images()).logits, noisy.model(images()).logits)
        save_image_classifier(noisy.model, noisy.preprocessing, tmp_path / name)
        assert "drop" not in json.dumps(json.loads((tmp_path / name / "config.json").read_text())["model_args"])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "transformers-vit"])
def test_position_embeddings_are_resampled_for_another_size(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    backbone = load(folders[name], OLD, image_size=64)
    assert (backbone.preprocessing.height, backbone.preprocessing.width) == (64, 64)
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert difference(logits(plain, 64), logits(backbone.model, 64)) < 1e-6
    if name == "transformers-vit":
        original = AutoModelForImageClassification.from_pretrained(folders[name]).eval()
        with torch.inference_mode():
            wanted = original(images(64), interpolate_pos_encoding=True).logits.numpy()
        assert difference(logits(backbone.model, 64), wanted) < 1e-5


def test_preprocessing_is_that_of_evaluation_and_image_size_overrides_it(folders: dict[str, Path]) -> None:
    own = load(folders["resnet10t"], image_size=None).preprocessing
    reference = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg("resnet10t").to_dict(), use_test_size=True
    )
    assert (3, own.height, own.width) == tuple(reference["input_size"]) and own.height == 224
    assert (own.crop_pct, own.interpolation) == (reference["crop_pct"], reference["interpolation"])
    resnet = load(folders["transformers-resnet"], image_size=None).preprocessing
    assert (resnet.height, resnet.crop_pct, resnet.interpolation) == (SIZE, 0.8, "bicubic")
    assert load(folders["transformers-resnet"], image_size=48).preprocessing.height == 48


def save_with_processor(processor: Any, folder: Path) -> Path:
    ViTForImageClassification(VIT).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (ViTImageProcessor(size={"height": SIZE, "width": SIZE}), ("squash", 1.0)),
        (DeiTImageProcessor(size={"height": 36, "width": 36}, crop_size=SIZE), ("squash", SIZE / 36)),
        (BitImageProcessor(size={"shortest_edge": 40}, crop_size=SIZE), ("center", SIZE / 40)),
        (ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8), ("center", 0.8)),
        (ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.8), ("squash", 1.0)),
        (ViTImageProcessor(size={"height": 30, "width": 14}), ("squash", 1.0)),
        (DeiTImageProcessor(size={"height": 25, "width": 25}, crop_size=17), ("squash", 17 / 25)),
        (LevitImageProcessor(size={"shortest_edge": 35}, crop_size=SIZE), ("center", SIZE / 40)),
        (PoolFormerImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.8, crop_size=SIZE), ("center", 0.8)),
    ],
)
def test_a_folders_processor_its_copy_and_ours_give_the_same_pixels(
    processor: Any, expected: tuple[str, float], tmp_path: Path
) -> None:
    own = processor_preprocessing(save_with_processor(processor, tmp_path), None)
    assert (own.crop_mode, own.crop_pct) == (expected[0], pytest.approx(expected[1]))
    make_processor(own).save_pretrained(tmp_path / "copy")
    copy = AutoImageProcessor.from_pretrained(tmp_path / "copy")
    assert processor_preprocessing(tmp_path / "copy", None).geometry == own.geometry
    # Noise without contrast: torchvision and Pillow clip at another place of a bicubic resize.
    soft = random_image().point(lambda level: 96 + level // 4)
    for image in (soft, soft.rotate(90, expand=True)):
        wanted = processed(processor, image)
        assert wanted.shape == (1, 3, own.height, own.width)
        assert pixel_error(ours(own, image), wanted, own) <= 2.001  # each of the two passes rounds
        assert pixel_error(processed(copy, image), wanted, own) <= 1e-3


@pytest.mark.parametrize(
    "processor",
    [
        BitImageProcessor(size={"shortest_edge": 40}, crop_size=SIZE),
        CLIPImageProcessor(size={"shortest_edge": 37}, crop_size={"height": SIZE, "width": SIZE}),
        ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.875),
        DeiTImageProcessor(size={"height": 35, "width": 35}, crop_size=SIZE),
        LevitImageProcessor(size={"shortest_edge": 35}, crop_size=SIZE),
        PoolFormerImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.8, crop_size=SIZE),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_the_crop_is_that_of_transformers_also_where_an_odd_number_of_pixels_is_cut(
    processor: Any, tmp_path: Path
) -> None:
    own = processor_preprocessing(save_with_processor(processor, tmp_path), None)
    for width, height in ((61, 48), (62, 48), (63, 47), (64, 48), (48, 65), (47, 66), (101, 77)):
        ramp = np.add.outer(3.0 * np.arange(height), 2.0 * np.arange(width)) % 511  # a pixel further is 2 or 3 levels
        image = Image.fromarray(np.abs(ramp - 255).astype(np.uint8)).convert("RGB")
        apart = (ours(own, image) - processed(processor, image)).abs() * torch.tensor(own.std).view(1, 3, 1, 1) * 255
        assert apart.mean() < 0.5, (width, height)


def test_processors_that_pad_or_do_not_resize_are_not_mistaken_for_others(tmp_path: Path) -> None:
    kept = save_with_processor(BitImageProcessor(do_resize=False, crop_size=SIZE), tmp_path / "kept")
    with pytest.raises(RecipeError, match=r"model\.image_size is missing"):
        load(kept, image_size=None)
    assert load(kept).preprocessing.geometry == Geometry(SIZE, SIZE, 1.0, "bicubic", "center", cut_before="down")
    for size, crop in (((32, 32), (36, 36)), ((36, 40), (32, 32))):
        processor = DeiTImageProcessor(
            size={"height": size[0], "width": size[1]}, crop_size={"height": crop[0], "width": crop[1]}
        )
        folder = save_with_processor(processor, tmp_path / f"{size[1]}")
        with pytest.raises(DataError, match="pads, or keeps another share"):
            load(folder, image_size=None)


def test_a_processor_with_rules_of_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_with_processor(ViTImageProcessor(size={"height": SIZE, "width": SIZE}), tmp_path)
    honest = ViTImageProcessor.__call__
    monkeypatch.setattr(ViTImageProcessor, "__call__", lambda self, **inputs: flipped(honest(self, **inputs)))
    with pytest.raises(DataError, match="ViTImageProcessor, does not just resize, crop and normalize"):
        load(folder)


def flipped(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"pixel_values": inputs["pixel_values"].flip(-1)}


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.8, 1.0])
def test_crop_modes_of_timm_are_kept_and_reload_in_plain_libraries(
    crop_mode: str, crop_pct: float, tmp_path: Path
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TIMM["vit_tiny_patch16_224"])
    model.pretrained_cfg |= {"crop_mode": crop_mode, "crop_pct": crop_pct, "mean": [0.2, 0.4, 0.6]}
    timm.models.save_for_hf(model, tmp_path / "a", model_args=TIMM["vit_tiny_patch16_224"], safe_serialization=True)
    backbone = load(tmp_path / "a")
    assert backbone.preprocessing.crop_mode == crop_mode
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path / "b")
    plain = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(plain))
    wrapper = AutoImageProcessor.from_pretrained(tmp_path / "b")
    assert type(wrapper).__name__ == "TimmWrapperImageProcessor"
    for image in (random_image(), random_image().rotate(90, expand=True)):
        own = ours(backbone.preprocessing, image)
        assert torch.allclose(transform(image)[None], own, atol=1e-5)
        assert torch.allclose(processed(wrapper, image), own, atol=1e-5)
    assert load_saved_image_classifier(tmp_path / "b").preprocessing.geometry == backbone.preprocessing.geometry


def test_normalize_scales_each_channel() -> None:
    rule = Preprocessing(1, 2, 1.0, "bilinear", (0.5, 0.0, 1.0), (0.5, 1.0, 2.0))
    pixels = torch.tensor([[0, 255], [0, 255], [0, 255]], dtype=torch.uint8).reshape(1, 3, 1, 2)
    assert normalize(pixels, rule).tolist() == [[[[-1.0, 1.0]], [[0.0, 1.0]], [[-0.5, 0.0]]]]
    assert torch.equal(normalize(pixels.float(), rule), normalize(pixels, rule))


def test_gradient_checkpointing_gives_the_same_gradients(folders: dict[str, Path]) -> None:
    for name, tuning in product(("vit_tiny_patch16_224", "resnet10t"), (FullTuning(), LORA())):
        gradients = []
        for checkpointing in (False, True):
            backbone = load(folders[name])
            if checkpointing:
                enable_gradient_checkpointing(backbone.model)
            torch.manual_seed(0)
            model = apply_tuning(backbone, tuning).model.train()
            for module in frozen_statistics(model):
                module.eval()
            model(pixel_values=images()).logits.square().sum().backward()
            gradients.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
        assert all(gradient is not None for gradient in gradients[1].values())
        assert all(torch.allclose(gradients[0][key], gradients[1][key], rtol=1e-3, atol=1e-4) for key in gradients[0])


def test_weights_that_have_two_names_are_saved_under_both(tmp_path: Path) -> None:
    backbone = load(None, architecture="coat_lite_tiny", image_size=None)
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert difference(logits(plain, 224), logits(backbone.model, 224)) < 1e-5


def save_with_heads(name: str, folder: Path) -> Path:
    """Write random weights with a head for OLD; heads' statistics and scales are no round numbers."""
    arguments = HEADS[name][0]
    torch.manual_seed(2)
    model = timm.create_model(name, num_classes=len(OLD), **arguments)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.normal_(std=0.1)
    timm.models.save_for_hf(
        model, folder, model_config={"label_names": list(OLD)}, model_args=arguments, safe_serialization=True
    )
    return folder


@pytest.mark.parametrize("tuning", [FullTuning(), LORA()], ids=["full", "lora"])
@pytest.mark.parametrize("name", HEADS)
def test_heads_of_any_form_are_trained_saved_and_reloaded_in_plain_libraries(
    name: str, tuning: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    size = HEADS[name][1]
    folder = save_with_heads(name, tmp_path / "old")
    backbone = load(folder, image_size=size)
    assert {layer.removeprefix("timm_model.") for layer in backbone.output_layers} == HEADS[name][2]
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path / "base")
    model = apply_tuning(backbone, tuning).model
    untrained = logits(model, size)
    train_a_little(model, steps=1, size=size)
    trained = logits(model, size)
    assert difference(untrained, trained) > 1e-4
    if isinstance(tuning, LoraTuning):
        save_adapter(model, tmp_path / "adapter", base="some/backbone")
        base = AutoModelForImageClassification.from_pretrained(tmp_path / "base")
        assert difference(logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), size), trained) < 1e-5
        model = merge(model)
    save_image_classifier(model, backbone.preprocessing, tmp_path / "new")
    plain = timm.create_model(f"local-dir:{tmp_path / 'new'}", pretrained=True)
    assert difference(logits(plain, size), trained) < 1e-4
    wrapped = AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    assert difference(logits(wrapped, size), trained) < 1e-4


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("tuning", [FullTuning(), LORA()], ids=["full", "lora"])
def test_a_temperature_divides_the_logits_of_any_head(name: str, tuning: Any, tmp_path: Path) -> None:
    size = HEADS[name][1]
    backbone = load(save_with_heads(name, tmp_path), image_size=size)
    model = apply_tuning(backbone, tuning).model
    train_a_little(model, steps=1, size=size)
    before = logits(model, size)
    divide_logits(model, backbone.output_layers, 2.5)
    assert difference(logits(model, size), before / 2.5) < 1e-5
    assert difference(logits(model, size), before) > 1e-3


def test_an_architecture_without_an_output_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Qwen3VitEncoder has no output layer"):
        load(None, architecture="qwen3_vit_88m_enc", image_size=None)
    encoder = timm.create_model("qwen3_vit_88m_enc", depth=1)
    timm.models.save_for_hf(encoder, tmp_path, model_args={"depth": 1}, safe_serialization=True)
    with pytest.raises(DataError, match="Qwen3VitEncoder has no output layer"):
        load(tmp_path, image_size=None)


def test_layers_that_timm_does_not_group_are_the_children_in_their_order() -> None:
    backbone = load(None, architecture="pit_ti_224", image_size=None)
    layers = image_parameter_layers(backbone.model, backbone.fresh_modules)
    assert any(name.startswith("timm_model.patch_embed.") for name in layers[0])
    assert "timm_model.pos_embed" in layers[0]
    assert [next(iter(layer)).split(".")[:3][1:] for layer in layers[1:4]] == [
        ["transformers", str(i)] for i in range(3)
    ]


def test_saved_weights_have_the_names_of_timm(folders: dict[str, Path], tmp_path: Path) -> None:
    backbone = load(folders["resnet10t"])
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(timm.create_model("resnet10t").state_dict())


def test_the_arrangement_for_cpus_changes_no_logits(folder: Path) -> None:
    model = load(folder).model
    before = logits(model)
    arrange_for_cpus(model)
    assert difference(logits(model), before) < 1e-4 * max(1.0, np.abs(before).max())
    assert not any(getattr(module, "fused_attn", False) is True for module in model.modules())
    filters = [module.weight for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    wide = [weight for weight in filters if weight.shape[1] > 1 and weight.shape[2] > 1]
    arranged = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in wide)
    assert arranged == is_convolutional(model) or not wide


def test_networks_of_convolutions_are_told_from_transformers(folders: dict[str, Path]) -> None:
    assert not is_convolutional(load(folders["transformers-vit"]).model)
    assert is_convolutional(load(folders["transformers-resnet"]).model)
    assert is_convolutional(load(None, architecture="tf_efficientnet_lite0").model)
    assert not is_convolutional(load(None, architecture="vit_tiny_patch16_224").model)


HOSTILE: dict[str, dict[str, Any]] = {
    "hub architecture": {"architecture": "hf-hub:evil/model"},
    "hub path": {"architecture": "timm/resnet10t.c3_in1k"},
    "local folder": {"architecture": "local-dir:/etc"},
    "no name": {"architecture": 5},
    "pretrained": {"model_args": {"pretrained": True}},
    "checkpoint": {"model_args": {"checkpoint_path": "hf-hub:evil/model"}},
    "settings": {"model_args": {"pretrained_cfg_overlay": {"hf_hub_id": "evil/model"}}},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_folder_of_somebody_else_never_asks_the_network(
    change: dict[str, Any], folders: dict[str, Path], tmp_path: Path, no_network: None
) -> None:
    backbone = load(folders["resnet10t"])
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    for open_folder in (load_saved_image_classifier, saved_preprocessing, load):
        with pytest.raises(DataError, match=r"model_args|has no model"):
            open_folder(tmp_path)


def test_an_adapter_beside_the_weights_does_not_fetch_its_base(
    folders: dict[str, Path], tmp_path: Path, no_network: None
) -> None:
    backbone = load(folders["transformers-vit"])
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path)
    adapter = {"base_model_name_or_path": "evil/model", "peft_type": "LORA", "target_modules": ["query"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(DataError, match="cannot load a transformers image model"):
        load_saved_image_classifier(tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be online, and fail at the first connection."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))


class Reads(torch.nn.Module):
    """Layers that are called, whose weights are computed with, and whose settings are read."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.bypassed = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.cast, self.padded = torch.nn.Linear(4, 4), torch.nn.Conv2d(1, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.nn.functional.linear(self.called(x), self.bypassed.weight, self.bypassed.bias)
        found = self.cast(found.to(self.cast.weight.dtype))
        return self.padded(found[None, None, :, :], *()) * self.padded.kernel_size[0]


def test_layers_that_an_adapter_cannot_stand_in_for_are_found_by_what_the_model_does_with_them() -> None:
    model = Reads().eval()
    layers, names = dict(model.named_modules()), ["called", "bypassed", "cast", "padded"]
    found = irreplaceable_layers(model, names, {"x": torch.ones(4, 4)})
    assert found == {
        "bypassed": "the model reads bias, weight of them",
        "padded": "the model reads kernel_size of them",
    }
    assert dict(model.named_modules()) == layers


def test_lora_passes_over_layers_whose_weights_are_computed_with_and_refuses_them_by_name(tmp_path: Path) -> None:
    folder = save_family("timm/beit_base_patch16_224", tmp_path)
    model = apply_tuning(load(folder), LORA()).model
    train_a_little(model, steps=1)
    adapted = {name.partition(".lora_B")[0]: p for name, p in model.named_parameters() if ".lora_B." in name}
    assert adapted and not any(name.endswith(".qkv") for name in adapted)
    assert all(bool(p.abs().sum() > 0) for p in adapted.values())
    with pytest.raises(
        RecipeError,
        match=r"stand in for timm_model\.blocks\.\*\.attn\.qkv \(2\), because the model reads .*weight of them",
    ):
        apply_tuning(load(folder), LORA(target_modules=r".*\.(qkv|proj)"))


@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (ScaledStdConv2d(4, 4, 3, padding=1), False),
        (Conv2dSame(4, 4, 3, stride=2), False),
        (Conv2dSame(4, 4, 1), True),
        (Conv2dSame(4, 4, 40), False),
        (torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), False),
        (torch.nn.Conv2d(4, 4, 3, padding=1), True),
    ],
    ids=["standardized", "same", "same-1x1", "larger-than-the-image", "reflected", "plain"],
)
def test_layers_that_change_their_weights_or_their_padding_cannot_be_merged(layer: Any, plain: bool) -> None:
    model = torch.nn.Sequential(layer).eval()
    found = irreplaceable_layers(model, ["0"], {"input": torch.randn(1, 4, 8, 8)})
    assert found == ({} if plain else {"0": "they change their weights or their padding first"})


def test_lora_on_an_architecture_that_reads_the_settings_of_all_its_layers_is_refused_with_what_works(
    tmp_path: Path,
) -> None:
    folder = save_family("transformers/mobilenet_v2", tmp_path)
    for targets in ("auto", "all-linear"):
        with pytest.raises(RecipeError, match=r"set tuning\.method to full, last-layers or linear-probe"):
            apply_tuning(load(folder), LORA(target_modules=targets))
    for works in (FullTuning(), LastLayers(method="last-layers", layers=1), LinearProbe(method="linear-probe")):
        model = apply_tuning(load(folder), works).model
        train_a_little(model, steps=1)
    plain = save_family("transformers/mobilenet_v2-plain", tmp_path / "plain")
    train_a_little(apply_tuning(load(plain), LORA()).model, steps=1)


@pytest.mark.parametrize("family", ["clip", "siglip", "vit", "dinov2"])
def test_position_embeddings_of_transformers_are_resampled_as_it_resamples_them(family: str, tmp_path: Path) -> None:
    folder = save_family(f"transformers/{family}", tmp_path / "a")
    names = tuple(f"LABEL_{index}" for index in range(7))
    backbone = load(folder, names, image_size=64)
    original = AutoModelForImageClassification.from_pretrained(folder).eval()
    vision = getattr(original, "vision_model", original)
    with torch.inference_mode():
        embedded = getattr(backbone.model, "vision_model", backbone.model)
        flag = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
        base = {"vit": "vit", "dinov2": "dinov2"}.get(family)
        wanted = (getattr(vision, base) if base else vision).embeddings(images(64), **flag)
        found = (getattr(embedded, base) if base else embedded).embeddings(images(64))
    assert torch.allclose(wanted, found, atol=1e-5)
    save_image_classifier(backbone.model, backbone.preprocessing, tmp_path / "b")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "b")
    assert difference(logits(plain, 64), logits(backbone.model, 64)) < 1e-6
    assert load_saved_image_classifier(tmp_path / "b").preprocessing.height == 64


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_resize_overrides_what_the_weights_do_with_the_aspect_ratio(
    resize: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    backbone = load(folders["resnet10t"], image_size=(40, 24), resize=resize)
    own = backbone.preprocessing
    assert (own.height, own.width, own.crop_mode) == (40, 24, {"crop": "center", "pad": "border"}.get(resize, resize))
    assert (own.crop_pct == 1.0) == (resize != "crop")  # squash and pad show all of an image
    save_image_classifier(backbone.model, own, tmp_path)
    assert load_saved_image_classifier(tmp_path).preprocessing.geometry == own.geometry
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for image in (random_image(), random_image().rotate(90, expand=True)):
        assert torch.allclose(processed(processor, image), ours(own, image), atol=1e-5)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        wide = torch.ones(1, 3, 40, 24)
        assert torch.allclose(plain(wide).logits, backbone.model(wide).logits, atol=1e-5)


def test_a_rectangular_size_resamples_positions_and_is_written_down(folders: dict[str, Path], tmp_path: Path) -> None:
    wide = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    for name, resize in (("vit_tiny_patch16_224", "pad"), ("transformers-vit", "squash")):
        backbone = load(folders[name], OLD, image_size=(32, 64), resize=resize)
        save_image_classifier(backbone.model, backbone.preprocessing, tmp_path / name)
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / name).eval()
        with torch.inference_mode():
            assert torch.allclose(plain(wide).logits, backbone.model(wide).logits, atol=1e-5)
        assert load_saved_image_classifier(tmp_path / name).preprocessing.geometry == backbone.preprocessing.geometry
        processor = AutoImageProcessor.from_pretrained(tmp_path / name)
        assert processed(processor, random_image()).shape == (1, 3, 32, 64)
        again = load(tmp_path / name, OLD, image_size=None)
        assert (again.preprocessing.height, again.preprocessing.width) == (32, 64)


def test_what_an_image_processor_of_transformers_cannot_do_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"model\.resize: pad is for timm models.*crop or squash"):
        load(folders["transformers-resnet"], resize="pad")
    with pytest.raises(RecipeError, match=r"do not crop to 40 x 24; set model\.resize: squash"):
        load(folders["transformers-resnet"], image_size=(40, 24))
    assert load(folders["transformers-resnet"], image_size=(40, 24), resize="squash").preprocessing.width == 24
