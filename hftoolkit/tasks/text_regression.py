"""Regression: a number for each text, or pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from torch import nn

from hftoolkit.contracts import (
    Batch,
    CardText,
    Columns,
    Dataset,
    Emit,
    Examples,
    GateInputs,
    Inputs,
    Labelled,
    StepOutput,
    Task,
    Tensors,
)
from hftoolkit.contracts.names import markdown, short
from hftoolkit.data.rows import labelled_rows, load_rows, numbers_of
from hftoolkit.data.tables import DataTable, read_table, require_columns
from hftoolkit.data.text_rows import BadRows, clean_texts, require_header, text_columns
from hftoolkit.metrics.statistics import RowStatistics
from hftoolkit.models.backbones import TextBackbone, save_text_model
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe import TextData
from hftoolkit.recipe.regression import TextRegressionRecipe
from hftoolkit.tasks.shared.baselines import tfidf_ridge
from hftoolkit.tasks.shared.score_head import HEADLINE, Score, ScoreHead, targets_of, with_targets
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


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text and its number; None where it is to be predicted."""

    text: str
    target: float | None = None

    @property
    def key(self) -> str:
        return self.text

    def to_json(self) -> Any:
        """Return text and number."""
        return [self.text, self.target]


@dataclass(frozen=True, slots=True)
class ScoredExample:
    """One tokenized text and its number; of a pair of texts also which of them each token is of."""

    token_ids: list[int]
    target: float | None
    type_ids: list[int] | None


class TextRegressionTask:
    """See ``contracts.Task``. An output is a number."""

    unit: ClassVar[str] = "text"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    pipeline_tag: ClassVar[str] = "text-classification"
    headline: ClassVar[Mapping[str, str]] = HEADLINE
    compared_by: ClassVar[str] = "r2"
    no_answer: ClassVar[float | None] = None

    def __init__(self, recipe: TextRegressionRecipe, head: ScoreHead, base: TextBackbone) -> None:
        """Make one with ``build``."""
        self._recipe = recipe
        self._head = head
        self._tokenizer = base.tokenizer
        self._longest = base.longest

    @classmethod
    def read(
        cls, recipe: TextRegressionRecipe, source: Path, weights: Weights, schema: Score | None, emit: Emit
    ) -> Dataset[ScoredText]:
        """Return the checked rows of a table, divided into splits."""
        divided = load_rows(source, recipe.data, lambda table: _parse(table, recipe.data), "text")
        score = schema or Score.of(recipe.data.columns.label[0], targets_of(divided.splits["train"]))
        return Dataset(divided.splits, divided.row_numbers, score, divided.summary)

    @classmethod
    def read_labelled(
        cls, recipe: TextRegressionRecipe, source: Path, weights: Weights, schema: Score
    ) -> Labelled[ScoredText]:
        """Return all rows of another table."""
        table = read_table(source, how=recipe.data.format, keep_broken=True)
        require_header(table, (*text_columns(recipe.data), recipe.data.columns.label[0]))
        return labelled_rows(table, _parse(table, recipe.data))

    @classmethod
    def schema_from_json(cls, stored: Mapping[str, Any]) -> Score:
        """Return the number that a run learned."""
        return Score.from_json(stored)

    @classmethod
    def load(cls, recipe: TextRegressionRecipe, schema: Score, weights: Weights) -> TextBackbone:
        """Return the backbone with a head of one output."""
        return load_backbone(recipe.model, cls.auto_class, schema.head, weights, recipe.train.seed)

    @classmethod
    def build(
        cls, recipe: TextRegressionRecipe, schema: Score, base: TextBackbone, train: Sequence[ScoredText] | None
    ) -> Self:
        """Return the task."""
        head = ScoreHead.of(schema, recipe.task.loss, base, is_trained=not base.output_layers)
        return cls(recipe, head, base)

    def encode(self, raw: Sequence[ScoredText]) -> Examples:
        """Return tokenized texts."""
        token_ids, type_ids, lengths = encode_rows(self._tokenizer, [row.text for row in raw])
        return Examples(
            [ScoredExample(ids, row.target, of) for ids, of, row in zip(token_ids, type_ids, raw, strict=True)],
            np.array([len(ids) for ids in token_ids]),
            num_truncated=int((lengths > self._tokenizer.model_max_length).sum()),
            advice=length_advice(lengths, self._tokenizer, self._longest) + lost_columns(self._recipe.data),
        )

    def sampling_weights(self, raw: Sequence[ScoredText]) -> None:
        """Return nothing: each text is shown once an epoch."""
        return

    def collate(self, examples: Sequence[ScoredExample], *, training: bool) -> Batch:
        """Pad to the longest text of the batch: input_ids and attention_mask (B, L), targets (B,) float32."""
        return with_targets(pad_rows(examples, self._tokenizer), examples)

    def forward(self, model: nn.Module, batch: Batch) -> Tensors:
        """Return the ``logits`` of a batch, (B, 1)."""
        return {"logits": model(**{name: tensor for name, tensor in batch.items() if name != "targets"}).logits}

    def loss(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed loss of a batch."""
        return self._head.step(self.forward(model, batch)["logits"], batch)

    def predict(self, model: nn.Module, batch: Batch) -> list[float]:
        """Return a number for each text."""
        return self._head.to_numbers(self.forward(model, batch)["logits"])

    def fold(self, model: nn.Module) -> None:
        """Let the model give the number in its own unit."""
        self._head.fold(model)

    def metric_names(self, raw: Sequence[ScoredText]) -> frozenset[str]:
        """Return the metrics that the targets allow."""
        return self._head.metric_names(raw)

    def score(self, outputs: Sequence[float], raw: Sequence[ScoredText]) -> RowStatistics:
        """Return the metrics of numbers."""
        return self._head.statistics(outputs, raw)

    def pairs(self, outputs: Sequence[float], raw: Sequence[ScoredText]) -> tuple[list[Any], list[Any]]:
        """Return predicted and true numbers."""
        return self._head.pairs(outputs, raw)

    def inputs(self, source: Any) -> Inputs[ScoredText]:
        """Return the texts of a table, of dicts with its text columns, or of a list of texts."""
        return text_inputs(source, self._recipe.data, ScoredText)

    def answers(self, outputs: Sequence[float], raw: Sequence[ScoredText]) -> list[float]:
        """Return the numbers."""
        return list(outputs)

    def columns(self, answers: Sequence[float | None]) -> Columns:
        """Return the numbers as a table."""
        return self._head.columns(answers)

    def truth(self, raw: Sequence[ScoredText]) -> Columns:
        """Return texts and true numbers."""
        return {self.unit: [row.text for row in raw], **self._head.columns([row.target for row in raw])}

    def facts(self) -> dict[str, Any]:
        """Return nothing: what is cut is counted with the examples."""
        return {}

    def card(self, results: Mapping[str, Any]) -> CardText:
        """Return title, usage and limits."""
        title = f"Text regression: {markdown(short(self._head.score.name))}"
        if not results:
            return CardText(title, usage_of(self._recipe.data, USAGE), ())
        share = results["truncated"]["test"] / results["test"]["examples"]
        cut = f"Texts are cut at {self._recipe.model.max_length} tokens; {share:.1%} of the test texts are longer."
        return CardText(title, usage_of(self._recipe.data, USAGE), (*self._head.limits(results), cut))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a plain model with its tokenizer."""
        save_text_model(model, self._tokenizer, folder)

    def gate_inputs(self, raw: Sequence[ScoredText]) -> GateInputs:
        """Return texts, and their tokens padded as the tokenizer alone pads them."""
        tensors = pad_rows(self.encode(raw).items, self._tokenizer, multiple_of=1)
        return GateInputs(tensors, "AutoTokenizer", processor_inputs([row.text for row in raw]))

    def draw(
        self,
        model: nn.Module,
        outputs: Sequence[float],
        raw: Sequence[ScoredText],
        *,
        report: Path,
        model_folder: Path,
    ) -> None:
        """Write predicted against true numbers."""
        self._head.draw(outputs, raw, report)

    def baselines(self, train: Sequence[ScoredText], raw: Sequence[ScoredText], seed: int) -> dict[str, RowStatistics]:
        """Return the mean of the training rows, and a ridge regression on TF-IDF."""
        targets = targets_of(train)
        ridge = tfidf_ridge([row.text for row in train], targets, [row.text for row in raw])
        return self._head.baselines(targets, raw, {"tfidf_ridge": ridge})


def _parse(table: DataTable, data: TextData) -> tuple[list[ScoredText], BadRows]:
    """Read texts and numbers of all rows; a row with several faults is listed for its text."""
    label = data.columns.label[0]
    require_columns(table, (*text_columns(data), label), "data.columns")
    texts, bad_texts = clean_texts(table.columns, data)
    numbers, bad = numbers_of(table.columns[label], label)
    rows = [ScoredText(text, number) for text, number in zip(texts, numbers, strict=True)]
    return rows, {**bad, **bad_texts}


USAGE = """from transformers import pipeline

score = pipeline("text-classification", model="path/or/repository", function_to_apply="none")
score("The fabric is thin and it runs small.", truncation=True)"""


if TYPE_CHECKING:
    _: type[Task] = TextRegressionTask
