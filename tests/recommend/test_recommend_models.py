"""Models of ids, the losses of the tower and the second stage, each against a slow version of its definition."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime

from hftoolkit.errors import RecipeError
from hftoolkit.recipe import IdModels
from hftoolkit.recommend import fusion_weights as fusion
from hftoolkit.recommend.factors import fill_in_factors, item_features, similarities
from hftoolkit.recommend.fitting import TrainingLog, alternatives, fit_choices, fit_scorer
from hftoolkit.recommend.fusion_weights import (
    FusionExamples,
    allowed_items,
    fit_weights,
    fold_of_users,
    sample_users,
    standardize,
)
from hftoolkit.recommend.interactions import Cases, Interactions
from hftoolkit.recommend.job import best_choice
from hftoolkit.recommend.losses import (
    Drawn,
    StepItems,
    draw_evenly,
    draw_targets,
    pair_loss,
    sample_negatives,
    softmax_loss,
    trained_evenly,
    within,
)
from hftoolkit.recommend.scorers import Queries, TextVectors
from hftoolkit.recommend.tower import ItemTower, TowerShape

pytestmark = pytest.mark.smoke

NUM_ITEMS = 9
LISTS = [[0, 1, 2, 3], [1, 2, 4], [5, 0, 1], [6, 7], [2, 3, 5, 6, 8], [4]]
SETTINGS = IdModels(
    neighbors=3,
    ease_regularization=2.0,
    ease_recency=2.0,
    slit_regularization=1.5,
    slit_recency=2.0,
    recent_share=0.2,
    ials_regularization=10.0,
    ials_confidence=10.0,
)


def training_log() -> TrainingLog:
    histories = Interactions.of(LISTS)
    groups = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], dtype=np.float32)
    return TrainingLog(histories, groups, histories.items, NUM_ITEMS)


def scores_of(
    name: str, lists: list[list[int]], groups: np.ndarray | None = None, *, settings: IdModels = SETTINGS
) -> np.ndarray:
    if groups is None:
        groups = np.zeros((len(lists), 2), dtype=np.float32)
    return fit_scorer(name, training_log(), settings).scores(Queries(Interactions.of(lists), groups))


def chosen_matrix() -> np.ndarray:
    matrix = np.zeros((len(LISTS), NUM_ITEMS))
    for user, items in enumerate(LISTS):
        matrix[user, items] = 1
    return matrix


def test_a_matrix_of_histories_weighs_entries_by_how_many_came_later() -> None:
    matrix = Interactions.of([[3, 1], [], [2]]).matrix(4, recency=2.0).toarray()
    assert matrix.tolist() == [[0, 1, 0, pytest.approx(math.exp(-0.5))], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_histories_within_a_catalogue_keep_its_items_alone() -> None:
    histories = Interactions.of([[0, 7, 2], [9], [], [1, 8]]).within(7)
    assert histories.offsets.tolist() == [0, 2, 2, 2, 3]
    assert histories.items.tolist() == [0, 2, 1]


def test_selected_and_latest_histories_are_those_of_the_users() -> None:
    histories = Interactions.of(LISTS)
    assert histories.select(np.array([4, 0])).as_sets() == [set(LISTS[4]), set(LISTS[0])]
    assert histories.latest(2).items.tolist() == [item for items in LISTS for item in items[-2:]]


def test_ease_is_the_least_squares_solution_with_a_zero_diagonal() -> None:
    scorer = fit_scorer("ease", training_log(), SETTINGS)
    X = chosen_matrix()
    for item in range(NUM_ITEMS):  # each column by itself, without the item's own row
        others = [other for other in range(NUM_ITEMS) if other != item]
        gram = X[:, others].T @ X[:, others] + 2.0 * np.eye(NUM_ITEMS - 1)
        expected = np.linalg.solve(gram, X[:, others].T @ X[:, item])
        assert scorer.weights[others, item] == pytest.approx(expected, abs=1e-5)  # type: ignore[attr-defined]
        assert scorer.weights[item, item] == 0  # type: ignore[attr-defined]
    query = scores_of("ease", [[0, 4]])
    expected = scorer.weights[4] + math.exp(-1 / 2) * scorer.weights[0]  # type: ignore[attr-defined]
    assert query[0] == pytest.approx(expected, abs=1e-6)


def test_slit_gives_the_next_item_from_the_decayed_past(monkeypatch: pytest.MonkeyPatch) -> None:
    pasts, following = [], []
    for items in LISTS:
        for place in range(len(items) - 1):
            past, after = np.zeros(NUM_ITEMS), np.zeros(NUM_ITEMS)
            for lag, item in enumerate(reversed(items[: place + 1])):
                past[item] = math.exp(-lag / 2.0)
            after[items[place + 1]] = 1
            pasts.append(past)
            following.append(after)
    S, T = np.stack(pasts), np.stack(following)
    expected = np.linalg.solve(S.T @ S + 1.5 * np.eye(NUM_ITEMS), S.T @ T)
    for entries in (10**6, 30):  # at once, and in blocks
        monkeypatch.setattr("hftoolkit.recommend.fitting.SLIT_ENTRIES", entries)
        scorer = fit_scorer("slit", training_log(), SETTINGS)
        assert scorer.weights == pytest.approx(expected, abs=1e-5)  # type: ignore[attr-defined]


def test_settings_with_several_values_are_all_tried_and_the_best_on_validation_is_taken() -> None:
    settings = IdModels(ease_regularization=[2, 9], ease_recency=[None, 5], slit_recency=3)
    choices = list(alternatives("ease", settings))
    assert [tuple(choice.values()) for choice, _ in choices] == [(2, None), (2, 5), (9, None), (9, 5)]
    assert [choice for choice, _ in alternatives("slit", settings)] == [{"slit_regularization": 20, "slit_recency": 3}]
    assert [choice for choice, _ in alternatives("popularity", settings)] == [{}]
    seen: list[float] = []

    class Judge:
        def rank(self, scorer: Any, split: str) -> Any:
            seen.append(scorer.recency)
            quality = {"ndcg": np.array([0.1 * len(seen), np.nan]), "hr": np.array([-float(len(seen))])}
            return SimpleNamespace(values=quality if split == "validation" else None)

    scorer, choice = best_choice("ease", training_log(), choices, Judge(), "ndcg")  # type: ignore[arg-type]
    assert choice == {"ease_regularization": 9, "ease_recency": 5} and seen == [0, 5, 0, 5]
    expected = fit_scorer("ease", training_log(), IdModels(ease_regularization=9, ease_recency=5))
    assert (scorer.weights == expected.weights).all() and scorer.recency == 5  # type: ignore[attr-defined]
    _, choice = best_choice("ease", training_log(), choices, Judge(), "hr")  # type: ignore[arg-type]
    assert choice == {"ease_regularization": 2, "ease_recency": None}


def test_ease_is_fitted_once_for_all_values_of_its_recency(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = IdModels(ease_regularization=[2, 9], ease_recency=[5, None, 3])
    fitted: list[Any] = []
    inverse = np.linalg.inv
    monkeypatch.setattr(np.linalg, "inv", lambda matrix: fitted.append(matrix) or inverse(matrix))
    found = list(fit_choices("ease", training_log(), list(alternatives("ease", settings))))
    assert len(fitted) == 2
    for choice, scorer in found:
        expected = fit_scorer("ease", training_log(), IdModels(**choice))
        assert (scorer.weights == expected.weights).all() and scorer.recency == expected.recency  # type: ignore[attr-defined]


def test_item_knn_sums_the_cosines_of_the_nearest_neighbours() -> None:
    X = chosen_matrix()
    cosine = np.array(
        [
            [0 if a == b else X[:, a] @ X[:, b] / math.sqrt(X[:, a].sum() * X[:, b].sum()) for b in range(NUM_ITEMS)]
            for a in range(NUM_ITEMS)
        ]
    )
    found = scores_of("item-knn", [[1, 3]])[0]
    for item in range(NUM_ITEMS):
        limit = sorted(cosine[item], reverse=True)[SETTINGS.neighbors - 1]
        expected = sum(cosine[item][seen] for seen in (1, 3) if cosine[item][seen] >= limit)
        assert found[item] == pytest.approx(expected, abs=1e-6)
    recent = SETTINGS.model_copy(update={"item_knn_recency": (4.0,)})
    older, latest = (scores_of("item-knn", [[seen]])[0] for seen in (1, 3))
    assert scores_of("item-knn", [[1, 3]], settings=recent)[0] == pytest.approx(math.exp(-1 / 4) * older + latest)


def test_item_knn_is_fitted_once_for_all_values_of_its_recency() -> None:
    choices = list(alternatives("item-knn", IdModels(item_knn_recency=[None, 3])))
    (plain, without), (recent, decayed) = fit_choices("item-knn", training_log(), choices)
    assert plain == {"item_knn_recency": None} and recent == {"item_knn_recency": 3}
    assert without.weights is decayed.weights  # type: ignore[attr-defined]
    assert (without.recency, decayed.recency) == (0, 3)  # type: ignore[attr-defined]


def test_ials_lowers_its_own_loss_and_solves_for_users_exactly() -> None:
    def loss(iterations: int) -> float:
        settings = SETTINGS.model_copy(update={"ials_iterations": iterations, "ials_dimensions": 3})
        scorer = fit_scorer("ials", training_log(), settings)
        queries = Queries(training_log().histories, training_log().groups)
        X, scores = chosen_matrix(), scorer.scores(queries)
        errors = (1 + 10 * X) * (X - scores) ** 2
        items: np.ndarray = scorer.items  # type: ignore[attr-defined]
        users = np.linalg.lstsq(items, scores.T, rcond=None)[0]
        return float(errors.sum() + 10 * ((items**2).sum() + (users**2).sum()))

    losses = [loss(count) for count in (1, 2, 4, 8)]
    assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(losses))


def test_items_that_nobody_chose_get_the_factors_that_their_features_suggest() -> None:
    features = np.random.default_rng(4).uniform(-1, 1, (500, 2)).astype(np.float32)
    factors = np.stack([np.sin(3 * features[:, 0]), features[:, 0] * features[:, 1] + 5], axis=1).astype(np.float32)
    known = np.arange(500) < 400
    found = np.where(known[:, None], factors, 0)
    found = fill_in_factors(found, similarities(features, known), known, regularization=1e-6)
    assert (found[known] == factors[known]).all()
    assert found == pytest.approx(factors, abs=0.05)  # no linear map would do
    found = fill_in_factors(found, similarities(features, known), known, regularization=1e9)
    assert found[400:] == pytest.approx(np.tile(factors[:400].mean(axis=0), (100, 1)), abs=1e-3)


@pytest.mark.parametrize("told_by", ["texts", "attributes"])
def test_an_item_that_nobody_chose_gets_the_factors_of_one_that_is_like_it(told_by: str) -> None:
    alike = np.vstack([np.eye(NUM_ITEMS), np.eye(NUM_ITEMS)[3]]).astype(np.float32)  # the new one is like item 3
    one = np.ones((NUM_ITEMS + 1, 2), dtype=np.float32)
    texts, attributes = (alike, None) if told_by == "texts" else (one, alike)
    known = np.arange(NUM_ITEMS + 1) < NUM_ITEMS
    alike_by = similarities(item_features(texts, attributes, known), known)
    log = replace(training_log(), num_items=NUM_ITEMS + 1, similarities=alike_by)
    settings = SETTINGS.model_copy(update={"ials_feature_regularization": 1e-6})
    items: np.ndarray = fit_scorer("ials", log, settings).items  # type: ignore[attr-defined]
    plain: np.ndarray = fit_scorer("ials", replace(log, similarities=None), settings).items  # type: ignore[attr-defined]
    assert (items[:NUM_ITEMS] == plain[:NUM_ITEMS]).all() and not plain[NUM_ITEMS].any()
    assert items[NUM_ITEMS] == pytest.approx(items[3], abs=1e-3)


def test_popularities_count_all_or_the_latest_and_groups_their_own() -> None:
    counts = np.bincount([item for items in LISTS for item in items], minlength=NUM_ITEMS)
    assert scores_of("popularity", [[], [0]]) == pytest.approx(np.tile(np.log1p(counts), (2, 1)))
    latest = np.bincount(training_log().by_time[-4:], minlength=NUM_ITEMS)  # a fifth of 18, rounded
    assert scores_of("recent-popularity", [[]])[0] == pytest.approx(np.log1p(latest))
    lifts = scores_of("groups", [[], []], np.array([[1, 0], [0, 0]], dtype=np.float32))
    assert lifts[1].tolist() == [0] * NUM_ITEMS
    expected = math.log((2 + 10) / (10 * counts[0] / 18 + 10))  # both choices of item 0 are by the first group
    assert lifts[0, 0] == pytest.approx(expected, abs=1e-6)


def test_attributes_score_by_the_odds_of_naive_bayes() -> None:
    attributes = np.array([[1, 0], [1, 0], [1, 1], [0, 1], *[[0, 0]] * 4, [0, 1], [1, 1]], dtype=np.float32)
    log = replace(training_log(), num_items=NUM_ITEMS + 1, attributes=attributes)  # nobody chose the last item
    scorer = fit_scorer("attributes", log, SETTINGS)
    found = scorer.scores(Queries(Interactions.of([[0, 1, 3], []]), np.zeros((2, 2))))
    odds = []
    for column in (0, 1):
        having = [item for item in range(NUM_ITEMS) if attributes[item, column]]
        chosen = (sum(items.count(item) for items in LISTS for item in having) + 1) / (18 + 1)
        offered = (len(having) + 1) / (NUM_ITEMS + 1)
        in_history = sum(item in (0, 1, 3) for item in having)
        odds.append(
            [math.log((count + 10 * chosen) / (length + 10) / offered) for count, length in ((in_history, 3), (0, 0))]
        )
    for user in (0, 1):
        for item, (first, second) in enumerate(attributes):
            expected = first * odds[0][user] + second * odds[1][user]
            assert found[user, item] == pytest.approx(expected, abs=1e-5)


def test_a_catalogue_above_the_limit_is_refused_with_what_to_do() -> None:
    small = SETTINGS.model_copy(update={"max_items": NUM_ITEMS - 1})
    for name in ("ease", "slit", "item-knn"):
        with pytest.raises(RecipeError, match=r"9 x 9 items, and id_models.max_items is 8; take it out"):
            fit_scorer(name, training_log(), small)
    fit_scorer("ials", training_log(), small)


def text_scorer(recency: float = 0.0) -> TextVectors:
    vectors = np.random.default_rng(1).standard_normal((NUM_ITEMS, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return TextVectors(vectors, np.arange(NUM_ITEMS, dtype=np.float32), temperature=0.5, recency=recency)


def test_the_vector_of_a_user_is_the_weighted_mean_of_the_history() -> None:
    scorer = text_scorer(recency=3.0)
    found = scorer.scores(Queries(Interactions.of([[2, 5], []]), np.zeros((2, 0))))
    share = math.exp(-1 / 3)
    user = (share * scorer.vectors[2] + scorer.vectors[5]) / (share + 1)
    assert found[0] == pytest.approx(scorer.vectors @ user / 0.5 + scorer.biases, abs=1e-5)
    assert found[1].tolist() == scorer.biases.tolist()


@pytest.mark.parametrize("name", ["ease", "slit", "item-knn", "text"])
def test_what_the_entries_of_a_history_add_sums_up_to_the_score(name: str) -> None:
    scorer = text_scorer() if name == "text" else fit_scorer(name, training_log(), SETTINGS)
    query = Queries(Interactions.of([[4, 1, 7]]), np.zeros((1, 2)))
    bias = scorer.biases if isinstance(scorer, TextVectors) else 0
    shares = scorer.by_entry(query)
    assert shares is not None and shares.shape == (3, NUM_ITEMS)
    assert shares.sum(axis=0) + bias == pytest.approx(scorer.scores(query)[0], abs=1e-5)


def test_the_center_is_taken_out_before_angles_are_measured() -> None:
    encoder = torch.nn.Module()
    encoder.config = SimpleNamespace(hidden_size=3)  # type: ignore[assignment]
    center = torch.tensor([1.0, 2.0, 3.0])
    tower = ItemTower(encoder, TowerShape(None, item_bias=False), 0, center)
    outputs = tower.head(torch.tensor([[3.0, 2.0, 3.0], [1.0, 2.0, 7.0]]))
    assert outputs.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]


# The losses of the tower.


def drawn(items: list[list[int]], inputs: list[list[float]], targets: list[list[float]]) -> Drawn:
    return Drawn(torch.tensor(items), torch.tensor(inputs), torch.tensor(targets))


EXAMPLE = drawn([[0, 1, 2], [-1, 3, 4]], [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def test_the_softmax_leaves_out_the_history_and_nothing_else() -> None:
    items = draw_evenly(torch.arange(6), NUM_ITEMS, None)
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row, (target, known) in enumerate([(2, {0, 1}), (4, {3})]):
        total = sum(math.exp(logits[row, item]) for item in range(6) if item not in known)
        expected += math.log(total) - float(logits[row, target])
    assert float(softmax_loss(logits, EXAMPLE, items)) == pytest.approx(expected, rel=1e-5)


def test_several_targets_share_one_softmax() -> None:
    example = drawn([[0, 1, 2]], [[1.0, 0, 0]], [[0, 0.25, 0.75]])
    logits = torch.tensor([[5.0, 1.0, 2.0, 3.0]])
    logs = torch.log_softmax(logits[0, 1:], dim=0)
    loss = softmax_loss(logits, example, draw_evenly(torch.arange(4), NUM_ITEMS, None))
    assert float(loss) == pytest.approx(float(-0.25 * logs[0] - 0.75 * logs[1]), rel=1e-5)


def test_the_sampled_softmax_comes_to_the_whole_one_on_average() -> None:
    generator = np.random.default_rng(0)
    size, count = 300, 60
    popularity = torch.from_numpy(generator.dirichlet(np.ones(size)))
    logits = torch.from_numpy(generator.standard_normal(size)).float()
    example = drawn([[0, 1]], [[1.0, 0.0]], [[0.0, 1.0]])
    whole = float(softmax_loss(logits[None], example, draw_evenly(torch.arange(size), size, None)))
    torch.manual_seed(0)
    shares, naive = [], []
    for _ in range(400):
        items = sample_negatives(example.items, popularity, count)
        mine = logits[items.places][None]
        shares.append(math.exp(softmax_loss(mine, example, items)))  # one over the share of the target
        plain = StepItems(items.places, items.column, torch.zeros(len(items.places)))
        naive.append(math.exp(softmax_loss(mine, example, plain)))
    assert np.mean(shares) == pytest.approx(math.exp(whole), rel=0.05)
    assert np.mean(naive) < 0.5 * math.exp(whole)


def test_items_that_are_here_for_a_history_alone_are_no_negatives() -> None:
    items = sample_negatives(torch.tensor([[0, 1, 2]]), torch.tensor([0.0] * 8 + [1.0]).double(), 3)
    assert items.places.tolist() == [0, 1, 2, 8]
    assert torch.isinf(items.correction).tolist() == [True, True, True, False]


def test_a_pair_loss_meets_each_target_with_an_item_its_user_did_not_choose() -> None:
    chances = trained_evenly(torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0.0, 0, 0, 0]))
    assert chances.tolist() == pytest.approx([0.2] * 5 + [0] * 4)
    places = torch.arange(5)
    items = StepItems(places, torch.cat([places, torch.full((4,), -1)]), torch.zeros(5))
    logits = torch.tensor([[9.0, 9.0, 1.0, -2.0, -2.0], [0.5, 0.5, 0.5, 9.0, 3.0]])
    expected = -math.log(1 / (1 + math.exp(-3.0))) - math.log(1 / (1 + math.exp(-2.5)))
    assert float(pair_loss(logits, EXAMPLE, items)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", ["rest-of-history", "next-item"])
def test_each_draw_knows_a_part_and_predicts_from_it(objective: str) -> None:
    torch.manual_seed(0)
    history = torch.tensor([[-1, -1, 3, 4], [0, 1, 2, 5], [7, -1, 8, -1]])
    weights = (history >= 0).float()
    sizes = set()
    for _ in range(200):
        found = draw_targets(history, weights, objective, recency=2.0)
        known, target = found.inputs > 0, found.targets > 0
        assert not (known & target).any() and not ((known | target) & (history < 0)).any()
        assert known.any(dim=1).all() and target.any(dim=1).all()
        assert found.inputs.sum(dim=1).tolist() == pytest.approx([1.0] * 3)
        sizes.add((int(known[1].sum()), int(target[1].sum())))
        for row in range(3):  # of those known, each counts exp(-1/2) of the next
            shares = found.inputs[row][known[row]]
            assert (shares[:-1] / shares[1:]).tolist() == pytest.approx([math.exp(-0.5)] * (len(shares) - 1))
        if objective == "next-item":
            last = known[1].nonzero().max()
            assert known[1, : last + 1].all() and target[1].nonzero().tolist() == [[int(last) + 1]]
    rest = {(1, 3), (2, 2), (3, 1)}
    assert sizes == (rest if objective == "rest-of-history" else {(known, 1) for known, _ in rest})


def test_a_step_over_some_items_sees_only_histories_within_them() -> None:
    torch.manual_seed(0)
    items = draw_evenly(torch.tensor([0, 2, 3, 5, 8]), NUM_ITEMS, 3)
    assert len(items.places) == 3 and set(items.places.tolist()) <= {0, 2, 3, 5, 8}
    some = StepItems(torch.tensor([2, 5]), torch.tensor([-1, -1, 0, -1, -1, 1, -1, -1, -1]), torch.zeros(2))
    history, weights = within(torch.tensor([[2, 3, 5], [-1, 2, 3]]), torch.ones(2, 3), some)
    assert history.tolist() == [[2, -1, 5]] and weights.tolist() == [[1, 0, 1]]
    assert some.spread(drawn([[2, -1, 5]], [[0.0] * 3], [[0.0] * 3]), torch.tensor([[0.3, 9.0, 0.7]])).tolist() == [
        [pytest.approx(0.3), pytest.approx(0.7)]
    ]


# The second stage.


def cases(num_users: int = 40) -> Cases:
    generator = np.random.default_rng(2)
    seen = [generator.permutation(NUM_ITEMS)[:3].tolist() for _ in range(num_users)]
    wanted = [[int(generator.choice([i for i in range(NUM_ITEMS) if i not in known]))] for known in seen]
    everything = np.ones(NUM_ITEMS, dtype=bool)
    unseen = np.zeros(num_users, dtype=bool)
    return Cases(np.arange(num_users), Interactions.of(seen), Interactions.of(wanted), unseen, everything)


def test_standard_scores_have_mean_0_and_deviation_1_over_what_is_allowed() -> None:
    allowed = allowed_items(cases(), np.arange(40))
    assert (allowed.sum(axis=1) == NUM_ITEMS - 3).all()
    scores = np.random.default_rng(0).standard_normal((40, NUM_ITEMS)) * 7 + 3
    features = standardize(scores, allowed)
    for user in range(40):
        inside = features[user, allowed[user]]
        assert (inside.mean(), inside.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert not features[~allowed].any()
    assert not standardize(np.full((40, NUM_ITEMS), 30.7, dtype=np.float32), allowed).any()


def make_examples() -> FusionExamples:
    found = cases()
    allowed = allowed_items(found, np.arange(40))
    features = np.random.default_rng(3).standard_normal((40, NUM_ITEMS, 2)).astype(np.float32)
    targets = fusion.target_shares(found, np.arange(40))
    features[:, :, 0] += 2 * targets  # the first part knows something
    return FusionExamples(np.arange(40), features, allowed, targets)


def test_weights_are_where_the_likelihood_is_greatest() -> None:
    examples = make_examples()

    def loss(weights: np.ndarray) -> float:
        total = 0.5 * (weights**2).sum()
        for user in range(40):
            logits = examples.features[user].astype(np.float64) @ weights
            inside = logits[examples.allowed[user]]
            total += math.log(np.exp(inside).sum()) - logits[examples.targets[user].argmax()]
        return float(total)

    weights = fit_weights(examples, regularization=1.0)
    assert approx_fprime(weights.astype(np.float64), loss, 1e-6) == pytest.approx([0, 0], abs=0.05)
    assert weights[0] > 1 > abs(weights[1])


def test_folds_are_even_and_users_are_sampled_where_memory_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(np.bincount(fold_of_users(41, 4, seed=0)).tolist()) == [10, 10, 10, 11]
    assert sample_users(cases(), num_scorers=2, seed=0).tolist() == list(range(40))
    monkeypatch.setattr(fusion, "MAX_CELLS", 7 * NUM_ITEMS * 2)
    assert len(set(sample_users(cases(), num_scorers=2, seed=0).tolist())) == 7
