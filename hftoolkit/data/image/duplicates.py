"""Images of one split that look the same as one of another."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from hftoolkit.data.image.cache import CachedImages

MAX_HASH_BITS = 2  # by which the difference hashes of two images that look the same may differ
MAX_MEAN_DIFFERENCE = 4  # of 255, over all pixels and channels
CELLS = 4  # rows and columns of the grid of sums that spares most comparisons of whole images
PAIRS_AT_ONCE = 200_000


def near_duplicates(images: CachedImages, rows: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return, for each pair of splits ``"a/b"``, how many images of b nearly equal one of a, without equal ones.

    Two images nearly equal if their difference hashes differ in at most 2 of 64 bits, and their fitted pixels by 4
    of 255 in the mean. The hash alone would not do: those of flat images, like digits, are often the same.

    Args:
        images: all images.
        rows: by split, (N,) places in ``images``.
    """
    sums = _CellSums(images.pixels)
    counts = {}
    for a, b in combinations(rows, 2):
        known = {images.sha256[row] for row in rows[a]}
        others = np.array([row for row in rows[b] if images.sha256[row] not in known], dtype=np.int64)
        counts[f"{a}/{b}"] = _count(images, sums, rows[a], others)
    return counts


class _CellSums:
    """Sums of pixels over a grid of cells, computed for the images that are asked for and kept."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.known: dict[int, np.ndarray] = {}

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return (K, cells * 3) int64."""
        return np.stack([self._one(int(row)) for row in rows])

    def _one(self, row: int) -> np.ndarray:
        if row not in self.known:
            height, width = self.pixels.shape[1:3]
            tops = np.unique(np.arange(CELLS) * height // CELLS)
            lefts = np.unique(np.arange(CELLS) * width // CELLS)
            sums = np.add.reduceat(self.pixels[row].astype(np.int64), tops, axis=0)
            self.known[row] = np.add.reduceat(sums, lefts, axis=1).reshape(-1)
        return self.known[row]


def _count(images: CachedImages, sums: _CellSums, known: np.ndarray, others: np.ndarray) -> int:
    found = 0
    step = max(1, PAIRS_AT_ONCE // max(1, len(known)))
    for start in range(0, len(others), step):
        block = others[start : start + step]
        bits = np.bitwise_count(images.hashes[block][:, None] ^ images.hashes[known][None, :])  # (block, known)
        of_block, of_known = np.nonzero(bits <= MAX_HASH_BITS)
        if len(of_block):
            found += _count_in_block(images.pixels, sums, block[of_block], known[of_known])
    return found


def _count_in_block(pixels: np.ndarray, sums: _CellSums, rows: np.ndarray, candidates: np.ndarray) -> int:
    """Return how many of ``rows`` (pairs with ``candidates``; a row may occur often) nearly equal a candidate."""
    limit = MAX_MEAN_DIFFERENCE * pixels[0].size
    unique_rows, row_places = np.unique(rows, return_inverse=True)
    unique_candidates, candidate_places = np.unique(candidates, return_inverse=True)
    # |sum a - sum b| over a cell is at most the sum of |a - b| there, so no near duplicate is lost.
    differences = np.abs(sums.of(unique_rows)[row_places] - sums.of(unique_candidates)[candidate_places]).sum(axis=1)
    found: set[int] = set()
    for place in np.argsort(differences, kind="stable"):
        row = int(rows[place])
        if differences[place] > limit:
            break
        if row not in found and _sum_of_differences(pixels[row], pixels[candidates[place]]) <= limit:
            found.add(row)
    return len(found)


def _sum_of_differences(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int16) - b).sum(dtype=np.int64))


def near_duplicate_warnings(counts: Mapping[str, int], sizes: Mapping[str, int]) -> Sequence[str]:
    """Return a sentence for each pair of splits that shares images which nearly equal."""
    warnings = []
    for pair, count in counts.items():
        if count:
            known, split = pair.split("/")
            warnings.append(f"{count} of {sizes[split]} rows of {split} nearly equal an image of {known}")
    return warnings
