"""Tags of words and spans of characters, one from the other. A span is ``(type, start, end)``, the end exclusive."""

from collections.abc import Iterable, Sequence

from hftoolkit.errors import DataError

Span = tuple[str, int, int]
Word = tuple[int, int]  # start, end

OUTSIDE = "O"
SCHEMES = {"BIO": frozenset("BI"), "BIOES": frozenset("BIESLU")}


def tag_names(types: Sequence[str]) -> tuple[str, ...]:
    """Return what the head of a model predicts for a word: ``O``, and ``B-`` and ``I-`` of each type."""
    return (OUTSIDE, *(f"{mark}-{name}" for name in types for mark in "BI"))


def find_scheme(tags: Iterable[str]) -> str:
    """Return how tags mark where entities begin: ``BIO``, ``BIOES`` or ``bare``."""
    marks = {tag[0] if tag[1:2] == "-" else "" for tag in set(tags) - {OUTSIDE, ""}}
    if "" in marks or not marks <= SCHEMES["BIOES"]:
        return "bare"
    return "BIO" if marks <= SCHEMES["BIO"] else "BIOES"


def spans_of_tags(tags: Sequence[str], words: Sequence[Word], scheme: str) -> tuple[list[Span], int]:
    """Return the spans that tags of words mark, and how many tags were impossible after the one before.

    An impossible tag, such as ``I-PER`` after ``O``, begins an entity, as in transformers' pipeline.

    Args:
        tags: one a word.
        words: where each is.
        scheme: ``BIO``, ``BIOES`` (``BILOU`` too) or ``bare``.

    Raises:
        DataError: a tag is none of the scheme.
    """
    spans: list[Span] = []
    open_type, repaired = "", 0
    for tag, (start, end) in zip(tags, words, strict=True):
        mark, name = _parts(tag, scheme)
        continues = name and name == open_type and mark in ("I", "E", "L", "")
        if name and not continues and mark in ("I", "E", "L"):
            repaired += 1
        if continues:
            spans[-1] = (name, spans[-1][1], end)
        elif name:
            spans.append((name, start, end))
        open_type = "" if mark in ("E", "L", "S", "U") else name
    return spans, repaired


def _parts(tag: str, scheme: str) -> tuple[str, str]:
    """Return mark and type of a tag; no type outside of entities."""
    if tag in (OUTSIDE, ""):
        return "", ""
    if scheme == "bare":
        return "", tag
    mark, dash, name = tag.partition("-")
    if not dash or mark not in SCHEMES["BIOES"] or not name:
        raise DataError(f"{tag!r} is no tag of {scheme} (B-TYPE, I-TYPE, O); set task.scheme: bare, or mend the tags")
    return mark, name


def tags_of_spans(spans: Sequence[Span], words: Sequence[Word]) -> tuple[list[str], int]:
    """Return a BIO tag for each word, and how many spans begin or end inside of a word, or hold none.

    A word belongs to the first span that it shares a character with.
    """
    tags = [OUTSIDE] * len(words)
    moved = 0
    for name, start, end in spans:
        inside = [place for place, (first, last) in enumerate(words) if first < end and start < last]
        free = [place for place in inside if tags[place] == OUTSIDE]
        for place in free:
            tags[place] = f"{'B' if place == free[0] else 'I'}-{name}"
        moved += not inside or words[inside[0]][0] != start or words[inside[-1]][1] != end
    return tags, moved
