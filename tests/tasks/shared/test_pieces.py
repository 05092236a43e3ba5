"""Texts are tokenized some at a time, with the tokens of all at once."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from doubles.reviews import review_rows
from hftoolkit.data.text_rows import TextPair
from hftoolkit.tasks.shared import pieces as pieces_module
from hftoolkit.tasks.shared.pieces import pieces
from hftoolkit.tasks.shared.text_inputs import encode_rows


@pytest.mark.parametrize(
    ("characters", "count", "expected"),
    [(4, 9, [["ab", "cd"], ["efghijk"], ["l", "", "m"]]), (99, 2, [["ab", "cd"], ["efghijk", "l"], ["", "m"]])],
)
def test_a_piece_has_few_characters_and_few_texts(
    characters: int, count: int, expected: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "PIECE_CHARACTERS", characters)
    monkeypatch.setattr(pieces_module, "PIECE_TEXTS", count)
    texts = ["ab", "cd", "efghijk", "l", "", "m"]
    assert [list(some) for (some,) in pieces(texts)] == expected
    assert [first for first, _ in pieces(texts, texts)] == [second for _, second in pieces(texts, texts)]
    assert list(pieces([])) == list(pieces([], [])) == []


@pytest.mark.parametrize("pairs", [False, True])
def test_pieces_have_the_tokens_of_all_texts_at_once(
    pairs: bool, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone, model_max_length=12)
    texts = [text for text, _ in review_rows(30, seed=3)] + ["good " * 40]
    rows: list[str] = [TextPair(text, "fine word1") for text in texts] if pairs else texts
    seen: list[int] = []

    def counted(*columns: Any, **options: Any) -> Any:
        seen.append(len(columns[0]))
        return tokenizer(*columns, **options)

    counted.model_max_length = 12  # type: ignore[attr-defined]
    monkeypatch.setattr(pieces_module, "PIECE_TEXTS", 7)
    token_ids, type_ids, lengths = encode_rows(counted, rows)
    assert max(seen) == 7
    both = [texts, ["fine word1"] * len(texts)] if pairs else [texts]
    whole = tokenizer(*both, truncation=True)
    assert token_ids == whole["input_ids"]
    assert type_ids == (whole["token_type_ids"] if pairs else [None] * len(rows))
    assert lengths.tolist() == [len(ids) for ids in tokenizer(*both)["input_ids"]]
