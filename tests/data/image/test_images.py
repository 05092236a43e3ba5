import csv
import gzip
import io
import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torchvision.transforms as tv
from huggingface_hub import constants
from PIL import Image, ImageOps
from timm.data import create_transform

from doubles.rows import open_images
from hftoolkit.data.files import write_table
from hftoolkit.data.image import cache as image_cache
from hftoolkit.data.image import changes
from hftoolkit.data.image.cache import BrokenImage, CachedImages, Geometry, StoredImage, cached_pixels, decode, fit
from hftoolkit.data.image.duplicates import near_duplicates
from hftoolkit.data.image.splits import ImageSplits, load_image_splits, load_labelled_images
from hftoolkit.data.labels import LabelSet
from hftoolkit.errors import DataError, EnvironmentFault
from hftoolkit.recipe import ImageClassification, ImageColumns, ImageData, Pixels

pytestmark = pytest.mark.smoke

TASK = ImageClassification(kind="image-classification")
SMALL = Geometry(8, 8, 1.0, "bilinear")
PIXELS = {"shape": [2, 3], "label": "last", "header": False}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hftoolkit" / "images"


def noise(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes | Path | np.ndarray | Image.Image) -> np.ndarray:
    return np.asarray(decode(StoredImage("x", content)))


def problem_of(content: bytes | Path | np.ndarray) -> str:
    with pytest.raises(BrokenImage) as caught:
        decode(StoredImage("x", content))
    return caught.value.reason


def section(**keys) -> ImageData:
    return ImageData.model_validate({"source": "x", **keys})


def save_classes(root: Path, classes=("cat", "dog"), count: int = 10, first_seed: int = 0) -> Path:
    seeds = itertools.count(first_seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(encoded(noise(next(seeds))))
    return root


def load(path: Path, task: ImageClassification = TASK, labels: LabelSet | None = None, **keys) -> ImageSplits:
    return load_image_splits(path, section(**keys), task, SMALL, labels)


def by_name(splits: ImageSplits) -> dict[str, tuple[str, np.ndarray]]:
    return {
        name: (splits.labels.names[target], pixels)
        for split in splits.names
        for name, target, pixels in zip(splits.names[split], splits.targets[split], splits.pixels[split], strict=True)
    }


# Decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    corners = np.zeros((40, 60, 3), dtype=np.uint8)
    corners[:20, :30] = (250, 10, 10)
    corners[:20, 30:] = (10, 250, 10)
    corners[20:, :30] = (10, 10, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(corners, kind, exif=exif)
    with Image.open(io.BytesIO(content)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert (decoded(content) == expected).all()
    assert decoded(content).shape[:2] == ((40, 60) if orientation < 5 else (60, 40))


# By the EXIF standard: which corner of the scene the first stored pixel (row 0, column 0) is.
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (4, (-1, 0)), (5, (0, 0)), (6, (0, -1)), (7, (-1, -1)), (8, (-1, 0))],
)
def test_the_first_stored_pixel_lands_in_the_corner_that_exif_names(orientation: int, corner: tuple[int, int]) -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(encoded(pixels, exif=exif))
    assert found[corner].tolist() == [255, 255, 255] and found.sum() == 3 * 255


def test_every_mode_becomes_the_rgb_that_it_shows() -> None:
    def one(content: bytes) -> list[int]:
        pixels = decoded(content)
        assert pixels.shape == (2, 2, 3)
        return pixels[0, 0].tolist()

    assert one(encoded(Image.new("1", (2, 2), 1))) == [255] * 3
    assert one(encoded(Image.new("L", (2, 2), 77))) == [77] * 3
    assert one(encoded(Image.new("LA", (2, 2), (0, 51)))) == [204] * 3  # a fifth of black on white
    assert one(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))) == [255] * 3
    assert one(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 51)))) == [255, 204, 204]
    assert one(encoded(Image.new("RGBA", (2, 2), (1, 2, 3, 255)))) == [1, 2, 3]
    assert one(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")) == [255, 0, 0]
    cmyk_jpeg = one(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.array(cmyk_jpeg) - [255, 0, 0]).max() < 6
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert one(encoded(palette)) == [40, 50, 60]
    assert one(encoded(palette, transparency=1)) == [255] * 3
    assert one(encoded(palette, transparency=bytes([0, 51]))) == [212, 214, 216]
    assert one(encoded(palette, "GIF")) == [40, 50, 60]
    assert one(encoded(Image.new("RGB", (2, 2), (9, 9, 9)), transparency=(9, 9, 9))) == [255] * 3


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str, dtype: str) -> None:
    levels = np.array([[0, 257, 300], [32768, 65535, 65279]], dtype=np.uint16)
    content = encoded(
        Image.frombytes("I;16B" if dtype == ">u2" else "I;16", (3, 2), levels.astype(dtype).tobytes()), kind
    )
    assert (decoded(content)[:, :, 1] == np.round(levels / 257)).all()


def test_arrays_are_taken_as_they_are() -> None:
    pixels = noise(0)
    gray = pixels[:, :, 0]
    assert (decoded(pixels) == pixels).all()
    assert (decoded(gray) == gray[:, :, None]).all() and (decoded(gray[:, :, None]) == gray[:, :, None]).all()
    odd_ones = (pixels.astype(np.float32), pixels[0, 0], np.zeros((2, 2, 5), np.uint8), np.zeros((0, 2), np.uint8))
    for odd in (*odd_ones, np.zeros((2, 2, 3), np.uint16)):
        assert problem_of(odd) == image_cache.ODD_ARRAY


def pictures() -> dict[str, Image.Image]:
    """One of each mode whose RGB is a matter of choice, with an orientation in their EXIF data."""
    generator = np.random.default_rng(1)
    rgba = generator.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    gray = Image.fromarray(rgba[:, :, 0])
    palette = Image.fromarray(rgba[:, :, :3]).quantize(8)
    return {
        "RGBA": Image.fromarray(rgba),
        "LA": Image.merge("LA", (gray, Image.fromarray(rgba[:, :, 3]))),
        "L": gray,
        "1": gray.convert("1"),
        "P": palette,
        "I;16": Image.fromarray(generator.integers(0, 65536, (6, 4), dtype=np.uint16)),
    }


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", list(pictures()))
def test_a_picture_is_the_same_as_a_file_as_bytes_and_as_an_object(mode: str, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(pictures()[mode], kind, exif=exif)
    (tmp_path / "x").write_bytes(content)
    expected = decoded(content)
    assert expected.shape == (4, 6, 3)
    with Image.open(io.BytesIO(content)) as opened:
        assert (decoded(opened) == expected).all()
        assert (decoded(opened) == expected).all()  # also when it is loaded already
    assert (decoded(tmp_path / "x") == expected).all()
    if mode in ("RGBA", "L", "I;16"):
        with Image.open(io.BytesIO(content)) as opened:
            assert (decoded(np.asarray(ImageOps.exif_transpose(opened))) == expected).all()


def test_an_object_of_pillow_that_two_threads_open_is_read_once(tmp_path: Path) -> None:
    Image.fromarray(noise(0, 300, 300)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(decoded, [opened] * 8))
    assert all((pixels == noise(0, 300, 300)).all() for pixels in found)


def test_images_that_a_plain_pipeline_sees_otherwise_are_noted_and_the_card_says_how_to_see_them_so() -> None:
    for mode, image in pictures().items():
        shown, change = image_cache.decode_and_compare(StoredImage("x", encoded(image)))
        plain = image.convert("RGB")
        assert (change is not None) == bool((np.asarray(shown) != np.asarray(plain)).any()), mode
        if change is not None:
            code = {image_cache.TRANSPARENT: changes.ON_WHITE, image_cache.SIXTEEN_BITS: changes.TO_EIGHT_BITS}[change]
            assert code in changes.CARD_SENTENCE
            as_said = eval(code, {"Image": Image, "np": np, "image": image}).convert("RGB")
            assert (np.asarray(as_said) == np.asarray(shown)).all(), mode
    opaque = Image.new("RGBA", (2, 2), (1, 2, 3, 255))
    assert image_cache.decode_and_compare(StoredImage("x", opaque))[1] is None
    found = [None, image_cache.TRANSPARENT, None, image_cache.TRANSPARENT, image_cache.SIXTEEN_BITS]
    transparent, deep = changes.change_warnings(found)
    assert transparent.startswith("2 of 5 images have transparent parts") and deep.startswith(
        "1 of 5 images are 16-bit"
    )
    assert changes.change_warnings([None, None]) == []


@pytest.mark.parametrize(("resized", "kept", "even", "down"), [(149, 98, 26, 25), (101, 98, 2, 1), (12, 8, 2, 2)])
def test_an_odd_number_of_pixels_is_cut_as_the_library_of_the_backbone_does(
    resized: int, kept: int, even: int, down: int
) -> None:
    line = Image.fromarray(np.tile(np.arange(resized, dtype=np.uint8), (kept, 1)))
    for rule, before in (("even", even), ("down", down)):
        geometry = Geometry(kept, kept, 1.0, "nearest", cut_before=rule)
        assert fit(line.convert("RGB"), geometry)[0, 0, 0] == before
    theirs = tv.CenterCrop(kept)(line)
    assert np.asarray(theirs)[0, 0] == even


def test_files_that_are_no_images_are_told_apart(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "no.png") == image_cache.MISSING_FILE
    assert problem_of(tmp_path) == image_cache.UNREADABLE_FILE
    assert problem_of(b"") == image_cache.EMPTY_FILE
    assert problem_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == image_cache.UNKNOWN_FORMAT
    assert problem_of(encoded(Image.new("F", (2, 2)), "TIFF")) == image_cache.ODD_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_cut_file_is_broken(kind: str) -> None:
    content = encoded(noise(0, 60, 60), kind)
    assert decoded(content).shape == (60, 60, 3)
    for share in (0.3, 0.6, 0.9):
        assert problem_of(content[: int(len(content) * share)]) in (image_cache.DAMAGED, image_cache.UNKNOWN_FORMAT)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(50_001, 1000), (10_000, 10_000), (60_000, 60_000)])
def test_a_bomb_is_found_in_its_header(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert problem_of(png_of_size(*size)) == image_cache.TOO_LARGE


# Fitting


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(20, 30), (31, 17), (64, 64), (7, 200), (224, 225)])
def test_fitting_equals_torchvision(size: tuple[int, int], interpolation: str) -> None:
    image = Image.fromarray(noise(1, *size))
    mode = tv.InterpolationMode[interpolation.upper()]
    expected = tv.Compose([tv.Resize(int(32 / 0.875), mode), tv.CenterCrop(32)])(image)
    assert (fit(image, Geometry(32, 32, 0.875, interpolation)) == np.asarray(expected)).all()


@pytest.mark.parametrize("size", [(20, 30), (31, 17), (64, 64), (90, 200)])
@pytest.mark.parametrize("target", [(32, 32), (24, 48), (50, 20)])
@pytest.mark.parametrize("crop_pct", [0.7, 0.9, 1.0])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_fitting_equals_timm(size: tuple[int, int], target: tuple[int, int], crop_pct: float, crop_mode: str) -> None:
    image = Image.fromarray(noise(2, *size))
    mean = (0.2, 0.4, 0.6)
    transform = create_transform(
        (3, *target), crop_pct=crop_pct, interpolation="bicubic", crop_mode=crop_mode, mean=mean
    )
    *steps, to_tensor, normalization = transform.transforms
    assert type(to_tensor).__name__ == "MaybeToTensor" and type(normalization).__name__ == "Normalize"
    expected = np.asarray(tv.Compose(steps)(image))
    geometry = Geometry(*target, crop_pct, "bicubic", crop_mode, fill=(51, 102, 153))
    assert (fit(image, geometry) == expected).all()


def test_squashing_shows_all_of_an_image() -> None:
    halves = np.zeros((10, 40, 3), dtype=np.uint8)
    halves[:, 20:] = 255
    squashed = fit(Image.fromarray(halves), Geometry(8, 8, 1.0, "nearest", "squash"))
    assert (squashed == np.repeat([0, 255], 4)[None, :, None]).all()


def test_a_line_of_pixels_is_fitted_without_enlarging_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Image.fromarray(noise(3, 2, 400))
    geometry = Geometry(16, 16, 0.8, "bilinear")
    expected = fit(line, geometry).astype(int)
    monkeypatch.setattr(image_cache, "MAX_PIXELS", 1000)
    assert np.abs(fit(line, geometry) - expected).max() <= 1


def test_the_hash_is_that_of_gradients_by_hand() -> None:
    image = np.zeros((8, 9, 3), dtype=np.uint8)
    image[:, 4:] = 200
    bits = np.unpackbits(np.frombuffer(image_cache.difference_hash(image).to_bytes(8), np.uint8)).reshape(8, 8)
    assert (bits == [0, 0, 0, 1, 0, 0, 0, 0]).all()


# The cache


def test_images_are_decoded_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [StoredImage("a", encoded(noise(0))), StoredImage("b", b"broken"), StoredImage("c", noise(1))]
    first = cached_pixels(images, SMALL)
    monkeypatch.setattr(image_cache, "decode", lambda image: pytest.fail("decoded again"))
    second = cached_pixels(images, SMALL)
    assert (first.pixels[0] == fit(Image.fromarray(noise(0)), SMALL)).all() and not first.pixels[1].any()
    assert (second.pixels == first.pixels).all() and (second.hashes == first.hashes).all()
    assert second.problems == [None, image_cache.UNKNOWN_FORMAT, None]
    assert second.sha256 == first.sha256 and first.sha256[1] is None and first.sha256[0] != first.sha256[2]
    assert int(second.hashes[0]) == image_cache.difference_hash(first.pixels[0])
    assert isinstance(second.pixels, np.memmap) and not second.pixels.flags.writeable
    assert [path.name for path in home.iterdir()] == [second.path.parent.name]


def test_all_rows_of_several_chunks_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "CHUNK_IMAGES", 4)
    images = [StoredImage(str(seed), noise(seed)) for seed in range(30)]
    cached = cached_pixels(images, SMALL)
    for seed in range(30):
        assert (cached.pixels[seed] == fit(Image.fromarray(noise(seed)), SMALL)).all()


def test_each_size_and_each_content_has_its_own_entry(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(noise(0)))
    images = [StoredImage("a", file)]
    paths = {cached_pixels(images, SMALL).path, cached_pixels(images, Geometry(8, 8, 0.5, "bilinear")).path}
    paths.add(cached_pixels(images, Geometry(8, 8, 1.0, "bicubic")).path)
    paths.add(cached_pixels(images, Geometry(8, 8, 1.0, "bilinear", "squash")).path)
    file.write_bytes(encoded(noise(1)))
    os.utime(file, ns=(1, 1))
    changed = cached_pixels(images, SMALL)
    assert (changed.pixels[0] == fit(Image.fromarray(noise(1)), SMALL)).all()
    paths |= {changed.path, cached_pixels([StoredImage("a", file.read_bytes())], SMALL).path}
    paths.add(cached_pixels([*images, *images], SMALL).path)
    file.unlink()
    gone = cached_pixels(images, SMALL)
    assert gone.problems == [image_cache.MISSING_FILE]
    assert len(paths | {gone.path}) == 8 == len(list(home.iterdir()))


@pytest.mark.parametrize("name", ["pixels.npy", "rows.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"cut", None])
def test_a_damaged_entry_is_made_anew(name: str, content: bytes | None, home: Path) -> None:
    images = [StoredImage("a", noise(0))]
    cached = cached_pixels(images, SMALL)
    expected, file = np.array(cached.pixels), cached.path.parent / name
    file.write_bytes(file.read_bytes()[:-20]) if content is None else file.write_bytes(content)
    again = cached_pixels(images, SMALL)
    assert (again.pixels == expected).all() and again.problems == [None]
    assert len(list(home.iterdir())) == 1


@pytest.mark.parametrize("name", ["pixels.npy", "rows.json"])
def test_an_entry_that_was_overwritten_in_place_is_made_anew(name: str, home: Path) -> None:
    images = [StoredImage("a", noise(0)), StoredImage("b", noise(1))]
    cached = cached_pixels(images, SMALL)
    expected, file = np.array(cached.pixels), cached.path.parent / name
    content, status = bytearray(file.read_bytes()), file.stat()
    content[-30] = ord("1") if content[-30] != ord("1") else ord("2")  # a pixel, or a character of a hash
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = cached_pixels(images, SMALL)
    assert (again.pixels == expected).all() and again.sha256 == cached.sha256
    assert (again.hashes == cached.hashes).all() and len(list(home.iterdir())) == 1


def test_an_entry_of_another_shape_is_made_anew() -> None:
    images = [StoredImage("a", noise(0))]
    cached = cached_pixels(images, SMALL)
    expected = np.array(cached.pixels)
    for odd in (np.zeros((1, 8, 9, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)):
        np.save(cached.path, odd)
        assert (cached_pixels(images, SMALL).pixels == expected).all()


def test_a_killed_build_leaves_no_part_that_is_used(home: Path) -> None:
    code = (
        "import os, signal, numpy as np, hftoolkit.data.image.cache as c\n"
        "def prepare(image, geometry, real=c._prepare):\n"
        "    if image.name == '20': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(image, geometry)\n"
        "c._prepare, c.CHUNK_IMAGES = prepare, 4\n"
        "images = [c.StoredImage(str(i), np.full((9, 9), i, np.uint8)) for i in range(30)]\n"
        "c.cached_pixels(images, c.Geometry(8, 8, 1.0, 'bilinear'))\n"
    )
    environment = {**os.environ, "HF_HOME": constants.HF_HOME}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name[:5] for path in home.iterdir()] == [".tmp-"]
    images = [StoredImage(str(i), np.full((9, 9), i, np.uint8)) for i in range(30)]
    cached = cached_pixels(images, SMALL)
    assert (cached.pixels[:, 0, 0, 0] == np.arange(30)).all()
    for path in [*home.glob(".tmp-*/**/*"), *home.glob(".tmp-*")]:
        os.utime(path, (0, 0))
    cached_pixels(images[:3], SMALL)
    assert not list(home.glob(".tmp-*"))


def test_of_two_builds_at_once_one_wins_and_both_read_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [StoredImage("a", noise(0))]
    write = image_cache._write

    def overtaken(*arguments) -> None:
        monkeypatch.setattr(image_cache, "_write", write)
        cached_pixels(images, SMALL)
        monkeypatch.setattr(Path, "exists", lambda self: False)  # seen before the other process was done
        write(*arguments)

    monkeypatch.setattr(image_cache, "_write", overtaken)
    assert (cached_pixels(images, SMALL).pixels[0] == fit(Image.fromarray(noise(0)), SMALL)).all()
    assert len(list(home.iterdir())) == 1


def test_a_full_disk_is_said_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    images = [StoredImage("a", noise(0))]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentFault, match=r"No space left on device; set HF_HOME"):
            cached_pixels(images, SMALL)
        patch.setattr(image_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
        with pytest.raises(EnvironmentFault, match="make room, set HF_HOME"):
            cached_pixels(images, SMALL)
    assert list(home.iterdir()) == []
    (home.parent / "images").rmdir()
    home.write_text("a file where the folder should be")
    with pytest.raises(EnvironmentFault, match="set HF_HOME"):
        cached_pixels(images, SMALL)


# Folders


def test_class_folders_are_read_in_natural_order(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "pets", ("class 10", "class 2"), 12)
    (root / "class 2" / "deep").mkdir()
    (root / "class 2" / "deep" / "x.JPG").write_bytes(encoded(noise(99), "JPEG"))
    (root / "class 2" / "notes.txt").write_text("no image")
    (root / "class 2" / "._1.png").write_text("hidden")
    (root / ".git" / "class 3").mkdir(parents=True)
    (root / ".git" / "class 3" / "a.png").write_text("hidden")
    splits = load(root)
    assert splits.labels.names == ("class 2", "class 10")
    order = sorted(
        (number, name)
        for split in splits.names
        for number, name in zip(splits.row_numbers[split], splits.names[split], strict=True)
    )
    expected = [f"class 2/{i}.png" for i in range(12)] + ["class 2/deep/x.JPG"]
    assert [name for _, name in order] == expected + [f"class 10/{i}.png" for i in range(12)]
    assert [number for number, _ in order] == list(range(1, 26))
    for name, (label, pixels) in by_name(splits).items():
        assert name.startswith(f"{label}/")
        assert (pixels == fit(decode(StoredImage(name, root / name)), SMALL)).all()
    assert any(".txt 1" in warning for warning in splits.summary["warnings"])
    assert splits.summary["rows_read"] == splits.summary["rows_kept"] == 25 and splits.summary["skipped"] == {}
    assert json.loads(json.dumps(splits.summary)) == splits.summary


def test_images_are_read_when_asked_for_and_travel_to_other_processes(tmp_path: Path) -> None:
    pixels = load(save_classes(tmp_path / "pets")).pixels["train"]
    copy = pickle.loads(pickle.dumps(pixels))
    assert len(pickle.dumps(pixels)) < 2000 and len(copy) == len(pixels) == 16
    assert pixels[3].shape == (8, 8, 3) and pixels[3].flags.writeable and (copy[3] == pixels[3]).all()
    assert (pixels[np.array([1, 0])] == np.stack([pixels[1], pixels[0]])).all()
    with pytest.raises(IndexError):
        pixels[16]


def test_given_split_folders_are_kept(tmp_path: Path) -> None:
    save_classes(tmp_path / "pets" / "Train", count=4)
    save_classes(tmp_path / "pets" / "val", ("cat", "emu"), count=2, first_seed=50)
    with pytest.raises(DataError, match=r"write data.split: \{train: Train, validation: val, test: 0.1\}"):
        load(tmp_path / "pets")
    with pytest.raises(DataError, match=r"no folder 'train'; it has: Train, val"):
        load(tmp_path / "pets", split={"train": "train"})
    splits = load(tmp_path / "pets", split={"train": "Train", "validation": "val", "test": 0.25})
    assert splits.labels.names == ("cat", "dog", "emu")
    assert splits.names["validation"] == ["val/cat/0.png", "val/cat/1.png", "val/emu/0.png", "val/emu/1.png"]
    assert (splits.pixels["validation"][2] == fit(Image.fromarray(noise(52)), SMALL)).all()
    assert splits.row_numbers["validation"].tolist() == [1, 2, 3, 4]
    assert {name: len(found) for name, found in splits.names.items()} == {"train": 6, "validation": 4, "test": 2}


def test_bad_images_are_all_named_or_left_out(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "pets")
    (root / "cat" / "3.png").write_bytes(b"")
    (root / "cat" / "4.png").write_bytes((root / "cat" / "5.png").read_bytes()[:200])
    (root / "loose.png").write_bytes(encoded(noise(77)))
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    for part in ("3 rows of pets/", "empty: 1 (row 4 (cat/3.png))", "cut short: 1 (row 5 (cat/4.png))"):
        assert part in message
    assert "label is missing: 1 (row 21 (loose.png))" in message and "on_bad_rows: skip" in message
    splits = load(root, on_bad_rows="skip")
    assert splits.summary["skipped"] == {
        image_cache.EMPTY_FILE: 1,
        image_cache.DAMAGED: 1,
        "label is missing": 1,
    }
    assert splits.summary["rows_kept"] == 18 and len(by_name(splits)) == 18
    for name, (_, pixels) in by_name(splits).items():
        assert (pixels == fit(decode(StoredImage(name, root / name)), SMALL)).all()


def test_folders_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match=r"no images there; an image ends in \.png"):
        load(tmp_path / "flat")
    (tmp_path / "flat" / "a.png").write_bytes(encoded(noise(0)))
    with pytest.raises(DataError, match="no folder a class"):
        load(tmp_path / "flat")
    (tmp_path / "flat" / "meta.csv").write_text("image,label\na.png,x\n")
    (tmp_path / "flat" / "more.csv").write_text("image,label\na.png,x\n")
    with pytest.raises(DataError, match=r"the tables meta.csv, more.csv; name one, like data.split.train: meta\.csv"):
        load(tmp_path / "flat", columns={})
    with pytest.raises(DataError, match=r"meta.csv is a file"):
        load(tmp_path / "flat" / "meta.csv")
    with pytest.raises(DataError, match=r"all 8 training rows have the label 'cat'.*check the class folders"):
        load(save_classes(tmp_path / "one", ("cat",)))
    with pytest.raises(DataError, match=r"data.split.group is for tables"):
        load(tmp_path / "one", split={"group": "animal"})
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "a" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="no row of two/ can be used: image file is empty: 1"):
        load(tmp_path / "two", on_bad_rows="skip")


def test_labels_of_the_recipe_rename_and_join_folders(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "pets", ("cat", "dog", "puppy"))
    task = ImageClassification(kind="image-classification", labels={"dog": "Dog", "puppy": "Dog", "cat": "Cat"})
    splits = load(root, task)
    assert splits.labels.names == ("Dog", "Cat")
    assert sum(counts["Dog"] for counts in splits.summary["class_counts"].values()) == 20
    with pytest.raises(DataError, match=r"label is unknown: 10 .*found 'puppy'"):
        load(root, labels=LabelSet.from_names(["cat", "dog"], False))


def test_all_images_of_another_source_can_be_measured(tmp_path: Path) -> None:
    labels = load(save_classes(tmp_path / "pets")).labels
    other = save_classes(tmp_path / "others", ("dog",), 3, first_seed=70)
    (other / "dog" / "9.png").write_bytes(b"no image")
    (other / "emu").mkdir()
    Image.fromarray(noise(80)).save(other / "emu" / "0.png")
    found = load_labelled_images(other, section(split={"train": "a"}), TASK, SMALL, labels)
    assert found.targets.tolist() == [1, 1, 1] and found.names == ["dog/0.png", "dog/1.png", "dog/2.png"]
    assert (found.pixels[2] == fit(Image.fromarray(noise(72)), SMALL)).all()
    assert {number: (bad.reason.split(" is ")[0], bad.name) for number, bad in found.bad.items()} == {
        4: ("image", "dog/9.png"),
        5: ("label", "emu/0.png"),
    }


# Tables


def write_csv(path: Path, header, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_an_id_is_no_label_of_images(tmp_path: Path) -> None:
    save_classes(tmp_path / "photos")
    rows = [(f"{name}/{i}.png", f"photo {name} {i}") for name in ("cat", "dog") for i in range(10)]
    table = write_csv(tmp_path / "photos" / "t.csv", ("image", "label"), rows)
    with pytest.raises(DataError, match=r"20 rows have 20 different labels .*Check data\.columns\.label"):
        load(table, columns={})


def test_a_table_names_files_beside_it_or_anywhere(tmp_path: Path) -> None:
    save_classes(tmp_path / "photos" / "img")
    save_classes(tmp_path / "elsewhere", ("emu",))
    rows = [(f"img/{name}/{i}.png", name, i) for name in ("cat", "dog") for i in range(10)]
    rows += [(str(tmp_path / "elsewhere" / "emu" / f"{i}.png"), "emu", i) for i in range(10)]
    table = write_csv(tmp_path / "photos" / "list.csv", ("file", "animal", "who"), rows)
    splits = load(table, columns={"image": "file", "label": "animal"}, split={"group": "who"})
    assert splits.labels.names == ("cat", "dog", "emu")
    for name, (label, pixels) in by_name(splits).items():
        assert f"{label}/" in name
        assert (pixels == fit(decode(StoredImage(name, tmp_path / "photos" / name)), SMALL)).all()
    groups = [{Path(name).stem for name in names} for names in splits.names.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    with pytest.raises(DataError, match=r"'flie' \(did you mean 'file'\?\).*Edit data.columns.image"):
        load(table, columns={"image": "flie", "label": "animal"})
    with pytest.raises(DataError, match=r"Edit data.columns.label"):
        load(table, columns={"image": "file"})


def test_bad_cells_are_named(tmp_path: Path) -> None:
    save_classes(tmp_path / "img")
    rows = [*((f"img/{name}/{i}.png", name) for name in ("cat", "dog") for i in range(10))]
    rows += [("", "cat"), ("img/no.png", "cat"), ("img/cat/1.png", "")]
    table = write_csv(tmp_path / "list.csv", ("image", "label"), rows)
    with pytest.raises(DataError) as caught:
        load(table, columns={})
    assert "image is missing: 1 (row 21)" in str(caught.value)
    assert "image file is missing: 1 (row 22 (img/no.png))" in str(caught.value)
    assert "label is missing: 1 (row 23 (img/cat/1.png))" in str(caught.value)
    splits = load(table, columns={}, on_bad_rows="skip")
    assert splits.summary["rows_kept"] == 20
    assert splits.summary["skipped"] == {"image is missing": 1, "image file is missing": 1, "label is missing": 1}
    odd = tmp_path / "odd.parquet"
    write_table({"image": [[1, 2]] * 5, "label": ["a"] * 5}, odd)
    with pytest.raises(DataError, match="image is neither a file name nor bytes: 5"):
        load(odd, columns={})


def hub_dataset(count: int, first_seed: int = 0) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    images = [{"bytes": encoded(noise(first_seed + i)), "path": f"{i}.png"} for i in range(count)]
    return datasets.Dataset.from_dict({"img": images, "label": [i % 2 for i in range(count)]}, features=features)


@pytest.mark.parametrize("form", ["one file", "hub folder", "saved", "saved with splits"])
def test_data_sets_of_the_hub_keep_class_names_and_splits(form: str, tmp_path: Path) -> None:
    whole, test = hub_dataset(20), hub_dataset(6, 50)
    folder, split = tmp_path / "set", {}
    if form == "one file":
        folder = tmp_path / "set.parquet"
        whole.to_parquet(folder)
    elif form == "saved":
        whole.save_to_disk(folder)
    else:
        split = {"split": {"train": "train", "test": "test"}}
        if form == "hub folder":
            (folder / "data").mkdir(parents=True)
            whole.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
            test.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
        else:
            datasets.DatasetDict({"train": whole, "test": test}).save_to_disk(folder)
    splits = load(folder, columns={"image": "img"}, **split)
    assert splits.labels.names == ("zebra", "ant")
    assert {"0.png", "19.png"} <= {name for names in splits.names.values() for name in names}
    seeds = {name: splits.row_numbers[name] - 1 + (50 if split and name == "test" else 0) for name in splits.names}
    for name, found in seeds.items():
        assert (splits.targets[name] == found % 2).all()
        for place, seed in enumerate(found):
            assert (splits.pixels[name][place] == fit(Image.fromarray(noise(int(seed))), SMALL)).all()
    assert len(splits.names["test"]) == (6 if split else 2)


def test_a_table_of_bytes_is_read(tmp_path: Path) -> None:
    table = tmp_path / "bytes.parquet"
    write_table({"image": [encoded(noise(i)) for i in range(20)], "label": [i % 2 for i in range(20)]}, table)
    splits = load(table, columns={})
    assert splits.labels.names == ("0", "1") and splits.names["test"][0].startswith("row ")
    place = int(splits.row_numbers["test"][0]) - 1
    assert (splits.pixels["test"][0] == fit(Image.fromarray(noise(place)), SMALL)).all()


# Tables of pixels


def pixel_rows(count: int, columns: int = 6) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, 256, (count, columns)).tolist()


@pytest.mark.parametrize("label", ["first", "last"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("name", ["digits.csv", "digits.csv.gz", "digits.tsv"])
def test_a_table_of_pixels_is_read(label: str, header: bool, name: str, tmp_path: Path) -> None:
    rows = pixel_rows(20)
    lines = [[i % 2, *row] if label == "first" else [*row, i % 2] for i, row in enumerate(rows)]
    lines = [[f"name {i}" for i in range(7)], *lines] if header else lines
    text = "".join(("\t" if name.endswith("tsv") else ",").join(map(str, line)) + "\n" for line in lines)
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    data = section(pixels={"shape": [2, 3], "label": label, "header": header})
    splits = load_image_splits(tmp_path / name, data, TASK, Geometry(2, 3, 1.0, "bilinear"))
    assert splits.labels.names == ("0", "1") and splits.summary["rows_kept"] == 20
    for split, pixels in splits.pixels.items():
        for place, number in enumerate(splits.row_numbers[split]):
            assert (pixels[place] == np.array(rows[number - 1]).reshape(2, 3, 1)).all()
            assert splits.targets[split][place] == (number - 1) % 2


def test_pixels_of_three_channels_have_them_last(tmp_path: Path) -> None:
    rows = pixel_rows(20, 12)
    text = "".join(f"{i % 2}," + ",".join(map(str, row)) + "\n" for i, row in enumerate(rows))
    (tmp_path / "a.csv").write_text(text)
    data = section(pixels={"shape": [2, 2, 3], "label": "first", "header": False})
    splits = load_image_splits(tmp_path / "a.csv", data, TASK, Geometry(2, 2, 1.0, "bilinear"))
    number = splits.row_numbers["train"][4]
    assert (splits.pixels["train"][4].reshape(-1) == rows[number - 1]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3,4,5,6\n" * 4, r"has 6 columns, but data.pixels.shape \[2, 3\] and the label make 7"),
        ("1,2,3,4,5,6,a\n1,2,3,4,5,a\n", "row 2 has 6 cells, but there are 7 columns"),
        ("1,2,3,4,5,6,a\n1,2,3,4,256,6,a\n0,0,-3,0,0,0,b\n", r"row 3, column 3 holds -3; .* has -3 to 256"),
        ("1,2,3,4,5,6,a\n1,2,3,4,256,6,a\n", "row 2, column 5 holds 256"),
        ("1,2,3,4,5,6,a\n1,2,3,4,5.5,6,a\n", r"row 2, column 5 holds 5.5"),
        ("1,2,3,4,5,6,a\n1,2,,4,5,6,a\n", r"row 2, column 3 holds nothing"),
        ("0,0,0,0,0,0.25,a\n1,1,1,1,1,1,b\n", r"0 to 1; multiply by 255"),
        ("p,q,r,s,t,u,label\n1,2,3,4,5,6,a\n", r"not a table of numbers.*set data.pixels.header: true"),
        ("\n", "has no rows"),
    ],
)
def test_a_wrong_table_of_pixels_says_where(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.csv", pixels=PIXELS)


def test_a_first_image_taken_for_a_header_is_told(tmp_path: Path) -> None:
    lines = [[*row, i % 2] for i, row in enumerate(pixel_rows(21))]
    write_csv(tmp_path / "a.csv", lines[0], lines[1:])
    splits = load(tmp_path / "a.csv", pixels={**PIXELS, "header": True})
    assert any("looks like an image" in warning for warning in splits.summary["warnings"])
    write_csv(tmp_path / "b.csv", range(7), lines)
    splits = load(tmp_path / "b.csv", pixels={**PIXELS, "header": True})
    assert not any("looks like an image" in warning for warning in splits.summary["warnings"])


def test_rows_below_a_header_are_counted_from_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("p,q,r,s,t,u,label\n1,2,3,4,5,6,a\n1,2,3,4,5,a\n")
    with pytest.raises(DataError, match="row 2 has 6 cells"):
        load(tmp_path / "a.csv", pixels={**PIXELS, "header": True})


def test_pixel_tables_of_a_folder_are_found_by_split(tmp_path: Path) -> None:
    for name, count in (("train", 20), ("test", 4)):
        lines = [[*row, i % 2] for i, row in enumerate(pixel_rows(count))]
        write_csv(tmp_path / "set" / f"{name}.csv", lines[0], lines[1:])
    splits = load(tmp_path / "set", pixels=PIXELS, split={"train": "train", "test": "test"})
    assert len(splits.names["test"]) == 4 and splits.summary["rows_read"] == 24
    with pytest.raises(DataError, match=r"2 tables of pixels, not one \(tables: test.csv, train.csv\)"):
        load(tmp_path / "set", pixels=PIXELS)


def test_a_row_without_label_is_bad(tmp_path: Path) -> None:
    lines = [[*row, i % 2 if i else ""] for i, row in enumerate(pixel_rows(20))]
    write_csv(tmp_path / "a.csv", lines[1], [lines[0], *lines[2:]])
    with pytest.raises(DataError, match=r"label is missing: 1 \(row 2\)"):
        load(tmp_path / "a.csv", pixels=PIXELS)


# Duplicates and the fingerprint


def test_equal_and_nearly_equal_images_are_counted_as_brute_force_counts_them() -> None:
    generator = np.random.default_rng(0)
    base = [generator.integers(0, 256, (11, 13, 3)).astype(np.uint8) for _ in range(12)]
    flat = [np.full((11, 13, 3), level, dtype=np.uint8) for level in (0, 3, 30, 34, 39, 200)]
    images = []
    for image in base + flat:
        images.append(image)
        shift = generator.integers(-6, 7)
        images.append(np.clip(image.astype(int) + shift, 0, 255).astype(np.uint8))
    images += [images[0], images[5]]
    cached = cached_pixels([StoredImage("x", image) for image in images], Geometry(11, 13, 1.0, "bilinear"))
    order = generator.permutation(len(images))
    rows = {"train": order[:20], "validation": order[20:28], "test": order[28:]}

    def is_near(a: int, b: int) -> bool:
        close = bin(int(cached.hashes[a]) ^ int(cached.hashes[b])).count("1") <= 2
        return close and bool(np.abs(images[a].astype(int) - images[b]).mean() <= 4)

    expected = {}
    for a, b in itertools.combinations(rows, 2):
        equal = [any((images[i] == images[j]).all() for i in rows[a]) for j in rows[b]]
        near = [any(is_near(i, j) for i in rows[a]) for j in rows[b]]
        expected[f"{a}/{b}"] = sum(n and not e for n, e in zip(near, equal, strict=True))
    assert sum(expected.values()) > 3
    assert near_duplicates(cached, rows) == expected


def test_hashes_may_differ_in_two_bits_and_no_more() -> None:
    pixels = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    hashes = np.array([0, 1 << 63, 0b101, 0b111], dtype=np.uint64)
    cached = CachedImages(pixels, Path("x"), [None] * 4, list("abcd"), [None] * 4, hashes)
    assert near_duplicates(cached, {"a": np.array([0]), "b": np.array([1, 2, 3])}) == {"a/b": 2}


def test_duplicates_across_splits_are_told(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "pets" / "train")
    save_classes(tmp_path / "pets" / "test", count=2, first_seed=60)
    (tmp_path / "pets" / "test" / "dog" / "same.bmp").write_bytes(encoded(noise(0), "BMP"))  # a cat in train
    near = Image.open(root / "cat" / "5.png").point(lambda level: min(255, level + 2))
    (tmp_path / "pets" / "test" / "cat" / "near.png").write_bytes(encoded(near))
    splits = load(tmp_path / "pets", split={"train": "train", "validation": "train", "test": "test"})
    assert splits.summary["duplicates"]["train/test"] == 1 and splits.summary["conflicting_images"] == 1
    assert splits.summary["near_duplicates"]["train/test"] == 1
    assert splits.summary["duplicates"]["train/validation"] == 20
    warned = " | ".join(splits.summary["warnings"])
    assert "1 of 6 rows of test repeat an image of train" in warned and "nearly equal an image of train" in warned


def test_the_fingerprint_follows_pixels_and_labels_and_no_names(tmp_path: Path) -> None:
    first = load(save_classes(tmp_path / "a")).summary["fingerprint"]
    same = save_classes(tmp_path / "b")
    os.rename(same / "dog" / "9.png", same / "dog" / "9 renamed.png")
    assert load(same).summary["fingerprint"] == first
    (same / "dog" / "8.png").write_bytes(encoded(noise(99)))
    assert load(same).summary["fingerprint"] != first


# Prediction


def test_images_to_predict_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = save_classes(tmp_path / "pets", count=11)
    names = [f"{folder}/{i}.png" for folder in ("cat", "dog") for i in range(11)]
    assert [image.name for image in open_images(root, None, None)] == names
    assert [image.name for image in open_images(root / "cat" / "0.png", None, None)] == ["0.png"]
    pattern = str(root / "*" / "1*.png")
    found = open_images(pattern, None, None)
    assert [Path(image.name).name for image in found] == ["1.png", "10.png"] * 2
    assert all((decoded(image.content) >= 0).all() for image in found)
    for source in (tmp_path / "none", str(root / "*.jpg")):
        with pytest.raises(DataError, match="no images there"):
            open_images(source, None, None)
    (tmp_path / "no").mkdir()
    with pytest.raises(DataError, match="no images there"):
        open_images(tmp_path / "no", None, None)
    table = write_csv(root / "list.csv", ("file",), [("cat/3.png",), ("",)])
    opened = open_images(table, ImageColumns(image="file"), None)
    assert [image.name for image in opened] == ["cat/3.png", "row 2"]
    assert (decoded(opened[0].content) == noise(3)).all() and problem_of(opened[1].content) == image_cache.EMPTY_FILE
    monkeypatch.chdir(root)
    assert [image.name for image in open_images("cat/[12].png", None, None)] == ["cat/1.png", "cat/2.png"]


@pytest.mark.parametrize("labelled", [True, False])
def test_pixels_to_predict_need_no_label(labelled: bool, tmp_path: Path) -> None:
    rows = pixel_rows(3)
    lines = [[*row, "x"] if labelled else row for row in rows]
    write_csv(tmp_path / "a.csv", lines[0], lines[1:])
    images = open_images(tmp_path / "a.csv", None, Pixels.model_validate(PIXELS))
    assert [image.name for image in images] == ["row 1", "row 2", "row 3"]
    assert (decoded(images[1].content)[:, :, 0].reshape(-1) == rows[1]).all()


def test_building_says_nothing_and_leaves_the_warning_filters_as_they_were() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        cached = cached_pixels([StoredImage("bomb", png_of_size(10_000, 10_000))], SMALL)
        assert list(warnings.filters) == before
    assert seen == [] and cached.problems == [image_cache.TOO_LARGE]
