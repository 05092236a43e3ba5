"""Predictions of images, with plain transformers underneath."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hftoolkit.commands.predictor.common import BATCH_SIZE, Prediction, Predictor
from hftoolkit.contracts import Emit, InferenceProgress
from hftoolkit.data.image.cache import BrokenImage, StoredImage, decode, fit
from hftoolkit.data.image.sources import open_images
from hftoolkit.data.image.splits import load_image_splits, load_labelled_images
from hftoolkit.data.sources.resolve import resolve_data
from hftoolkit.errors import DataError, RecipeError
from hftoolkit.metrics.probabilities import to_probabilities
from hftoolkit.models.image_backbones import load_saved_image_classifier
from hftoolkit.models.preprocessing import normalize
from hftoolkit.recipe import ImageRecipe
from hftoolkit.runs.directory import RunDir

MAX_LISTED = 10


class ImagePredictor(Predictor):
    """Predicts images: files, encoded bytes, arrays or PIL images."""

    recipe: ImageRecipe

    def __init__(self, run: RunDir, recipe: ImageRecipe, emit: Emit) -> None:
        """Load ``model/``."""
        self.recipe = recipe
        model, self._preprocessing = load_saved_image_classifier(run.model)
        super().__init__(run, model, emit)

    def predict(self, rows: Sequence[Any]) -> list[Prediction]:
        """Predict file names, paths, encoded bytes, (H, W) or (H, W, 3) uint8 arrays, or PIL images, in order.

        Raises:
            DataError: these are no images, or one is broken and the recipe says ``on_bad_rows: error``.
        """
        if isinstance(rows, str | bytes | Path | Mapping):
            raise DataError("predict takes a list of images; write predict([image]) for one")
        return self._predict([_stored(row, number) for number, row in enumerate(rows, start=1)])

    def predict_path(self, source: Path) -> tuple[list[str], list[Prediction]]:
        """Predict an image file, the images of a folder, of a glob pattern or of a table, in their order.

        Raises:
            DataError: there are no images, or one is broken and the recipe says ``on_bad_rows: error``.
        """
        images = open_images(source, self.recipe.data.columns, self.recipe.data.pixels)
        return [image.name for image in images], self._predict(images)

    def probabilities(self, examples: Sequence[np.ndarray]) -> np.ndarray:
        """Return the probability of each class for each (H, W, 3) uint8 image of the model's size, (N, C) float32."""
        result = np.empty((len(examples), len(self.labels.names)), dtype=np.float32)
        for start in range(0, len(examples), BATCH_SIZE):
            stop = min(start + BATCH_SIZE, len(examples))
            result[start:stop] = self._probabilities([examples[index] for index in range(start, stop)])
            self._emit(InferenceProgress(stop, len(examples)))
        return result

    def labelled(self, split: str, source: str | None) -> tuple[Sequence[np.ndarray], np.ndarray]:
        """Return the fitted images and targets of a split of the run, or of all rows of another source.

        Raises:
            DataError: the run's data changed since, or the other source does not fit.
            RecipeError: there is no such split.
        """
        data, task, geometry = self.recipe.data, self.recipe.task, self._preprocessing.geometry
        if source is not None:
            return load_labelled_images(resolve_data(source).path, data, geometry, self.labels)
        path = resolve_data(data.source, sha256=data.sha256).path
        splits = load_image_splits(path, data, task, geometry, self.labels)
        if split not in splits.pixels:
            raise RecipeError(f"--split {split}: the splits of this run are {', '.join(splits.pixels)}")
        self.check_same_data(splits.summary["fingerprint"])
        return splits.pixels[split], splits.targets[split]

    def _probabilities(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        images = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).to(self._device)
        with torch.inference_mode():
            logits = self._logits(images).cpu().numpy()
        return to_probabilities(logits, self.labels.multi_label)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(pixel_values=normalize(images, self._preprocessing)).logits.float()
        if not self.recipe.task.test_time_flip:
            return logits
        mirrored: torch.Tensor = self._model(pixel_values=normalize(images.flip(-1), self._preprocessing)).logits
        return (logits + mirrored.float()) / 2

    def _predict(self, images: Sequence[StoredImage]) -> list[Prediction]:
        """Decode and predict a batch at a time, so that any number of images fits into memory.

        With ``on_bad_rows: error`` the first broken image ends the predictions, and the rest are only looked at.
        """
        strict = self.recipe.data.on_bad_rows == "error"
        predictions = [Prediction((), {})] * len(images)
        broken: list[str] = []
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images), BATCH_SIZE):
                fitted: dict[int, np.ndarray] = {}
                results = pool.map(self._fitted, images[start : start + BATCH_SIZE])
                for index, result in enumerate(results, start=start):
                    if isinstance(result, BrokenImage):
                        broken.append(f"{images[index].name}: {result.reason}")
                    else:
                        fitted[index] = result
                if fitted and not (strict and broken):
                    named = self.named(self._probabilities(list(fitted.values())))
                    for index, prediction in zip(fitted, named, strict=True):
                        predictions[index] = prediction
                self._emit(InferenceProgress(min(start + BATCH_SIZE, len(images)), len(images)))
        if strict and broken:
            raise DataError(self._refusal(broken, len(images)))
        return predictions

    def _fitted(self, image: StoredImage) -> np.ndarray | BrokenImage:
        try:
            return fit(decode(image), self._preprocessing.geometry)
        except BrokenImage as error:
            return error

    def _refusal(self, broken: Sequence[str], total: int) -> str:
        listed = "\n".join(f"  {line}" for line in broken[:MAX_LISTED])
        return (
            f"{len(broken)} of {total} images cannot be read:\n{listed}\n"
            f"Remove them, or set data.on_bad_rows: skip in {self._run.recipe}"
        )


def _stored(row: Any, number: int) -> StoredImage:
    if isinstance(row, str | Path):
        return StoredImage(str(row), Path(row))
    if isinstance(row, bytes):
        return StoredImage(f"row {number}", row)
    try:
        return StoredImage(f"row {number}", np.asarray(row.convert("RGB") if hasattr(row, "convert") else row))
    except (TypeError, ValueError) as error:
        raise DataError(f"row {number} is no image: {type(row).__name__}") from error
