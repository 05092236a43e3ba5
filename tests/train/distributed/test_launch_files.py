"""The shipped configurations of accelerate start what they say; other ways to divide a model are refused."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from typer.main import get_command

from doubles.commands import hft, refused
from doubles.launch import launched_with
from doubles.paths import ROOT
from hftoolkit.cli import app
from hftoolkit.train.distributed.fsdp import Fsdp
from hftoolkit.train.distributed.launch import fsdp_of_accelerate

SHIPPED = {
    "8-gpus": (8, 1),
    "2-machines-of-8-gpus": (16, 2),
    "fsdp2-8-gpus": (8, 1),
    "fsdp2-2-machines-of-8-gpus": (16, 2),
}
DIVIDES = {  # by the beginning of a file's name: type, variable, how it is read, as what
    "fsdp2": (DistributedType.FSDP, "ACCELERATE_USE_FSDP", fsdp_of_accelerate, Fsdp(by_blocks=True)),
}
FSDP1 = """\
distributed_type: FSDP
fsdp_config: {fsdp_version: 1, fsdp_sharding_strategy: FULL_SHARD, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP,
  fsdp_state_dict_type: SHARDED_STATE_DICT}
"""
DEEPSPEED = "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2, zero3_init_flag: false}\n"
INSTEAD = "docs/accelerate/fsdp2-8-gpus.yaml"
REFUSED = {"FSDP1": (FSDP1, "set fsdp_version: 2"), "DeepSpeed": (DEEPSPEED, "DeepSpeed")}  # and what is named


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "accelerate").iterdir()), ids=lambda path: path.stem)
def test_a_shipped_file_is_read_by_accelerate_as_it_says(path: Path, monkeypatch: pytest.MonkeyPatch):
    processes, machines = SHIPPED[path.stem]
    kind, variable, read, expected = DIVIDES.get(path.stem.split("-")[0], (DistributedType.MULTI_GPU, None, None, None))
    config = load_config_from_file(str(path))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.distributed_type == kind and not config.parallelism_config
    assert bool(config.fsdp_config) == (kind == DistributedType.FSDP) and not config.deepspeed_config
    told = launched_with(path, monkeypatch, *(["--main_process_ip", "10.0.0.1"] if machines > 1 else []))
    assert {name for name in told if name.startswith("ACCELERATE_USE_")} - os.environ.keys() == {variable} - {None}
    if read is not None:
        with mock.patch.dict(os.environ, told):
            assert read() == expected


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "accelerate").iterdir()), ids=lambda path: path.stem)
def test_the_command_in_a_shipped_file_is_one(path: Path):
    comment = "".join(line[1:] for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    command = re.search(r"accelerate launch (.*?)(?<!\\)\n", comment, re.DOTALL)[1].replace("\\\n", " ")
    arguments = launch_command_parser().parse_args(shlex.split(command.replace("RANK", "1")))
    assert Path(arguments.config_file) == path.relative_to(ROOT) and arguments.training_script == "hftoolkit"
    get_command(app).make_context("hftoolkit", arguments.training_script_args, resilient_parsing=False)
    assert (ROOT / arguments.training_script_args[1]).is_file()


def test_all_shipped_files_are_known():
    assert {path.stem for path in (ROOT / "docs" / "accelerate").iterdir()} == set(SHIPPED)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_divides_the_model_in_another_way_is_refused(name: str, write_recipe, tmp_path: Path, monkeypatch):
    text, says = REFUSED[name]
    path = tmp_path / "sharded.yaml"
    path.write_text("compute_environment: LOCAL_MACHINE\nnum_machines: 1\nnum_processes: 2\n" + text)
    recipe = write_recipe()
    told = launched_with(path, monkeypatch)
    for variable, value in told.items():
        monkeypatch.setenv(variable, value)
    run = tmp_path / "run"
    refused(hft("finetune", recipe, "--run-dir", run), 4, says, INSTEAD)
    assert not run.exists()


def test_an_environment_that_asks_for_deepspeed_is_refused(write_recipe, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    refused(hft("finetune", write_recipe(), "--run-dir", tmp_path / "run"), 4, "DeepSpeed", INSTEAD)
    assert not (tmp_path / "run").exists()


@pytest.mark.faults
def test_the_launcher_itself_gets_the_refusal(write_recipe, tmp_path: Path):
    path = tmp_path / "sharded.yaml"
    path.write_text("compute_environment: LOCAL_MACHINE\nnum_machines: 1\nnum_processes: 2\n" + FSDP1)
    launcher = str(Path(sys.executable).with_name("accelerate"))
    command = [launcher, "launch", "--config_file", str(path), "-m", "hftoolkit", "finetune", str(write_recipe())]
    ended = subprocess.run([*command, "--run-dir", str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert ended.returncode != 0 and "error: FSDP is supported in version 2 alone" in ended.stderr, ended.stderr
    assert not (tmp_path / "run").exists()
