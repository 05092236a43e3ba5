"""What a fine-tuned model has to beat: no learning at all, and a bag of words.

Shape suffixes: N rows, C classes. Targets are ints ``(N,)``, or 0/1 ``(N, C)`` for multi-label.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from torch.nn import functional

from hftoolkit.data.token_rows import OUTSIDE, Span, Word, spans_of_tags, tags_of_spans
from hftoolkit.errors import DataError

WORDS = re.compile(r"\w+|[^\w\s]")
MIN_DOCUMENTS = 2  # a term of one text alone teaches nothing about others
MAX_ITERATIONS = 1000
THUMBNAIL = 16  # pixels a side


def majority(train_targets: np.ndarray, n: int, num_classes: int, multi_label: bool) -> np.ndarray:
    """Return the class frequencies of the training rows for each of ``n`` rows, ``(n, C)``.

    The largest is the majority class. With ``multi_label`` each class has its own frequency, so that the classes of at
    least half the rows are predicted, and no others.

    Raises:
        DataError: there are no training rows.
    """
    _check_train(train_targets)
    if multi_label:
        frequencies_C = train_targets.mean(axis=0, dtype=np.float64)
    else:
        frequencies_C = np.bincount(train_targets, minlength=num_classes) / len(train_targets)
    return np.tile(frequencies_C, (n, 1))


def tfidf_logreg(
    train_texts: Sequence[str],
    train_targets: np.ndarray,
    texts: Sequence[str],
    *,
    num_classes: int,
    multi_label: bool,
    seed: int,
) -> np.ndarray:
    """Return the probabilities ``(len(texts), C)`` of a logistic regression on TF-IDF of words and word pairs.

    Classes weigh equally in its loss, however rare. A class without training rows gets probability 0. Terms of one
    training text alone are left out unless there are no others; texts without any word leave only the frequencies.

    Args:
        train_texts: one for each row of ``train_targets``.
        train_targets: ``(N,)`` int, or ``(N, C)`` 0/1 with ``multi_label``, which fits one model for each class.
        texts: what to predict.
        num_classes: C.
        multi_label: any number of classes a text.
        seed: of the solver; today's solver draws nothing.

    Raises:
        DataError: there are no training rows.
    """
    _check_train(train_targets)
    features = _tfidf(train_texts, texts)
    if features is None:
        return majority(train_targets, len(texts), num_classes, multi_label)
    if not multi_label:
        return _fit_predict(*features, train_targets, num_classes=num_classes, seed=seed)
    flags_CN = train_targets.T.astype(np.int64)
    columns = [_fit_predict(*features, flags_N, num_classes=2, seed=seed)[:, 1] for flags_N in flags_CN]
    return np.stack(columns, axis=1)


def tfidf_ridge(train_texts: Sequence[str], train_targets: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Return the numbers ``(len(texts),)`` of a ridge regression on TF-IDF of words and word pairs.

    Raises:
        DataError: there are no training rows.
    """
    _check_train(train_targets)
    features = _tfidf(train_texts, texts)
    if features is None:
        return np.full(len(texts), train_targets.mean())
    numbers: np.ndarray = Ridge().fit(features[0], train_targets).predict(features[1])
    return numbers


def pixel_ridge(
    train_pixels: Sequence[np.ndarray], train_targets: np.ndarray, pixels: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the numbers, (n,), of a ridge regression on gray images of 16 x 16 pixels.

    Args:
        train_pixels: N images, each (H, W, 3) uint8.
        train_targets: (N,) float.
        pixels: n images like those.

    Raises:
        DataError: there are no training rows.
    """
    _check_train(train_targets)
    numbers: np.ndarray = Ridge().fit(_thumbnails(train_pixels), train_targets).predict(_thumbnails(pixels))
    return numbers


def frequent_tags(train: Sequence[tuple[str, Sequence[Span]]], texts: Sequence[str]) -> list[list[Span]]:
    """Return the spans of texts by a dictionary: each word has the tag that it has most often in training, or ``O``.

    Args:
        train: texts with their spans.
        texts: what to predict.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, spans in train:
        words = _words_of(text)
        for (start, end), tag in zip(words, tags_of_spans(spans, words)[0], strict=True):
            counts[text[start:end]][tag] += 1
    usual = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    found = []
    for text in texts:
        words = _words_of(text)
        found.append(spans_of_tags([usual.get(text[start:end], OUTSIDE) for start, end in words], words, "BIO")[0])
    return found


def _words_of(text: str) -> list[Word]:
    return [match.span() for match in WORDS.finditer(text)]


def _check_train(train_targets: np.ndarray) -> None:
    if len(train_targets) == 0:
        raise DataError("a baseline needs training rows (0 found); check data.split or set evaluation.baselines=false")


def _tfidf(train_texts: Sequence[str], texts: Sequence[str]) -> tuple[sparse.csr_matrix, sparse.csr_matrix] | None:
    """Return the features of both, or None where no training text has a word."""
    counter = CountVectorizer(ngram_range=(1, 2), dtype=np.float32)
    words_of = counter.build_analyzer()
    if not any(words_of(text) for text in train_texts):
        return None
    counts = counter.fit_transform(train_texts)
    shared = np.flatnonzero(np.bincount(counts.indices, minlength=counts.shape[1]) >= MIN_DOCUMENTS)
    kept = shared if len(shared) else np.arange(counts.shape[1])
    weigh = TfidfTransformer(sublinear_tf=True)
    return weigh.fit_transform(counts[:, kept]), weigh.transform(counter.transform(texts)[:, kept])


def _fit_predict(
    train_features: sparse.csr_matrix | np.ndarray,
    features: sparse.csr_matrix | np.ndarray,
    train_targets: np.ndarray,
    *,
    num_classes: int,
    seed: int,
) -> np.ndarray:
    """Return ``(N, C)``; one class alone in the training rows has probability 1."""
    probabilities_NC = np.zeros((features.shape[0], num_classes))
    present = np.unique(train_targets)
    if len(present) == 1:
        probabilities_NC[:, present] = 1.0
        return probabilities_NC
    # On 18,000 reviews newton-cg comes closer to the optimum than the default lbfgs, in a tenth of the time.
    model = LogisticRegression(
        solver="newton-cg", tol=1e-6, class_weight="balanced", max_iter=MAX_ITERATIONS, random_state=seed
    )
    probabilities_NC[:, present] = model.fit(train_features, train_targets).predict_proba(features)
    return probabilities_NC


def pixel_logreg(
    train_pixels: Sequence[np.ndarray],
    train_targets: np.ndarray,
    pixels: Sequence[np.ndarray],
    *,
    num_classes: int,
    multi_label: bool,
    seed: int,
) -> np.ndarray:
    """Return the probabilities, ``(n, C)``, of a logistic regression on gray images of 16 x 16 pixels.

    Classes weigh equally in its loss, however rare.

    Args:
        train_pixels: N images, each (H, W, 3) uint8.
        train_targets: (N,) int, or (N, C) 0/1 with ``multi_label``, which fits one model for each class.
        pixels: n images like those.
        num_classes: C; a class without training images gets probability 0.
        multi_label: any number of classes an image.
        seed: of the solver; today's solver draws nothing.

    Raises:
        DataError: there are no training rows.
    """
    _check_train(train_targets)
    features = _thumbnails(train_pixels), _thumbnails(pixels)
    if not multi_label:
        return _fit_predict(*features, train_targets, num_classes=num_classes, seed=seed)
    flags_CN = train_targets.T.astype(np.int64)
    columns = [_fit_predict(*features, flags_N, num_classes=2, seed=seed)[:, 1] for flags_N in flags_CN]
    return np.stack(columns, axis=1)


def _thumbnails(pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Return gray thumbnails, (N, 256), 0 to 1: means over the pixels of each cell."""
    rows = []
    for index in range(len(pixels)):
        gray_HW = torch.from_numpy(pixels[index].mean(axis=2, dtype=np.float32))
        rows.append(functional.adaptive_avg_pool2d(gray_HW[None], THUMBNAIL).numpy().ravel() / 255)
    return np.stack(rows)
