"""The two solvers of implicit matrix factorization (iALS): factors from interactions, and factors from texts.

Shape suffixes: B users, I items, N items with interactions, D factors, H width of text vectors.
"""

import numpy as np

from hftoolkit.histories import Histories


def fill_in_factors(items_ID: np.ndarray, texts_IH: np.ndarray, known_I: np.ndarray, regularization: float) -> None:
    """Give items that nobody chose the factors that their texts suggest, by ridge regression, in place.

    This is the attribute-to-factor mapping of Gantner et al. (2010).
    """
    if known_I.all():
        return
    mean_H, mean_D = texts_IH[known_I].mean(axis=0), items_ID[known_I].mean(axis=0)
    inputs_NH = (texts_IH[known_I] - mean_H).astype(np.float64)
    gram_HH = inputs_NH.T @ inputs_NH + regularization * np.eye(inputs_NH.shape[1])
    map_HD = np.linalg.solve(gram_HH, inputs_NH.T @ (items_ID[known_I] - mean_D))
    items_ID[~known_I] = mean_D + (texts_IH[~known_I] - mean_H) @ map_HD


def solve_factors(histories: Histories, others_ID: np.ndarray, regularization: float, confidence: float) -> np.ndarray:
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
