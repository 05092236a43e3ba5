"""Score fusion: a weighted sum of scorers, its weights fitted on validation, and how well sums rank."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hftoolkit.recipe import Fusion, RankingEvaluation
from hftoolkit.recommend.fusion_weights import (
    FusionExamples,
    allowed_items,
    fit_weights,
    fold_of_users,
    sample_users,
    target_shares,
)
from hftoolkit.recommend.interactions import Cases
from hftoolkit.recommend.protocols import RecommendationSplits
from hftoolkit.recommend.ranking import RankedLists, rank
from hftoolkit.recommend.recommender import Recommender
from hftoolkit.recommend.scorers import Queries, Scorer


@dataclass(frozen=True, slots=True)
class ScorerFusion:
    """Fits and measures sums of scorers on the splits of one log."""

    splits: RecommendationSplits
    section: Fusion
    evaluation: RankingEvaluation
    seed: int

    def fit(self, scorers: Mapping[str, Scorer]) -> Recommender:
        """Return the sum of these scorers whose weights suit the validation targets best."""
        unweighted = Recommender(self.splits.catalogue, scorers, np.ones(len(scorers), dtype=np.float32))
        weights = fit_weights(self._examples(unweighted), self.section.regularization)
        return Recommender(self.splits.catalogue, scorers, weights)

    def out_of_fold(self, scorers: Mapping[str, Scorer]) -> RankedLists:
        """Rank validation, each user by weights that were learned from the users of the other folds."""
        unweighted = Recommender(self.splits.catalogue, scorers, np.ones(len(scorers), dtype=np.float32))
        examples = self._examples(unweighted)
        cases = self.splits.cases["validation"]
        fold = fold_of_users(len(cases), self.section.folds, self.seed)
        weights = np.stack(
            [
                fit_weights(_some(examples, fold[examples.users] != each), self.section.regularization)
                for each in range(self.section.folds)
            ]
        )

        def scores(users: np.ndarray) -> np.ndarray:
            features = unweighted.features(Queries.of(cases, users, self.splits.groups), allowed_items(cases, users))
            result: np.ndarray = np.einsum("bip,bp->bi", features, weights[fold[users]])
            return result

        return self._rank(cases, scores)

    def rank(self, recommender: Recommender, split: str) -> RankedLists:
        """Rank all candidates of a split."""
        cases = self.splits.cases[split]
        return self._rank(
            cases,
            lambda users: recommender.scores(Queries.of(cases, users, self.splits.groups), allowed_items(cases, users)),
        )

    def _rank(self, cases: Cases, scores: Callable[[np.ndarray], np.ndarray]) -> RankedLists:
        return rank(cases, scores, cutoff=self.evaluation.cutoff, block_users=self.evaluation.block_users)

    def _examples(self, unweighted: Recommender) -> FusionExamples:
        cases = self.splits.cases["validation"]
        users = sample_users(cases, len(unweighted.scorers), self.seed)
        allowed = allowed_items(cases, users)
        features = unweighted.features(Queries.of(cases, users, self.splits.groups), allowed)
        return FusionExamples(users, features, allowed, target_shares(cases, users))


def _some(examples: FusionExamples, chosen: np.ndarray) -> FusionExamples:
    return FusionExamples(
        examples.users[chosen], examples.features[chosen], examples.allowed[chosen], examples.targets[chosen]
    )


def ablations(scorers: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield a name and the scorers of each sum that tells what one kind of scorer adds."""
    ids = tuple(name for name in scorers if name not in ("text", "frozen-text"))
    if "text" in scorers and ids:
        yield "sum without text", ids
        yield "sum with frozen text", ("frozen-text", *ids)
