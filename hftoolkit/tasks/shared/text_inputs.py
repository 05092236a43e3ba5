"""How texts enter a model: tokens, padding, and the rows that are to be predicted."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from hftoolkit.contracts import Batch, Columns, Inputs
from hftoolkit.data.given import column_names, given_rows, is_missing
from hftoolkit.data.tables import read_table, require_columns
from hftoolkit.data.text_rows import BadRows, TextPair, broken_rows, clean_texts, text_columns
from hftoolkit.errors import DataError
from hftoolkit.recipe import TextData
from hftoolkit.tasks.shared.pieces import pieces

# A text is "kept whole" at the recommended max_length for this share of the training texts.
WHOLE_SHARE = 0.99
# Few different batch shapes: matrix kernels are prepared and kept in memory for each one.
LENGTH_STEP = 8
# What the snippets of cards ask about.
ONE_TEXT = '"The fabric is thin and it runs small."'
ONE_PAIR = '{"text": "The fabric is thin.", "text_pair": "It runs small."}'
RawT = TypeVar("RawT")


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> tuple[list[list[int]], np.ndarray]:
    """Return the token ids of each text, cut at the tokenizer's length, and the lengths before the cut, (N,)."""
    token_ids: list[list[int]] = []
    lengths: list[int] = []
    for (some,) in pieces(texts):
        found = _encoded_piece(tokenizer, some)
        token_ids += found[0]
        lengths += found[1]
    return token_ids, np.array(lengths, dtype=np.int64)


def _encoded_piece(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], list[int]]:
    whole: list[list[int]] = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    lengths = [len(ids) for ids in whole]
    too_long = [index for index, length in enumerate(lengths) if length > tokenizer.model_max_length]
    if too_long:
        cut = tokenizer([texts[index] for index in too_long], truncation=True)["input_ids"]
        for index, ids in zip(too_long, cut, strict=True):
            whole[index] = ids
    return whole, lengths


def encode_rows(tokenizer: Any, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int] | None], np.ndarray]:
    """Return token ids of texts or pairs, cut; which text a token is of (None for models without); lengths, uncut."""
    if not texts or not isinstance(texts[0], TextPair):
        single_ids, single_lengths = encode_texts(tokenizer, texts)
        _check_ends(tokenizer, single_ids, texts)
        return single_ids, single_type_ids(tokenizer, texts), single_lengths
    pairs = [text for text in texts if isinstance(text, TextPair)]
    token_ids: list[list[int]] = []
    type_ids: list[list[int] | None] = []
    lengths: list[int] = []
    for both in pieces([pair.first for pair in pairs], [pair.second for pair in pairs]):
        lengths += [len(ids) for ids in tokenizer(*both, truncation=False, verbose=False)["input_ids"]]
        cut = tokenizer(*both, truncation=True)
        token_ids += cut["input_ids"]
        type_ids += cut.get("token_type_ids") or [None] * len(both[0])
    _check_ends(tokenizer, token_ids, texts)
    return token_ids, type_ids, np.array(lengths, dtype=np.int64)


def single_type_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int] | None]:
    """Return the type of each token of single texts where any is not 0, as XLNet's last token; else None for each."""
    if not any(tokenizer("a").get("token_type_ids") or ()):
        return [None] * len(texts)
    return [ids for (some,) in pieces(texts) for ids in tokenizer(some, truncation=True)["token_type_ids"]]


def _check_ends(tokenizer: Any, token_ids: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
    """Raise DataError for texts with the end token in them, where a classifier looks for that and it stays a token.

    Its classifiers have ``split_special_tokens``, which makes plain characters of it in most tokenizers. Those of
    SentencePiece find it again among their pieces.
    """
    if not texts or not getattr(tokenizer, "split_special_tokens", False):
        return
    counts = np.array([list(ids).count(tokenizer.eos_token_id) for ids in token_ids])
    odd: list[int] = np.flatnonzero(counts != counts.min()).tolist()
    if odd:
        raise DataError(
            f"{len(odd)} of {len(texts)} texts have {tokenizer.eos_token} in them, which this backbone takes for their "
            f"end, the first is {str(texts[odd[0]])[:60]!r}; remove {tokenizer.eos_token} from the texts, or name "
            "another model.backbone"
        )


def processor_inputs(texts: Sequence[str]) -> dict[str, Any]:
    """Return what a tokenizer is called with for texts or pairs, as plain libraries do."""
    if texts and isinstance(texts[0], TextPair):
        pairs = [text for text in texts if isinstance(text, TextPair)]
        named: dict[str, Any] = {"text": [pair.first for pair in pairs], "text_pair": [pair.second for pair in pairs]}
    else:
        named = {"text": list(map(str, texts))}
    return named | {"truncation": True, "padding": True}


def pad_rows(examples: Sequence[Any], tokenizer: Any, multiple_of: int = LENGTH_STEP) -> Batch:
    """Return ``input_ids``, ``attention_mask`` and, of pairs, ``token_type_ids`` of encoded texts, each (B, L)."""
    batch = pad_tokens([example.token_ids for example in examples], tokenizer, multiple_of)
    if examples[0].type_ids is not None:
        batch["token_type_ids"] = torch.full_like(batch["input_ids"], tokenizer.pad_token_type_id)
        for row, example in enumerate(examples):
            batch["token_type_ids"][row, text_positions(example.type_ids, batch, tokenizer)] = torch.tensor(
                example.type_ids
            )
    return batch


def pad_tokens(token_ids: Sequence[Sequence[int]], tokenizer: Any, multiple_of: int = LENGTH_STEP) -> Batch:
    """Return ``input_ids``, padded on the tokenizer's side, and their ``attention_mask``.

    Both are (B, L), with L such a multiple where it fits.
    """
    longest = max(len(ids) for ids in token_ids)
    length = max(longest, min(-(-longest // multiple_of) * multiple_of, tokenizer.model_max_length))
    input_ids = torch.full((len(token_ids), length), tokenizer.pad_token_id, dtype=torch.long)
    batch = {"input_ids": input_ids, "attention_mask": torch.zeros_like(input_ids)}
    for row, ids in enumerate(token_ids):
        places = text_positions(ids, batch, tokenizer)
        input_ids[row, places] = torch.tensor(ids)
        batch["attention_mask"][row, places] = 1
    return batch


def text_positions(ids: Sequence[int], batch: Batch, tokenizer: Any) -> slice:
    """Return where the tokens of a text are in its row of a padded batch."""
    length = batch["input_ids"].shape[1]
    return slice(length - len(ids), length) if tokenizer.padding_side == "left" else slice(len(ids))


def length_advice(lengths: np.ndarray, tokenizer: Any, longest: int | None) -> str:
    """Return at what length texts are cut, and one (a multiple of 8) that keeps 99 % whole, or as many as can be.

    Args:
        lengths: (N,) of the texts, uncut.
        tokenizer: cuts them.
        longest: tokens that the model reads at most; None where nothing limits them.
    """
    if len(lengths) == 0:
        return ""
    cut = tokenizer.model_max_length
    needed = int(np.quantile(lengths, WHOLE_SHARE, method="higher"))
    if longest is None or needed <= longest:
        wanted = -(-needed // LENGTH_STEP) * LENGTH_STEP
        return f"at {cut} tokens; max_length: {wanted if longest is None else min(wanted, longest)} keeps 99 % whole"
    if cut == longest:
        return f"at {cut} tokens, which is all that this backbone reads"
    share = float((lengths <= longest).mean())
    return f"at {cut} tokens; max_length: {longest}, which is all that this backbone reads, keeps {share:.0%} whole"


def usage_of(data: TextData, usage: str) -> str:
    """Return a snippet that asks a pipeline for one text, or the same for a pair where the model reads pairs."""
    return usage if data.columns.text_pair is None else usage.replace(ONE_TEXT, ONE_PAIR)


def lost_columns(data: TextData) -> str:
    """Return what is lost where a text that was joined from several columns is cut; nothing for one column."""
    names = data.columns.text
    if len(names) == 1:
        return ""
    if data.template is not None:
        names = tuple(sorted(names, key=data.template.find))
    text = f". The columns {', '.join(names)} are joined, so that the end is lost, {names[-1]} first"
    if len(names) > 2 or data.template or data.columns.text_pair:
        return text
    return (
        f"{text}; with data.columns.text: {names[0]} and data.columns.text_pair: {names[1]}, the longer of both is cut "
        "instead"
    )


def text_inputs(source: Any, data: TextData, make: Callable[[str], RawT]) -> Inputs[RawT]:
    """Return the texts of a table, of rows with its text columns, or of a list of texts.

    Args:
        source: path of a table, or rows, see ``data.given``.
        data: of the recipe: columns and template.
        make: turns a clean text into a raw row.

    Raises:
        DataError: there is no such file, these are no rows, or a column is missing.
    """
    table, broken = _table_columns(source, data) if isinstance(source, Path) else ({}, {})
    columns = table or _columns_of_rows(given_rows(source), data)
    texts, bad = clean_texts(columns, data)
    bad |= broken
    rows = [make(text) if number not in bad else bad[number] for number, text in enumerate(texts, start=1)]
    return Inputs(len(rows), lambda start, stop: rows[start:stop], max(1, len(rows)), table=table)


def _table_columns(source: Path, data: TextData) -> tuple[Columns, BadRows]:
    """Return all columns of a table with those of texts, and the rows that could not be read."""
    if not source.exists():
        raise DataError(f"there is no file {source}; name a table, or - for a text a line on standard input")
    table = read_table(source, how=data.format, keep_broken=True)
    names = text_columns(data)
    require_columns(table, names, f"the header: the model reads {', '.join(names)}")
    return table.columns, broken_rows(table)


def _columns_of_rows(rows: Sequence[Any], data: TextData) -> Mapping[str, Sequence[Any]]:
    names = text_columns(data)
    present = [row for row in rows if not is_missing(row)]
    if present and all(isinstance(row, Mapping) for row in present):
        found = column_names(present)
        missing = [name for name in names if name not in found]
        if missing:
            have = ", ".join(map(repr, found))
            raise DataError(f"rows lack {', '.join(missing)}; they have {have}, and the model reads {', '.join(names)}")
        return {name: [None if is_missing(row) else row.get(name) for row in rows] for name in names}
    kinds = sorted({type(row).__name__ for row in present})
    if present and (
        any(isinstance(row, Mapping) for row in present) or not any(isinstance(row, str) for row in present)
    ):
        raise DataError(f"rows must be all texts, or all dicts; found {', '.join(kinds)} among them")
    if present and data.columns.text_pair is not None:
        raise DataError(f"rows must be dicts with {', '.join(names)}: the model reads pairs of texts")
    return {name: [""] * len(rows) for name in names} | {names[-1]: list(rows)}
