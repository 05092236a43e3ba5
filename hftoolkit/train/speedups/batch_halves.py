"""The two halves of a batch in a thread each, forward and backward, on CPUs.

The usual way divides every single operation between the cores, and waits for the slower one after each: where other
work takes a part of one core now and then, that waiting adds up. Two halves meet twice a step.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hftoolkit.models.tuning import batch_norms

# Largest difference of logits and gradients, in fp32, between a whole batch and its halves.
TOLERANCE = 1e-4
Gradients = tuple[torch.Tensor | None, ...]


@contextmanager
def batch_halves_in_threads(model: nn.Module, logits: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Inside, training computes the halves of a batch side by side, if the model treats each row by itself.

    The gradient of each half is complete before the two are added up, so the result does not depend on which thread
    is faster. Models with batch norms or dropout, and processes with a single thread, are left as they are: the former
    mix rows, and random numbers would come in any order.

    Args:
        model: on a CPU; what it is called with has rows as the first dimension of each tensor.
        logits: runs the model, in its present mode, on a few real examples, (B, C) float32.
    """
    threads = torch.get_num_threads()
    if threads < 2 or batch_norms(model) or _is_random(model, logits):
        yield
        return
    with ThreadPoolExecutor(2, initializer=lambda: torch.set_num_threads(threads // 2)) as pool:
        try:
            halves = _Halves(model, pool)
            if not _agree(model, logits, halves):
                yield
                return
            with halves.in_place():
                yield
        finally:
            torch.set_num_threads(threads)  # what a thread sets is also the default of those that begin later


class _Halves:
    """Stands in for the ``forward`` of a model."""

    def __init__(self, model: nn.Module, pool: ThreadPoolExecutor) -> None:
        self._model, self._whole, self._pool = model, model.forward, pool

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model is called this way."""
        self._model.forward = self
        try:
            yield
        finally:
            self._model.forward = self._whole

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """Return what the model gives for all rows; of an output of several tensors, the logits alone."""
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        if not torch.is_grad_enabled() or not parameters or len(next(iter(inputs.values()))) < 2:
            return self._whole(**inputs)
        kind: list[Any] = []
        autocast = torch.autocast(
            "cpu",
            dtype=torch.get_autocast_dtype("cpu"),
            enabled=torch.is_autocast_enabled("cpu"),
            cache_enabled=False,  # the cache of casts is one for all threads
        )

        def run(half: int) -> torch.Tensor:
            rows = {name: tensor.chunk(2)[half] for name, tensor in inputs.items()}
            with torch.enable_grad(), autocast:
                output = self._whole(**rows)
            kind.append(output)
            return _logits(output)

        joined = _Joined.apply(self._pool, run, *parameters)
        return joined if isinstance(kind[0], torch.Tensor) else type(kind[0])(logits=joined)


class _Joined(torch.autograd.Function):
    """Both halves of a batch as one operation on the parameters."""

    @staticmethod
    def forward(ctx: Any, pool: ThreadPoolExecutor, run: Callable[[int], torch.Tensor], *parameters: Any) -> Any:
        """Return the logits of both halves, (B, C)."""
        ctx.pool, ctx.parameters = pool, parameters
        ctx.outputs = list(pool.map(run, range(2)))
        return torch.cat([output.detach() for output in ctx.outputs])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradient of each parameter."""
        outputs, ctx.outputs = ctx.outputs, None  # the graphs are free as soon as they were used
        pieces = gradients[0].split([len(output) for output in outputs])

        def run(output: torch.Tensor, piece: torch.Tensor) -> Gradients:
            slopes: Gradients = torch.autograd.grad(output, ctx.parameters, piece, allow_unused=True)
            return slopes

        return None, None, *map(_add, *ctx.pool.map(run, outputs, pieces))


def _add(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None:  # the output of that half does not depend on the parameter
        return second if first is None else first
    if first.is_sparse:
        indices = torch.cat([first._indices(), second._indices()], dim=1)
        values = torch.cat([first._values(), second._values()])
        return torch.sparse_coo_tensor(indices, values, first.shape, check_invariants=False)
    return first + second


def _logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits


def _is_random(model: nn.Module, logits: Callable[[], torch.Tensor]) -> bool:
    """Return whether the model draws random numbers in training, as dropout does."""
    training, before = model.training, torch.get_rng_state()
    model.train()
    try:
        with torch.no_grad():
            logits()
        return not torch.equal(before, torch.get_rng_state())
    finally:
        model.train(training)
        torch.set_rng_state(before)


def _agree(model: nn.Module, logits: Callable[[], torch.Tensor], halves: _Halves) -> bool:
    """Return whether the halves give the logits and gradients of the whole."""
    parameters: Sequence[Any] = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients() -> list[torch.Tensor]:
        found = logits()
        weights = torch.linspace(0.5, 1, found.numel()).reshape(found.shape)
        slopes = torch.autograd.grad((found * weights).sum(), parameters, allow_unused=True)
        return [found.detach(), *(slope.to_dense() for slope in slopes if slope is not None)]

    try:
        whole = gradients()
        with halves.in_place():
            divided = gradients()
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError):  # it takes or gives other things
        return False
    return len(whole) == len(divided) and all(
        torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in zip(whole, divided, strict=True)
    )
