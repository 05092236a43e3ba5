"""THE training loop, over Accelerate. Knows no task.

What must not depend on history is computed from the recipe: the order of the data from (seed, epoch), dropout from
(seed, step, process, micro-step), the learning rate from the step. The update is the mean over all examples of an
optimizer step, however they are spread over micro-batches and processes: each process sums the gradients of its share,
then the sums are added up once. That is exact for any shares, empty ones too, whatever is trainable in the step.
"""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Batch, Emit, Evaluated, Learner, Message, StepDone
from hftoolkit.errors import DataError, RecipeError, TrainingError
from hftoolkit.metrics.statistics import is_better_by
from hftoolkit.models.tuning import TunedModel, batch_norms, frozen_statistics
from hftoolkit.recipe import Evaluation, Train
from hftoolkit.runs.checkpoint import Checkpoint
from hftoolkit.runs.directory import RunDir
from hftoolkit.runs.lifecycle import truncate_log
from hftoolkit.seeding import seed_torch
from hftoolkit.train.batches import StepData, TrainBatches, evaluation_steps
from hftoolkit.train.devices import (
    Accelerator,
    free_cached_memory,
    is_out_of_memory,
    num_rows,
    peak_memory_bytes,
    to_device,
)
from hftoolkit.train.distributed.collectives import all_reduce_sum, is_main, num_processes, process_index
from hftoolkit.train.distributed.strategy import WHOLE, Strategy
from hftoolkit.train.inference import Inference, StopRequested
from hftoolkit.train.optim import build_optimizer, rate_factor, set_rate
from hftoolkit.train.signals import deferred_signals, interrupted
from hftoolkit.train.speedups import speedups
from hftoolkit.train.state import Checkpointer, FitResult, TrainState
from hftoolkit.train.tracking import tracked
from hftoolkit.train.weights import Weights


def fit(
    learner: Learner,
    tuned: TunedModel,
    *,
    train: Train,
    evaluation: Evaluation,
    accelerator: Accelerator,
    run: RunDir,
    emit: Emit,
    strategy: Strategy = WHOLE,
) -> FitResult:
    """Train a model and leave the best weights in it; resume from the newest checkpoint if the run has any.

    Args:
        learner: data, loss and metrics.
        tuned: the model, and which of its parameters are trained when and how fast.
        train: the optimization.
        evaluation: when to evaluate, and the metric that chooses the best weights.
        accelerator: device and precision.
        run: gets checkpoints and the files of the trackers.
        emit: gets every step, evaluation and message.
        strategy: how the model lies in the ranks.

    Raises:
        RecipeError: the metric that chooses the best weights cannot be computed on the validation split.
        DataError: the run has checkpoints, and all are damaged.
        EnvironmentFault: the disk has no room for what the run will write; or a process of a sharded model ended.
        TrainingError: a loss or gradient is not finite, and nothing was updated with it; or memory does not suffice
            for a single example.
        Interrupted: SIGINT or SIGTERM arrived; the state after the last step is in the run's checkpoints.
    """
    _check_metric(learner, evaluation.best_by)
    with ExitStack() as stack:
        listen = stack.enter_context(tracked(train.trackers if is_main() else (), run, emit))
        loop = _Loop(learner, tuned, train, evaluation, accelerator, run.checkpoints, listen, strategy)
        stack.enter_context(strategy.clear_errors())
        if sentence := strategy.describe(loop.model):
            listen(Message(sentence))
        if train.speedups == "auto" and not strategy.is_sharded:
            # Before the weights come back, so that a resumed run finds out what the uninterrupted one did.
            stack.enter_context(speedups(tuned.model, loop.logits_of_some, accelerator.device))
        stack.callback(loop.unfreeze, math.inf)  # the model is given back with all its trained parameters trainable
        loop.resume(run)
        # A launcher may pass on what its processes got already.
        loop.received = stack.enter_context(deferred_signals(second_stops=num_processes() == 1))
        loop.after_step()  # what an interrupt left out of the last one
        for data in loop.steps():
            if loop.is_patience_over():
                emit(Message(f"stopped early: {train.early_stopping_patience} evaluations without a better one"))
                break
            loop.train_step(data)
            loop.after_step()
    return loop.finish()


def one_step(
    learner: Learner,
    tuned: TunedModel,
    *,
    train: Train,
    evaluation: Evaluation,
    accelerator: Accelerator,
    strategy: Strategy = WHOLE,
) -> float:
    """Run one real optimizer step, write nothing, and return its loss (mean over the examples)."""
    losses: list[float] = []

    def listen(event: object) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    _check_metric(learner, evaluation.best_by)
    # All layers at once, which takes the most memory of all steps.
    at_once = TunedModel(tuned.model, tuned.rate_scales)
    loop = _Loop(learner, at_once, train, evaluation, accelerator, Path(), listen, strategy)
    steps = loop.steps()
    with strategy.clear_errors():
        while not losses:  # where memory runs out, the step comes again
            loop.train_step(next(steps))
    return losses[0]


@dataclass(slots=True)
class _Loop:
    """One training run on its way."""

    learner: Learner
    tuned: TunedModel
    train: Train
    evaluation: Evaluation
    accelerator: Accelerator
    checkpoints: Path
    emit: Emit
    strategy: Strategy
    received: Sequence[int] = ()  # signals
    mark: float = 0.0  # clock at the end of the last step, evaluation or save
    best: Checkpoint | None = None
    progress: TrainState = field(init=False)
    batches: TrainBatches = field(init=False)
    optimizer: Any = field(init=False)
    weights: Weights = field(init=False)
    frozen_statistics: list[nn.Module] = field(init=False)  # modules that stay in eval mode
    checkpointer: Checkpointer = field(init=False)

    def __post_init__(self) -> None:
        if self.strategy.is_sharded and self.accelerator.scaler is not None:
            what = f"auto is fp16 on this device, which does not work with {self.strategy.name}; use fp32"
            raise RecipeError(f"train.precision: {what}")
        size, share = self.train.micro_batch_size, math.ceil(self.train.batch_size / num_processes())
        size = size if isinstance(size, int) else share
        divided_by = self.strategy.name if self.strategy.is_sharded else None
        self.progress = TrainState(self.train.epochs, size, num_processes(), divided_by)
        self.batches = TrainBatches(self.learner, self.train, equal_micro_batches=self.strategy.is_sharded)
        self.weights = Weights.of(
            self.tuned.model, self.accelerator.device, ema_decay=self.train.ema_decay, strategy=self.strategy
        )
        self.frozen_statistics = frozen_statistics(self.model)
        last_joins = max(self.tuned.unfreeze_at.values(), default=0.0)
        if last_joins * self.batches.steps_per_epoch > self.total_steps - 1:
            raise RecipeError(
                f"tuning.unfreeze_epochs: the lowest layer would join after the last of {self.total_steps} steps; "
                f"at most {(self.total_steps - 1) / self.batches.steps_per_epoch:.3g} epochs are possible here"
            )
        optimizer = build_optimizer(
            dict(self.model.named_parameters()),
            self.tuned.rate_scales,
            learning_rate=self.train.learning_rate,
            weight_decay=self.train.weight_decay,
        )
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.checkpointer = Checkpointer(
            self.checkpoints,
            self.weights,
            self.optimizer,
            self.accelerator.scaler,
            self.train.checkpoint_every,
            self.accelerator.device,
        )

    @property
    def model(self) -> nn.Module:
        return self.weights.model

    @property
    def total_steps(self) -> int:
        return self.batches.steps_per_epoch * self.train.epochs

    @property
    def kept_weights(self) -> str:
        return f"the best weights so far are in {self.best.path}" if self.best else "no weights were kept yet"

    def resume(self, run: RunDir) -> None:
        """Bring back the newest checkpoint of the run, if it has any, and forget what the log has after it."""
        restored = self.checkpointer.restore(lambda sentence: self.emit(Message(sentence, "warning")))
        if restored is not None:
            fresh, (self.progress, self.best) = self.progress, restored
            for message in self.progress.adapt_to(fresh, self.total_steps):
                self.emit(message)
        if is_main():
            truncate_log(run, self.progress.step)
        if restored is None and self.train.micro_batch_size == "auto":
            self.measure_micro_batch()

    def measure_micro_batch(self) -> None:
        """Find out how many of the longest examples memory holds beside the optimizer's moments; learn nothing."""
        statistics = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        moments = [
            torch.empty(2, *p.shape, device=p.device)
            for name, p in self.model.named_parameters()
            if name in self.weights.trained
        ]
        while True:
            *_, is_failure = self._backward([self.batches.longest(self.progress.micro_batch_size)])
            if all_reduce_sum([is_failure], self.accelerator.device) == [0.0]:
                break
            self._halve_micro_batches()
        del moments
        self.optimizer.zero_grad()
        for buffer, before in statistics:
            buffer.copy_(before)
        self.emit(Message(f"micro-batches of {self.progress.micro_batch_size} examples fit into memory"))

    def steps(self) -> Iterator[StepData]:
        """Yield the data of each optimizer step that is left; again, in smaller micro-batches, where memory ran out."""
        self.mark = time.perf_counter()
        while self.progress.step < self.total_steps:
            size = self.progress.micro_batch_size
            for data in self.batches.steps(*divmod(self.progress.step, self.batches.steps_per_epoch), size):
                yield data
                if self.progress.micro_batch_size != size:
                    break

    def train_step(self, data: StepData) -> None:
        """Update the weights once, by the mean gradient over all examples of the step.

        If memory runs out in any process, nothing is updated, and from then on micro-batches are half as large.
        """
        mine = self._backward(data.micro_batches, data.num_padding)
        loss_sum, weight, num_examples, failures = all_reduce_sum(mine, self.accelerator.device)
        if failures:
            self._halve_micro_batches()
            return
        if weight == 0:
            raise DataError(
                f"step {self.progress.step + 1} has nothing to learn from; rows {self.batches.name_rows(data.indices)}"
            )
        loss = loss_sum / weight
        warmup = round(self.train.warmup_ratio * self.total_steps)
        factor = rate_factor(
            self.progress.step, total_steps=self.total_steps, warmup_steps=warmup, schedule=self.train.schedule
        )
        rate = set_rate(self.optimizer, factor)
        max_norm = self.train.max_gradient_norm
        gradient_norm = self.weights.clip_to_mean(self.optimizer, self.accelerator, weight, max_norm)
        self._check_finite(loss, gradient_norm, data.indices)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights.finish_update(self.frozen_statistics)
        done, now = self.progress, time.perf_counter()
        done.step += 1
        done.examples += round(num_examples)
        done.seconds, self.mark = done.seconds + now - self.mark, now
        self.emit(StepDone(done.step, self.total_steps, loss, gradient_norm, rate, done.examples / done.seconds))

    def _backward(self, micro_batches: list[Batch], num_padding: int = 0) -> tuple[float, float, int, bool]:
        """Add up gradients; return the sums of losses, weights and examples, and whether memory ran out.

        Batch norms use their running statistics for a micro-batch of one row, which has none of its own.

        Args:
            micro_batches: of this process.
            num_padding: so many of the last go through the model as padding, and count for nothing.
        """
        if self.tuned.unfreeze_at:
            self.unfreeze(self.progress.step / self.batches.steps_per_epoch)
        self.model.train()
        for module in self.frozen_statistics:
            module.eval()
        losses: list[torch.Tensor] = []  # read once a step: each reading waits for the device
        weight, num_examples = 0.0, 0
        try:
            for micro_step, batch in enumerate(micro_batches):
                counts = micro_step < len(micro_batches) - num_padding
                if num_rows(batch) == 1:
                    for module in batch_norms(self.model):
                        module.eval()
                seed_torch("step", self.train.seed, self.progress.step, process_index(), micro_step)
                with self.accelerator.autocast():
                    output = self.learner.loss(self.model, to_device(batch, self.accelerator.device))
                self.accelerator.backward(output.loss_sum * counts)
                losses.append(output.loss_sum.detach() * counts)
                weight += output.weight * counts
                num_examples += output.num_examples * counts
            loss_sum = sum(torch.stack(losses).tolist()) if losses else 0.0
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self.strategy.is_sharded:
                raise
            return 0.0, 0.0, 0, True
        return loss_sum, weight, num_examples, False

    def _halve_micro_batches(self) -> None:
        self.optimizer.zero_grad()
        free_cached_memory(self.accelerator.device)
        step, size = self.progress.step + 1, self.progress.micro_batch_size
        if size == 1:
            raise TrainingError(
                f"step {step}: out of memory with a single example, {self.kept_weights}. A shorter model.max_length or "
                "smaller model.image_size needs less, and so does model.gradient_checkpointing: true, which costs time"
            )
        self.progress.micro_batch_size = size // 2
        text = f"step {step}: out of memory; from now on micro-batches of {size // 2} instead of {size} examples"
        self.emit(Message(f"{text}, and more of them", "warning"))

    def logits_of_some(self) -> torch.Tensor:
        """Return the first output of the model, in its present mode, for a few rows of the training split."""
        batch = self.batches.batch(range(min(4, len(self.batches.examples))))
        outputs = self.learner.forward(self.model, to_device(batch, self.accelerator.device))
        return next(iter(outputs.values())).float()

    def unfreeze(self, epoch: float) -> None:
        """Make those parameters trainable whose epoch has come, and freeze those whose epoch has not."""
        for name, parameter in self.model.named_parameters():
            if name in self.weights.trained:
                parameter.requires_grad = self.tuned.unfreeze_at.get(name, 0.0) <= epoch
        self.frozen_statistics = frozen_statistics(self.model)

    def _check_finite(self, loss: float, gradient_norm: float, indices: np.ndarray) -> None:
        skips_overflows = self.accelerator.scaler is not None  # fp16: the scaler drops such a step and tries smaller
        if math.isfinite(loss) and (math.isfinite(gradient_norm) or skips_overflows):
            return
        raise TrainingError(
            f"step {self.progress.step + 1}: loss {loss}, gradient norm {gradient_norm}; stopped before the update, "
            f"{self.kept_weights}. A lower train.learning_rate or train.precision: fp32 usually helps; otherwise look "
            f"at the rows of the step: {self.batches.name_rows(indices)}"
        )

    def after_step(self) -> None:
        """Evaluate and save if that is due after the last step; obey a signal once the state is on disk."""
        signal_number, is_save_due = self._agree()
        if self.is_evaluation_due() and not signal_number:
            if self.evaluate():
                is_save_due = True
            else:
                signal_number, is_save_due = self._agree()
        if is_save_due:
            self.checkpointer.save(self.progress, self.best)
            self.mark = time.perf_counter()
        if signal_number:
            raise interrupted(signal_number, self.progress.step)

    def _agree(self) -> tuple[int, bool]:
        """Return the signal that any process got, 0 for none, and whether any wants the state saved."""
        first = self.received[0] if self.received else 0
        flags = [first == number for number in (signal.SIGINT, signal.SIGTERM)]
        flags.append(self.checkpointer.is_due(self.progress.step, now=first != 0))
        interrupts, terminations, wishes = all_reduce_sum(flags, self.accelerator.device)
        return signal.SIGTERM if terminations else signal.SIGINT if interrupts else 0, wishes > 0

    def is_evaluation_due(self) -> bool:
        step = self.progress.step
        position = (step - 1) % self.batches.steps_per_epoch + 1
        due = position in evaluation_steps(self.batches.steps_per_epoch, self.evaluation.times_per_epoch)
        return due and step > self.progress.evaluated_at

    def is_patience_over(self) -> bool:
        patience = self.train.early_stopping_patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def evaluate(self) -> bool:
        """Evaluate on the validation split and keep the weights if they are the best so far.

        Return False if a signal arrived meanwhile; then nothing was kept.
        """
        infer = Inference(self.learner, self.accelerator, self.emit, self.received)
        name, done = self.evaluation.best_by, self.progress
        with self.weights.materialized() as model:
            try:
                metrics = self.learner.evaluate(model, infer)
            except StopRequested:
                return False
            lower = name in self.evaluation.lower_is_better
            better = self.best is None or is_better_by(name, metrics, self.best.metrics, lower=lower)
            if better:
                self.best = self.checkpointer.save_best(model, done.step, metrics)
        done.evaluated_at = done.step
        done.evaluations_since_best = 0 if better else done.evaluations_since_best + 1
        self.emit(Evaluated(done.step, metrics, is_best=better))
        return True

    def finish(self) -> FitResult:
        """Put the best weights into the model and report."""
        assert self.best is not None  # the last step of an epoch is always evaluated
        self.checkpointer.load_best(self.best)
        return FitResult(self.progress, self.best, peak_memory_bytes(self.accelerator.device))


def _check_metric(learner: Learner, name: str) -> None:
    available = learner.metric_names()
    if name not in available:
        raise RecipeError(
            f"evaluation.best_by: {name} cannot be computed on this validation split "
            f"(possible: {', '.join(sorted(available))})"
        )
