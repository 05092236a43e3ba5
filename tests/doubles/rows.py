"""Rows and images as the package reads them, in one call where a test asks for nothing between."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hftoolkit.data.image.cache import StoredImage
from hftoolkit.data.image.sources import open_image_table
from hftoolkit.data.labels import LabelSet
from hftoolkit.data.reading import check_not_empty
from hftoolkit.data.tables import DataTable
from hftoolkit.data.text_rows import CleanRows, check_bad_rows, encode_rows, find_labels, parse_rows
from hftoolkit.recipe import ImageColumns, Pixels, TextData


def open_images(source: Path | str, columns: ImageColumns | None, pixels: Pixels | None) -> list[StoredImage]:
    """Return the images to predict, without the table that they come from."""
    return open_image_table(source, columns, pixels)[0]


def clean_rows(
    table: DataTable,
    data: TextData,
    *,
    multi_label: bool,
    label_separator: str = "|",
    mapping: Mapping[Any, str] | None = None,
    labels: LabelSet | None = None,
) -> CleanRows:
    """Turn one table into texts and targets.

    Args:
        table: the rows.
        data: columns, template, markers of missing text, and what to do with bad rows.
        multi_label: any number of classes a text instead of one.
        label_separator: what separates labels in a text cell; multi-label only.
        mapping: ``task.labels``; None takes the values of the data.
        labels: known classes, which overrule ``mapping``.

    Raises:
        DataError: a missing column, bad rows (with ``data.on_bad_rows: error``), or no usable row.
        RecipeError: the template or the mapping is not valid.
    """
    parsed = parse_rows(table, data, multi_label=multi_label, label_separator=label_separator)
    if labels is None:
        labels = find_labels([parsed], data.columns.label, multi_label=multi_label, mapping=mapping, table=table)
    rows, bad = encode_rows(parsed, labels)
    check_bad_rows({table.source: bad}, labels, data.on_bad_rows)
    check_not_empty({"train": rows}, {"train": table})
    return rows
