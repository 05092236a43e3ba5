"""The metrics of named spans (entities), as functions of how often each row counts.

f1, precision, recall   over all spans: a predicted span is right if type, start and end are (seqeval's strict mode)
f1/, precision/, recall/TYPE, macro_*   of each type, and their means over the types that occur
exact_*                 a span is right if start and end are, whatever its type
type_*                  a span is right if it overlaps one of its type
partial_*               as exact_*, and an overlap counts half

The last three are those of SemEval-2013 task 9.1, with each span matched at most once, in the way that scores most; so
precision is over predicted spans and recall over gold ones. A type is scored if it occurs in gold or predicted spans;
0 / 0 counts as 0, and rows without any span have no scores.

Shape suffixes: B resamples at a time, K sums, T types, P predicted spans and G gold spans of a row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from functools import partial

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from hftoolkit.errors import DataError
from hftoolkit.metrics.statistics import RowStatistics, Values, ratio

Span = tuple[str, int, int]  # type, start, end (exclusive)

_LENIENT = ("exact", "type", "partial")


def span_statistics(
    gold: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]], types: Sequence[str]
) -> RowStatistics:
    """Return what each row adds to the metrics of named spans.

    Args:
        gold: the spans of each row, ``(type, start, end)``; ends are exclusive, the same span twice counts once.
        predicted: those of the model.
        types: the T types that spans may have, all different.

    Raises:
        DataError: there are no rows.
    """
    assert len(gold) == len(predicted), (len(gold), len(predicted))
    if len(gold) == 0:
        raise DataError("there are no rows to measure (0 found, at least 1 needed); check data.split")
    index_of = {name: index for index, name in enumerate(types)}
    assert len(index_of) == len(types), types
    cells = [
        (index, row, value)
        for row, (true, found) in enumerate(zip(gold, predicted, strict=True))
        for index, value in _row_terms(set(true), set(found), index_of)
    ]
    indices, rows, values = zip(*cells, strict=True) if cells else ((), (), ())
    shape = (3 * len(types) + len(_LENIENT), len(gold))
    terms = sparse.csr_array((np.array(values, np.float64), (np.array(indices, int), np.array(rows, int))), shape=shape)
    return RowStatistics(terms=terms, from_sums=partial(_from_sums, types=types))


def _row_terms(gold: Set[Span], predicted: Set[Span], index_of: dict[str, int]) -> Iterator[tuple[int, float]]:
    """Yield ``(index of the sum, value)``: per type hits, predicted and gold spans; then the lenient credits."""
    for block, spans in enumerate((gold & predicted, predicted, gold)):
        for name, start, end in spans:
            assert start < end, (name, start, end)
            yield block * len(index_of) + index_of[name], 1.0
    if gold and predicted:
        yield from enumerate(_lenient_credits(gold, predicted), start=3 * len(index_of))


def _lenient_credits(gold: Set[Span], predicted: Set[Span]) -> tuple[float, float, float]:
    """Return the summed credits of a row by the rules of ``_LENIENT``."""
    if gold == predicted:
        return (float(len(gold)),) * 3
    bounds = [Counter(span[1:] for span in spans) for spans in (gold, predicted)]
    names_P, starts_P, ends_P = (np.array(column)[:, None] for column in zip(*predicted, strict=True))
    names_G, starts_G, ends_G = (np.array(column)[None] for column in zip(*gold, strict=True))
    overlap_PG = (starts_P < ends_G) & (starts_G < ends_P)
    same_PG = (starts_P == starts_G) & (ends_P == ends_G)
    return (
        float((bounds[0] & bounds[1]).total()),
        _most_credit(overlap_PG & (names_P == names_G)),
        _most_credit((overlap_PG + same_PG.astype(np.float64)) / 2),
    )


def _most_credit(credits_PG: np.ndarray) -> float:
    """Return the largest sum of credits where each span is matched at most once."""
    return float(credits_PG[linear_sum_assignment(credits_PG, maximize=True)].sum())


def _from_sums(sums_KB: np.ndarray, total: float, *, types: Sequence[str]) -> Values:
    T = len(types)
    hits_TB, found_TB, true_TB = sums_KB[:T], sums_KB[T : 2 * T], sums_KB[2 * T : 3 * T]
    found_B, true_B = found_TB.sum(axis=0), true_TB.sum(axis=0)
    by_type = _scores(hits_TB, found_TB, true_TB)
    values = _scores(hits_TB.sum(axis=0), found_B, true_B)
    for kind, scores_TB in by_type.items():
        occurs_TB = ~np.isnan(scores_TB)
        sums_B = np.where(occurs_TB, scores_TB, 0).sum(axis=0)
        values[f"macro_{kind}"] = ratio(sums_B, occurs_TB.sum(axis=0), otherwise=np.nan)
    for rule, credits_B in zip(_LENIENT, sums_KB[3 * T :], strict=True):
        values |= {f"{rule}_{kind}": scores_B for kind, scores_B in _scores(credits_B, found_B, true_B).items()}
    for kind, scores_TB in by_type.items():
        values |= {f"{kind}/{name}": scores_B for name, scores_B in zip(types, scores_TB, strict=True)}
    return values


def _scores(credits: np.ndarray, found: np.ndarray, true: np.ndarray) -> Values:
    """Return F1, precision and recall, ``nan`` where there are neither predicted nor gold spans."""
    scores = {
        "f1": ratio(2 * credits, found + true),
        "precision": ratio(credits, found),
        "recall": ratio(credits, true),
    }
    return {kind: np.where(found + true > 0, values, np.nan) for kind, values in scores.items()}
