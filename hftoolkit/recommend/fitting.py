"""Fit the scorers that need no texts: popularity, groups, attributes, ItemKNN, EASE, SLIT, iALS.

Every fit sees training interactions alone. Shape suffixes are those of ``recommend.scorers``.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from hftoolkit.errors import RecipeError
from hftoolkit.recipe import IdModels
from hftoolkit.recommend.factors import fill_in_factors, solve_factors
from hftoolkit.recommend.interactions import Interactions
from hftoolkit.recommend.scorers import AttributeOdds, Factors, FixedScores, GroupLifts, ItemToItem, Scorer
from hftoolkit.seeding import numpy_generator

SLIT_REACH = 6.0  # times the recency; what is further back counts under 0.3 % and is left out
SLIT_ENTRIES = 4_000_000  # of the sparse matrix held at a time: 48 MB
GROUP_PRIOR = 10.0  # interactions as expected that are added to those of each group and item
ITEM_SQUARED = ("item-knn", "ease", "slit")  # scorers that need memory by the square of the catalogue
# Settings of a scorer that may have several values to choose from.
CHOSEN_SETTINGS = {
    "item-knn": ("item_knn_recency",),
    "ease": ("ease_regularization", "ease_recency"),
    "slit": ("slit_regularization", "slit_recency"),
    "ials": ("ials_regularization", "ials_confidence"),
}
SCORING_RECENCY = ("item_knn_recency", "ease_recency")  # settings that no fit depends on, only its scores


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What id models are fitted on.

    Attributes:
        histories: training interactions of B users.
        groups: (B, G) which groups each is in.
        by_time: (N,) their items, in order of time, whoever chose them.
        num_items: I.
        similarities: (I, L) of items by texts and attributes; None where all were chosen, or no model needs them.
        attributes: (I, A) which attributes each item has; None where no model needs them.
    """

    histories: Interactions
    groups: np.ndarray
    by_time: np.ndarray
    num_items: int
    similarities: np.ndarray | None = None
    attributes: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """Which items somebody chose, (I,) bool."""
        return _counts(self.histories.items, self.num_items) > 0


def alternatives(name: str, settings: IdModels) -> Iterator[tuple[dict[str, float | None], IdModels]]:
    """Yield each choice of the settings that give a scorer several values, and the settings with that choice alone."""
    knobs = CHOSEN_SETTINGS.get(name, ())
    for values in itertools.product(*(getattr(settings, knob) for knob in knobs)):
        choice = dict(zip(knobs, values, strict=True))
        yield choice, settings.model_copy(update={knob: (value,) for knob, value in choice.items()})


def fit_scorer(name: str, log: TrainingLog, settings: IdModels) -> Scorer:
    """Fit one of the scorers that need no texts, with one value for each setting; see ``alternatives``.

    Raises:
        RecipeError: the catalogue is too large for a scorer whose memory is its square.
    """
    if name in ITEM_SQUARED and log.num_items > settings.max_items:
        raise RecipeError(
            f"{name} needs a matrix of {log.num_items} x {log.num_items} items, and id_models.max_items is "
            f"{settings.max_items}; take it out of fusion.parts, or raise that and have "
            f"{4 * log.num_items**2 / 2**30:.0f} GiB of memory a few times over"
        )
    fits: dict[str, Callable[[TrainingLog, IdModels], Scorer]] = {
        "popularity": _popularity,
        "recent-popularity": _recent_popularity,
        "groups": _groups,
        "attributes": _attributes,
        "item-knn": _item_knn,
        "ease": _ease,
        "slit": _slit,
        "ials": _ials,
    }
    return fits[name](log, settings)


def fit_choices(
    name: str, log: TrainingLog, choices: Sequence[tuple[dict[str, float | None], IdModels]]
) -> Iterator[tuple[dict[str, float | None], Scorer]]:
    """Yield each of the ``alternatives`` with its scorer; those that differ only in how they score share one fit.

    Raises:
        RecipeError: as ``fit_part``.
    """
    for _, alike in itertools.groupby(choices, key=lambda each: {**each[0], **dict.fromkeys(SCORING_RECENCY)}):
        scorer: Scorer | None = None
        for choice, settings in alike:
            if scorer is None:
                scorer = fit_scorer(name, log, settings)
            else:
                assert isinstance(scorer, ItemToItem)
                (recency,) = (choice[knob] for knob in SCORING_RECENCY if knob in choice)
                scorer = replace(scorer, recency=recency or 0.0)
            yield choice, scorer


def filled_in(scorer: Factors, log: TrainingLog, settings: IdModels) -> Factors:
    """Return iALS in which items that nobody chose have the factors that the similarities of the log suggest."""
    if log.similarities is None:
        return scorer
    ridge = settings.ials_feature_regularization
    return replace(scorer, items=fill_in_factors(scorer.items, log.similarities, log.known, ridge))


def _counts(items: np.ndarray, num_items: int) -> np.ndarray:
    return np.bincount(items, minlength=num_items).astype(np.float32)


def _popularity(log: TrainingLog, _: IdModels) -> Scorer:
    return FixedScores(np.log1p(_counts(log.by_time, log.num_items)))


def _recent_popularity(log: TrainingLog, settings: IdModels) -> Scorer:
    latest = log.by_time[-max(1, round(settings.recent_share * len(log.by_time))) :]
    return FixedScores(np.log1p(_counts(latest, log.num_items)))


def _groups(log: TrainingLog, _: IdModels) -> Scorer:
    chosen_GI = (log.histories.matrix(log.num_items).T @ log.groups).T
    share_I = _counts(log.by_time, log.num_items) / len(log.by_time)
    expected_GI = chosen_GI.sum(axis=1, keepdims=True) * share_I
    return GroupLifts(np.log((chosen_GI + GROUP_PRIOR) / (expected_GI + GROUP_PRIOR)).astype(np.float32))


def _attributes(log: TrainingLog, _: IdModels) -> Scorer:
    assert log.attributes is not None
    counts_I = _counts(log.by_time, log.num_items)
    chosen_A = (counts_I @ log.attributes + 1) / (counts_I.sum() + 1)
    known_IA = log.attributes[counts_I > 0]
    offered_A = (known_IA.sum(axis=0) + 1) / (len(known_IA) + 1)
    return AttributeOdds(log.attributes, chosen_A.astype(np.float32), offered_A.astype(np.float32))


def _item_knn(log: TrainingLog, settings: IdModels) -> Scorer:
    """Cosine of the columns; each item keeps its nearest neighbours."""
    (recency,) = settings.item_knn_recency
    together_II = _gram(log.histories.matrix(log.num_items))
    norms_I = np.sqrt(np.maximum(np.diag(together_II), 1e-12))
    cosine_II = together_II / norms_I / norms_I[:, None]
    np.fill_diagonal(cosine_II, 0)
    if settings.neighbors < log.num_items:
        last = settings.neighbors - 1
        limit_I1 = -np.partition(-cosine_II, last, axis=1)[:, last : last + 1]
        cosine_II[cosine_II < limit_I1] = 0
    return ItemToItem(cosine_II.T.astype(np.float32), recency=recency or 0.0)


def _ease(log: TrainingLog, settings: IdModels) -> Scorer:
    """The item-to-item weights of least squares with a zero diagonal (Steck 2019)."""
    (ridge,), (recency,) = settings.ease_regularization, settings.ease_recency
    gram_II = _gram(log.histories.matrix(log.num_items))
    gram_II[np.diag_indices_from(gram_II)] += ridge
    inverse_II = np.linalg.inv(gram_II)
    weights_II = inverse_II / -np.diag(inverse_II)
    np.fill_diagonal(weights_II, 0)
    return ItemToItem(weights_II.astype(np.float32), recency=recency or 0.0)


def _slit(log: TrainingLog, settings: IdModels) -> Scorer:
    """The item-to-item weights that give the next item from the decayed past of each place (Choi et al. 2021)."""
    (ridge,), (recency,) = settings.slit_regularization, settings.slit_recency
    gram_II = np.eye(log.num_items) * ridge
    next_II = np.zeros_like(gram_II)
    for past, following in _transitions(log.histories, log.num_items, recency):
        gram_II += (past.T @ past).toarray()
        next_II += (past.T @ following).toarray()
    return ItemToItem(np.linalg.solve(gram_II, next_II).astype(np.float32), recency=recency)


def _transitions(
    histories: Interactions, num_items: int, recency: float
) -> Iterator[tuple[sparse.csr_array, sparse.csr_array]]:
    """Yield the decayed past of places in histories, and what came next there, both (rows, I)."""
    reach = max(1, int(SLIT_REACH * recency))
    size = max(1, SLIT_ENTRIES // reach)
    users, places = histories.rows, np.flatnonzero(histories.ages > 0)
    for start in range(0, len(places), size):
        block = places[start : start + size]
        rows, columns, values = [], [], []
        for lag in range(min(reach, len(users))):
            earlier = block - lag
            same = np.flatnonzero((earlier >= 0) & (users[earlier] == users[block]))
            rows.append(same)
            columns.append(histories.items[earlier[same]])
            values.append(histories.weights[earlier[same]] * np.exp(-lag / recency))
        cells = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        shape = (len(block), num_items)
        following = (histories.weights[block + 1], (np.arange(len(block)), histories.items[block + 1]))
        yield sparse.csr_array(cells, shape=shape), sparse.csr_array(following, shape=shape)


def _gram(matrix: sparse.csr_array) -> np.ndarray:
    doubled = matrix.astype(np.float64)
    result: np.ndarray = (doubled.T @ doubled).toarray()
    return result


def _ials(log: TrainingLog, settings: IdModels) -> Scorer:
    """Alternate between users and items, each solved exactly."""
    (ridge,), (confidence,) = settings.ials_regularization, settings.ials_confidence
    generator = numpy_generator("ials", settings.ials_dimensions)
    items_ID = (generator.standard_normal((log.num_items, settings.ials_dimensions)) * 0.1).astype(np.float32)
    transposed = log.histories.matrix(log.num_items).T.tocsr()
    by_item = Interactions(transposed.indptr.astype(np.int64), transposed.indices.astype(np.int64), transposed.data)
    for _ in range(settings.ials_iterations):
        users_BD = solve_factors(log.histories, items_ID, ridge, confidence)
        items_ID = solve_factors(by_item, users_BD, ridge, confidence)
    return filled_in(Factors(items_ID, ridge, confidence), log, settings)
