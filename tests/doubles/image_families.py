"""Tiny random checkpoints of many families of image classifiers, as timm and transformers write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

SIZE = 32
# timm's name of a real architecture: arguments that make it small. Its own test models are as small as they are.
TIMM: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": SIZE},
    "cait_xxs24_224": {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": SIZE},
    "convit_tiny": {"depth": 2, "embed_dim": 6, "img_size": SIZE, "local_up_to_layer": 1},
    "eva02_tiny_patch14_224": {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 28},
    "ghostnet_050": {},
    "hgnetv2_b0": {},
    "gmlp_s16_224": {"img_size": SIZE},
    "mobilenetv4_conv_small_050": {},
    "mobilevitv2_050": {},
    "regnetx_002": {},
    "test_byobnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_mambaout": {},
    "test_maxvit": {"img_size": 64},
    "test_nfnet": {},
    "test_resnet": {},
    "test_vit": {"img_size": SIZE},
    "test_vit_relpos": {"img_size": SIZE},
    "vit_base_patch16_siglip_224": {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": SIZE},
    "vit_base_patch32_clip_224": {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 64},
    "xcit_nano_12_p16_224": {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": SIZE},
}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {**BLOCKS, "image_size": SIZE, "patch_size": 8}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
SQUASHED = {"size": {"height": SIZE, "width": SIZE}}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": SIZE, "width": SIZE}}
# transformers' name: the start of its classes, its configuration, and a processor with its settings.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "beit": ("Beit", VIT, "BeitImageProcessor", SQUASHED),
    "bit": (
        "Bit",
        {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 1], "num_groups": 4},
        "BitImageProcessor",
        CROPPED,
    ),
    "clip": ("CLIP", {"vision_config": VIT, "projection_dim": 16}, "CLIPImageProcessor", CROPPED),
    "convnext": (
        "ConvNext",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIZE}, "crop_pct": 0.875},
    ),
    "convnextv2": (
        "ConvNextV2",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIZE}},
    ),
    "data2vec-vision": ("Data2VecVision", VIT, "BeitImageProcessor", SQUASHED),
    "dinov2": ("Dinov2", {**BLOCKS, "image_size": SIZE, "patch_size": 8, "mlp_ratio": 2}, "BitImageProcessor", CROPPED),
    "focalnet": (
        "FocalNet",
        {
            "image_size": SIZE,
            "embed_dim": 8,
            "depths": [1, 1],
            "hidden_sizes": [8, 16],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        "BitImageProcessor",
        CROPPED,
    ),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25}, "MobileNetV1ImageProcessor", CROPPED),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.35}, "MobileNetV2ImageProcessor", CROPPED),
    "mobilenet_v2-plain": (
        "MobileNetV2",
        {"depth_multiplier": 0.35, "tf_padding": False},
        "MobileNetV2ImageProcessor",
        CROPPED,
    ),
    "mobilevit": (
        "MobileViT",
        {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32], "num_attention_heads": 2},
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": SIZE, "width": SIZE}},
    ),
    "poolformer": (
        "PoolFormer",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
        "PoolFormerImageProcessor",
        {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}},
    ),
    "pvt_v2": (
        "PvtV2",
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "image_size": SIZE,
        },
        "ViTImageProcessor",
        SQUASHED,
    ),
    "regnet": ("RegNet", {**STAGES, "groups_width": 4}, "ConvNextImageProcessor", {"size": {"shortest_edge": SIZE}}),
    "resnet": (
        "ResNet",
        {**STAGES, "layer_type": "basic"},
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": SIZE}},
    ),
    "segformer": (
        "Segformer",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
        "SegformerImageProcessor",
        SQUASHED,
    ),
    "siglip": ("Siglip", {"vision_config": VIT}, "SiglipImageProcessor", SQUASHED),
    "swin": (
        "Swin",
        {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        "ViTImageProcessor",
        SQUASHED,
    ),
    "swinv2": (
        "Swinv2",
        {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        "ViTImageProcessor",
        SQUASHED,
    ),
    "vit": ("ViT", VIT, "ViTImageProcessor", SQUASHED),
    "vit_msn": ("ViTMSN", VIT, "ViTImageProcessor", SQUASHED),
}
FAMILIES = (*(f"timm/{name}" for name in TIMM), *(f"transformers/{name}" for name in TRANSFORMERS))


def save_family(name: str, folder: Path) -> Path:
    """Write random weights of a family, whose head is of seven other classes; return the folder."""
    torch.manual_seed(1)
    library, _, name = name.partition("/")
    return {"timm": _save_timm, "transformers": _save_transformers}[library](name, folder)


def _save_timm(name: str, folder: Path) -> Path:
    model = timm.create_model(name, num_classes=7, **TIMM[name])
    timm.models.save_for_hf(model, folder, model_args=TIMM[name], safe_serialization=True)
    return folder


def _save_transformers(name: str, folder: Path) -> Path:
    prefix, settings, processor, sizes = TRANSFORMERS[name]
    make: Callable[..., Any] = getattr(transformers, f"{prefix}Config")
    config = make(**settings, num_labels=7)
    getattr(transformers, f"{prefix}ForImageClassification")(config).save_pretrained(folder)
    getattr(transformers, processor)(**sizes).save_pretrained(folder)
    return folder
