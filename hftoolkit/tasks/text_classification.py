"""Text classification: sentiment, intent, topic. One label a text, or any number."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import Batch, Datasets, Emit, Infer, Message, Rows
from hftoolkit.data.texts import TextSplits
from hftoolkit.models.backbones import TextBackbone, save_classifier
from hftoolkit.models.probe import CachedBase, base_features, swap_base
from hftoolkit.recipe import TextClassification
from hftoolkit.tasks.classification import ClassificationTask, first_rows, stack_targets
from hftoolkit.tasks.shared.baselines import majority, tfidf_logreg

# A text is "kept whole" at the recommended max_length for this share of the training texts.
WHOLE_SHARE = 0.99
# Few different batch shapes: matrix kernels are prepared and kept in memory for each one.
LENGTH_STEP = 8
PROBE_CHECK_ROWS = 64
PROBE_TOLERANCE = 1e-4  # on fp32 logits, between cached and full computation


@dataclass(frozen=True, slots=True)
class TextExample:
    """One tokenized text and its target."""

    token_ids: list[int]
    target: Any  # class index, or (C,) float32 of 0 and 1


class TextClassificationTask(ClassificationTask):
    """See ``contracts.Task``. Texts are tokenized once."""

    unit = "text"
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, section: TextClassification, splits: TextSplits, backbone: TextBackbone) -> None:
        """Tokenize every split."""
        super().__init__(section, splits, backbone)
        self._tokenizer = backbone.tokenizer
        self._texts = splits.texts
        encoded = {name: encode_texts(self._tokenizer, texts) for name, texts in splits.texts.items()}
        self.token_counts = {name: lengths for name, (_, lengths) in encoded.items()}  # before the cut, (N,)
        self._rows = {name: self._tokenized_rows(name, token_ids) for name, (token_ids, _) in encoded.items()}
        self._features: dict[str, np.ndarray] | None = None  # (N, 2, H) by split while a linear probe is trained

    def datasets(self) -> Datasets:
        """Return tokenized rows, or cached features while ``cached_features`` is open."""
        if self._features is None:
            return Datasets(self._rows, self._collate)
        cached = {
            name: replace(rows, examples=_pair(self._features[name], self.targets[name]), lengths=None)
            for name, rows in self._rows.items()
        }
        return Datasets(cached, _collate_features)

    def predict_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits of a batch, (B, C)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
        logits: torch.Tensor = model(**inputs).logits
        return logits

    def examples(self, split: str) -> Sequence[str]:
        """Return the texts."""
        return self._texts[split]

    def facts(self) -> dict[str, Any]:
        """Return how many texts of each split are cut."""
        limit = self._tokenizer.model_max_length
        return {"truncated": {name: int((lengths > limit).sum()) for name, lengths in self.token_counts.items()}}

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write a plain model with its tokenizer."""
        save_classifier(model, self._tokenizer, directory)

    def gate_request(self, chosen: np.ndarray, folder: Path) -> dict[str, Any]:
        """Return the chosen validation texts."""
        return {"texts": [self._texts["validation"][index] for index in chosen]}

    def baselines(self, split: str, seed: int) -> dict[str, np.ndarray]:
        """Return the probabilities, (N, C), of a majority and a TF-IDF model fitted on the training split."""
        texts, targets = self._texts, self.targets["train"]
        classes, multi_label = len(self.labels.names), self.labels.multi_label
        return {
            "majority": majority(targets, len(texts[split]), classes, multi_label),
            "tfidf_logreg": tfidf_logreg(
                texts["train"], targets, texts[split], num_classes=classes, multi_label=multi_label, seed=seed
            ),
        }

    @contextmanager
    def cached_features(self, model: nn.Module, infer: Infer, emit: Emit) -> Iterator[None]:
        """Inside, the frozen backbone is not run: the head gets features that were computed once.

        Where the head of an architecture needs more than was cached, the backbone runs in every step instead.
        """
        features = {
            name: infer(model, rows, step=base_features, full_precision=True) for name, rows in self._rows.items()
        }
        check = first_rows(self._rows["validation"], PROBE_CHECK_ROWS)
        full = infer(model, check, full_precision=True)
        base = swap_base(model, CachedBase())
        self._features = features
        try:
            rows = first_rows(self.datasets().splits["validation"], PROBE_CHECK_ROWS)
            difference = float(np.abs(infer(model, rows, full_precision=True) - full).max())
            if difference > PROBE_TOLERANCE:
                emit(Message("this head reads more than the first position; the frozen backbone runs in each step"))
                self._features = None
                swap_base(model, base)
            yield
        finally:
            self._features = None
            swap_base(model, base)

    def _tokenized_rows(self, split: str, token_ids: list[list[int]]) -> Rows:
        examples = [TextExample(ids, target) for ids, target in zip(token_ids, self.targets[split], strict=True)]
        return self.make_rows(split, examples, np.array([len(ids) for ids in token_ids]))

    def _collate(self, examples: list[TextExample]) -> Batch:
        """Pad to the longest text of the batch: input_ids and attention_mask (B, L), targets (B,) or (B, C)."""
        batch = pad_tokens([example.token_ids for example in examples], self._tokenizer)
        return batch | {"targets": stack_targets([example.target for example in examples])}


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> tuple[list[list[int]], np.ndarray]:
    """Return the token ids of each text, cut at the tokenizer's length, and the lengths before the cut, (N,)."""
    whole: list[list[int]] = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    lengths = np.array([len(ids) for ids in whole])
    too_long: list[int] = np.flatnonzero(lengths > tokenizer.model_max_length).tolist()
    if too_long:
        cut = tokenizer([texts[index] for index in too_long], truncation=True)["input_ids"]
        for index, ids in zip(too_long, cut, strict=True):
            whole[index] = ids
    return whole, lengths


def pad_tokens(token_ids: Sequence[Sequence[int]], tokenizer: Any, multiple_of: int = LENGTH_STEP) -> Batch:
    """Return right-padded ``input_ids`` and their ``attention_mask``, both (B, L), L such a multiple where it fits."""
    longest = max(len(ids) for ids in token_ids)
    length = max(longest, min(-(-longest // multiple_of) * multiple_of, tokenizer.model_max_length))
    input_ids = torch.full((len(token_ids), length), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(token_ids), length), dtype=torch.long)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def truncation_report(lengths: np.ndarray, max_length: int) -> tuple[int, int]:
    """Return how many texts are cut, and the length (a multiple of 8) at which 99 % of them would stay whole."""
    needed = int(np.quantile(lengths, WHOLE_SHARE, method="higher"))
    return int((lengths > max_length).sum()), -(-needed // 8) * 8


def _pair(features: np.ndarray, targets: np.ndarray) -> list[tuple[np.ndarray, Any]]:
    return list(zip(features, targets, strict=True))


def _collate_features(examples: list[tuple[np.ndarray, Any]]) -> Batch:
    features = torch.from_numpy(np.stack([feature for feature, _ in examples]))  # (B, 2, H)
    mask = torch.ones(features.shape[:2], dtype=torch.long)
    targets = stack_targets([target for _, target in examples])
    return {"inputs_embeds": features, "attention_mask": mask, "targets": targets}
