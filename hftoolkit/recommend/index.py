"""Item vectors as a faiss index, for services that search millions of items approximately.

``recommend`` itself always compares all items. An entry is a vector over the temperature, and the bias; the inner
product with a user's vector and 1 is the score of the tower.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.errors import EnvironmentFault
from hftoolkit.recommend.scorers import Queries, TextVectors, user_means

HNSW_NEIGHBORS = 32  # of each entry of an approximate index


def index_queries(scorer: TextVectors, queries: Queries) -> np.ndarray:
    """Return what to search an index for, (B, D + 1) float32."""
    users_BD = user_means(queries.histories, scorer.recency or None, scorer.num_items) @ scorer.vectors
    return np.concatenate([users_BD, np.ones((len(users_BD), 1))], axis=1).astype(np.float32)


def write_index(scorer: TextVectors, ids: Sequence[str], path: Path, *, exact: bool = False) -> None:
    """Write an index of all items, and beside it ``PATH.json`` with their ids, by place.

    Args:
        scorer: I items.
        ids: of the items.
        path: usually ends with .faiss.
        exact: compare each query with all entries, instead of walking a graph of neighbours (HNSW).

    Raises:
        EnvironmentFault: faiss is not installed, or the files cannot be written.
    """
    try:
        import faiss
    except ImportError as error:
        raise EnvironmentFault("an index of items needs faiss: pip install 'hftoolkit[faiss]'") from error
    entries_IE = np.concatenate([scorer.vectors / scorer.temperature, scorer.biases[:, None]], axis=1).astype(
        np.float32
    )
    width = entries_IE.shape[1]
    metric: Any = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexFlat(width, metric) if exact else faiss.IndexHNSWFlat(width, HNSW_NEIGHBORS, metric)
    index.add(np.ascontiguousarray(entries_IE))
    try:
        faiss.write_index(index, str(path))
        path.with_name(f"{path.name}.json").write_text(json.dumps(list(ids), ensure_ascii=False), encoding="utf-8")
    except (OSError, RuntimeError) as error:  # faiss reports a file that it cannot open as a RuntimeError
        raise EnvironmentFault(f"cannot write {path}: {error}") from error
