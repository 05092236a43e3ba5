"""Images and labels: read, decoded into the cache, checked row by row, divided into splits, and summed up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.data.image.cache import CachedImages, Geometry, cached_pixels
from hftoolkit.data.image.duplicates import near_duplicate_warnings, near_duplicates
from hftoolkit.data.image.sources import ImageTable, read_image_tables
from hftoolkit.data.label_cells import single_values
from hftoolkit.data.labels import LabelSet
from hftoolkit.data.reading import (
    check_disjoint_groups,
    check_not_empty,
    check_two_classes,
    label_column_warnings,
    places_by_split,
    reading,
    reading_warnings,
)
from hftoolkit.data.summary import summarize
from hftoolkit.data.text_rows import (
    BadRow,
    BadRows,
    CleanRows,
    ParsedRows,
    check_bad_rows,
    encode_rows,
    find_labels,
    read_groups,
)
from hftoolkit.recipe import ImageClassification, ImageData, Split


class FittedImages(Sequence[np.ndarray]):
    """Some images of the cache, in an order of their own; each is read when it is asked for.

    Args:
        path: .npy file of (N, height, width, 3) uint8.
        rows: (K,) places in it.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        self.path = path
        self.rows = rows
        self._pixels = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        """Return a copy of one image, (height, width, 3) uint8."""
        return np.array(self._pixels[self.rows[place]])

    def __reduce__(self) -> tuple[type["FittedImages"], tuple[Path, np.ndarray]]:
        return FittedImages, (self.path, self.rows)  # another process maps the file itself


@dataclass(frozen=True, slots=True)
class ImageSplits:
    """Images and targets by split: ``train``, ``validation``, ``test``.

    Attributes:
        pixels: N images, (height, width, 3) uint8 each.
        names: N file names, or ``row 12``.
        targets: (N,) int64 class numbers.
        row_numbers: (N,) int64, 1-based rows of the table, or places in the natural order of a folder.
        labels: the classes, those that occur in one split only too.
        summary: counts, fingerprint of the decoded images, and warnings in plain JSON types.
    """

    pixels: dict[str, FittedImages]
    names: dict[str, list[str]]
    targets: dict[str, np.ndarray]
    row_numbers: dict[str, np.ndarray]
    labels: LabelSet
    summary: dict[str, Any]


def load_image_splits(
    path: Path, data: ImageData, task: ImageClassification, geometry: Geometry, labels: LabelSet | None = None
) -> ImageSplits:
    """Read, decode, check and divide images with labels.

    Args:
        path: the file or folder that ``data.source`` led to.
        data: how it is read, the splits, and what to do with bad rows.
        task: the labels.
        geometry: the size that all images are brought to.
        labels: known classes, which overrule ``task.labels``.

    Raises:
        DataError: the files, columns, rows or splits cannot be used; all bad rows are in one message.
        RecipeError: ``task.labels`` is not valid.
        EnvironmentFault: the cache of images cannot be written.
    """
    sources = read_image_tables(path, data)
    rows, cached, offsets = _usable(sources, data, task.labels, geometry, labels)
    check_disjoint_groups(rows)
    few = []
    if labels is None and task.labels is None:
        few = label_column_warnings(rows, rows["train"].labels, _label_key(data))
    splits = _divide(rows, sources, cached, offsets, data)
    splits.summary["warnings"] = [*few, *splits.summary["warnings"]]
    return splits


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of a source that is not divided, and their targets.

    Attributes:
        pixels: N images, (height, width, 3) uint8 each.
        names: N file names, or ``row 12``.
        targets: (N,) int64 class numbers.
        bad: the rows that cannot be used, by 1-based number.
        source: where they come from, for messages.
    """

    pixels: FittedImages
    names: list[str]
    targets: np.ndarray
    bad: BadRows
    source: str


def load_labelled_images(path: Path, data: ImageData, geometry: Geometry, labels: LabelSet) -> LabelledImages:
    """Return all images of a source and their targets; ``data.split`` does not count.

    Raises:
        DataError: the files or columns cannot be used.
        EnvironmentFault: the cache of images cannot be written.
    """
    sources = read_image_tables(path, data.model_copy(update={"split": Split()}))
    encoded, cached, _ = _encoded(sources, data.model_copy(update={"split": Split()}), None, geometry, labels)
    rows, bad = encoded["train"]
    pixels = FittedImages(cached.path, rows.row_numbers - 1)
    return LabelledImages(pixels, rows.texts, rows.targets, bad, sources["train"].table.source)


def _usable(
    sources: Mapping[str, ImageTable],
    data: ImageData,
    mapping: Mapping[Any, str] | None,
    geometry: Geometry,
    labels: LabelSet | None,
) -> tuple[dict[str, CleanRows], CachedImages, dict[str, int]]:
    """Decode all images; return the usable rows of each source, the cache, and where each source starts in it."""
    encoded, cached, offsets = _encoded(sources, data, mapping, geometry, labels)
    known = next(kept.labels for kept, _ in encoded.values())
    bad = {sources[name].table.source: bad_rows for name, (_, bad_rows) in encoded.items()}
    check_bad_rows(bad, known, data.on_bad_rows)
    return {name: kept for name, (kept, _) in encoded.items()}, cached, offsets


def _encoded(
    sources: Mapping[str, ImageTable],
    data: ImageData,
    mapping: Mapping[Any, str] | None,
    geometry: Geometry,
    labels: LabelSet | None,
) -> tuple[dict[str, tuple[CleanRows, BadRows]], CachedImages, dict[str, int]]:
    """Decode all images; return usable and bad rows of each source, the cache, and where each source starts in it."""
    first_rows = np.cumsum([0, *(len(source.images) for source in sources.values())])
    offsets = dict(zip(sources, first_rows[:-1].tolist(), strict=True))
    cached = cached_pixels([image for source in sources.values() for image in source.images], geometry)
    parsed = {
        name: _parse(source, data, cached.problems[offsets[name] : offsets[name] + len(source.images)])
        for name, source in sources.items()
    }
    if labels is None:
        first = sources["train"]
        labels = find_labels(parsed.values(), [first.label], multi_label=False, mapping=mapping, table=first.table)
    found = {}
    for name, rows in parsed.items():
        kept, bad = encode_rows(rows, labels)
        found[name] = kept, with_names(bad, sources[name])
    return found, cached, offsets


def _parse(source: ImageTable, data: ImageData, problems: Sequence[str | None]) -> ParsedRows:
    """Take names for texts; a row with several faults is listed for the first of: image, label, group."""
    values, bad_labels = single_values(source.table.columns[source.label])
    groups, bad_groups = read_groups(source.table, data.split.group)
    names = [image.name for image in source.images]
    broken = {number: BadRow(problem) for number, problem in enumerate(problems, start=1) if problem is not None}
    return ParsedRows(names, values, groups, {**bad_groups, **bad_labels, **broken, **source.bad})


def with_names(bad: BadRows, source: ImageTable) -> BadRows:
    """Return bad rows with the names of their images, where those are more than a row's number."""
    names = {number: source.images[number - 1].name for number in bad}
    return {
        number: problem if names[number] == f"row {number}" else replace(problem, name=names[number])
        for number, problem in bad.items()
    }


def _divide(
    rows: Mapping[str, CleanRows],
    sources: Mapping[str, ImageTable],
    cached: CachedImages,
    offsets: Mapping[str, int],
    data: ImageData,
) -> ImageSplits:
    tables = {name: source.table for name, source in sources.items()}
    check_not_empty(rows, tables)
    labels = rows["train"].labels
    names, targets, row_numbers, places = {}, {}, {}, {}
    for name, (source, chosen) in places_by_split(rows, data.split).items():
        names[name] = [rows[source].texts[place] for place in chosen]
        targets[name] = rows[source].targets[chosen]
        row_numbers[name] = rows[source].row_numbers[chosen]
        places[name] = row_numbers[name] - 1 + offsets[source]
    check_two_classes(targets["train"], labels, f"check {_label_key(data)} and task.labels")
    hashes = {name: [cached.sha256[place] or "" for place in found] for name, found in places.items()}
    summary = summarize(hashes, targets, row_numbers, labels, "image")
    near = near_duplicates(cached, places)
    found = dict.fromkeys(sentence for source in sources.values() for sentence in source.warnings)
    summary["warnings"] = [
        *found,
        *reading_warnings(rows, tables),
        *summary["warnings"],
        *near_duplicate_warnings(near, summary["sizes"]),
    ]
    pixels = {name: FittedImages(cached.path, found) for name, found in places.items()}
    summary = {**reading(rows, tables), **summary, "near_duplicates": near}
    return ImageSplits(pixels, names, targets, row_numbers, labels, summary)


def _label_key(data: ImageData) -> str:
    if data.pixels is not None:
        return "data.pixels.label"
    return "data.columns.label" if data.columns is not None else "the class folders"
