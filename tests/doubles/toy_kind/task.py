"""``hftoolkit/tasks/length.py`` of a copy of the package: a model that says how many words a text has, in tens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import mse_loss

from hftoolkit.contracts import CardText, Dataset, Examples, GateInputs, HeadSpec, Inputs, Labelled, StepOutput, Task
from hftoolkit.data.rows import load_rows
from hftoolkit.data.tables import read_table
from hftoolkit.metrics.regression import regression_statistics
from hftoolkit.metrics.statistics import measure
from hftoolkit.models.backbones import save_text_model
from hftoolkit.tasks.shared.text_inputs import encode_texts, pad_tokens
from hftoolkit.tasks.shared.text_models import load_backbone

HEAD = HeadSpec(("tens of words",), "regression")


@dataclass(frozen=True)
class Text:
    """A text, which says itself how long it is."""

    key: str

    @property
    def length(self) -> float:
        return len(self.key.split()) / 10

    def to_json(self) -> Any:
        return self.key


class AnyText:
    """The schema: data fix nothing."""

    def to_json(self) -> dict[str, Any]:
        return {}

    def describe(self) -> str:
        return "texts"

    def check_names(self, names: Any, where: str) -> None:
        assert tuple(names) == HEAD.names


class LengthTask:
    """See ``contracts.Task``. An output is a number."""

    unit: ClassVar[str] = "text"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    pipeline_tag: ClassVar[str] = "text-classification"
    headline: ClassVar[dict[str, str]] = {"mae": "MAE", "r2": "R2"}
    compared_by: ClassVar[str] = "r2"
    no_answer: ClassVar[None] = None

    def __init__(self, recipe: Any, tokenizer: Any) -> None:
        self._recipe, self._tokenizer = recipe, tokenizer

    @classmethod
    def read(cls, recipe: Any, source: Any, weights: Any, schema: Any, emit: Any) -> Dataset[Text]:
        found = load_rows(source, recipe.data, lambda table: (cls._texts(recipe, table), {}), "text")
        return Dataset(found.splits, found.row_numbers, AnyText(), found.summary)

    @classmethod
    def read_labelled(cls, recipe: Any, source: Any, weights: Any, schema: Any) -> Labelled[Text]:
        return Labelled(cls._texts(recipe, read_table(source)), {}, source.name)

    @classmethod
    def schema_from_json(cls, stored: Any) -> AnyText:
        return AnyText()

    @classmethod
    def load(cls, recipe: Any, schema: Any, weights: Any) -> Any:
        return load_backbone(recipe.model, cls.auto_class, HEAD, weights, recipe.train.seed)

    @classmethod
    def build(cls, recipe: Any, schema: Any, base: Any, train: Any) -> "LengthTask":
        return cls(recipe, base.tokenizer)

    def encode(self, raw: Any) -> Examples:
        token_ids, _ = encode_texts(self._tokenizer, [row.key for row in raw])
        items = list(zip(token_ids, [row.length for row in raw], strict=True))
        return Examples(items, np.array([len(ids) for ids in token_ids]))

    def sampling_weights(self, raw: Any) -> None:
        return

    def collate(self, examples: Any, *, training: bool) -> Any:
        token_ids, lengths = zip(*examples, strict=True)
        return {"inputs": pad_tokens(token_ids, self._tokenizer), "targets": torch.tensor(lengths)}

    def forward(self, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"logits": model(**batch["inputs"]).logits if "inputs" in batch else model(**batch).logits}

    def loss(self, model: Any, batch: Any) -> StepOutput:
        found, count = self.forward(model, batch)["logits"].float().squeeze(-1), len(batch["targets"])
        return StepOutput(mse_loss(found, batch["targets"], reduction="sum"), count, count)

    def predict(self, model: Any, batch: Any) -> list[float]:
        return [float(value) for value in self.forward(model, batch)["logits"].float().squeeze(-1)]

    def metric_names(self, raw: Any) -> frozenset[str]:
        return frozenset(measure(self.score([row.length + place % 2 for place, row in enumerate(raw)], raw)))

    def score(self, outputs: Any, raw: Any) -> Any:
        return regression_statistics(np.array(outputs), np.array([row.length for row in raw]))

    def inputs(self, source: Any) -> Inputs[Text]:
        rows = self._texts(self._recipe, read_table(source))
        return Inputs(len(rows), lambda start, stop: rows[start:stop], max(1, len(rows)))

    def answers(self, outputs: Any, raw: Any) -> list[float]:
        return list(outputs)

    def columns(self, answers: Any) -> dict[str, list[Any]]:
        return {"length": list(answers)}

    def truth(self, raw: Any) -> dict[str, list[Any]]:
        return {"text": [row.key for row in raw], "length": [row.length for row in raw]}

    def facts(self) -> dict[str, Any]:
        return {}

    def card(self, results: Any) -> CardText:
        return CardText("Length of texts", "", ())

    def save(self, model: Any, folder: Any) -> None:
        save_text_model(model, self._tokenizer, folder)

    def gate_inputs(self, raw: Any) -> GateInputs:
        return GateInputs(pad_tokens(encode_texts(self._tokenizer, [row.key for row in raw])[0], self._tokenizer))

    @staticmethod
    def _texts(recipe: Any, table: Any) -> list[Text]:
        return [Text(cell) for cell in table.columns[recipe.data.columns.text]]


if TYPE_CHECKING:
    _: type[Task] = LengthTask
