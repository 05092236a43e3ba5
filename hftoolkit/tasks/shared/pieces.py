"""Texts tokenized some at a time, so that memory is that of what is kept and not of all that a tokenizer returns."""

from collections.abc import Iterator, Sequence

PIECE_CHARACTERS = 1_000_000  # of the texts that are tokenized together; a longer text is a piece of its own
PIECE_TEXTS = 1000


def pieces(*columns: Sequence[str]) -> Iterator[tuple[list[str], ...]]:
    """Yield consecutive rows of columns of texts, as many as are tokenized together."""
    start = size = 0
    for row, texts in enumerate(zip(*columns, strict=True)):
        characters = sum(map(len, texts))
        if row > start and (size + characters > PIECE_CHARACTERS or row - start == PIECE_TEXTS):
            yield tuple(list(column[start:row]) for column in columns)
            start, size = row, 0
        size += characters
    if columns and len(columns[0]) > start:
        yield tuple(list(column[start:]) for column in columns)
