"""Why a picture of a known format cannot be read, where more can be said than that it is none."""

import struct
from collections.abc import Sequence
from pathlib import Path

from hftoolkit.data.image.cache import UNKNOWN_FORMAT, StoredImage
from hftoolkit.data.text_rows import BadRow, BadRows

LFS_BEGINS = b"version https://git-lfs"
TIFF_BEGINS = (b"II*\0", b"MM\0*")
SAMPLES_PER_PIXEL, SHORT = 277, 3  # a tag of TIFF, and its type for 16 bits
MOST_BANDS = 4  # red, green, blue and transparency


def broken_images(images: Sequence[StoredImage], problems: Sequence[str | None]) -> BadRows:
    """Return the rows whose image cannot be read, and why, given what ``decode`` says of each; None where it can."""
    both = enumerate(zip(images, problems, strict=True), start=1)
    return {number: BadRow(explain(image, problem)) for number, (image, problem) in both if problem is not None}


def explain(image: StoredImage, reason: str) -> str:
    """Return why an image cannot be read, given what ``decode`` says: of a TIFF, that it has too many bands."""
    if reason != UNKNOWN_FORMAT:
        return reason
    content = image.content.read_bytes() if isinstance(image.content, Path) else image.content
    if isinstance(content, bytes) and content.startswith(LFS_BEGINS):
        return "image is a pointer of Git LFS; fetch the files (git lfs pull)"
    bands = _bands(content) if isinstance(content, bytes) and content.startswith(TIFF_BEGINS) else 0
    if bands <= MOST_BANDS:
        return reason
    return f"image has {bands} bands, and models see 3; save the three that matter as a picture"


def _bands(content: bytes) -> int:
    """Return the samples of a pixel that the header of a TIFF file states; 0 where that is damaged."""
    order = "<" if content.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", content, entry)
            if tag == SAMPLES_PER_PIXEL:
                return int(struct.unpack_from(order + ("H" if kind == SHORT else "I"), content, entry + 8)[0])
    except struct.error:
        return 0
    return 0
