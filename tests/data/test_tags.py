import random

import pytest

from hftoolkit.data.token_rows import find_scheme, spans_of_tags, tag_names, tags_of_spans
from hftoolkit.errors import DataError

WORDS = [(0, 3), (4, 8), (9, 12), (13, 20), (21, 22)]


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("BIO", ["B-PER", "I-PER", "O", "B-ORG", "O"]),
        ("BIO", ["I-PER", "I-PER", "O", "I-ORG", "O"]),  # IOB1
        ("BIOES", ["B-PER", "E-PER", "O", "S-ORG", "O"]),
        ("BIOES", ["B-PER", "L-PER", "O", "U-ORG", "O"]),  # BILOU
        ("bare", ["PER", "PER", "O", "ORG", "O"]),
    ],
)
def test_every_scheme_marks_the_same_spans(scheme, tags):
    assert find_scheme(tags) == scheme
    spans, _ = spans_of_tags(tags, WORDS, scheme)
    assert spans == [("PER", 0, 8), ("ORG", 13, 20)]


def test_neighbours_of_one_type_are_told_apart_where_the_scheme_can():
    assert spans_of_tags(["B-A", "B-A", "I-A", "O", "O"], WORDS, "BIO")[0] == [("A", 0, 3), ("A", 4, 12)]
    assert spans_of_tags(["S-A", "S-A", "O", "O", "O"], WORDS, "BIOES")[0] == [("A", 0, 3), ("A", 4, 8)]
    assert spans_of_tags(["A", "A", "O", "O", "O"], WORDS, "bare")[0] == [("A", 0, 8)]


@pytest.mark.parametrize(
    ("tags", "spans", "count"),
    [
        (["O", "I-A", "I-A", "O", "O"], [("A", 4, 12)], 1),
        (["B-A", "I-B", "O", "O", "O"], [("A", 0, 3), ("B", 4, 8)], 1),
        (["B-A", "I-A", "O", "O", "O"], [("A", 0, 8)], 0),
    ],
)
def test_impossible_tags_begin_an_entity_and_are_counted(tags, spans, count):
    assert spans_of_tags(tags, WORDS, "BIO") == (spans, count)


def test_a_tag_of_another_scheme_is_refused():
    with pytest.raises(DataError, match="'PER' is no tag of BIO"):
        spans_of_tags(["PER", "O", "O", "O", "O"], WORDS, "BIO")


def test_tags_give_back_the_spans_that_they_were_made_of():
    generator = random.Random(0)
    for _ in range(300):
        spans, place = [], 0
        while place < len(WORDS):
            size = generator.randint(1, len(WORDS) - place)
            if generator.random() < 0.6:
                spans.append((generator.choice("AB"), WORDS[place][0], WORDS[place + size - 1][1]))
            place += size
        tags, moved = tags_of_spans(spans, WORDS)
        assert set(tags) <= set(tag_names("AB")) and moved == 0
        assert spans_of_tags(tags, WORDS, "BIO") == (spans, 0)


def test_spans_that_end_inside_of_a_word_are_counted():
    assert tags_of_spans([("A", 0, 6)], WORDS) == (["B-A", "I-A", "O", "O", "O"], 1)
    assert tags_of_spans([("A", 3, 4)], WORDS) == (["O"] * 5, 1)
