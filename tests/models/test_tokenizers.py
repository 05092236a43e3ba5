"""Tokenizers made to fit their model, over tiny random checkpoints of several architectures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer, GPT2Config

from doubles.bert import VOCABULARY
from doubles.reviews import CLASSES
from doubles.text_families import save_family, tokenizer_of
from hftoolkit.contracts import HeadSpec
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.models.backbones import TextBackbone, load_saved_text_model, load_text_model, save_text_model
from hftoolkit.models.tokenizers import change, load_tokenizer
from hftoolkit.recommend.tower import load_text_encoder

KIND = "AutoModelForSequenceClassification"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load(path: Path, max_length: int = 16) -> TextBackbone:
    return load_text_model(path, KIND, HeadSpec(CLASSES), max_length=max_length, dropout=0.0, seed=0)


def logits(model: Any, tokenizer: Any, *texts: str) -> torch.Tensor:
    with torch.inference_mode():
        return model(**tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")).logits


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_decoder_without_a_padding_token_is_saved_with_one(family: str, tmp_path: Path) -> None:
    loaded = load(save_family(family, tmp_path / "backbone"))
    save_text_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.pad_token == tokenizer.eos_token and model.config.pad_token_id == tokenizer.eos_token_id
    batch = logits(model, tokenizer, "good word1", "bad word2 word3 word4 word5")
    torch.testing.assert_close(batch[:1], logits(model, tokenizer, "good word1"))
    torch.testing.assert_close(
        batch, logits(loaded.model, loaded.tokenizer, "good word1", "bad word2 word3 word4 word5")
    )


def test_a_tokenizer_without_padding_and_end_token_is_refused(tmp_path: Path) -> None:
    save_family("llama", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"neither a padding nor an end token.*tokenizer_config\.json"):
        load(tmp_path)


def test_a_padding_token_that_the_model_has_no_row_for_gives_way_to_the_end_token(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_family("llama", tmp_path, vocab_size=len(tokenizer_of("llama"))))
    tokenizer.add_special_tokens({"pad_token": "<one too many>"})
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path).tokenizer.pad_token == "</s>"


@pytest.mark.parametrize(
    "family", ["roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "bart", "opt", "gpt2"]
)
def test_a_model_reads_as_many_tokens_as_it_has_positions_for(family: str, tmp_path: Path) -> None:
    save_family(family, tmp_path)
    with pytest.raises(RecipeError, match=r"65 is more than the 64 positions .*64 or less"):
        load(tmp_path, max_length=65)
    loaded = load(tmp_path, max_length=64)
    assert loaded.longest == 64
    long = " ".join(["word1"] * 100)
    assert loaded.tokenizer(long, truncation=True, return_tensors="pt")["input_ids"].shape == (1, 64)
    assert logits(loaded.model, loaded.tokenizer, long).isfinite().all()


def test_relative_positions_set_no_limit(tmp_path: Path) -> None:
    assert load(save_family("t5", tmp_path), max_length=5000).longest is None


def test_an_end_token_written_out_in_a_text_is_plain_text_to_what_looks_for_it(tmp_path: Path) -> None:
    loaded = load(save_family("bart", tmp_path / "backbone"))
    save_text_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    for tokenizer in (loaded.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        (ids,) = tokenizer(["good </s> word1 </s>"])["input_ids"]
        assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
        assert logits(loaded.model, tokenizer, "good </s> word1 </s>", "bad").shape == (2, 3)


def test_padding_goes_to_the_side_where_it_changes_nothing(tmp_path: Path) -> None:
    save_family("gpt2", tmp_path / "gpt2")
    tokenizer_of("gpt", "left").save_pretrained(tmp_path / "gpt2")
    loaded = load(tmp_path / "gpt2")
    assert loaded.tokenizer.padding_side == "right" and "padded on the right" in loaded.note
    save_text_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").padding_side == "right"
    left = load(save_family("xlnet", tmp_path / "xlnet"))
    assert left.tokenizer.padding_side == "left" and not left.note


def test_what_is_changed_of_a_tokenizer_is_saved(tiny_backbone: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_backbone)
    assert tokenizer.padding_side == "right"
    change(tokenizer, "padding_side", "left")
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).padding_side == "left"


def test_an_architecture_that_reads_some_padding_is_named(tmp_path: Path) -> None:
    path = save_family("convbert", tmp_path)
    assert "outputs of ConvBertForSequenceClassification depend on how far a text is padded" in load(path).note


def test_an_architecture_that_reads_padding_as_text_is_refused_with_what_works(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"FNetForSequenceClassification reads padding .*model\.backbone: BERT"):
        load(save_family("fnet", tmp_path))


def test_token_types_that_a_decoder_would_add_to_its_words_are_not_made(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(VOCABULARY), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    AutoModel.from_config(GPT2Config(**sizes)).save_pretrained(tmp_path / "backbone")
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)})
    assert "token_type_ids" in tokenizer("good")
    tokenizer.save_pretrained(tmp_path / "backbone")
    loaded = load(tmp_path / "backbone")
    save_text_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "saved")("good")


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_a_folder_without_a_vocabulary_is_refused(kept: tuple[str, ...], tiny_backbone: Path, tmp_path: Path) -> None:
    loaded = load(tiny_backbone)
    save_text_model(loaded.model, loaded.tokenizer, tmp_path)
    for name in TOKENIZER_FILES:
        if name not in kept:
            (tmp_path / name).unlink()
    expected = "has no vocabulary of a tokenizer|cannot load"
    with pytest.raises(DataError, match=expected):
        load(tmp_path)
    with pytest.raises(DataError, match=expected):
        load_saved_text_model(tmp_path, KIND, max_length=16)
    with pytest.raises(DataError, match=expected):
        load_text_encoder(tmp_path, max_length=16, dropout=0.0)


def test_a_saved_tokenizer_that_cuts_elsewhere_is_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    loaded = load(tiny_backbone)
    save_text_model(loaded.model, loaded.tokenizer, tmp_path)
    assert load_saved_text_model(tmp_path, KIND, max_length=16).tokenizer.model_max_length == 16
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match=r"does not cut texts at 16 tokens.*tokenizer_config\.json"):
        load_saved_text_model(tmp_path, KIND, max_length=16)
