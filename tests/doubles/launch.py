"""What accelerate launch tells the processes that it starts."""

import os
from pathlib import Path
from unittest import mock

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env


def launched_with(path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, str]:
    """Return what accelerate launch tells its processes for a configuration file, on a machine with GPUs."""
    monkeypatch.setattr("accelerate.commands.launch.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("accelerate.commands.launch.torch.cuda.device_count", lambda: 8)
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(path), *more, "-m", "hftoolkit", "finetune", "x.yaml"])
    arguments, *_ = _validate_launch_command(arguments)
    with mock.patch.dict(os.environ):
        if arguments.use_deepspeed:
            arguments.deepspeed_fields_from_accelerate_config = ""  # as the launcher does
            return prepare_deepspeed_cmd_env(arguments)[1]
        return prepare_multi_gpu_env(arguments)
