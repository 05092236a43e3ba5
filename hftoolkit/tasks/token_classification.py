"""Token classification: named entities, as spans of characters of the text. B windows of L tokens, W words, T tags.

The first sub-word of each word is tagged. A text longer than the model reads is cut into overlapping windows; a word
that lies in two of them gets the tag of the one where it has more context.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hftoolkit.contracts import (
    Batch,
    CardText,
    Columns,
    Dataset,
    Emit,
    Examples,
    GateInputs,
    HeadSpec,
    Inputs,
    Labelled,
    PipelineCheck,
    StepOutput,
    Table,
    Task,
    Tensors,
)
from hftoolkit.data.token_rows import (
    EntityTypes,
    Span,
    SpanText,
    Word,
    load_token_rows,
    read_token_rows,
    spans_of_tags,
    tag_names,
    tags_of_spans,
    unlabelled_texts,
)
from hftoolkit.errors import DataError
from hftoolkit.metrics.spans import span_statistics
from hftoolkit.metrics.statistics import RowStatistics, measure
from hftoolkit.models.backbones import TextBackbone, save_text_model
from hftoolkit.models.pretrained import Weights
from hftoolkit.recipe.token_classification import TokenRecipe
from hftoolkit.runs.figures import write_spans_png
from hftoolkit.runs.tables import per_class_table
from hftoolkit.tasks.shared.baselines import frequent_tags
from hftoolkit.tasks.shared.class_head import class_title, weakest_class
from hftoolkit.tasks.shared.pieces import pieces
from hftoolkit.tasks.shared.text_inputs import pad_tokens, text_positions
from hftoolkit.tasks.shared.text_models import load_backbone

IGNORED = -100  # as target: no word begins at the token
PADDING = -1
MOST_TEXTS_SHOWN = 8
WEAKER_RULES = {"exact": "right ends, any type", "type": "right type, overlap", "partial": "overlap, half of it"}


class Entity(NamedTuple):
    """What the model found in a text.

    Attributes:
        type: of the entity.
        start: first character.
        end: the character after the last.
        text: what stands there.
        score: mean probability of the tags of its words.
    """

    type: str
    start: int
    end: int
    text: str
    score: float


class WordTag(NamedTuple):
    """What the model says of a word: where it is, its tag with its probability, and how much context it had."""

    start: int
    end: int
    tag: int
    score: float
    context: int  # tokens to the nearer end of the window


@dataclass(frozen=True, slots=True)
class WindowExample:
    """A window of a text.

    Attributes:
        token_ids: of the window, special ones too.
        words: (position of the first token, start, end) of each word that begins in the window.
        tags: of the words; None where they are to be predicted.
    """

    token_ids: list[int]
    words: list[tuple[int, int, int]]
    tags: list[int] | None


class TokenClassificationTask:
    """See ``contracts.Task``. An output is the list of a text's ``WordTag``."""

    unit: ClassVar[str] = "text"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    pipeline_tag: ClassVar[str] = "token-classification"
    headline: ClassVar[Mapping[str, str]] = {
        "f1": "entity F1",
        "precision": "precision",
        "recall": "recall",
        "macro_f1": "macro-F1",
        "partial_f1": "partial F1",
    }
    compared_by: ClassVar[str] = "f1"
    no_answer: ClassVar[tuple[Entity, ...] | None] = None

    def __init__(self, recipe: TokenRecipe, types: EntityTypes, tokenizer: Any) -> None:
        """Make one with ``build``."""
        self._recipe = recipe
        self._types = types
        self._tags = tag_names(types.names)
        self._tokenizer = tokenizer

    @classmethod
    def read(
        cls, recipe: TokenRecipe, source: Path, weights: Weights, schema: EntityTypes | None, emit: Emit
    ) -> Dataset[SpanText]:
        """Return the checked rows of a table, divided into splits."""
        types = schema.names if schema else recipe.task.types
        divided, found = load_token_rows(source, recipe.data, types, recipe.task.scheme)
        return Dataset(divided.splits, divided.row_numbers, found, divided.summary)

    @classmethod
    def read_labelled(
        cls, recipe: TokenRecipe, source: Path, weights: Weights, schema: EntityTypes
    ) -> Labelled[SpanText]:
        """Return all rows of another table."""
        return read_token_rows(source, recipe.data, schema.names, recipe.task.scheme)

    @classmethod
    def schema_from_json(cls, stored: Mapping[str, Any]) -> EntityTypes:
        """Return the types of entities of a run."""
        try:
            return EntityTypes(tuple(stored["types"]))
        except (KeyError, TypeError) as error:
            raise DataError(f"these are no stored types of entities ({error!r}); copy labels.json again") from error

    @classmethod
    def load(cls, recipe: TokenRecipe, schema: EntityTypes, weights: Weights) -> TextBackbone:
        """Return the backbone with a head for the tags."""
        return load_backbone(
            recipe.model, cls.auto_class, HeadSpec(tag_names(schema.names)), weights, recipe.train.seed
        )

    @classmethod
    def build(
        cls, recipe: TokenRecipe, schema: EntityTypes, base: TextBackbone, train: Sequence[SpanText] | None
    ) -> Self:
        """Return the task.

        Raises:
            DataError: the tokenizer does not say where in the text a token is.
        """
        if not base.tokenizer.is_fast:
            raise DataError("the tokenizer of model.backbone has no tokenizer.json, which tells where tokens are")
        return cls(recipe, schema, base.tokenizer)

    def encode(self, raw: Sequence[SpanText]) -> Examples:
        """Return the windows of each text; the tags of the words follow from the spans."""
        windows, owners = self._windows([row.text for row in raw])
        places: dict[int, set[Word]] = defaultdict(set)
        for owner, (_, words) in zip(owners, windows, strict=True):
            places[owner] |= {(start, end) for _, start, end in words}
        tags = {owner: self._word_tags(raw[owner], sorted(found)) for owner, found in places.items()}
        items = [
            WindowExample(ids, words, None if tags[owner] is None else [tags[owner][word[1:]] for word in words])
            for owner, (ids, words) in zip(owners, windows, strict=True)
        ]
        return Examples(items, np.array([len(item.token_ids) for item in items]), owners=np.array(owners))

    def sampling_weights(self, raw: Sequence[SpanText]) -> None:
        """Return nothing: each text is shown once an epoch."""
        return

    def collate(self, examples: Sequence[WindowExample], *, training: bool) -> Batch:
        """Pad to the longest window.

        Returns:
            input_ids, attention_mask (B, L); words (B, W, 3): first token, start and end of each, -1 where there are
            fewer; labels (B, L): the tag at the first token of a word, -100 elsewhere, where they are known.
        """
        batch = pad_tokens([example.token_ids for example in examples], self._tokenizer)
        most = max(1, *(len(example.words) for example in examples))
        words = torch.full((len(examples), most, 3), PADDING, dtype=torch.long)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, example in enumerate(examples):
            if example.words:
                found = torch.tensor(example.words)
                found[:, 0] += text_positions(example.token_ids, batch, self._tokenizer).start or 0
                words[row, : len(found)] = found
                if example.tags is not None:
                    labels[row, found[:, 0]] = torch.tensor(example.tags)
        known = all(example.tags is not None for example in examples)
        return batch | {"words": words} | ({"labels": labels} if known else {})

    def forward(self, model: nn.Module, batch: Batch) -> Tensors:
        """Return the ``logits`` of each token, (B, L, T)."""
        return {"logits": model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits}

    def loss(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the cross-entropy, summed over the words of a batch."""
        labels, logits = batch["labels"], self.forward(model, batch)["logits"].float()
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return StepOutput(loss, int((labels != IGNORED).sum()), len(labels))

    def predict(self, model: nn.Module, batch: Batch) -> list[list[WordTag]]:
        """Return the tag of each word of each window."""
        probabilities_BLT = self.forward(model, batch)["logits"].float().softmax(-1)
        scores_BL, tags_BL = (tensor.cpu().numpy() for tensor in probabilities_BLT.max(-1))
        lengths, firsts = batch["attention_mask"].sum(1).tolist(), batch["attention_mask"].argmax(1).tolist()
        rows = zip(tags_BL, scores_BL, batch["words"].tolist(), firsts, lengths, strict=True)
        return [
            [
                WordTag(
                    start, end, int(tags[place]), float(scores[place]), min(place - first, first + length - 1 - place)
                )
                for place, start, end in words
                if place != PADDING
            ]
            for tags, scores, words, first, length in rows
        ]

    def join(self, outputs: Sequence[Sequence[WordTag]], raw: SpanText) -> list[WordTag]:
        """Return the words of a text from those of its windows, each from where it has most context."""
        best: dict[int, WordTag] = {}
        for found in outputs:
            for word in found:
                if word.start not in best or word.context > best[word.start].context:
                    best[word.start] = word
        return [best[start] for start in sorted(best)]

    def metric_names(self, raw: Sequence[SpanText]) -> frozenset[str]:
        """Return the metrics that these rows allow."""
        gold = [row.spans or () for row in raw]
        return frozenset(measure(span_statistics(gold, gold, self._types.names)))

    def score(self, outputs: Sequence[Sequence[WordTag]], raw: Sequence[SpanText]) -> RowStatistics:
        """Return the metrics of entities."""
        return self._statistics([self._spans(found)[0] for found in outputs], raw)

    def pairs(self, outputs: Sequence[Sequence[WordTag]], raw: Sequence[SpanText]) -> tuple[list[Any], list[Any]]:
        """Return predicted and true BIO tags of the words of each text, as the tokenizer divides it."""
        predicted = [[self._tags[word.tag] for word in found] for found in outputs]
        words = [[(word.start, word.end) for word in found] for found in outputs]
        return predicted, [tags_of_spans(row.spans or (), of)[0] for row, of in zip(raw, words, strict=True)]

    def inputs(self, source: Any) -> Inputs[SpanText]:
        """Return the texts of a table, of dicts, or of a list of texts or of lists of words."""
        rows, table = unlabelled_texts(source, self._recipe.data)
        return Inputs(len(rows), lambda start, stop: rows[start:stop], max(1, len(rows)), table=table)

    def answers(self, outputs: Sequence[Sequence[WordTag]], raw: Sequence[SpanText]) -> list[tuple[Entity, ...]]:
        """Return the entities of each text."""
        return [tuple(self._entities(found, row.text)) for found, row in zip(outputs, raw, strict=True)]

    def columns(self, answers: Sequence[Sequence[Entity] | None]) -> Columns:
        """Return the entities of each row as JSON; nothing for a row that cannot be used."""
        return {
            "entities": [None if found is None else _json(entity._asdict() for entity in found) for found in answers]
        }

    def truth(self, raw: Sequence[SpanText]) -> Columns:
        """Return texts and true entities."""
        listed = [
            _json({"type": name, "start": start, "end": end, "text": row.text[start:end]} for name, start, end in spans)
            for row in raw
            for spans in [row.spans or ()]
        ]
        return {self.unit: [row.text for row in raw], "entities": listed}

    def facts(self) -> dict[str, Any]:
        """Return nothing: texts are cut into windows, never cut off."""
        return {}

    def card(self, results: Mapping[str, Any]) -> CardText:
        """Return title, usage and limits."""
        title = class_title("Named entities", self._types.names)
        if not results:
            return CardText(title, USAGE, ())
        limits = (
            *weakest_class(results["test"], "type"),
            f"The model reads {self._recipe.model.max_length} tokens; pass longer texts with a `stride`.",
            "Nothing was tested on other domains or languages.",
        )
        return CardText(title, USAGE, limits)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a plain model with its tokenizer."""
        save_text_model(model, self._tokenizer, folder)

    def gate_inputs(self, raw: Sequence[SpanText]) -> GateInputs:
        """Return texts, tokens as the tokenizer alone pads them, and what a plain pipeline must find in them.

        A pipeline groups sub-words as this task does where the tokenizer marks them, as WordPiece.
        """
        texts = [row.text for row in raw]
        ids = self._tokenizer(texts, truncation=True)["input_ids"]
        marks = getattr(self._tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
        whole = [text for text, found in zip(texts, ids, strict=True) if len(found) < self._tokenizer.model_max_length]
        check = PipelineCheck(
            self.pipeline_tag,
            {"aggregation_strategy": "first"},
            whole,
            ("entity_group", "start", "end"),
            partial(self._found, whole),
        )
        return GateInputs(
            pad_tokens(ids, self._tokenizer, multiple_of=1),
            "AutoTokenizer",
            {"text": texts, "truncation": True, "padding": True},
            check if marks and whole else None,
        )

    def _found(self, texts: Sequence[str], model: nn.Module) -> list[list[list[Any]]]:
        """Return type, start and end of each entity that the model finds in whole texts."""
        examples = self.encode([SpanText(text) for text in texts])
        outputs = self.predict(model, self.collate(examples.items, training=False))
        return [[list(span) for span in self._spans(found)[0]] for found in outputs]

    def baselines(self, train: Sequence[SpanText], raw: Sequence[SpanText], seed: int) -> dict[str, RowStatistics]:
        """Return a dictionary: each word has the tag that it has most often in training, and is outside if unknown."""
        found = frequent_tags([(row.text, row.spans or ()) for row in train], [row.text for row in raw])
        return {"dictionary": self._statistics(found, raw)}

    def details(
        self, measured: Mapping[str, Any], outputs: Sequence[Sequence[WordTag]], raw: Sequence[SpanText]
    ) -> Iterable[Table]:
        """Yield the metrics of each type, and those that forgive a wrong type or wrong ends."""
        counts = self._counts(raw)
        yield per_class_table(measured["metrics"], measured["intervals"], self._types.names, counts)
        repaired = sum(self._spans(found)[1] for found in outputs)
        metrics = measured["metrics"]
        rows = [
            (said, *(f"{metrics[f'{rule}_{kind}']:.3f}" for kind in ("precision", "recall", "f1")))
            for rule, said in WEAKER_RULES.items()
            if f"{rule}_f1" in metrics
        ]
        title = f"Entities by weaker rules (SemEval-2013 task 9.1); {repaired} impossible tags began an entity"
        yield Table(title, ("right if", "precision", "recall", "F1"), tuple(rows))

    def draw(
        self,
        model: nn.Module,
        outputs: Sequence[Sequence[WordTag]],
        raw: Sequence[SpanText],
        *,
        report: Path,
        model_folder: Path,
    ) -> None:
        """Draw texts with gold entities above the predicted ones, those with most mistakes first."""
        found = [self._spans(output)[0] for output in outputs]
        mistakes = [len(set(row.spans or ()) ^ set(spans)) for row, spans in zip(raw, found, strict=True)]
        chosen = np.argsort(-np.array(mistakes), kind="stable")[:MOST_TEXTS_SHOWN].tolist()
        shown = [(raw[place].text, raw[place].spans or (), found[place]) for place in chosen]
        write_spans_png(shown, self._types.names, report / "entities.png")

    def unmeasured(self, raw: Sequence[SpanText]) -> list[str]:
        """Return the types that none of the rows has."""
        return [name for name, count in zip(self._types.names, self._counts(raw), strict=True) if not count]

    def _counts(self, raw: Sequence[SpanText]) -> list[int]:
        found = Counter(name for row in raw for name, _, _ in row.spans or ())
        return [found[name] for name in self._types.names]

    def _windows(self, texts: Sequence[str]) -> tuple[list[tuple[list[int], list[tuple[int, int, int]]]], list[int]]:
        """Return token ids and words of each window, and the text that each is of."""
        windows, owners, first = [], [], 0
        for (some,) in pieces(texts):
            found, of = self._windows_of_piece(some)
            windows += found
            owners += [first + owner for owner in of]
            first += len(some)
        return windows, owners

    def _windows_of_piece(
        self, texts: list[str]
    ) -> tuple[list[tuple[list[int], list[tuple[int, int, int]]]], list[int]]:
        encoded = self._tokenizer(
            texts,
            truncation=True,
            stride=self._recipe.task.window_overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners: list[int] = list(encoded["overflow_to_sample_mapping"])
        begins: dict[tuple[int, int], int] = {}  # (text, word) -> where the word begins
        windows = []
        for place, owner in enumerate(owners):
            words: dict[int, list[int]] = {}  # word -> position, start, end
            for position, word in enumerate(encoded.word_ids(place)):
                if word is None:
                    continue
                start, end = encoded["offset_mapping"][place][position]
                first = begins.setdefault((owner, word), start)
                if word in words:
                    words[word][2] = end
                elif start == first and start < end:  # a later window may begin inside of a word
                    words[word] = [position, start, end]
            windows.append((list(encoded["input_ids"][place]), [(p, start, end) for p, start, end in words.values()]))
        return windows, owners

    def _word_tags(self, row: SpanText, words: Sequence[Word]) -> Any:
        """Return the number of the tag of each word, or None where there are no targets."""
        if row.spans is None:
            return None
        known = {name: index for index, name in enumerate(self._tags)}
        return {word: known[tag] for word, tag in zip(words, tags_of_spans(row.spans, words)[0], strict=True)}

    def _spans(self, words: Sequence[WordTag]) -> tuple[list[Span], int]:
        tags = [self._tags[word.tag] for word in words]
        return spans_of_tags(tags, [(word.start, word.end) for word in words], "BIO")

    def _entities(self, words: Sequence[WordTag], text: str) -> Iterable[Entity]:
        for name, start, end in self._spans(words)[0]:
            scores = [word.score for word in words if start <= word.start < end]
            yield Entity(name, start, end, text[start:end], round(float(np.mean(scores)), 6))

    def _statistics(self, found: Sequence[Sequence[Span]], raw: Sequence[SpanText]) -> RowStatistics:
        return span_statistics([row.spans or () for row in raw], found, self._types.names)


def _json(objects: Iterable[Any]) -> str:
    return json.dumps(list(objects), ensure_ascii=False)


USAGE = """from transformers import pipeline

find = pipeline("token-classification", model="path/or/repository", aggregation_strategy="first")
find("Acme Corp. of Springfield hired Jane Doe.")"""


if TYPE_CHECKING:
    _: type[Task] = TokenClassificationTask
