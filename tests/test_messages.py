"""What mistakes look like: the messages in docs/errors.md are those that users get, word for word.

Other tests ask a message for its exit code, the knob to blame and the fix, so that prose can get better in one place.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from doubles.commands import Ended, hft
from doubles.golden import Golden
from doubles.paths import ROOT
from doubles.reviews import RECIPE

HOME = "/home/ada/work"  # stands for the folder of the test
TABLE = "text,label\ngreat,good\n,bad\nawful,bad\nno idea,\n" * 10
BAD = """\
task:
  kind: text-classification
  imbalance: logit-ajust
data:
  source: reviews.csv
  columns: {text: text, label: label}
  split: {validation: 0.5, test: 0.5}
model:
  backbone: bert
  max_lenght: 64
tuning:
  method: lora
  rank: '16'
train:
  learning_rate: -1e-4
  lerning_rate: 1e-4
"""
GOOD = RECIPE.format(table="reviews.csv", backbone="bert")
SKIP = "data.on_bad_rows=skip"
SCORED = ("--set", "evaluation.extra_metrics=[./mine.py]")
Case = Callable[[], Ended]


@pytest.fixture
def folder(tmp_path: Path, tiny_backbone: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a table, weights, recipes, a finished run and one that was interrupted."""
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text(TABLE, encoding="utf-8")
    Path("bad.yaml").write_text(BAD, encoding="utf-8")
    Path("mine.yaml").write_text(GOOD, encoding="utf-8")
    shutil.copytree(tiny_backbone, "bert")
    for name, state in (("sentiment", "done"), ("stopped", "interrupted")):
        run = Path("runs", name)
        shutil.copytree(tiny_run, run)
        shutil.copy(run / "recipe.yaml", f"{name}.yaml")
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
        (run / "status.json").write_text(json.dumps(status | {"state": state}), encoding="utf-8")
    yield tmp_path


def sharded() -> Ended:
    """Be one of two ranks that share a model."""
    two = SimpleNamespace(is_sharded=True, name="FSDP2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hftoolkit.commands.setup.join_processes", lambda: two)
        return hft("finetune", "mine.yaml", "--set", "train.micro_batch_size=auto")


def deepspeed() -> Ended:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        return hft("finetune", "mine.yaml")


CASES: dict[str, tuple[int, Case]] = {
    "recipe": (2, lambda: hft("finetune", "bad.yaml", "--set", "trian.epochs=2")),
    "column": (3, lambda: hft("finetune", "mine.yaml", "--set", "data.columns.label=labl")),
    "rows": (3, lambda: hft("finetune", "mine.yaml")),
    "source": (3, lambda: hft("finetune", "mine.yaml", "--set", "data.source=./reveiws.csv")),
    "weights": (3, lambda: hft("finetune", "mine.yaml", "--set", "model.backbone=./brt", "--set", SKIP)),
    "code": (2, lambda: hft("finetune", "mine.yaml", *SCORED)),
    "metric": (2, lambda: hft("finetune", "mine.yaml", *SCORED, "--allow-code")),
    "run directory": (2, lambda: hft("finetune", "mine.yaml", "--run-dir", "runs/sentiment")),
    "resume": (2, lambda: hft("finetune", "stopped.yaml", "--resume", "--set", "train.learning_rate=2e-4")),
    "done": (2, lambda: hft("finetune", "sentiment.yaml", "--resume")),
    "no run": (3, lambda: hft("predict", "runs", "reviews.csv")),
    "unfinished": (3, lambda: hft("predict", "runs/stopped", "reviews.csv")),
    "split": (2, lambda: hft("evaluate", "runs/sentiment", "--split", "tset")),
    "deepspeed": (4, deepspeed),
    "sharded": (2, sharded),
}


def test_the_page_of_errors_has_what_users_read(folder: Path, golden: Golden) -> None:
    said = {}
    for name, (code, work) in CASES.items():
        ended = work()
        assert ended.code == code, (name, ended)
        said[name] = ended.err.replace(str(folder), HOME)
        assert "/tmp" not in said[name] and said[name].startswith("error: "), name
    golden.compare_blocks(ROOT / "docs" / "errors.md", said)
