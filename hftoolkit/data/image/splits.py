"""Images and labels: read, decoded into the cache, checked row by row, divided into splits, and summed up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hftoolkit.data.image.cache import CachedImages, Geometry, cached_pixels
from hftoolkit.data.image.changes import change_warnings
from hftoolkit.data.image.duplicates import near_duplicate_warnings, near_duplicates
from hftoolkit.data.image.formats import broken_images
from hftoolkit.data.image.sources import ImageTable, read_measured_images, read_told_image_tables
from hftoolkit.data.labels import LabelSet, canonical_value
from hftoolkit.data.reading import (
    check_any_label,
    check_disjoint_groups,
    check_not_empty,
    check_two_classes,
    label_column_warnings,
    label_hints,
    places_by_split,
    reading,
    reading_warnings,
    told_splits,
)
from hftoolkit.data.summary import summarize
from hftoolkit.data.text_rows import (
    BadRows,
    CleanRows,
    ParsedRows,
    check_bad_rows,
    encode_rows,
    find_labels,
    label_values,
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
        targets: (N,) int64 class numbers; multi-label: (N, C) float32 of 0 and 1.
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
        task: the labels, and whether an image has one or any number.
        geometry: the size that all images are brought to.
        labels: known classes, which overrule ``task.labels``.

    Raises:
        DataError: the files, columns, rows or splits cannot be used; all bad rows are in one message.
        RecipeError: ``task.labels`` is not valid.
        EnvironmentFault: the cache of images cannot be written.
    """
    named = frozenset(map(canonical_value, task.labels or ()))
    sources, data, notes = read_told_image_tables(path, data, lambda folder: canonical_value(folder) in named)
    told, untold = told_splits(sources["train"].table, data.split.column)
    first = sources["train"]
    sources["train"] = replace(first, bad={**untold, **first.bad})
    parsed, cached, offsets = _parsed(sources, data, task, geometry)
    known = labels or find_labels(
        parsed.values(),
        first.labels,
        multi_label=task.multi_label,
        mapping=task.labels,
        table=first.table,
    )
    hints = [] if data.columns is None else label_hints(parsed.values(), task.labels, known, first.labels[0])
    encoded = {name: _encoded(found, sources[name], known) for name, found in parsed.items()}
    bad = {sources[name].table.source: bad_rows for name, (_, bad_rows) in encoded.items()}
    check_bad_rows(bad, known, data.on_bad_rows, hints)
    rows = {name: kept for name, (kept, _) in encoded.items()}
    check_disjoint_groups(rows)
    check_not_empty(rows, {name: source.table for name, source in sources.items()})
    if labels is None and task.labels is None:
        hints += label_column_warnings(rows, known, _label_key(data))
    chosen = places_by_split(rows, rows["train"].targets, data.split, told)
    divided = _divide(rows, sources, cached, offsets, chosen, _label_key(data))
    return replace(divided, summary={**divided.summary, "warnings": [*notes, *hints, *divided.summary["warnings"]]})


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of a source that is not divided, and their targets.

    Attributes:
        pixels: N images, (height, width, 3) uint8 each.
        names: N file names, or ``row 12``.
        targets: as of ``ImageSplits``.
        bad: the rows that cannot be used, by 1-based number.
        source: where they come from, for messages.
    """

    pixels: FittedImages
    names: list[str]
    targets: np.ndarray
    bad: BadRows
    source: str


def load_labelled_images(
    path: Path, data: ImageData, task: ImageClassification, geometry: Geometry, labels: LabelSet
) -> LabelledImages:
    """Return all images of a source and their targets; ``data.split`` does not count.

    Raises:
        DataError: the files or columns cannot be used.
        EnvironmentFault: the cache of images cannot be written.
    """
    source = read_measured_images(path, data, lambda folder: labels.encode(folder) is not None)
    data = data.model_copy(update={"split": Split()})
    parsed, cached, _ = _parsed({"all": source}, data, task, geometry)
    rows, bad = _encoded(parsed["all"], source, labels)
    pixels = FittedImages(cached.path, rows.row_numbers - 1)
    return LabelledImages(pixels, rows.texts, rows.targets, bad, source.table.source)


def _parsed(
    sources: Mapping[str, ImageTable], data: ImageData, task: ImageClassification, geometry: Geometry
) -> tuple[dict[str, ParsedRows], CachedImages, dict[str, int]]:
    """Decode all images; return the rows of each source, the cache, and where each source starts in it."""
    first_rows = np.cumsum([0, *(len(source.images) for source in sources.values())])
    offsets = dict(zip(sources, first_rows[:-1].tolist(), strict=True))
    cached = cached_pixels([image for source in sources.values() for image in source.images], geometry)
    parsed = {
        name: _parse(source, data, task, cached.problems[offsets[name] : offsets[name] + len(source.images)])
        for name, source in sources.items()
    }
    return parsed, cached, offsets


def _encoded(parsed: ParsedRows, source: ImageTable, labels: LabelSet) -> tuple[CleanRows, BadRows]:
    """Return the usable rows of a source, and the others with the names of their images."""
    rows, bad = encode_rows(parsed, labels)
    return rows, with_names(bad, source)


def _parse(
    source: ImageTable, data: ImageData, task: ImageClassification, problems: Sequence[str | None]
) -> ParsedRows:
    """Take names for texts; a row with several faults is listed for the first of: image, label, group."""
    labels = label_values(
        source.table, source.labels, multi_label=task.multi_label, label_separator=task.label_separator
    )
    groups, bad_groups = read_groups(source.table, data.split.group)
    names = [image.name for image in source.images]
    bad = {**bad_groups, **labels.bad, **broken_images(source.images, problems), **source.bad}
    return ParsedRows(names, labels.values, groups, bad, labels.classes, labels.hints)


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
    chosen_places: Mapping[str, tuple[str, np.ndarray]],
    label_key: str,
) -> ImageSplits:
    tables = {name: source.table for name, source in sources.items()}
    labels = rows["train"].labels
    names, targets, row_numbers, places = {}, {}, {}, {}
    for name, (source, chosen) in chosen_places.items():
        names[name] = [rows[source].texts[place] for place in chosen]
        targets[name] = rows[source].targets[chosen]
        row_numbers[name] = rows[source].row_numbers[chosen]
        places[name] = row_numbers[name] - 1 + offsets[source]
    if labels.multi_label:
        check_any_label(targets["train"])
    else:
        check_two_classes(targets["train"], labels, f"check {label_key} and task.labels")
    hashes = {name: [cached.sha256[place] or "" for place in found] for name, found in places.items()}
    summary = summarize(hashes, targets, row_numbers, labels, "image")
    near = near_duplicates(cached, places)
    found = dict.fromkeys(sentence for source in sources.values() for sentence in source.warnings)
    summary["warnings"] = [
        *found,
        *reading_warnings(rows, tables),
        *summary["warnings"],
        *near_duplicate_warnings(near, summary["sizes"]),
        *change_warnings(cached.changes[place] for chosen in places.values() for place in chosen),
    ]
    pixels = {name: FittedImages(cached.path, found) for name, found in places.items()}
    summary = {**reading(rows, tables), **summary, "near_duplicates": near}
    return ImageSplits(pixels, names, targets, row_numbers, labels, summary)


def _label_key(data: ImageData) -> str:
    if data.pixels is not None:
        return "data.pixels.label"
    return "data.columns.label" if data.columns is not None else "the class folders"
