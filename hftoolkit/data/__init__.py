"""Tables of texts and images with labels, and logs of interactions: read, checked, divided into splits, summed up."""

from hftoolkit.data.files import write_table
from hftoolkit.data.image_cache import (
    CROP_MODES,
    BrokenImage,
    CachedImages,
    Geometry,
    StoredImage,
    cached_pixels,
    decode,
    fit,
)
from hftoolkit.data.image_sources import open_images
from hftoolkit.data.images import FittedImages, ImageSplits, load_image_splits, load_labelled_images
from hftoolkit.data.interactions import Catalogue
from hftoolkit.data.labels import LabelSet, canonical_value, check_same
from hftoolkit.data.protocols import RecommendationSplits, load_recommendation_splits
from hftoolkit.data.splits import split_rows
from hftoolkit.data.tables import Table, read_table, require_columns
from hftoolkit.data.text_rows import BadRow, BadRows, CleanRows, clean_rows, clean_texts, describe_bad_texts
from hftoolkit.data.texts import TextSplits, load_text_splits

__all__ = [
    "CROP_MODES",
    "BadRow",
    "BadRows",
    "BrokenImage",
    "CachedImages",
    "Catalogue",
    "CleanRows",
    "FittedImages",
    "Geometry",
    "ImageSplits",
    "LabelSet",
    "RecommendationSplits",
    "Splits",
    "StoredImage",
    "Table",
    "TextSplits",
    "cached_pixels",
    "canonical_value",
    "check_same",
    "clean_rows",
    "clean_texts",
    "decode",
    "describe_bad_texts",
    "fit",
    "load_image_splits",
    "load_labelled_images",
    "load_recommendation_splits",
    "load_text_splits",
    "open_images",
    "read_table",
    "require_columns",
    "split_rows",
    "write_table",
]

Splits = TextSplits | ImageSplits
