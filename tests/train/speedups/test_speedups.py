"""``train.speedups``: what steps compute less, or in better ways, changes no weights, and can be turned off."""

import pytest
import torch

from hftoolkit import recipe as recipes
from hftoolkit.commands.finetune import fit_setup
from hftoolkit.commands.setup import prepare
from hftoolkit.runs.directory import RunDir
from hftoolkit.train import speedups
from hftoolkit.train.distributed.strategy import WHOLE
from hftoolkit.train.speedups import cpu

ALL = ("faster_steps", "cls_position_only", "batch_halves_in_threads")


@pytest.fixture(autouse=True)
def two_threads():
    """A single one computes no halves."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the speedups that a run entered."""
    names: list[str] = []

    def noting(name, honest):
        return lambda *arguments: (names.append(name), honest(*arguments))[1]

    for module, of in ((speedups, ALL), (cpu, ("low_precision_stream", "row_gradients", "keep_freed_memory"))):
        for name in of:
            monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    return names


def trained(path, folder, *overrides):
    """Return the weights, without those that no gradient but rounding reaches, where Adam enlarges it."""
    recipe = recipes.load_recipe(path, ["train.epochs=2", "train.precision=fp32", "model.dropout=0", *overrides])
    folder.mkdir()
    job = prepare(recipe, lambda event: None)
    fit_setup(job, RunDir(folder), WHOLE, lambda event: None)
    return {name: p.detach() for name, p in job.tuned.model.named_parameters() if not name.endswith("key.bias")}


def test_a_run_without_speedups_enters_none_and_gives_the_same_weights(
    write_recipe, lively_backbone, tmp_path, entered
):
    path, backbone = write_recipe(40), f"model.backbone={lively_backbone}"
    fast = trained(path, tmp_path / "auto", backbone)
    assert set(ALL) < set(entered) and len(entered) == 6
    entered.clear()
    plain = trained(path, tmp_path / "none", backbone, "train.speedups=none")
    assert not entered
    assert fast.keys() == plain.keys() and len(plain) > 20
    for name, weight in plain.items():
        torch.testing.assert_close(fast[name], weight, rtol=1e-3, atol=1e-5, msg=name)
