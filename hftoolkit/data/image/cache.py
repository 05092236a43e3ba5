"""Images of any size and format: decoded, brought to one size, and kept, so that each is decoded once.

The pixels of a data set are one memory-mapped file under ``HF_HOME``; training reads them in any order.
"""

import hashlib
import io
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from math import floor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL
from PIL import ExifTags, Image

from hftoolkit.errors import EnvironmentFault

VERSION = 2  # of what decode, fit and difference_hash compute; another one makes all entries anew
PIXELS, ROWS, HASHES = "pixels.npy", "rows.json", "hashes.json"
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 1_000_000_000
CHUNK_IMAGES, CHUNK_BYTES = 256, 256_000_000  # decoded and not yet written, at most
LEFTOVER_SECONDS = 24 * 3600  # a scratch folder untouched for this long belongs to a build that was killed
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no others: opening EPS, for one, runs a program
CROP_MODES = ("center", "squash", "border")  # timm's words
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MISSING_FILE = "image file is missing"
UNREADABLE_FILE = "image file cannot be read"
EMPTY_FILE = "image file is empty"
UNKNOWN_FORMAT = f"image is not one of {', '.join(FORMATS)}"
DAMAGED = "image is damaged or cut short"
TOO_LARGE = f"image has more than {MAX_PIXELS // 1_000_000} million pixels"
TOO_MANY_BYTES = f"image file is larger than {MAX_FILE_BYTES // 1_000_000_000} GB"
ODD_PIXELS = "image has pixel values other than 8 or 16 bits"
ODD_ARRAY = "image is an array other than (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, or (H, W) of uint16"
ARRAYS = {"uint8": ((), (1,), (3,), (4,)), "uint16": ((), (1,))}  # numpy's type: shapes after height and width

TRANSPARENT, SIXTEEN_BITS = "transparent", "16-bit"  # what of an image ``convert("RGB")`` would show otherwise
pillow_objects = threading.Lock()  # Pillow loads an image on first use, which two threads must not do at once


class BrokenImage(Exception):
    """An image that cannot be used; ``reason`` is one of the few sentences above, so that they can be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image of any size becomes (height, width, 3): resized, then cropped in the centre.

    Attributes:
        height: pixels.
        width: pixels.
        crop_pct: share of the resized image's shorter side that the crop keeps, as timm has it; at most 1.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        crop_mode: ``center`` resizes to cover size / crop_pct, ``squash`` to exactly that whatever the aspect ratio,
            ``border`` to fit into it.
        fill: colour of what ``border`` leaves empty.
        cut_before: of an odd number of pixels that the crop cuts off: ``even`` rounds half of it to even, as
            torchvision and timm do, ``down`` rounds it down, as transformers does.
    """

    height: int
    width: int
    crop_pct: float
    interpolation: str
    crop_mode: str = "center"
    fill: tuple[int, int, int] = (0, 0, 0)
    cut_before: str = "even"

    def __post_init__(self) -> None:
        assert self.height > 0 and self.width > 0 and 0 < self.crop_pct <= 1, self
        assert self.interpolation in RESAMPLING and self.crop_mode in CROP_MODES, self
        assert self.cut_before in ("even", "down"), self


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as the data has it.

    Attributes:
        name: file name, or ``row 12``.
        content: a file, encoded bytes, an image of Pillow, or pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8,
            or (H, W) uint16.
    """

    name: str
    content: Path | bytes | np.ndarray | Image.Image


@dataclass(frozen=True, slots=True)
class CachedImages:
    """N images of one size, and what was found while they were decoded.

    Attributes:
        pixels: (N, height, width, 3) uint8, memory-mapped and read-only; zeros where an image is broken.
        path: the .npy file of the pixels.
        problems: why an image cannot be used, or None.
        sha256: hash of the decoded image's size and pixels, before it was resized; None where it is broken.
        changes: ``transparent`` or ``16-bit`` where ``decode`` shows an image otherwise than Pillow's
            ``convert("RGB")``; else None.
        hashes: (N,) uint64 difference hashes of the resized images; 0 where one is broken.
    """

    pixels: np.ndarray
    path: Path
    problems: list[str | None]
    sha256: list[str | None]
    changes: list[str | None]
    hashes: np.ndarray


def decode(image: StoredImage) -> Image.Image:
    """Return an image upright and as RGB; transparent parts turn white, 16 bits are scaled to 8.

    The same picture gives the same pixels as a file, as bytes and as an object. Of an animation this is the first
    frame.

    Raises:
        BrokenImage: no such file, no image, a damaged one, one of over 50 million pixels, or another array.
        EnvironmentFault: the disk or the operating system fails.
    """
    return decode_and_compare(image)[0]


def decode_and_compare(image: StoredImage) -> tuple[Image.Image, str | None]:
    """Return what ``decode`` does, and in what a plain ``convert("RGB")`` would differ: one of ``changes``."""
    content = image.content
    if isinstance(content, np.ndarray):
        return _to_rgb(_from_array(content))
    if isinstance(content, Image.Image):
        with pillow_objects, _pillow_faults():
            return _to_rgb(_upright(_loaded(content)))
    content = content if isinstance(content, bytes) else _read(content)
    if not content:
        raise BrokenImage(EMPTY_FILE)
    with _pillow_faults(), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        return _to_rgb(_upright(_loaded(picture)))


def fit(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """Return (height, width, 3) uint8: resized towards size / crop_pct, then cropped in the centre, as timm does."""
    width, height = _resized(image.width, image.height, geometry)
    left = _margin(width, geometry.width, geometry.cut_before)
    top = _margin(height, geometry.height, geometry.cut_before)
    crop = (left, top, left + geometry.width, top + geometry.height)
    method = RESAMPLING[geometry.interpolation]
    if width * height > MAX_PIXELS:  # a line of pixels, much enlarged: only the crop is computed
        scale_x, scale_y = image.width / width, image.height / height
        box = (crop[0] * scale_x, crop[1] * scale_y, crop[2] * scale_x, crop[3] * scale_y)
        return np.asarray(image.resize((geometry.width, geometry.height), method, box=box))
    resized = image.resize((width, height), method)
    if geometry.crop_mode == "border":
        canvas = Image.new("RGB", (geometry.width, geometry.height), geometry.fill)
        canvas.paste(resized, (-left, -top))
        return np.asarray(canvas)
    return np.asarray(resized.crop(crop))


def difference_hash(pixels: np.ndarray) -> int:
    """Return the 64 bits of whether brightness grows to the right, in an 8 x 9 grid of (height, width, 3) uint8."""
    grid = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BILINEAR))
    return int.from_bytes(np.packbits(grid[:, 1:] > grid[:, :-1]).tobytes())


def cached_pixels(images: Sequence[StoredImage], geometry: Geometry) -> CachedImages:
    """Return all images decoded and fitted: from the cache, or made now and kept there.

    Images are told apart by content, files by path, size and time of change. Broken images are no error here.

    Raises:
        EnvironmentFault: the cache folder cannot be written, or the disk is full; nothing half-written stays.
    """
    assert images
    root = _cache_root()
    folder = root / _key(images, geometry)
    cached = _open(folder, len(images), geometry)
    if cached is None:
        with _disk_faults(root):
            _build(images, geometry, folder)
        cached = _open(folder, len(images), geometry)
    if cached is None:
        raise EnvironmentFault(f"{folder} was changed while it was written; run the command again")
    return cached


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BrokenImage(TOO_MANY_BYTES)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BrokenImage(MISSING_FILE) from error
    except (PermissionError, IsADirectoryError, ValueError) as error:  # ValueError: a zero byte in the name
        raise BrokenImage(UNREADABLE_FILE) from error
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror or error}; check disk and open files") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim < 2 or pixels.shape[2:] not in ARRAYS.get(pixels.dtype.name, ()) or not pixels.size:
        raise BrokenImage(ODD_ARRAY)
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise BrokenImage(TOO_LARGE)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels))


def _loaded(picture: Image.Image) -> Image.Image:
    if picture.width * picture.height > MAX_PIXELS:  # known from the header, before memory is taken
        raise BrokenImage(TOO_LARGE)
    picture.load()
    return picture


@contextmanager
def _pillow_faults() -> Iterator[None]:
    """Say of what Pillow raises why an image cannot be used."""
    try:
        yield
    except (BrokenImage, MemoryError):
        raise
    except PIL.UnidentifiedImageError as error:
        raise BrokenImage(UNKNOWN_FORMAT) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImage(TOO_LARGE) from error
    except Exception as error:  # Pillow's readers raise many kinds on damaged files
        raise BrokenImage(DAMAGED) from error


def _upright(picture: Image.Image) -> Image.Image:
    method = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if method is None else picture.transpose(method)


def _to_rgb(picture: Image.Image) -> tuple[Image.Image, str | None]:
    if picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.uint32)  # (H, W), 0 to 65535
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB"), SIXTEEN_BITS
    if picture.mode in ("I", "F"):
        raise BrokenImage(ODD_PIXELS)
    if not picture.has_transparency_data:
        return picture.convert("RGB"), None
    rgba = picture.convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return on_white, TRANSPARENT if np.asarray(rgba.getchannel("A")).min() < 255 else None


def _resized(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """Return width and height after resizing; rounded as torchvision's and timm's own transforms round."""
    to_height, to_width = floor(geometry.height / geometry.crop_pct), floor(geometry.width / geometry.crop_pct)
    if geometry.crop_mode == "squash":
        return to_width, to_height
    if geometry.crop_mode == "border":
        ratio = max(height / to_height, width / to_width)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    if to_height != to_width:
        ratio = min(height / to_height, width / to_width)
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return to_width, int(to_height * height / width)
    return int(to_width * width / height), to_height


def _margin(resized: int, kept: int, cut_before: str) -> int:
    """Return the pixels cut off before what is kept; negative where a border is added, rounded as timm rounds."""
    if resized < kept:
        return -((kept - resized) // 2)
    return (resized - kept) // 2 if cut_before == "down" else round((resized - kept) / 2)


def _cache_root() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME, "hftoolkit", "images").absolute()


def _key(images: Sequence[StoredImage], geometry: Geometry) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, PIL.__version__, asdict(geometry), len(images)]).encode())
    for image in images:
        digest.update(json.dumps(_identity(image.content)).encode() + b"\n")
    return digest.hexdigest()[:32]


def _identity(content: Path | bytes | np.ndarray | Image.Image) -> list[str | int]:
    if isinstance(content, Image.Image):
        shown = _to_rgb(_upright(content))[0]
        return ["picture", *shown.size, hashlib.sha256(shown.tobytes()).hexdigest()]
    if isinstance(content, np.ndarray):
        return ["pixels", content.dtype.name, *content.shape, hashlib.sha256(content.tobytes()).hexdigest()]
    if isinstance(content, bytes):
        return ["bytes", hashlib.sha256(content).hexdigest()]
    try:
        status = content.stat()
    except (OSError, ValueError):  # decode says what is the matter
        return ["no file", str(content.absolute())]
    return ["file", str(content.absolute()), status.st_size, status.st_mtime_ns]


def _open(folder: Path, num_images: int, geometry: Geometry) -> CachedImages | None:
    """Return an entry of the cache, or None if there is none or it is damaged; every byte of it is hashed."""
    try:
        if json.loads((folder / HASHES).read_text(encoding="utf-8")) != _hashes(folder):
            return None
        pixels = np.load(folder / PIXELS, mmap_mode="r")
        rows = json.loads((folder / ROWS).read_text(encoding="utf-8"))
        problems, sha256, changes = list(rows["problems"]), list(rows["sha256"]), list(rows["changes"])
        hashes = np.array([int(text, 16) for text in rows["hashes"]], dtype=np.uint64)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    fits = pixels.shape == (num_images, geometry.height, geometry.width, 3) and pixels.dtype == np.uint8
    if not fits or {len(problems), len(sha256), len(changes), len(hashes)} != {num_images}:
        return None
    return CachedImages(pixels, folder / PIXELS, problems, sha256, changes, hashes)


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of an entry."""
    found = {}
    for name in (PIXELS, ROWS):
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@contextmanager
def _disk_faults(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write the cache of images {root}: {error.strerror or error}; "
            "set HF_HOME to a folder with write permission and free space"
        ) from error


def _build(images: Sequence[StoredImage], geometry: Geometry, folder: Path) -> None:
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    num_bytes, free = len(images) * geometry.height * geometry.width * 3, shutil.disk_usage(root).free
    if num_bytes > free:
        raise EnvironmentFault(
            f"the cache of {len(images)} images takes {num_bytes / 1e9:.1f} GB in {root}, where {free / 1e9:.1f} GB "
            "are free; make room, set HF_HOME to another disk, or lower model.image_size"
        )
    with TemporaryDirectory(dir=root, prefix=".tmp-") as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        _write(images, geometry, made)
        if folder.exists():  # damaged, else it would be in use
            os.replace(folder, Path(scratch, "damaged"))
        try:
            os.replace(made, folder)
        except OSError:
            if _open(folder, len(images), geometry) is None:  # else another process was faster, with the same pixels
                raise


def _remove_leftovers(root: Path) -> None:
    for scratch in root.glob(".tmp-*"):
        try:
            newest = max(path.stat().st_mtime for path in [scratch, *scratch.rglob("*")])
        except FileNotFoundError:  # its owner has just removed it
            continue
        if time.time() - newest > LEFTOVER_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)


def _write(images: Sequence[StoredImage], geometry: Geometry, folder: Path) -> None:
    """Write pixels one after the other; a full disk is then an error, which in mapped memory kills the process."""
    shape = (len(images), geometry.height, geometry.width, 3)
    step = max(os.cpu_count() or 1, min(CHUNK_IMAGES, CHUNK_BYTES // (geometry.height * geometry.width * 3)))
    rows: dict[str, list[str | None]] = {"problems": [], "sha256": [], "changes": [], "hashes": []}
    with (folder / PIXELS).open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd metadata; outside the threads, which share the filters
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(images), step):
            prepared = pool.map(partial(_prepare, geometry=geometry), images[start : start + step])
            for pixels, problem, sha256, change, bits in prepared:
                file.write(pixels.tobytes())
                rows["problems"].append(problem)
                rows["sha256"].append(sha256)
                rows["changes"].append(change)
                rows["hashes"].append(f"{bits:016x}")
        file.flush()
        os.fsync(file.fileno())
    (folder / ROWS).write_text(json.dumps(rows), encoding="utf-8")
    (folder / HASHES).write_text(json.dumps(_hashes(folder)), encoding="utf-8")


def _prepare(image: StoredImage, geometry: Geometry) -> tuple[np.ndarray, str | None, str | None, str | None, int]:
    """Return the fitted pixels, the problem, the hash of the decoded pixels, the change, and the difference hash."""
    try:
        decoded, change = decode_and_compare(image)
    except BrokenImage as broken:
        return np.zeros((geometry.height, geometry.width, 3), dtype=np.uint8), broken.reason, None, None, 0
    pixels = fit(decoded, geometry)
    sha256 = hashlib.sha256(f"{decoded.size}".encode() + decoded.tobytes()).hexdigest()
    return pixels, None, sha256, change, difference_hash(pixels)
