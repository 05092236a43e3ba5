"""Which examples form which batch: pure functions of the seed and the epoch, so that any step can be found again."""

import numpy as np

from hftoolkit.seeding import numpy_generator

# Batches sorted by length at a time: large enough that texts in a batch are alike, small enough to stay random.
BUCKET_BATCHES = 64


def epoch_plan(
    num_examples: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    lengths: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return the example indices of each optimizer step of an epoch.

    Args:
        num_examples: N; the batches hold N indices together, and only one batch may be short.
        batch_size: examples of an optimizer step, over all processes.
        seed: ``train.seed``.
        epoch: 0 for the first.
        lengths: (N,) tokens; examples of similar length then share a batch.
        weights: (N,) relative frequencies; an index then occurs as often as its share of N says, rounded up or down
            by chance, instead of once.
    """
    generator = numpy_generator("order", seed, epoch)
    if weights is None:
        order = generator.permutation(num_examples)
    else:
        order = generator.permutation(_resampled(weights, generator))
    if lengths is None:
        return _cut(order, batch_size)
    batches: list[np.ndarray] = []
    for pool in _cut(order, batch_size * BUCKET_BATCHES):
        batches += _cut(pool[np.argsort(lengths[pool], kind="stable")], batch_size)
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_plan(num_examples: int, *, batch_size: int, lengths: np.ndarray | None) -> list[np.ndarray]:
    """Return all indices once, longest first, so that memory that does not suffice shows at once."""
    order = np.arange(num_examples) if lengths is None else np.argsort(-lengths, kind="stable")
    return _cut(order, batch_size)


def evaluation_steps(steps_per_epoch: int, times_per_epoch: int) -> frozenset[int]:
    """Return the 1-based steps of an epoch after which to evaluate; the last is always among them."""
    return frozenset(-(-steps_per_epoch * (i + 1) // times_per_epoch) for i in range(times_per_epoch))


def _resampled(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return N indices by systematic resampling (Kitagawa 1996).

    Independent draws would leave out many rows of a class that is to be seen twice: one in seven.
    """
    order = generator.permutation(len(weights))
    expected = np.cumsum(weights[order]) * (len(weights) / weights.sum())
    expected[-1] = len(weights)
    counts = np.diff(np.floor(expected + generator.random()), prepend=0)
    return np.repeat(order, counts.astype(np.int64))


def _cut(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
