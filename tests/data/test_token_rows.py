"""Texts and words of taggers, as they are to be predicted."""

from typing import Any

import numpy as np
import pytest

from hftoolkit.contracts import Unusable
from hftoolkit.data.text_rows import BROKEN_TEXT, EMPTY_TEXT, NOT_TEXT
from hftoolkit.data.token_rows import SpanText, unlabelled_text

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("Ada  lives", "Ada  lives"),
        (["Ada", "lives"], "Ada lives"),
        (np.array(["Ada", "lives"]), "Ada lives"),
        ('["Ada", "lives"]', "Ada lives"),
        ("[sic] Ada", "[sic] Ada"),
    ],
)
def test_texts_and_lists_of_words_are_predicted(cell: Any, text: str) -> None:
    assert unlabelled_text(cell, are_words=True) == SpanText(text)


def test_a_text_that_looks_like_a_list_stays_a_text() -> None:
    assert unlabelled_text('["Ada", "lives"]', are_words=False) == SpanText('["Ada", "lives"]')


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, EMPTY_TEXT),
        (float("nan"), EMPTY_TEXT),
        (" ", EMPTY_TEXT),
        ([], EMPTY_TEXT),
        (3, NOT_TEXT),
        ("\ud800", BROKEN_TEXT),
    ],
)
def test_what_has_no_text_says_why(cell: Any, reason: str) -> None:
    found = unlabelled_text(cell, are_words=False)
    assert isinstance(found, Unusable) and found.reason == reason
