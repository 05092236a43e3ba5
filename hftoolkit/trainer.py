"""THE training loop, over Accelerate. Knows no task.

What must not depend on history is computed from the recipe: the order of the data from (seed, epoch), dropout from
(seed, step, process, micro-step), the learning rate from the step. The update is the mean over all examples of an
optimizer step, however they are spread over micro-batches and processes.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hftoolkit.batching import epoch_plan, evaluation_steps
from hftoolkit.checkpoint import Checkpoint
from hftoolkit.contracts import Batch, Emit, Evaluated, Message, Rows, StepDone, Task
from hftoolkit.cpu import faster_steps
from hftoolkit.devices import Accelerator, make_loader, peak_memory_bytes, to_device
from hftoolkit.errors import RecipeError, TrainingError
from hftoolkit.inference import Inference
from hftoolkit.interrupts import deferred_signals, interrupted
from hftoolkit.metrics import is_better
from hftoolkit.models.first_position import first_position_only
from hftoolkit.models.tuning import TunedModel, batch_norms, frozen_statistics
from hftoolkit.optim import build_optimizer, rate_factor, set_rate
from hftoolkit.recipe import Evaluation, Train
from hftoolkit.rundir import RunDir
from hftoolkit.seeding import seed_torch
from hftoolkit.snapshot import Progress, Snapshots
from hftoolkit.tracking import tracked

ROWS_NAMED = 10  # of a step whose loss is not finite


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the loop did. The model it was given now has the best weights."""

    progress: Progress
    best: Checkpoint
    peak_memory_bytes: int  # of the device; of the whole process on CPUs


def fit(
    task: Task,
    tuned: TunedModel,
    *,
    train: Train,
    evaluation: Evaluation,
    accelerator: Accelerator,
    run: RunDir,
    emit: Emit,
) -> Fitted:
    """Train a model and leave the best weights in it; go on from the newest checkpoint if the run has any.

    Args:
        task: data, loss and metrics.
        tuned: the model, and which of its parameters are trained when and how fast.
        train: the optimization.
        evaluation: when to evaluate, and the metric that chooses the best weights.
        accelerator: device and precision.
        run: gets checkpoints and the files of the trackers.
        emit: gets every step, evaluation and message.

    Raises:
        RecipeError: the metric that chooses the best weights cannot be computed on the validation split.
        DataError: the run has checkpoints, and all are damaged.
        TrainingError: a loss or gradient is not finite, and nothing was updated with it; or memory ran out.
        Interrupted: SIGINT or SIGTERM arrived; the state after the last step is in the run's checkpoints.
    """
    _check_metric(task, evaluation.best_by)
    with ExitStack() as stack:
        listen = stack.enter_context(tracked(train.trackers, run, emit))
        loop = _Loop(task, tuned, train, evaluation, accelerator, run.checkpoints, listen)
        if accelerator.device.type == "cpu" and accelerator.num_processes == 1:  # DDP wants dense gradients
            stack.enter_context(faster_steps(tuned.model))
        # Before the weights come back, so that a resumed run finds out what the uninterrupted one did.
        stack.enter_context(first_position_only(tuned.model, loop.logits_of_some))
        stack.callback(loop.unfreeze, math.inf)  # the model is given back with all its trained parameters trainable
        loop.resume(run)
        received = stack.enter_context(deferred_signals())
        stack.enter_context(_memory_watched(loop))
        loop.conclude_step(received)  # what an interrupt left out of the last one
        for data in loop.steps():
            if loop.is_patience_over():
                emit(Message(f"stopped early: {train.early_stopping_patience} evaluations without a better one"))
                break
            loop.train_step(data)
            loop.conclude_step(received)
    return loop.finish()


def one_step(task: Task, tuned: TunedModel, *, train: Train, evaluation: Evaluation, accelerator: Accelerator) -> float:
    """Run one real optimizer step, write nothing, and return its loss (mean over the examples)."""
    losses: list[float] = []

    def listen(event: object) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    _check_metric(task, evaluation.best_by)
    # All layers at once, which takes the most memory of all steps.
    at_once = TunedModel(tuned.model, tuned.rate_scales)
    loop = _Loop(task, at_once, train, evaluation, accelerator, Path(), listen)
    loop.train_step(next(loop.steps()))
    return losses[0]


class StepData(NamedTuple):
    """What one optimizer step learns from."""

    indices: np.ndarray  # (N,) of all its examples
    micro_batches: list[Batch]


@dataclass(slots=True)
class _Loop:
    """One training run on its way."""

    task: Task
    tuned: TunedModel
    train: Train
    evaluation: Evaluation
    accelerator: Accelerator
    checkpoints: Path
    emit: Emit
    mark: float = 0.0  # clock at the end of the last step, evaluation or save
    best: Checkpoint | None = None
    progress: Progress = field(init=False)
    rows: Rows = field(init=False)
    steps_per_epoch: int = field(init=False)
    optimizer: Any = field(init=False)
    trained: frozenset[str] = field(init=False)  # names of the parameters that the run trains, some from later on
    frozen_statistics: list[nn.Module] = field(init=False)  # modules that stay in eval mode
    average: AveragedModel | None = field(init=False, default=None)
    snapshots: Snapshots = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(self.train.epochs, self.train.micro_batch_size or self.train.batch_size)
        self.rows = self.task.datasets().splits["train"]
        self.steps_per_epoch = math.ceil(len(self.rows) / self.train.batch_size)
        self.model.to(self.accelerator.device)
        self.frozen_statistics = frozen_statistics(self.model)
        self.trained = frozenset(name for name, p in self.model.named_parameters() if p.requires_grad)
        last_joins = max(self.tuned.unfreeze_at.values(), default=0.0)
        if last_joins * self.steps_per_epoch > self.total_steps - 1:
            raise RecipeError(
                f"tuning.unfreeze_epochs: the lowest layer would join after the last of {self.total_steps} steps; "
                f"at most {(self.total_steps - 1) / self.steps_per_epoch:.3g} epochs are possible here"
            )
        optimizer = build_optimizer(
            dict(self.model.named_parameters()),
            self.tuned.rate_scales,
            learning_rate=self.train.learning_rate,
            weight_decay=self.train.weight_decay,
        )
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        if self.train.ema_decay is not None:
            average = get_ema_multi_avg_fn(self.train.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.model, multi_avg_fn=average)
        self.snapshots = Snapshots(
            self.checkpoints,
            self.model,
            self.trained,
            self.optimizer,
            self.average,
            self.accelerator.scaler,
            self.train.checkpoint_every,
        )

    @property
    def model(self) -> nn.Module:
        return self.tuned.model

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.train.epochs

    @property
    def weights_to_judge(self) -> nn.Module:
        """The model, or its moving average where there is one: what is evaluated and kept."""
        return self.model if self.average is None else self.average.module

    @property
    def kept_weights(self) -> str:
        return f"the best weights so far are in {self.best.path}" if self.best else "no weights were kept yet"

    def resume(self, run: RunDir) -> None:
        """Bring back the newest checkpoint of the run, if it has any, and forget what the log has after it."""
        restored = self.snapshots.restore(lambda sentence: self.emit(Message(sentence, "warning")))
        if restored is None:
            run.forget_after(0)
            return
        self.progress, self.best = restored
        step, before, now = self.progress.step, self.progress.epochs, self.train.epochs
        run.forget_after(step)
        self.emit(Message(f"resumed after step {step} of {self.total_steps}"))
        if before != now:
            self.progress.epochs, self.progress.evaluations_since_best = now, 0
            self.progress.extensions.append((step, before, now))
            self.emit(
                Message(
                    f"extended from {before} to {now} epochs: from here on the learning rate is that of a run of "
                    f"{now} epochs at this step"
                )
            )

    def steps(self) -> Iterator[StepData]:
        """Yield the data of each optimizer step that is left."""
        self.mark = time.perf_counter()
        while self.progress.step < self.total_steps:
            yield from self.steps_of(*divmod(self.progress.step, self.steps_per_epoch))

    def steps_of(self, epoch: int, first: int) -> Iterator[StepData]:
        """Yield the data of the optimizer steps of an epoch, from the ``first`` on."""
        plan = epoch_plan(
            len(self.rows),
            batch_size=self.train.batch_size,
            seed=self.train.seed,
            epoch=epoch,
            lengths=self.rows.lengths if self.train.length_buckets else None,
            weights=self.rows.sampling_weights,
        )[first:]
        size = self.progress.micro_batch_size
        split = [[step[start : start + size] for start in range(0, len(step), size)] for step in plan]
        flat = [micro for step in split for micro in step]
        batches = iter(make_loader(self.rows, flat, self.task.datasets().collate, workers=self.train.num_workers))
        for indices, step in zip(plan, split, strict=True):
            yield StepData(indices, [next(batches) for _ in step])

    def train_step(self, data: StepData) -> None:
        """Update the weights once, by the mean gradient over all examples of the micro-batches.

        Batch norms use their running statistics for a micro-batch of one row, which has none of its own.
        """
        if self.tuned.unfreeze_at:
            self.unfreeze(self.progress.step / self.steps_per_epoch)
        self.model.train()
        for module in self.frozen_statistics:
            module.eval()
        loss_sum, num_examples = 0.0, 0
        for micro_step, batch in enumerate(data.micro_batches):
            if len(next(iter(batch.values()))) == 1:
                for module in batch_norms(self.model):
                    module.eval()
            seed_torch("step", self.train.seed, self.progress.step, self.accelerator.process_index, micro_step)
            with self.accelerator.autocast():
                output = self.task.step(self.model, to_device(batch, self.accelerator.device))
            self.accelerator.backward(output.loss_sum)
            loss_sum += output.loss_sum.item()
            num_examples += output.num_examples
        loss = loss_sum / num_examples
        rate = set_rate(self.optimizer, self._rate_factor())
        gradient_norm = self._clip(num_examples)
        self._check_finite(loss, gradient_norm, data.indices)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        done = self.progress
        done.step += 1
        done.examples += num_examples
        now = time.perf_counter()
        done.seconds, self.mark = done.seconds + now - self.mark, now
        self.emit(StepDone(done.step, self.total_steps, loss, gradient_norm, rate, done.examples / done.seconds))

    def logits_of_some(self) -> torch.Tensor:
        """Return the output of the model, in its present mode, for a few rows of the training split."""
        batch = self.task.datasets().collate([self.rows.examples[index] for index in range(min(4, len(self.rows)))])
        return self.task.predict_step(self.model, to_device(batch, self.accelerator.device)).float()

    def unfreeze(self, epoch: float) -> None:
        """Make those parameters trainable whose epoch has come, and freeze those whose epoch has not."""
        for name, parameter in self.model.named_parameters():
            if name in self.trained:
                parameter.requires_grad = self.tuned.unfreeze_at.get(name, 0.0) <= epoch
        self.frozen_statistics = frozen_statistics(self.model)

    def _rate_factor(self) -> float:
        return rate_factor(
            self.progress.step,
            total_steps=self.total_steps,
            warmup_steps=round(self.train.warmup_ratio * self.total_steps),
            schedule=self.train.schedule,
        )

    def _clip(self, num_examples: int) -> float:
        """Turn summed gradients into their mean, clip them, and return their norm before clipping."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        self.accelerator.unscale_gradients(self.optimizer)
        # DDP averages over processes what is a sum over examples; the world size undoes that.
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, self.accelerator.num_processes / num_examples)
        return float(nn.utils.clip_grad_norm_(parameters, self.train.max_gradient_norm))

    def _check_finite(self, loss: float, gradient_norm: float, indices: np.ndarray) -> None:
        skips_overflows = self.accelerator.scaler is not None  # fp16: the scaler drops such a step and tries smaller
        if math.isfinite(loss) and (math.isfinite(gradient_norm) or skips_overflows):
            return
        rows = self.rows.row_numbers[indices]
        shown = ", ".join(map(str, rows[:ROWS_NAMED])) + (", ..." if len(rows) > ROWS_NAMED else "")
        raise TrainingError(
            f"step {self.progress.step + 1}: loss {loss}, gradient norm {gradient_norm}; stopped before the update, "
            f"{self.kept_weights}. A lower train.learning_rate or train.precision: fp32 usually helps; otherwise look "
            f"at the rows of the step: {shown}"
        )

    def conclude_step(self, received: Sequence[int]) -> None:
        """Evaluate and save if that is due after the last step; obey a signal once the state is on disk."""
        if evaluates := self.is_evaluation_due() and not received:
            self.evaluate()
        if evaluates or self.snapshots.is_due(self.progress.step, now=bool(received)):
            self.snapshots.save(self.progress, self.best)
            self.mark = time.perf_counter()
        if received:
            raise interrupted(received[0], self.progress.step)

    def is_evaluation_due(self) -> bool:
        step = self.progress.step
        position = (step - 1) % self.steps_per_epoch + 1
        due = position in evaluation_steps(self.steps_per_epoch, self.evaluation.times_per_epoch)
        return due and step > self.progress.evaluated_at

    def is_patience_over(self) -> bool:
        patience = self.train.early_stopping_patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def evaluate(self) -> None:
        """Evaluate on the validation split and keep the weights if they are the best so far."""
        infer = Inference(self.task, self.accelerator)
        metrics = self.task.evaluate(self.weights_to_judge, infer, "validation")
        name, done = self.evaluation.best_by, self.progress
        better = self.best is None or is_better(name, metrics[name], self.best.metrics[name])
        if better:
            self.best = self.snapshots.save_best(self.weights_to_judge, done.step, metrics)
        done.evaluated_at = done.step
        done.evaluations_since_best = 0 if better else done.evaluations_since_best + 1
        self.emit(Evaluated(done.step, metrics, is_best=better))

    def finish(self) -> Fitted:
        """Put the best weights into the model and report."""
        assert self.best is not None  # the last step of an epoch is always evaluated
        self.snapshots.load_best(self.best)
        return Fitted(self.progress, self.best, peak_memory_bytes(self.accelerator.device))


def _check_metric(task: Task, name: str) -> None:
    available = task.metric_names("validation")
    if name not in available:
        raise RecipeError(
            f"evaluation.best_by: {name} cannot be computed on this validation split "
            f"(possible: {', '.join(sorted(available))})"
        )


@contextmanager
def _memory_watched(loop: _Loop) -> Iterator[None]:
    """Say what to change when memory runs out. On a CPU, PyTorch tells that by the words of the message alone."""
    try:
        yield
    except RuntimeError as error:
        words = ("not enough memory", "can't allocate memory")
        if not isinstance(error, torch.OutOfMemoryError) and not any(word in str(error) for word in words):
            raise
        raise TrainingError(
            f"step {loop.progress.step + 1}: out of memory, {loop.kept_weights}. A train.micro_batch_size below "
            f"{loop.progress.micro_batch_size} needs less and trains the same; "
            "so do a shorter model.max_length and model.gradient_checkpointing: true, which cost something"
        ) from error
