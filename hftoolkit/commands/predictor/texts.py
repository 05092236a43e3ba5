"""Predictions of texts, with plain transformers underneath."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftoolkit.commands.predictor.common import BATCH_SIZE, Prediction, Predictor
from hftoolkit.contracts import Emit, InferenceProgress
from hftoolkit.data.sources.resolve import resolve_data
from hftoolkit.data.tables import read_table, require_columns
from hftoolkit.data.text_rows import clean_rows, clean_texts, describe_bad_texts
from hftoolkit.data.texts import load_text_splits
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.metrics.probabilities import to_probabilities
from hftoolkit.models.backbones import load_saved_classifier
from hftoolkit.recipe import TextRecipe
from hftoolkit.runs.directory import RunDir
from hftoolkit.tasks.text_classification import encode_texts, pad_tokens


class TextPredictor(Predictor):
    """Predicts texts, or rows with the text columns of the recipe."""

    recipe: TextRecipe

    def __init__(self, run: RunDir, recipe: TextRecipe, emit: Emit) -> None:
        """Load ``model/``."""
        self.recipe = recipe
        model, self._tokenizer = load_saved_classifier(run.model)
        super().__init__(run, model, emit)

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
        texts = self._texts(rows)
        kept = [index for index, text in enumerate(texts) if text]
        predictions = [Prediction((), {})] * len(texts)
        if kept:
            for index, prediction in zip(kept, self.named(self.probabilities([texts[i] for i in kept])), strict=True):
                predictions[index] = prediction
        return predictions

    def predict_path(self, source: Path) -> tuple[list[str], list[Prediction]]:
        """Predict every row of a table file, in its order.

        Raises:
            DataError: there is no such file, or it cannot be used.
        """
        if not source.exists():
            raise DataError(f"there is no file {source}; name a table, or - for a text a line on standard input")
        table = read_table(source)
        names = self.recipe.data.columns.text
        require_columns(table, names, f"the header: the model reads {', '.join(names)}")
        cells = zip(*(table.columns[name] for name in names), strict=True)
        return [], self.predict([dict(zip(names, row, strict=True)) for row in cells])

    def labelled(self, split: str, source: str | None) -> tuple[list[str], np.ndarray]:
        """Return the clean texts and targets of a split of the run, or of all rows of another table.

        Raises:
            DataError: the run's data changed since, or the other table does not fit.
            RecipeError: there is no such split.
        """
        data, task = self.recipe.data, self.recipe.task
        if source is not None:
            rows = clean_rows(
                read_table(resolve_data(source).path),
                data,
                multi_label=self.labels.multi_label,
                label_separator=task.label_separator,
                labels=self.labels,
            )
            return rows.texts, rows.targets
        splits = load_text_splits(resolve_data(data.source, sha256=data.sha256).path, data, task, self.labels)
        if split not in splits.texts:
            raise RecipeError(f"--split {split}: the splits of this run are {', '.join(splits.texts)}")
        self.check_same_data(splits.summary["fingerprint"])
        return splits.texts[split], splits.targets[split]

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
                self._emit(InferenceProgress(start + len(chosen), len(order)))
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
