"""Fit the weights of a sum of standardized scores, on targets that no scorer was fitted on.

Shape suffixes: B users, I items, P scorers.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from hftoolkit.recommend.interactions import Cases
from hftoolkit.seeding import numpy_generator

MAX_CELLS = 60_000_000  # users x items x scorers, held while weights are learned: 240 MB; else users are sampled
ROUNDING = np.float32(1e-6)  # a deviation as small as this, relative to the mean, is none


@dataclass(frozen=True, slots=True)
class FusionExamples:
    """Standardized scores of users whose targets are known.

    Attributes:
        users: (B,) places among the cases.
        features: (B, I, P) float32, standardized scores of each scorer.
        allowed: (B, I) bool, what may be recommended.
        targets: (B, I) float32, one over the number of targets at each of them; rows sum to 1.
    """

    users: np.ndarray
    features: np.ndarray
    allowed: np.ndarray
    targets: np.ndarray


def standardize(scores_BI: np.ndarray, allowed_BI: np.ndarray) -> np.ndarray:
    """Return scores with mean 0 and deviation 1 over the allowed items of each user, and 0 elsewhere, (B, I) float32.

    Where all items of a user have the same score, they become 0.
    """
    count_B1 = np.maximum(allowed_BI.sum(axis=1, keepdims=True), 1).astype(np.float32)
    centred_BI = np.where(allowed_BI, scores_BI, np.float32(0))
    mean_B1 = centred_BI.sum(axis=1, keepdims=True) / count_B1
    centred_BI -= mean_B1
    centred_BI *= allowed_BI
    deviation_B1 = np.sqrt(np.einsum("bi,bi->b", centred_BI, centred_BI)[:, None] / count_B1)
    rounding_B1 = ROUNDING * (1 + np.abs(mean_B1))
    centred_BI /= np.where(deviation_B1 > rounding_B1, deviation_B1, np.float32(np.inf))
    return centred_BI


def allowed_items(cases: Cases, users: np.ndarray) -> np.ndarray:
    """Return which items may be recommended to some of the users, (b, I) bool."""
    allowed = np.tile(cases.candidates, (len(users), 1))
    histories = cases.histories.select(users)
    allowed[histories.rows, histories.items] = False
    return allowed


def target_shares(cases: Cases, users: np.ndarray) -> np.ndarray:
    """Return one over the number of targets at each target of some of the users, (b, I) float32."""
    targets = cases.targets.select(users)
    shares = np.zeros((len(users), len(cases.candidates)), dtype=np.float32)
    shares[targets.rows, targets.items] = np.repeat(1 / np.maximum(targets.lengths, 1), targets.lengths)
    return shares


def sample_users(cases: Cases, num_scorers: int, seed: int) -> np.ndarray:
    """Return the places of the users that weights are learned from, ascending: all, or as many as memory allows."""
    most = max(1, MAX_CELLS // (len(cases.candidates) * num_scorers))
    order = numpy_generator("fusion", seed).permutation(len(cases))
    return np.sort(order[:most])


def fold_of_users(count: int, folds: int, seed: int) -> np.ndarray:
    """Return a fold for each user, (count,), of equal sizes."""
    return numpy_generator("folds", seed).permutation(count) % folds


def fit_weights(examples: FusionExamples, regularization: float) -> np.ndarray:
    """Return the weights, (P,), under which a softmax over the allowed items gives the targets the most likelihood.

    Args:
        examples: of B users.
        regularization: ridge, in users: 1 counts as much as one user does.
    """
    B, _, P = examples.features.shape

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits_BI = np.where(examples.allowed, examples.features @ weights.astype(np.float32), -np.inf)
        logits_BI -= logits_BI.max(axis=1, keepdims=True)
        exponentials_BI = np.exp(logits_BI)
        totals_B1 = exponentials_BI.sum(axis=1, keepdims=True)
        wanted_BI = examples.targets > 0
        picked = (logits_BI - np.log(totals_B1))[wanted_BI]
        surplus_BI = exponentials_BI / totals_B1 - examples.targets
        value = -(picked * examples.targets[wanted_BI]).sum() + regularization * (weights**2).sum() / 2
        slopes_BP = np.matmul(surplus_BI[:, None, :], examples.features)[:, 0]
        gradient = slopes_BP.sum(axis=0, dtype=np.float64) + regularization * weights
        return float(value) / B, gradient / B

    weights: np.ndarray = minimize(loss, np.zeros(P), jac=True, method="L-BFGS-B").x
    return weights.astype(np.float32)
