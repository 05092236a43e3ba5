"""How texts enter a model: rows of tables, padding on either side, token types, advice on lengths."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from doubles.text_families import tokenizer_of
from hftoolkit.contracts import Unusable
from hftoolkit.errors import DataError
from hftoolkit.recipe import TextData
from hftoolkit.tasks.shared.text_inputs import encode_rows, length_advice, lost_columns, pad_rows, text_inputs

TEXTS = ["good word1 word2", "bad"]


@pytest.mark.parametrize(
    ("style", "side"), [("bert", "right"), ("bert", "left"), ("xlnet", "left"), ("xlnet", "right")]
)
def test_batches_are_what_the_tokenizer_alone_makes(style: str, side: str) -> None:
    tokenizer = tokenizer_of(style, side)
    tokenizer.model_max_length = 16
    token_ids, type_ids, _ = encode_rows(tokenizer, TEXTS)
    rows = [SimpleNamespace(token_ids=ids, type_ids=of) for ids, of in zip(token_ids, type_ids, strict=True)]
    batch = pad_rows(rows, tokenizer, multiple_of=1)
    expected = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert ("token_type_ids" in batch) == (style == "xlnet")
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert pad_rows(rows, tokenizer)["input_ids"].shape == (2, 8)


def test_texts_with_an_end_token_that_stays_one_are_refused_where_it_counts() -> None:
    tokenizer = tokenizer_of("t5")
    texts = ["good word1", "bad </s> word2"]
    assert len(encode_rows(tokenizer, texts)[0]) == 2
    tokenizer.split_special_tokens = True
    with pytest.raises(DataError, match=r"1 of 2 texts have </s> in them.*'bad </s> word2'; remove </s>"):
        encode_rows(tokenizer, texts)
    assert len(encode_rows(tokenizer, texts[:1])[0]) == 1


@pytest.mark.parametrize(
    ("longest", "cut", "said"),
    [
        (None, 48, "at 48 tokens; max_length: 128 keeps 99 % whole"),
        (512, 48, "at 48 tokens; max_length: 128 keeps 99 % whole"),
        (126, 48, "at 48 tokens; max_length: 126 keeps 99 % whole"),
        (64, 48, "at 48 tokens; max_length: 64, which is all that this backbone reads, keeps 51% whole"),
        (64, 64, "at 64 tokens, which is all that this backbone reads"),
    ],
)
def test_no_length_is_advised_that_the_backbone_cannot_read(longest: int | None, cut: int, said: str) -> None:
    lengths = np.arange(1, 127)
    assert length_advice(lengths, SimpleNamespace(model_max_length=cut), longest) == said


def test_what_is_lost_of_joined_columns_is_named_with_what_keeps_it() -> None:
    def data(text: object, **more: object) -> TextData:
        columns = {"text": text, "label": "y"} | {name: more.pop(name) for name in ("text_pair",) if name in more}
        return TextData.model_validate({"source": "t.csv", "columns": columns} | more)

    assert lost_columns(data("a")) == ""
    assert "b first; with data.columns.text: a and data.columns.text_pair: b, the longer" in lost_columns(
        data(["a", "b"])
    )
    turned = lost_columns(data(["a", "b"], template="{b} {a}"))
    assert "b, a are joined" in turned and turned.endswith("a first")
    assert lost_columns(data(["a", "b", "c"])).endswith("c first")
    assert lost_columns(data(["a", "b"], text_pair="c")).endswith("b first")


def test_a_line_with_another_number_of_cells_costs_its_row_alone(tmp_path):
    (tmp_path / "t.csv").write_text("id;text\n1;one\ntorn\n3;three\n4;four\n")
    data = TextData.model_validate({"source": "x", "columns": {"text": "text", "label": "label"}})
    inputs = text_inputs(tmp_path / "t.csv", data, str)
    assert inputs.read(0, inputs.num_rows) == [
        "one",
        Unusable("row has another number of cells than the header", name="line 3"),
        "three",
        "four",
    ]
    assert inputs.table["id"][2] == "3"


def test_a_table_is_read_as_the_recipe_says(tmp_path):
    (tmp_path / "t.csv").write_bytes("sch\u00f6n\nfein\n".encode("cp1252"))
    told = {"encoding": "cp1252", "names": ["text"]}
    data = TextData.model_validate({"source": "x", "columns": {"text": "text", "label": "label"}, "format": told})
    inputs = text_inputs(tmp_path / "t.csv", data, str)
    assert inputs.read(0, inputs.num_rows) == ["sch\u00f6n", "fein"]
