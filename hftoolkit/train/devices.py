"""Accelerate's view of this process: device, precision, memory, and how batches get there."""

import os
import resource
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env
from torch.utils.data import DataLoader

from hftoolkit.contracts import Batch, Rows
from hftoolkit.errors import EnvironmentFault, RecipeError
from hftoolkit.train.distributed.fsdp import Sharding

__all__ = [
    "Accelerator",
    "choose_precision",
    "free_cached_memory",
    "is_out_of_memory",
    "join_processes",
    "make_accelerator",
    "make_loader",
    "peak_memory_bytes",
    "to_device",
]

# A process may wait for the main one to fetch and decode a large data set; a launcher ends all if one dies.
PATIENCE = timedelta(days=2)
USE_FSDP = "ACCELERATE_USE_FSDP"
NOT_SUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
FSDP2_FILE = "docs/accelerate/fsdp2-8-gpus.yaml"


def join_processes() -> Sharding | None:
    """Join the processes that torchrun or accelerate launch started, if one of them did.

    Returns:
        What is to be divided over them, and how; None: each holds all of it.

    Raises:
        EnvironmentFault: the model was to be divided in another way, or another number of processes was asked for than
            runs.
    """
    for variable, name in NOT_SUPPORTED.items():
        if parse_flag_from_env(variable):
            raise EnvironmentFault(
                f"{name} is not supported. FSDP2 divides a model over processes: accelerate launch --config_file "
                f"{FSDP2_FILE}; with --multi_gpu alone, or torchrun, each process holds the whole model"
            )
    sharding = sharding_of_accelerate() if parse_flag_from_env(USE_FSDP) else None
    # Who divides is the trainer: nobody else is to load, scale or save in another way because of it.
    os.environ.pop(USE_FSDP, None)
    wanted = max(int(os.environ.get("WORLD_SIZE", 1)), _wanted_of_accelerate())
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE) if wanted > 1 else None
    running = 1 if state is None else state.num_processes
    if running != wanted:
        raise EnvironmentFault(
            f"{wanted} processes were asked for and {running} runs: accelerate launch starts only one on CPUs. There, "
            f"type: ACCELERATE_USE_CPU=true torchrun --nproc_per_node {wanted} -m hftoolkit finetune RECIPE"
        )
    if sharding is not None and running == 1:
        raise EnvironmentFault(
            f"{sharding.name} divides the training over several processes, and 1 runs; leave out the launcher"
        )
    return sharding


def sharding_of_accelerate() -> Sharding:
    """Return what accelerate launch was told of FSDP.

    State dict types, loading and precision do not matter: runs load, save and compute as they do without FSDP2.

    Raises:
        EnvironmentFault: it cannot be done.
    """
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise EnvironmentFault(f"FSDP is supported in version 2 alone; set fsdp_version: 2, as {FSDP2_FILE} does")
    for variable, instead in {
        "FSDP_OFFLOAD_PARAMS": "leave it out",
        "FSDP_IGNORED_MODULES": "leave it out",
        "FSDP_ACTIVATION_CHECKPOINTING": "set model.gradient_checkpointing: true in the recipe",
    }.items():
        if os.environ.get(variable, "").lower() not in ("", "false", "none"):
            raise EnvironmentFault(f"{variable.lower()} is not supported; {instead}")
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP").upper()
    if policy not in ("TRANSFORMER_BASED_WRAP", "NO_WRAP"):
        raise EnvironmentFault(
            f"fsdp_auto_wrap_policy: {policy} is not supported; use TRANSFORMER_BASED_WRAP or NO_WRAP"
        )
    classes = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    try:
        reshard = parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", default=True)
    except ValueError as error:
        raise EnvironmentFault(f"fsdp_reshard_after_forward: {error}; FSDP2 takes true or false") from error
    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    return Sharding(policy == "TRANSFORMER_BASED_WRAP", names, reshard)


def _wanted_of_accelerate() -> int:
    """Return the number of processes on the command line of the launcher, which tells no child what it ignores."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
    except (OSError, UnicodeDecodeError):  # no Linux
        return 1
    launchers = [index for index, word in enumerate(words) if word == "launch" and "accelerate" in words[index - 1]]
    if not launchers:
        return 1
    arguments, _ = launch_command_parser().parse_known_args(words[launchers[0] + 1 :])
    if arguments.num_processes is not None:
        return int(arguments.num_processes)
    if arguments.config_file is None and not Path(default_config_file).is_file():
        return 1
    return int(load_config_from_file(arguments.config_file).num_processes or 1)


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
    rows: Rows, plan: list[np.ndarray], collate: Callable[[list[Any]], Batch], *, workers: int
) -> DataLoader[Any]:
    """Return a loader of the planned batches, in their order, prepared by ``workers`` processes (0: by this one)."""
    batches = [indices.tolist() for indices in plan]
    return DataLoader(rows.examples, batch_sampler=batches, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


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
