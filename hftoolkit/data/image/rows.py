"""Images with numbers: read, decoded into the cache, checked row by row, divided into splits, and summed up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.contracts import Labelled
from hftoolkit.data.image.cache import CachedImages, Geometry, cached_pixels
from hftoolkit.data.image.changes import change_warnings
from hftoolkit.data.image.duplicates import near_duplicate_warnings, near_duplicates
from hftoolkit.data.image.formats import broken_images
from hftoolkit.data.image.sources import ImageTable, read_measured_images, read_told_image_tables
from hftoolkit.data.image.splits import FittedImages, with_names
from hftoolkit.data.rows import DividedRows, Parsed, divide_rows, labelled_rows, numbers_of
from hftoolkit.recipe import ImageData


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """An image of the model's size and its number; None where it is to be predicted.

    Attributes:
        images: where its pixels are; the cache reads them when they are asked for.
        place: of the image among them.
        name: of its file, or ``row 12``.
        target: the number.
        sha256: of the decoded image, by which images count as the same.
    """

    images: Sequence[np.ndarray]
    place: int
    name: str
    target: float | None = None
    sha256: str = ""

    @property
    def pixels(self) -> np.ndarray:
        """The image, (H, W, 3) uint8."""
        return self.images[self.place]

    @property
    def key(self) -> str:
        return self.sha256

    def to_json(self) -> Any:
        """Return hash and number."""
        return [self.sha256, self.target]


def load_scored_images(path: Path, data: ImageData, geometry: Geometry) -> tuple[DividedRows[ScoredImage], str]:
    """Read, decode, check and divide images with numbers; return them, and the column of the numbers.

    Args:
        path: the file or folder that ``data.source`` led to.
        data: how it is read, the splits, and what to do with bad rows.
        geometry: the size that all images are brought to.

    Raises:
        DataError: the files, columns, rows or splits cannot be used; all bad rows are in one message.
        EnvironmentFault: the cache of images cannot be written.
    """
    sources, data, notes = read_told_image_tables(path, data, _is_number)
    parsed, cached = _parse(sources, geometry)
    divided = divide_rows({name: source.table for name, source in sources.items()}, data, parsed, "image")
    places = {split: np.array([row.place for row in rows]) for split, rows in divided.splits.items()}
    near = near_duplicates(cached, places)
    found = dict.fromkeys(sentence for source in sources.values() for sentence in source.warnings)
    alike = near_duplicate_warnings(near, divided.summary["sizes"])
    changed = change_warnings(cached.changes[place] for chosen in places.values() for place in chosen)
    warnings = [*notes, *found, *divided.summary["warnings"], *alike, *changed]
    summary = divided.summary | {"near_duplicates": near, "warnings": warnings}
    return replace(divided, summary=summary), sources["train"].labels[0]


def read_scored_images(path: Path, data: ImageData, geometry: Geometry) -> Labelled[ScoredImage]:
    """Return all images of another source; ``data.split`` does not count.

    Raises:
        DataError: the files or columns cannot be used.
        EnvironmentFault: the cache of images cannot be written.
    """
    source = read_measured_images(path, data, _is_number)
    parsed, _ = _parse({"all": source}, geometry)
    return labelled_rows(source.table, parsed["all"])


def _is_number(folder: str) -> bool:
    return not numbers_of([folder], "folder")[1]


def _parse(
    sources: Mapping[str, ImageTable], geometry: Geometry
) -> tuple[dict[str, Parsed[ScoredImage]], CachedImages]:
    """Decode all images and read their numbers; a row with several faults is listed for its image."""
    cached = cached_pixels([image for source in sources.values() for image in source.images], geometry)
    pixels = FittedImages(cached.path, np.arange(len(cached.sha256)))
    parsed, first = {}, 0
    for name, source in sources.items():
        numbers, bad = numbers_of(source.table.columns[source.labels[0]], source.labels[0])
        rows = [
            ScoredImage(pixels, place, image.name, number, cached.sha256[place] or "")
            for place, (image, number) in enumerate(zip(source.images, numbers, strict=True), start=first)
        ]
        broken = broken_images(source.images, cached.problems[first : first + len(rows)])
        parsed[name] = rows, with_names({**bad, **broken, **source.bad}, source)
        first += len(rows)
    return parsed, cached
