"""Joining the processes of torchrun or accelerate launch, with the strategy that accelerate's file asks for."""

import os
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import parse_flag_from_env

from hftoolkit.errors import EnvironmentFault
from hftoolkit.train.distributed.fsdp import Fsdp
from hftoolkit.train.distributed.strategy import WHOLE, Strategy

# A process may wait for the main one to fetch and decode a large data set; a launcher ends all if one dies.
PATIENCE = timedelta(days=2)
USE_FSDP = "ACCELERATE_USE_FSDP"
NOT_SUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
FSDP2_FILE = "docs/accelerate/fsdp2-8-gpus.yaml"


def join_processes() -> Strategy:
    """Join the processes that torchrun or accelerate launch started, if one of them did.

    Returns:
        How the model is to lie in them.

    Raises:
        EnvironmentFault: another strategy, or another number of ranks, was asked for than there is.
    """
    for variable, name in NOT_SUPPORTED.items():
        if parse_flag_from_env(variable):
            raise EnvironmentFault(
                f"{name} is not supported. FSDP2 shards a model over ranks: accelerate launch --config_file "
                f"{FSDP2_FILE}; with --multi_gpu alone, or torchrun, each rank holds the whole model"
            )
    strategy: Strategy = fsdp_of_accelerate() if parse_flag_from_env(USE_FSDP) else WHOLE
    # Who shards is the trainer: nobody else is to load, scale or save in another way because of it.
    os.environ.pop(USE_FSDP, None)
    wanted = max(int(os.environ.get("WORLD_SIZE", 1)), _wanted_of_accelerate())
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE) if wanted > 1 else None
    running = 1 if state is None else state.num_processes
    if running != wanted:
        raise EnvironmentFault(
            f"{wanted} ranks were asked for and {running} runs: accelerate launch starts only one on CPUs. There, "
            f"type: ACCELERATE_USE_CPU=true torchrun --nproc_per_node {wanted} -m hftoolkit finetune RECIPE"
        )
    if strategy.is_sharded and running == 1:
        raise EnvironmentFault(
            f"{strategy.name} shards the model over several ranks, and 1 runs; leave out the launcher"
        )
    return strategy


def fsdp_of_accelerate() -> Fsdp:
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
    return Fsdp(policy == "TRANSFORMER_BASED_WRAP", names, reshard)


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
