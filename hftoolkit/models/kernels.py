"""What of a model runs faster on the device at hand: attention kernels and memory formats."""

from typing import Any

import torch
from torch import nn

from hftoolkit.models.backbones import is_image_model, quiet_transformers
from hftoolkit.models.image_backbones import is_convolutional


def arrange_for(model: nn.Module, device: torch.device) -> str:
    """Choose kernels and memory format for a device; return in words what is worth telling, or nothing."""
    if not is_image_model(model):
        return f"attention {set_attention(model, device)}"
    if device.type == "cpu":
        arrange_for_cpus(model)
    return ""


def set_attention(model: nn.Module, device: torch.device) -> str:
    """Choose the attention kernel for the device and return its name.

    On CPUs the backward pass of the fused kernel is slow, so the plain one trains faster.
    """
    wanted = "eager" if device.type == "cpu" else "sdpa"
    base: Any = model
    try:
        with quiet_transformers():
            base.set_attn_implementation(wanted)
    except (ValueError, AttributeError):  # the architecture has one kernel only
        return str(getattr(base.config, "_attn_implementation", "own"))
    return wanted


def arrange_for_cpus(model: nn.Module) -> None:
    """Choose what trains faster on CPUs: channels last for convolutions, plain attention in timm's transformers.

    The backward pass of the fused attention kernel is the slower one there.
    """
    if is_convolutional(model):
        model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            setattr(module, "fused_attn", False)  # noqa: B010  # only timm's attention layers have it
