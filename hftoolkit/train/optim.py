"""The optimizer, its parameter groups and the learning-rate schedule. Knows parameter names, not models."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hftoolkit.train.distributed.fsdp import full_tensor


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], scales: Mapping[str, float], *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, grouped by rate scale; vectors (biases, norms) are not decayed."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            groups[scales.get(name, 1.0), parameter.ndim > 1].append(parameter)
    options: list[dict[str, Any]] = [
        {
            "params": members,
            "lr": learning_rate * scale,
            "peak_lr": learning_rate * scale,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (scale, decayed), members in groups.items()
    ]
    return torch.optim.AdamW(options, fused=True)


def rate_factor(step: int, *, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Return the share of the peak learning rate at a step (the first is 0), a pure function of the step.

    The rate rises linearly over ``warmup_steps``, then stays (``constant``), falls linearly to zero (``linear``) or
    along a half cosine (``cosine``).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return max(0.0, 1.0 - progress)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        case _:
            raise AssertionError(f"unknown schedule {schedule}")


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to ``factor`` times its peak rate; return the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def clip_to_mean(parameters: Sequence[nn.Parameter], num_examples: float, max_norm: float) -> float:
    """Turn gradients of a sum over examples into those of the mean, clip them, and return their norm before that."""
    used = [parameter for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_([parameter.grad for parameter in used if parameter.grad is not None], 1 / num_examples)
    return float(full_tensor(nn.utils.clip_grad_norm_(used, max_norm)))
