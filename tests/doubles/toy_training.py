"""A toy task of random vectors, a model of two layers, and one process that trains it and notes what the loop said."""

import os
import signal
from collections import OrderedDict
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hftoolkit.contracts import Examples, StepDone, StepOutput
from hftoolkit.models.tuning import TunedModel
from hftoolkit.recipe import Evaluation, Train
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.lifecycle import record_event
from hftoolkit.train.devices import make_accelerator
from hftoolkit.train.distributed.strategy import WHOLE
from hftoolkit.train.loop import fit

EXAMPLES, FEATURES, CLASSES = 40, 4, 3


class ToyTask:
    """Random vectors with random classes. ``scores`` are told as the metrics of one evaluation after the other.

    ``disturb(number, loss_sum)`` may replace the loss of the ``number``-th micro-step of the run, counted from 1.
    """

    def __init__(self, scores=(), disturb=None, num_examples=EXAMPLES, lengths=None):
        generator = np.random.default_rng(7)
        self.x = torch.tensor(generator.normal(size=(num_examples, FEATURES)), dtype=torch.float32)
        self.y = torch.tensor(generator.integers(CLASSES, size=num_examples))
        self.rows = Examples(range(num_examples), lengths, row_numbers=np.arange(num_examples) + 1)
        self.disturb = disturb or (lambda number, loss_sum: loss_sum)
        self.scores = iter(scores)
        self.drawn = []  # indices of each micro-step
        self.dtypes = []  # of the output of each forward pass
        self.judged = []  # weights at each evaluation

    def examples(self, split):
        return self.rows

    def collate(self, indices, *, training):
        return {"index": torch.tensor(indices), "x": self.x[indices], "y": self.y[indices]}

    def loss(self, model, batch):
        self.drawn.append(batch["index"].tolist())
        losses = cross_entropy(self.forward(model, batch)["logits"], batch["y"], reduction="none")
        return StepOutput(self.disturb(len(self.drawn), losses.sum()), len(losses), len(losses))

    def forward(self, model, batch):
        logits = model(batch["x"])
        self.dtypes.append(logits.dtype)
        return {"logits": logits}

    def predict(self, model, batch):
        return list(self.forward(model, batch)["logits"].float().numpy())

    def metric_names(self):
        return frozenset({"accuracy", "loss"})

    def evaluate(self, model, infer):
        self.judged.append(copy_of(model))
        logits = np.stack(infer(model, self.rows))
        score = next(self.scores, None)
        accuracy = float((logits.argmax(1) == self.y.numpy()).mean())
        return {"accuracy": accuracy, "loss": 1 - accuracy} if score is None else {"accuracy": score, "loss": score}


class SmallMemory(ToyTask):
    """A task that runs out of memory for more than so many rows at a time."""

    def __init__(self, training, predicting=64):
        super().__init__()
        self.training, self.predicting = training, predicting

    def loss(self, model, batch):
        if len(batch["x"]) > self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(model, batch)

    def predict(self, model, batch):
        if not model.training and len(batch["x"]) > self.predicting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().predict(model, batch)


class Bench:
    """A toy task, a model and what the loop said about them."""

    strategy = WHOLE  # how the model lies in the ranks

    def __init__(self, folder: Path, task=None, model=None):
        self.task = task or ToyTask()
        self.model = model or toy_model()
        self.run = RunDir.create("toy", folder)
        self.events = []
        self.after = {0: copy_of(self.model)}  # weights after each step

    def fit(self, *, best_by="accuracy", times_per_epoch=1, rate_scales=None, unfreeze_at=None, **train):
        defaults = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "precision": "fp32"}
        section = Train.model_validate(defaults | train)
        evaluation = Evaluation.model_validate({"best_by": best_by, "times_per_epoch": times_per_epoch})
        self.accelerator = make_accelerator(section.precision)
        return fit(
            self.task,
            TunedModel(self.model, rate_scales or {}, unfreeze_at or {}),
            train=section,
            evaluation=evaluation,
            accelerator=self.accelerator,
            run=self.run,
            emit=self.listen,
            strategy=self.strategy,
        )

    def listen(self, event):
        self.events.append(event)
        if isinstance(event, StepDone):
            self.after[event.step] = copy_of(self.model)

    def told(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def weights(self):
        return copy_of(self.model)


class Attempt(Bench):
    """One process that works on a run, and remembers nothing of those before."""

    def __init__(self, folder, task=None, model=None):
        self.task = task or ToyTask()
        self.model = model or toy_model()
        self.run = RunDir(folder)
        folder.mkdir(exist_ok=True, parents=True)
        self.events = []
        self.after = {0: copy_of(self.model)}

    def listen(self, event):
        super().listen(event)
        record_event(self.run, event)


def stop_after(step, by=signal.SIGTERM):
    """Send a signal while the weights of this step are told, which is before its evaluation."""

    def listen(event):
        if isinstance(event, StepDone) and event.step == step:
            os.kill(os.getpid(), by)

    return listen


def toy_model(dropout=0.0, batch_norm=False):
    torch.manual_seed(3)
    layers = [("body", nn.Linear(FEATURES, 8)), ("activation", nn.Tanh()), ("dropout", nn.Dropout(dropout))]
    norm = [("norm", nn.BatchNorm1d(8))] if batch_norm else []
    return nn.Sequential(OrderedDict([*layers, *norm, ("head", nn.Linear(8, CLASSES))]))


def copy_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def assert_close(left, right):
    torch.testing.assert_close(dict(left), dict(right), rtol=0, atol=1e-6)


def differ(left, right):
    return any(not torch.equal(left[name], right[name]) for name in left)


def flat(batches):
    return list(chain.from_iterable(batches))
