"""Files of arrays, .npz: images and labels of each split, by the names that MedMNIST, Keras and others give them."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.data.image.layout import MEASURED, split_and_rest, split_of
from hftoolkit.errors import DataError

IMAGE_SHAPES = "(N, H, W), (N, H, W, 1) or (N, H, W, 3)"


@dataclass(frozen=True, slots=True)
class ImageArrays:
    """The images of a split, (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8, and N labels; None where it has none."""

    images: np.ndarray
    labels: list[Any] | None


def read_image_arrays(path: Path, split: str | None) -> ImageArrays:
    """Read the images of a split, or of the only one; names of arrays say the split: ``train_images``, ``x_test``.

    Raises:
        DataError: unreadable, no such split, several and none is named, or not one array of images each.
    """
    by_split = _arrays_by_split(path)
    if split is None:
        if len(by_split) > 1:
            shown = ", ".join(f"{name}: {name if name in by_split else '0.1'}" for name in MEASURED)
            raise DataError(
                f"{path.name} holds the splits {', '.join(map(str, by_split))}; write data.split: {{{shown}}}"
            )
        wanted = next(iter(by_split))
    else:
        wanted = split_of(split)
        if wanted is None or wanted not in by_split:
            raise DataError(f"{path.name} has no split {split!r}; it has: {_names(by_split)}. Edit data.split")
    return _images_and_labels(path, by_split[wanted])


def read_measured_arrays(path: Path) -> ImageArrays:
    """Read the images of the only split, or those of the test split.

    Raises:
        DataError: unreadable, several splits and no test split, or not one array of images.
    """
    by_split = _arrays_by_split(path)
    return read_image_arrays(path, "test" if "test" in by_split else None)


def _arrays_by_split(path: Path) -> dict[str | None, dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"cannot read {path.name} as arrays: {error}; save it again with numpy.savez") from error
    found: dict[str | None, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        found.setdefault(split_and_rest(name)[0], {})[name] = array
    if not found:
        raise DataError(f"{path.name} holds no arrays")
    return found


def _images_and_labels(path: Path, arrays: dict[str, np.ndarray]) -> ImageArrays:
    images = [name for name, array in arrays.items() if array.ndim >= 3]
    if len(images) != 1:
        raise DataError(f"{path.name} needs one array of images, {IMAGE_SHAPES}; it has: {_shapes(arrays)}")
    pixels = arrays[images[0]]
    if pixels.dtype != np.uint8 or (pixels.ndim > 3 and pixels.shape[3:] not in ((1,), (3,))):
        raise DataError(
            f"{images[0]} of {path.name} is {pixels.dtype} {pixels.shape}; images are uint8, 0 to 255, {IMAGE_SHAPES}"
        )
    labels = [array for name, array in arrays.items() if name != images[0] and array.size == len(pixels)]
    if len(labels) > 1:
        raise DataError(f"{path.name} needs one label an image; it has: {_shapes(arrays)}")
    return ImageArrays(pixels, labels[0].reshape(-1).tolist() if labels else None)


def _shapes(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items())


def _names(by_split: dict[str | None, Any]) -> str:
    known: Sequence[str] = [name for name in by_split if name is not None]
    return ", ".join(known) or "images without the name of a split"
