"""The one place that makes random generators. Each is a pure function of its key, so nothing depends on history:
neither on how many workers read the data, nor on where a run was interrupted.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed that depends on every part of the key and on nothing else."""
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(*key: int | str) -> np.random.Generator:
    """Return a NumPy generator for this key."""
    return np.random.default_rng(derive_seed(*key))


def plain_numpy_generator(seed: int) -> np.random.Generator:
    """Return NumPy's own generator of a seed, for draws that others repeat without hftoolkit."""
    return np.random.default_rng(seed)


def seed_torch(*key: int | str) -> None:
    """Set torch's global generators, which dropout and weight initialisation draw from, to this key's state."""
    torch.manual_seed(derive_seed(*key))


def seed_global_generators(seed: int) -> None:
    """Set the global generators of NumPy and Python, from which environments of others may draw; we never do."""
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def kept_global_generators() -> Iterator[None]:
    """Give the global generators of NumPy and Python back the states that they came with."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
