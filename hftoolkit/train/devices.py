"""Accelerate's view of this process: device, precision, memory, and how batches get there."""

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, find_batch_size, send_to_device
from torch.utils.data import DataLoader

from hftoolkit.contracts import Batch, Examples
from hftoolkit.errors import RecipeError

__all__ = [
    "Accelerator",
    "choose_precision",
    "free_cached_memory",
    "is_out_of_memory",
    "make_accelerator",
    "make_loader",
    "peak_memory_bytes",
    "to_device",
]


def make_accelerator(precision: str, *, bf16_pays_on_cpus: bool = True) -> Accelerator:
    """Return Accelerate's view of this process, with ``auto`` precision resolved for its device.

    Args:
        precision: ``train.precision`` of the recipe.
        bf16_pays_on_cpus: false for convolutions, which are slower in bf16 there.

    Raises:
        RecipeError: fp16 was asked for on a CPU, where it would silently be fp32.
    """
    # The plugin is passed as an object because an environment variable overrides the plain number.
    plugin = GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False)
    # Accelerate keeps the precision of the first Accelerator of a process and refuses any other.
    AcceleratorState._reset_state()
    device = Accelerator(mixed_precision="no", gradient_accumulation_plugin=plugin).device
    resolved = choose_precision(precision, device, bf16_pays_on_cpus=bf16_pays_on_cpus)
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision="no" if resolved == "fp32" else resolved, gradient_accumulation_plugin=plugin)


def choose_precision(precision: str, device: torch.device, *, bf16_pays_on_cpus: bool = True) -> str:
    """Return fp32, bf16 or fp16 for a recipe's ``train.precision`` on this device.

    Raises:
        RecipeError: fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError("train.precision: fp16 needs a GPU; on a CPU use auto, bf16 or fp32")
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "bf16" if bf16_pays_on_cpus and _cpu_has_bf16() else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp32"


def describe_device(accelerator: Accelerator) -> str:
    """Return device and precision in words."""
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    return f"{accelerator.device.type}, precision {precision}"


def make_loader(
    examples: Examples, plan: list[np.ndarray], collate: Callable[[list[Any]], Batch], *, workers: int
) -> DataLoader[Any]:
    """Return a loader of the planned batches, in their order, prepared by ``workers`` processes (0: by this one)."""
    batches = [indices.tolist() for indices in plan]
    return DataLoader(examples.items, batch_sampler=batches, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device."""
    return send_to_device(batch, device, non_blocking=True)


def num_rows(batch: Batch) -> int:
    """Return the size of the first dimension of the tensors in a batch."""
    return int(find_batch_size(batch))


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory used so far: of a GPU, or of the whole process on CPUs."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out. On a CPU, PyTorch tells that by the words of the message alone."""
    words = ("not enough memory", "can't allocate memory")
    out = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return out or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def free_cached_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of a GPU's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
