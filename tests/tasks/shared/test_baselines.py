import numpy as np
import pytest

from hftoolkit.errors import DataError
from hftoolkit.tasks.shared.baselines import majority, tfidf_logreg

pytestmark = pytest.mark.filterwarnings("error")

TEXTS = ["good soft dress", "good fit good", "bad thin cloth", "bad fit returned", "fine dress", "fine cloth"] * 5
TARGETS = np.array([2, 2, 0, 0, 1, 1] * 5)


def test_majority_gives_the_training_frequencies_to_every_row() -> None:
    probabilities = majority(np.array([1, 1, 0, 1]), 3, num_classes=3, multi_label=False)
    assert probabilities.tolist() == [[0.25, 0.75, 0.0]] * 3


def test_multi_label_majority_gives_each_class_its_own_frequency() -> None:
    probabilities = majority(np.array([[1, 0], [1, 1], [1, 0], [0, 0]]), 2, num_classes=2, multi_label=True)
    assert probabilities.tolist() == [[0.75, 0.25]] * 2


def test_tfidf_learns_the_words_that_tell_classes_apart() -> None:
    probabilities = tfidf_logreg(
        TEXTS, TARGETS, ["good thing", "bad thing", "fine thing"], num_classes=3, multi_label=False, seed=0
    )
    assert probabilities.argmax(axis=1).tolist() == [2, 0, 1]
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(3))


def test_tfidf_uses_word_pairs() -> None:
    texts = ["not good but warm", "good but not warm"] * 4
    probabilities = tfidf_logreg(texts, np.array([0, 1] * 4), texts[:2], num_classes=2, multi_label=False, seed=0)
    assert probabilities.argmax(axis=1).tolist() == [0, 1]


def test_a_rare_class_weighs_as_much_as_a_common_one() -> None:
    texts = ["shared words"] * 32
    targets = np.array([0] * 30 + [1] * 2)
    probabilities = tfidf_logreg(texts, targets, ["shared words"], num_classes=2, multi_label=False, seed=0)
    assert probabilities[0] == pytest.approx([0.5, 0.5], abs=0.01)


def test_a_class_without_training_rows_has_probability_zero() -> None:
    probabilities = tfidf_logreg(TEXTS, TARGETS * 2, ["good", "bad"], num_classes=6, multi_label=False, seed=0)
    assert probabilities.shape == (2, 6)
    assert (probabilities[:, [1, 3, 5]] == 0).all()
    assert (probabilities[:, [0, 2, 4]] > 0).all()


def test_multi_label_fits_each_class_and_knows_constant_ones() -> None:
    holds = np.array(["good" in text for text in TEXTS])
    targets = np.stack([holds, np.ones_like(holds), np.zeros_like(holds)], axis=1).astype(int)
    probabilities = tfidf_logreg(TEXTS, targets, ["good dress", "bad dress"], num_classes=3, multi_label=True, seed=0)
    assert (probabilities[:, 0] >= 0.5).tolist() == [True, False]
    assert probabilities[:, 1:].tolist() == [[1.0, 0.0]] * 2


@pytest.mark.parametrize("texts", [["alpha", "beta"], ["?", ""]])
def test_tiny_tables_work_without_a_warning(texts: list[str]) -> None:
    probabilities = tfidf_logreg(texts, np.array([0, 1]), ["alpha", "gamma"], num_classes=2, multi_label=False, seed=0)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(2))
    assert probabilities[1] == pytest.approx([0.5, 0.5])


def test_one_class_alone_is_certain() -> None:
    probabilities = tfidf_logreg(TEXTS, TARGETS * 0, ["good"], num_classes=2, multi_label=False, seed=0)
    assert probabilities.tolist() == [[1.0, 0.0]]


def test_no_training_rows_are_refused() -> None:
    with pytest.raises(DataError, match="0 found"):
        majority(np.zeros(0, int), 1, num_classes=2, multi_label=False)
    with pytest.raises(DataError, match="0 found"):
        tfidf_logreg([], np.zeros(0, int), ["text"], num_classes=2, multi_label=False, seed=0)
