import itertools

import numpy as np
import pytest

from hftoolkit.errors import DataError
from hftoolkit.metrics.spans import Span, span_statistics
from hftoolkit.metrics.statistics import intervals, measure, paired_lead, resample, resample_counts

TYPES = ("LOC", "MISC", "ORG", "PER")
Rows = list[list[Span]]

# Seqeval 1.2.2 gave SEQEVAL for these rows: classification_report(mode="strict", scheme=IOB2, zero_division=0).
GOLD_TAGS = (
    "B-PER I-PER O B-LOC O | B-ORG I-ORG I-ORG O | O O O | B-LOC B-LOC O B-PER | B-PER O B-ORG O O | B-LOC I-LOC"
)
PREDICTED_TAGS = (
    "B-PER I-PER O B-LOC O | B-ORG I-ORG O O | O B-MISC O | B-LOC I-LOC O B-PER | B-ORG O B-ORG O B-LOC | O O"
)
SEQEVAL = {
    "f1/LOC": 0.28571428571428575,
    "precision/LOC": 0.3333333333333333,
    "recall/LOC": 0.25,
    "f1/MISC": 0.0,
    "precision/MISC": 0.0,
    "recall/MISC": 0.0,
    "f1/ORG": 0.4,
    "precision/ORG": 0.3333333333333333,
    "recall/ORG": 0.5,
    "f1/PER": 0.8,
    "precision/PER": 1.0,
    "recall/PER": 0.6666666666666666,
    "f1": 0.4444444444444444,
    "precision": 0.4444444444444444,
    "recall": 0.4444444444444444,
    "macro_f1": 0.37142857142857144,
    "macro_precision": 0.41666666666666663,
    "macro_recall": 0.35416666666666663,
}


def spans_of(tags: str) -> Rows:
    """Read rows of well-formed IOB2 tags."""
    rows: Rows = []
    for row in tags.split("|"):
        spans: Rows = [[]]
        for position, tag in enumerate(row.split()):
            if tag.startswith("B-"):
                spans[0].append((tag[2:], position, position + 1))
            elif tag.startswith("I-"):
                name, start, _ = spans[0].pop()
                spans[0].append((name, start, position + 1))
        rows.append(spans[0])
    return rows


def make_rows(count: int, seed: int, *, length: int = 7, spans: int = 3) -> tuple[Rows, Rows]:
    """Rows of up to so many spans, which may lie in each other, gold and predicted."""
    generator = np.random.default_rng(seed)

    def row() -> list[Span]:
        found = set()
        for _ in range(generator.integers(spans + 1)):
            start = int(generator.integers(length))
            found.add((str(generator.choice(TYPES[:3])), start, start + int(generator.integers(1, 4))))
        return sorted(found)

    gold = [row() for _ in range(count)]
    return gold, [each if generator.random() < 0.3 else row() for each in gold]


def ratios(credit: float, found: int, true: int) -> tuple[float, float, float]:
    precision, recall = credit / found if found else 0.0, credit / true if true else 0.0
    return (2 * precision * recall / (precision + recall) if credit else 0.0), precision, recall


def credit_of(rule: str, gold: Span, predicted: Span) -> float:
    overlap = bool(set(range(*gold[1:])) & set(range(*predicted[1:])))
    same_type, same_bounds = gold[0] == predicted[0], gold[1:] == predicted[1:]
    return {
        "": float(same_type and same_bounds),
        "exact_": float(same_bounds),
        "type_": float(overlap and same_type),
        "partial_": 1.0 if same_bounds else overlap / 2,
    }[rule]


def best_credit(rule: str, gold: list[Span], predicted: list[Span]) -> float:
    """Try every way to match each span at most once."""
    few, many = sorted((gold, predicted), key=len)
    return max(
        sum(credit_of(rule, one, other) for one, other in zip(few, chosen, strict=True))
        for chosen in itertools.permutations(many, len(few))
    )


def by_brute_force(gold: Rows, predicted: Rows) -> dict[str, float]:
    true, found = sum(map(len, gold)), sum(map(len, predicted))
    if not true + found:
        return {}
    kinds, expected = ("f1", "precision", "recall"), {}
    for rule in ("", "exact_", "type_", "partial_"):
        credit = sum(best_credit(rule, *row) for row in zip(gold, predicted, strict=True))
        expected |= {rule + kind: value for kind, value in zip(kinds, ratios(credit, found, true), strict=True)}
    by_type = {}
    for name in sorted({span[0] for row in gold + predicted for span in row}):
        ours, theirs = (
            {(i, *s) for i, row in enumerate(rows) for s in row if s[0] == name} for rows in (gold, predicted)
        )
        by_type[name] = ratios(len(ours & theirs), len(theirs), len(ours))
    for index, kind in enumerate(kinds):
        expected |= {f"{kind}/{name}": values[index] for name, values in by_type.items()}
        expected[f"macro_{kind}"] = sum(values[index] for values in by_type.values()) / len(by_type)
    return expected


def test_strict_scores_are_those_of_seqeval() -> None:
    found = measure(span_statistics(spans_of(GOLD_TAGS), spans_of(PREDICTED_TAGS), (*TYPES, "NEVER")))
    strict = {name: value for name, value in found.items() if name.split("_")[0] not in ("exact", "type", "partial")}
    assert strict == pytest.approx(SEQEVAL, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_every_metric_is_that_of_brute_force(count: int) -> None:
    for seed in range(60):
        gold, predicted = make_rows(count, seed)
        assert measure(span_statistics(gold, predicted, TYPES)) == pytest.approx(by_brute_force(gold, predicted))


@pytest.mark.parametrize("count", [2, 12])
def test_each_resample_is_measured_as_a_split_of_its_own(count: int) -> None:
    gold, predicted = make_rows(count, 2)
    draws = resample(span_statistics(gold, predicted, TYPES), samples=30, seed=0).draws
    (counts_NB,) = resample_counts(count, samples=30, seed=0)
    for b, counts in enumerate(counts_NB.T.astype(int)):
        drawn = np.repeat(np.arange(count), counts)
        expected = by_brute_force([gold[i] for i in drawn], [predicted[i] for i in drawn])
        assert {name: values[b] for name, values in draws.items() if not np.isnan(values[b])} == pytest.approx(expected)


# The scenarios of SemEval-2013 task 9.1: what one predicted span earns for one gold span ("PER", 2, 4).
@pytest.mark.parametrize(
    ("predicted", "strict", "exact", "type_", "partial"),
    [
        (("PER", 2, 4), 1, 1, 1, 1),
        (("LOC", 2, 4), 0, 1, 0, 1),
        (("PER", 3, 6), 0, 0, 1, 0.5),
        (("LOC", 1, 3), 0, 0, 0, 0.5),
        (("PER", 4, 6), 0, 0, 0, 0),
        (("PER", 0, 2), 0, 0, 0, 0),
    ],
)
def test_one_span_earns_what_semeval_says(
    predicted: Span, strict: float, exact: float, type_: float, partial: float
) -> None:
    found = measure(span_statistics([[("PER", 2, 4)]], [[predicted]], TYPES))
    assert [found[f"{rule}f1"] for rule in ("", "exact_", "type_", "partial_")] == [strict, exact, type_, partial]


def test_two_predicted_spans_do_not_both_earn_one_gold_span() -> None:
    found = measure(span_statistics([[("PER", 0, 4)]], [[("PER", 0, 2), ("PER", 2, 4)]], TYPES))
    assert (found["type_recall"], found["type_precision"], found["partial_recall"]) == (1, 0.5, 0.5)


def test_rows_without_any_span_have_no_scores_and_missed_spans_score_zero() -> None:
    assert measure(span_statistics([[], []], [[], []], TYPES)) == {}
    found = measure(span_statistics([[("PER", 0, 1)]], [[]], TYPES))
    assert set(found.values()) == {0.0} and {name for name in found if "/" in name} == {
        "f1/PER",
        "precision/PER",
        "recall/PER",
    }


def test_a_span_named_twice_counts_once() -> None:
    span: Span = ("PER", 0, 1)
    assert set(measure(span_statistics([[span]], [[span, span]], TYPES)).values()) == {1.0}


def test_intervals_and_leads_are_those_of_the_draws() -> None:
    gold, predicted = make_rows(40, 4)
    ours = resample(span_statistics(gold, predicted, TYPES), samples=100, seed=0)
    theirs = resample(span_statistics(gold, [[] for _ in gold], TYPES), samples=100, seed=0)
    low, high = intervals(ours)["f1"]
    assert low < measure(ours.statistics)["f1"] < high
    assert paired_lead(ours, theirs, "f1") == (measure(ours.statistics)["f1"], low, high)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"no rows .* check data.split"):
        span_statistics([], [], TYPES)
