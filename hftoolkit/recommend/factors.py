"""The two solvers of implicit matrix factorization (iALS): factors from interactions, and factors from features.

Shape suffixes: B users, I items, N items with interactions, D factors, F features, L landmarks,
H width of text vectors, A attributes.
"""

import numpy as np
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge

from hftoolkit.recommend.interactions import Interactions

LANDMARKS = 2_000  # known items that all are compared with: 16 KB for each item
ATTRIBUTES_WEIGHT = 0.5  # mean squared length of the attributes of an item; that of its text is 1
TINY = 1e-12


def item_features(texts_IH: np.ndarray, attributes_IA: np.ndarray | None, known_I: np.ndarray) -> np.ndarray:
    """Return what is known of items beside who chose them, (I, H + A) float32, less the mean of the ``known_I`` items.

    Args:
        texts_IH: vectors of their texts; what is left of each without the mean gets length 1.
        attributes_IA: 0 and 1, which attributes each has; None: there are none. They count half as much as texts.
        known_I: bool, items that were chosen by somebody.
    """
    centred_IH = texts_IH - texts_IH[known_I].mean(axis=0)
    blocks = [centred_IH / np.maximum(np.linalg.norm(centred_IH, axis=1, keepdims=True), TINY)]
    if attributes_IA is not None:
        centred_IA = attributes_IA - attributes_IA[known_I].mean(axis=0)
        mean_square = float((centred_IA[known_I] ** 2).sum(axis=1).mean())
        blocks.append(centred_IA * np.sqrt(ATTRIBUTES_WEIGHT / max(mean_square, TINY)))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def similarities(features_IF: np.ndarray, known_I: np.ndarray) -> np.ndarray:
    """Return how like landmarks items are, (I, L), so that inner products are those of a Gaussian kernel.

    Its width is the mean distance of two known items. These are the landmarks, or, above ``LANDMARKS`` of them, some,
    with which the kernel is approximated (Nystroem).
    """
    known_NF = features_IF[known_I]
    kernel = Nystroem(
        gamma=1 / max(2 * float(known_NF.var(axis=0).sum()), TINY),
        n_components=min(LANDMARKS, len(known_NF)),
        random_state=0,
    )
    result: np.ndarray = kernel.fit(known_NF).transform(features_IF)
    return result


def fill_in_factors(
    items_ID: np.ndarray, similarities_IL: np.ndarray, known_I: np.ndarray, regularization: float
) -> np.ndarray:
    """Return factors, (I, D), in which items that nobody chose have those that ``similarities`` suggest.

    This is the attribute-to-factor mapping of Gantner et al. (2010), by ridge regression.
    """
    filled_ID = items_ID.copy()
    regression = Ridge(alpha=regularization).fit(similarities_IL[known_I], items_ID[known_I])
    filled_ID[~known_I] = regression.predict(similarities_IL[~known_I])
    return filled_ID


def solve_factors(
    histories: Interactions, others_ID: np.ndarray, regularization: float, confidence: float
) -> np.ndarray:
    """Return the factors, (B, D) float32, that fit 1 for what is in a history and 0 for the rest, given the others'.

    What is in a history weighs ``1 + confidence * weight``, the rest 1.
    """
    gram_DD = others_ID.T @ others_ID + regularization * np.eye(others_ID.shape[1], dtype=np.float32)
    result = np.zeros((len(histories), others_ID.shape[1]), dtype=np.float32)
    for row, (start, stop) in enumerate(zip(histories.offsets[:-1], histories.offsets[1:], strict=True)):
        if stop > start:
            chosen = others_ID[histories.items[start:stop]]
            extra = confidence * histories.weights[start:stop]
            result[row] = np.linalg.solve(gram_DD + (chosen.T * extra) @ chosen, chosen.T @ (1 + extra))
    return result
