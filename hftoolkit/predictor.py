"""Predictions from a finished run, with plain transformers underneath."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftoolkit.data import (
    LabelSet,
    check_same,
    clean_texts,
    describe_bad_texts,
    read_table,
    require_columns,
    write_table,
)
from hftoolkit.errors import DataError, EnvironmentFault, RecipeError
from hftoolkit.metrics.probabilities import to_decisions, to_probabilities
from hftoolkit.models.backbones import load_saved_classifier
from hftoolkit.recipe import Recipe, load_recipe
from hftoolkit.rundir import RunDir, read_json
from hftoolkit.tasks.text_classification import encode_texts, pad_tokens

BATCH_SIZE = 64
OUTPUT_FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one row.

    Attributes:
        labels: one class name, or any number of them for multi-label; none for a row that was skipped.
        probabilities: by class name; empty for a row that was skipped.
    """

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]

    @property
    def label(self) -> str:
        """The class name, or the names joined by ``|``."""
        return "|".join(self.labels)


class Predictor:
    """The model of a run, ready to predict. Make one with ``hftoolkit.load(run)``."""

    def __init__(self, run: RunDir) -> None:
        """Load ``model/`` and check that it has the classes in labels.json.

        Raises:
            DataError: the run did not finish, or holds another model than its labels.
        """
        state = read_json(run.status)
        if state.get("state") != "done":
            why = f" ({state['reason']})" if state.get("reason") else ""
            raise DataError(f"the run {run.root} is {state.get('state')}{why}; name one that is done")
        self._run = run
        self.recipe: Recipe = load_recipe(run.recipe)
        self.labels = LabelSet.from_json(read_json(run.labels))
        self._model, self._tokenizer = load_saved_classifier(run.model)
        names = [self._model.config.id2label[index] for index in range(self._model.config.num_labels)]
        check_same(self.labels, LabelSet.from_names(names, self.labels.multi_label), str(run.model))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device)

    def predict(self, rows: Sequence[str] | Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """Predict texts, or rows with the text columns of the recipe, in order.

        Raises:
            DataError: these are no rows, a column is missing, or a row has no text and the recipe says
                ``on_bad_rows: error``.
        """
        if isinstance(rows, str | Mapping):
            raise DataError("predict takes a list of rows; write predict([row]) for one")
        if len(rows) == 0:
            return []
        return self._predict(self._texts(rows))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of each class for each text, (N, C) float32, computed in fp32."""
        token_ids, lengths = encode_texts(self._tokenizer, texts)
        order = np.argsort(-lengths, kind="stable")
        result = np.empty((len(texts), len(self.labels.names)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH_SIZE):
                chosen = order[start : start + BATCH_SIZE]
                batch = pad_tokens([token_ids[index] for index in chosen], self._tokenizer)
                inputs = {name: tensor.to(self._device) for name, tensor in batch.items()}
                result[chosen] = self._model(**inputs).logits.float().cpu().numpy()
        return to_probabilities(result, self.labels.multi_label)

    def _texts(self, rows: Sequence[str] | Sequence[Mapping[str, Any]]) -> list[str]:
        """Return one text a row, empty for those to skip."""
        names = self.recipe.data.columns.text
        kinds = {type(row).__name__ for row in rows if not isinstance(row, Mapping)}
        if kinds and not all(isinstance(row, str) for row in rows):
            raise DataError(f"rows must be all texts, or all dicts; found {', '.join(sorted(kinds))} among them")
        if kinds:
            columns: dict[str, list[Any]] = {name: [""] * len(rows) for name in names} | {names[-1]: list(rows)}
        else:
            missing = [name for name in names if not all(name in row for row in rows)]
            if missing:
                raise DataError(f"rows lack {', '.join(missing)}; the model was trained on {', '.join(names)}")
            columns = {name: [row[name] for row in rows] for name in names}  # type: ignore[index]
        texts, bad = clean_texts(columns, self.recipe.data)
        if bad and self.recipe.data.on_bad_rows == "error":
            raise DataError(f"{describe_bad_texts(bad, len(rows))} in {self._run.recipe}")
        return texts

    def _predict(self, texts: Sequence[str]) -> list[Prediction]:
        kept = [index for index, text in enumerate(texts) if text]
        predictions = [Prediction((), {})] * len(texts)
        if kept:
            probabilities = self.probabilities([texts[index] for index in kept])
            decisions = to_decisions(probabilities, self.labels.multi_label)
            for place, index in enumerate(kept):
                named = dict(zip(self.labels.names, map(float, probabilities[place]), strict=True))
                predictions[index] = Prediction(self._names(decisions[place]), named)
        return predictions

    def _names(self, decision: Any) -> tuple[str, ...]:
        if self.labels.multi_label:
            return tuple(name for name, chosen in zip(self.labels.names, decision, strict=True) if chosen)
        return (self.labels.names[int(decision)],)


def load_predictor(path: Path) -> Predictor:
    """Return the predictor of a run directory."""
    return Predictor(RunDir.open(path))


def predict_file(predictor: Predictor, source: Path) -> list[Prediction]:
    """Predict every row of a table file, in its order.

    Raises:
        DataError: there is no such file, or it cannot be used.
    """
    if not source.exists():
        raise DataError(f"there is no file {source}; name a table, or - for a text a line on standard input")
    table = read_table(source)
    names = predictor.recipe.data.columns.text
    require_columns(table, names, f"the header: the model reads {', '.join(names)}")
    rows = [
        dict(zip(names, cells, strict=True)) for cells in zip(*(table.columns[name] for name in names), strict=True)
    ]
    return predictor.predict(rows)


def prediction_columns(predictions: Sequence[Prediction], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return a table: 1-based row, label, and the probability of each class (None for skipped rows)."""
    columns: dict[str, list[Any]] = {
        "row": list(range(1, len(predictions) + 1)),
        "label": [prediction.label for prediction in predictions],
    }
    return columns | {f"p({name})": [p.probabilities.get(name) for p in predictions] for name in names}


def check_output(path: Path, source: Path) -> None:
    """Refuse what cannot become a prediction file, before the work is done.

    Raises:
        RecipeError: an unknown ending, a missing folder, or the input itself.
    """
    if path.suffix not in OUTPUT_FORMATS:
        raise RecipeError(f"--output {path.name}: the ending must be one of {', '.join(OUTPUT_FORMATS)}")
    if not path.parent.is_dir():
        raise RecipeError(f"--output {path}: there is no folder {path.parent}; make it, or name another one")
    if path.exists() and source.exists() and path.samefile(source):
        raise RecipeError(f"--output {path} is the input itself; name another file")


def write_prediction_file(columns: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Write a prediction table as CSV, JSONL or Parquet, by the ending of ``path``.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    assert path.suffix in OUTPUT_FORMATS, path
    try:
        if path.suffix == ".parquet":
            write_table(columns, path)
        else:
            path.write_text(as_csv(columns) if path.suffix == ".csv" else as_jsonl(columns), encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror or error}") from error


def as_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table as CSV text with a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return buffer.getvalue()


def as_jsonl(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table as one JSON object a line."""
    rows = zip(*columns.values(), strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
