"""What the command line calls for every kind of task; other wings have a module of the same functions."""

from hftoolkit.commands.evaluate import evaluate
from hftoolkit.commands.finetune import dry_run, finetune
from hftoolkit.commands.predict import load_model, load_run, predict
from hftoolkit.commands.report import report

__all__ = ["dry_run", "evaluate", "finetune", "load_model", "load_run", "predict", "report"]
