"""Tokenizers made to fit their model: whole, with a padding token, padded where it changes nothing, cut in time.

Whatever is changed here goes into what the tokenizer saves, so that plain transformers reads texts in the same way.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig

from hftoolkit.errors import DataError, RecipeError

# The last part of the name of a table with a row for each position of a text, in any architecture.
POSITION_TABLES = frozenset({"position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe"})
LENGTH_SETTINGS = ("max_position_embeddings", "max_seq_len")
SIDES = ("right", "left")
# Tokens of which a text is made that every model is tried with, and lengths at which it is cut for that.
SAMPLE_TOKENS, SHORT_TOKENS, LONGER_TOKENS = 12, 10, 16
# Largest differences of outputs, in units of the largest of them, between a text alone and the same, padded: what
# rounding makes, and what would be another prediction.
TOLERANCE, MOST_DIFFERENCE = 1e-4, 0.1
# What models of transformers raise for inputs that they cannot read.
UNREADABLE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
WORKING = "name another model.backbone: BERT, RoBERTa, DeBERTa, ModernBERT, GPT-2, Llama, Qwen and T5 work"


def load_tokenizer(path: Path, *, max_length: int | None = None) -> Any:
    """Return the tokenizer of a folder.

    Args:
        path: the folder.
        max_length: tokens at which it was saved to cut; None where any will do.

    Raises:
        DataError: the folder has no vocabulary, of which transformers makes a tokenizer that knows no word; or it is
            not the one that was saved.
        OSError, ValueError, KeyError: transformers cannot read it.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if tokenizer.vocab_size <= len(special) and set(tokenizer.get_vocab()) <= special:
        raise DataError(
            f"{path} has no vocabulary of a tokenizer (tokenizer.json, or vocab.txt and the like), so that every word "
            "would be unknown; copy these files from where the model came from"
        )
    if max_length is not None and tokenizer.model_max_length != max_length:
        raise DataError(
            f"the tokenizer in {path} does not cut texts at {max_length} tokens, as the one that was trained did: "
            "tokenizer_config.json is missing or another one; copy the folder from the run again"
        )
    return tokenizer


def agree_on_padding(config: PretrainedConfig, tokenizer: Any, name: str) -> None:
    """Let tokenizer and model have the same padding token: the tokenizer's, or its end token where it has none.

    To be called before the model is loaded, which takes the number from ``config``.

    Raises:
        DataError: the tokenizer has neither.
    """
    text_config = config.get_text_config()
    rows = getattr(text_config, "vocab_size", None) or math.inf
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= rows:
        if tokenizer.eos_token is None:
            raise DataError(
                f"the tokenizer of {name} has neither a padding nor an end token, so texts of different lengths cannot "
                'share a batch; name a token of its vocabulary in tokenizer_config.json, such as "pad_token": "<unk>"'
            )
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = text_config.pad_token_id = tokenizer.pad_token_id


def longest_text(model: Any) -> int | None:
    """Return how many tokens a model reads at most; None where nothing limits them.

    Tables of positions may have more rows than that: RoBERTa and its relatives count from behind the padding token's
    number, so that the first two rows stand for no position.
    """
    settings = model.config.get_text_config()
    limits = [getattr(settings, name, None) for name in LENGTH_SETTINGS]
    for name, table in model.named_modules():
        if name.rpartition(".")[2] in POSITION_TABLES and isinstance(getattr(table, "weight", None), nn.Parameter):
            padding = getattr(table, "padding_idx", None)
            unused = 0 if padding is None else padding + 1
            limits.append(len(table.weight) - unused)
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def cut_at(tokenizer: Any, max_length: int, longest: int | None) -> None:
    """Let the tokenizer cut at ``max_length`` tokens.

    Raises:
        RecipeError: the model reads fewer, at most ``longest``.
    """
    if longest is not None and longest < max_length:
        raise RecipeError(
            f"model.max_length: {max_length} is more than the {longest} positions of this backbone; set it to "
            f"{longest} or less"
        )
    tokenizer.model_max_length = max_length


def fit_to_model(model: nn.Module, tokenizer: Any) -> str:
    """Let the tokenizer give what the model reads, padded where that changes no output; return what is worth telling.

    - Special tokens written out in a text are plain characters to classifiers that look for the end token.
    - Token types are left out where the model takes none, or adds an embedding to every token for them (GPT-2).
    - Padding stays on the tokenizer's side if outputs are the same with and without, and else goes to the other.

    Raises:
        DataError: the model cannot read such texts at all, gives other outputs each time, or reads padding as text.
    """
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        change(tokenizer, "split_special_tokens", True)
    text, own = _sample(tokenizer), tokenizer.padding_side
    other = next(side for side in SIDES if side != own)
    with _readable(model):
        _drop_useless_types(model, tokenizer, text)
        alone = _outputs(model, tokenizer, text)
        if not _same(_outputs(model, tokenizer, text), alone):
            raise DataError(
                f"{type(model).__name__} gives other outputs each time it reads a text, so no result could be "
                f"repeated; {WORKING}"
            )
        difference = _difference(model, tokenizer, text, alone, own)
        if difference <= TOLERANCE:
            return ""
        if _difference(model, tokenizer, text, alone, other) <= TOLERANCE:
            change(tokenizer, "padding_side", other)
            return f"texts are padded on the {other}, not the {own}: there, outputs of this model depend on the padding"
    if difference > MOST_DIFFERENCE:
        raise DataError(
            f"{type(model).__name__} reads padding as if it were text (outputs change by {difference:.0%}), so that a "
            f"prediction would depend on the other texts of a batch; {WORKING}"
        )
    return (
        f"outputs of {type(model).__name__} depend on how far a text is padded (by {difference:.1%} here), so a text "
        "alone and the same text in a batch may get slightly different predictions"
    )


def change(tokenizer: Any, name: str, value: Any) -> None:
    """Set an attribute of a tokenizer so that it is saved too, which transformers does for some only."""
    setattr(tokenizer, name, value)
    tokenizer.init_kwargs[name] = value


def _sample(tokenizer: Any) -> str:
    """Return a text of about a dozen different tokens of the vocabulary."""
    special = set(tokenizer.all_special_ids)
    ids = [index for index in range(tokenizer.vocab_size) if index not in special]
    step = max(1, len(ids) // SAMPLE_TOKENS)
    text: str = tokenizer.decode(ids[::step][:SAMPLE_TOKENS])
    return text if text.strip() else "a b c d e f"


def _difference(model: nn.Module, tokenizer: Any, text: str, alone: torch.Tensor, side: str) -> float:
    """Return the largest difference that padding a text on a side makes, in units of the largest output."""
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        padded = _outputs(model, tokenizer, text, with_padding=True)
    finally:
        tokenizer.padding_side = before
    return float((padded - alone).abs().max() / alone.abs().max().clamp(min=1e-12))


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, rtol=0, atol=TOLERANCE * float(left.abs().max()))


def _outputs(model: Any, tokenizer: Any, text: str, *, with_padding: bool = False) -> torch.Tensor:
    """Return the outputs for a text, alone or beside a longer one; without those at padding: (C,), or (L, H)."""
    longer = min(LONGER_TOKENS, longest_text(model) or LONGER_TOKENS)
    lengths = (SHORT_TOKENS, longer) if with_padding else (SHORT_TOKENS,)
    each = [tokenizer(f"{text} {text}", truncation=True, max_length=length) for length in lengths]
    made = tokenizer.pad(each, return_attention_mask=True, return_tensors="pt")
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in made and made["token_type_ids"].any():
        names.append("token_type_ids")
    return _run(model, {name: made[name] for name in names})


def _run(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():  # tensors of inference mode that a model keeps could not be trained with
        output = model(**inputs)
    found: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found[0][inputs["attention_mask"][0].bool()] if found.ndim == 3 else found[0]


def _drop_useless_types(model: Any, tokenizer: Any, text: str) -> None:
    """Let the tokenizer give no token types where they are all 0 and the model takes none, or reads them as more."""
    made = tokenizer([text], truncation=True, return_attention_mask=True, return_tensors="pt")
    if "token_type_ids" not in made or made["token_type_ids"].any():
        return
    inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
    plain = _run(model, inputs)
    try:
        if _same(_run(model, inputs | {"token_type_ids": made["token_type_ids"]}), plain):
            return
    except UNREADABLE:
        pass
    change(tokenizer, "model_input_names", [name for name in tokenizer.model_input_names if name != "token_type_ids"])


@contextmanager
def _readable(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{type(model).__name__} cannot read plain texts of its tokenizer ({reason}); {WORKING}"
        ) from error
