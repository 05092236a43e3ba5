"""Text classification: sentiment, intent, topic. One label a text, or any number."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from hftoolkit.contracts import (
    Batch,
    CardText,
    Columns,
    Dataset,
    Emit,
    Examples,
    GateInputs,
    Infer,
    Inputs,
    Labelled,
    Message,
    StepOutput,
    Table,
    Task,
    Tensors,
)
from hftoolkit.data.labels import LabelSet
from hftoolkit.data.tables import read_table
from hftoolkit.data.texts import encode_table, load_text_splits
from hftoolkit.metrics.statistics import RowStatistics
from hftoolkit.models.backbones import (
    TextBackbone,
    quiet_transformers,
    save_text_model,
)
from hftoolkit.models.feature_cache import base_features, cached_base
from hftoolkit.models.pretrained import Weights
from hftoolkit.models.tokenizers import UNREADABLE
from hftoolkit.recipe import TextRecipe
from hftoolkit.tasks.shared.baselines import majority, tfidf_logreg
from hftoolkit.tasks.shared.class_head import (
    HEADLINE,
    NO_PREDICTION,
    CachedExample,
    ClassHead,
    Prediction,
    cached_examples,
    class_head_spec,
    class_title,
    stack_targets,
    targets_of,
    to_rows,
)
from hftoolkit.tasks.shared.text_inputs import (
    encode_rows,
    length_advice,
    lost_columns,
    pad_rows,
    processor_inputs,
    text_inputs,
    usage_of,
)
from hftoolkit.tasks.shared.text_models import load_backbone

PROBE_CHECK_ROWS, PROBE_BATCH = 64, 8
PROBE_TOLERANCE = 1e-4  # on fp32 logits, between cached and full computation


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its class: a number, or (C,) float32 of 0 and 1; None where it is to be predicted."""

    text: str
    target: Any = None


@dataclass(frozen=True, slots=True)
class TextExample:
    """One tokenized text and its target; of a pair of texts also which of them each token is of."""

    token_ids: list[int]
    target: Any
    type_ids: list[int] | None = None


class TextClassificationTask:
    """See ``contracts.Task``."""

    unit: ClassVar[str] = "text"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    pipeline_tag: ClassVar[str] = "text-classification"
    headline: ClassVar[Mapping[str, str]] = HEADLINE
    compared_by: ClassVar[str] = "macro_f1"
    no_answer: ClassVar[Prediction] = NO_PREDICTION

    def __init__(self, recipe: TextRecipe, head: ClassHead, base: TextBackbone) -> None:
        """Make one with ``build``."""
        self._recipe = recipe
        self._head = head
        self._tokenizer = base.tokenizer
        self._longest = base.longest

    @classmethod
    def read(
        cls, recipe: TextRecipe, source: Path, weights: Weights, schema: LabelSet | None, emit: Emit
    ) -> Dataset[LabelledText]:
        """Return the checked rows of a table, divided into splits."""
        splits = load_text_splits(source, recipe.data, recipe.task, schema)
        rows = {
            name: [LabelledText(text, target) for text, target in zip(texts, splits.targets[name], strict=True)]
            for name, texts in splits.texts.items()
        }
        return Dataset(rows, splits.row_numbers, splits.labels, splits.summary)

    @classmethod
    def read_labelled(
        cls, recipe: TextRecipe, source: Path, weights: Weights, schema: LabelSet
    ) -> Labelled[LabelledText]:
        """Return all rows of another table."""
        table = read_table(source, how=recipe.data.format, keep_broken=True)
        found, bad = encode_table(table, recipe.data, recipe.task, schema)
        rows = [LabelledText(text, target) for text, target in zip(found.texts, found.targets, strict=True)]
        return Labelled(rows, bad, table.source, tuple(schema.values))

    @classmethod
    def schema_from_json(cls, stored: Mapping[str, Any]) -> LabelSet:
        """Return the classes of a run."""
        return LabelSet.from_json(stored)

    @classmethod
    def load(cls, recipe: TextRecipe, schema: LabelSet, weights: Weights) -> TextBackbone:
        """Return the backbone with a head for the classes."""
        return load_backbone(recipe.model, cls.auto_class, class_head_spec(schema), weights, recipe.train.seed)

    @classmethod
    def build(
        cls, recipe: TextRecipe, schema: LabelSet, base: TextBackbone, train: Sequence[LabelledText] | None
    ) -> Self:
        """Return the task."""
        return cls(recipe, ClassHead.of(schema, recipe.task, base.output_layers, train), base)

    def encode(self, raw: Sequence[LabelledText]) -> Examples:
        """Return tokenized texts."""
        token_ids, type_ids, lengths = encode_rows(self._tokenizer, [row.text for row in raw])
        return Examples(
            [TextExample(ids, row.target, of) for ids, of, row in zip(token_ids, type_ids, raw, strict=True)],
            np.array([len(ids) for ids in token_ids]),
            num_truncated=int((lengths > self._tokenizer.model_max_length).sum()),
            advice=length_advice(lengths, self._tokenizer, self._longest) + lost_columns(self._recipe.data),
        )

    def sampling_weights(self, raw: Sequence[LabelledText]) -> np.ndarray | None:
        """Return the relative frequency of each row, where rare classes are drawn more often."""
        return self._head.sampling_weights(raw)

    def collate(self, examples: Sequence[Any], *, training: bool) -> Batch:
        """Pad to the longest text of the batch: input_ids and attention_mask (B, L), targets (B,) or (B, C)."""
        if isinstance(examples[0], CachedExample):
            features = torch.from_numpy(np.stack([example.features for example in examples]))  # (B, 2, H)
            batch = {"inputs_embeds": features, "attention_mask": torch.ones(features.shape[:2], dtype=torch.long)}
        else:
            batch = pad_rows(examples, self._tokenizer)
        if examples[0].target is None:
            return batch
        return batch | {"targets": stack_targets([example.target for example in examples])}

    def forward(self, model: nn.Module, batch: Batch) -> Tensors:
        """Return the ``logits`` of a batch, (B, C)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
        return {"logits": model(**inputs).logits}

    def loss(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed loss of a batch."""
        return self._head.step(self.forward(model, batch)["logits"], batch)

    def predict(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Return the logits of each example, (C,) float32."""
        return to_rows(self.forward(model, batch)["logits"])

    def metric_names(self, raw: Sequence[LabelledText]) -> frozenset[str]:
        """Return the metrics that the targets allow."""
        return self._head.metric_names(raw)

    def score(self, outputs: Sequence[np.ndarray], raw: Sequence[LabelledText]) -> RowStatistics:
        """Return the metrics of logits."""
        return self._head.statistics(self._head.probabilities(outputs), raw)

    def unmeasured(self, raw: Sequence[LabelledText]) -> list[str]:
        """Return the classes that none of the rows has."""
        return self._head.unmeasured(raw)

    def pairs(self, outputs: Sequence[np.ndarray], raw: Sequence[LabelledText]) -> tuple[list[Any], list[Any]]:
        """Return predicted and true classes."""
        return self._head.pairs(outputs, raw)

    def inputs(self, source: Any) -> Inputs[LabelledText]:
        """Return the texts of a table, of dicts with its text columns, or of a list of texts."""
        return text_inputs(source, self._recipe.data, LabelledText)

    def answers(self, outputs: Sequence[np.ndarray], raw: Sequence[LabelledText]) -> list[Prediction]:
        """Return classes and probabilities."""
        return self._head.answers(outputs)

    def columns(self, answers: Sequence[Prediction]) -> Columns:
        """Return label and probabilities."""
        return self._head.columns(answers)

    def top_columns(self, answers: Sequence[Prediction], count: int) -> Columns:
        """Return label and the most probable classes."""
        return self._head.top_columns(answers, count)

    def truth(self, raw: Sequence[LabelledText]) -> Columns:
        """Return texts and true labels."""
        return {self.unit: [row.text for row in raw], "label": self._head.true_labels(raw)}

    def facts(self) -> dict[str, Any]:
        """Return nothing: what is cut is counted with the examples."""
        return {}

    def card(self, results: Mapping[str, Any]) -> CardText:
        """Return title, usage and limits."""
        title = class_title("Text classifier", self._head.labels.names)
        if not results:
            return CardText(title, usage_of(self._recipe.data, USAGE), ())
        share = results["truncated"]["test"] / results["test"]["examples"]
        cut = f"Texts are cut at {self._recipe.model.max_length} tokens; {share:.1%} of the test texts are longer."
        *weakest, calibrated = self._head.limits(results, " or languages")
        return CardText(title, usage_of(self._recipe.data, USAGE), (*weakest, cut, calibrated))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a plain model with its tokenizer."""
        save_text_model(model, self._tokenizer, folder)

    def gate_inputs(self, raw: Sequence[LabelledText]) -> GateInputs:
        """Return texts, and their tokens padded as the tokenizer alone pads them."""
        texts = [row.text for row in raw]
        tensors = pad_rows(self.encode(raw).items, self._tokenizer, multiple_of=1)
        return GateInputs(tensors, "AutoTokenizer", processor_inputs(texts))

    def calibrate(self, model: nn.Module, outputs: Sequence[np.ndarray], raw: Sequence[LabelledText]) -> dict[str, Any]:
        """Fold a temperature into the output layers."""
        return self._head.calibrate(model, outputs, raw)

    def baselines(
        self, train: Sequence[LabelledText], raw: Sequence[LabelledText], seed: int
    ) -> dict[str, RowStatistics]:
        """Return a majority and a TF-IDF model, fitted on the training rows."""
        targets, texts = targets_of(train), [row.text for row in raw]
        classes, multi_label = len(self._head.labels.names), self._head.labels.multi_label
        found = {
            "majority": majority(targets, len(raw), classes, multi_label),
            "tfidf_logreg": tfidf_logreg(
                [row.text for row in train], targets, texts, num_classes=classes, multi_label=multi_label, seed=seed
            ),
        }
        return {name: self._head.statistics(probabilities, raw) for name, probabilities in found.items()}

    def details(
        self, measured: Mapping[str, Any], outputs: Sequence[np.ndarray], raw: Sequence[LabelledText]
    ) -> Iterable[Table]:
        """Return metrics by class, and the confusion matrix."""
        return self._head.details(measured, outputs, raw)

    def draw(
        self,
        model: nn.Module,
        outputs: Sequence[np.ndarray],
        raw: Sequence[LabelledText],
        *,
        report: Path,
        model_folder: Path,
    ) -> None:
        """Write the confusion matrix and the reliability diagram."""
        self._head.draw(outputs, raw, report)

    @contextmanager
    def cached_features(
        self, model: nn.Module, examples: Mapping[str, Examples], infer: Infer, emit: Emit
    ) -> Iterator[Mapping[str, Examples]]:
        """Inside, the frozen backbone is not run: the head gets features that were computed once.

        Where the head of an architecture needs more than was cached, the backbone runs in every step instead.
        """
        some = [
            examples["validation"].items[place] for place in range(min(PROBE_CHECK_ROWS, len(examples["validation"])))
        ]
        last = next((last for last in (False, True) if self._reads_one_position(model, some, last=last)), None)
        if last is None:
            emit(Message("this head reads more than one position of a text; the frozen backbone runs in each step"))
            yield examples
            return

        def features(model: nn.Module, batch: Batch) -> list[np.ndarray]:
            return to_rows(base_features(model, batch, last=last))

        cached = {
            name: cached_examples(infer(model, found, predict=features, full_precision=True), found)
            for name, found in examples.items()
        }
        with cached_base(model):
            yield cached

    def _reads_one_position(self, model: nn.Module, items: Sequence[TextExample], *, last: bool) -> bool:
        """Return whether cached features of the first or last position give the logits that the texts give.

        Each of several ranks finds out by itself: a model that cannot be run this way raises in those that run it.
        """
        device, same = next(model.parameters()).device, True
        model.eval()
        with torch.no_grad(), quiet_transformers():
            for start in range(0, len(items), PROBE_BATCH):
                batch = _without_targets(self.collate(items[start : start + PROBE_BATCH], training=False), device)
                whole = self.forward(model, batch)["logits"]
                try:
                    features = to_rows(base_features(model, batch, last=last))
                    cached = _without_targets(
                        self.collate([CachedExample(found, None) for found in features], training=False), device
                    )
                    with cached_base(model):
                        short = self.forward(model, cached)["logits"]
                except UNREADABLE:  # the head wants more than the states
                    return False
                same = same and short.shape == whole.shape and float((short - whole).abs().max()) <= PROBE_TOLERANCE
        return same


def _without_targets(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items() if name != "targets"}


USAGE = """from transformers import pipeline

classify = pipeline("text-classification", model="path/or/repository", top_k=None)
classify("The fabric is thin and it runs small.", truncation=True)"""


if TYPE_CHECKING:
    _: type[Task] = TextClassificationTask
