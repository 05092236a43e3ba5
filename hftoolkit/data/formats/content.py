"""The bytes of a file, unpacked without trusting how large they become, and their text, never decoded by a guess."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from charset_normalizer import from_bytes

from hftoolkit.errors import DataError

OPEN_COMPRESSED: dict[str, Callable[[Path], Any]] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
# What files that people write never exceed; what is made to fill a memory does.
MOST_EXPANSION = 200  # uncompressed bytes per compressed byte
ALWAYS_ALLOWED_BYTES = 64 * 2**20
CHUNK_BYTES = 2**20

# By what a file begins with; UTF-32 first, because its mark begins like that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What is no text of a table, by what it begins with.
OTHER_KINDS = (
    (b"\x1f\x8b", "compressed with gzip; call it {}.gz"),
    (b"BZh", "compressed with bzip2; call it {}.bz2"),
    (b"\xfd7zXZ\0", "compressed with xz; call it {}.xz"),
    (b"PK\x03\x04", "a zip archive or an Excel file; give it the ending .zip or .xlsx"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file; save it as CSV (UTF-8)"),
    (b"PAR1", "a Parquet file; give it the ending .parquet"),
    (b"<!doctype html", "a web page, perhaps one to log in; download the file itself"),
    (b"<html", "a web page, perhaps one to log in; download the file itself"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file with: git lfs pull"),
)
# What people's files are in when they are not in UTF-8, as Python calls them.
ENCODINGS = ("cp1252", "gb18030", "cp1251", "shift_jis", "big5", "euc_kr", "cp1250", "cp1254", "cp1256", "koi8_r")
ENCODINGS_SHOWN = 4
CHARACTERS_SHOWN = 16
SAMPLE_BYTES = 2**16
LATIN = ("cp1252", "cp1250", "cp1254")
MOST_ACCENTS = 0.25  # of the bytes of texts in Latin letters
SIGN_IN_WORD = re.compile(r"[^\W\d_](?![\u2019\u2018\u2013\u2014\u2026\xb7])[^\x00-\x7f\w][^\W\d_]")


def read_bytes(path: Path) -> bytes:
    """Return what a file holds, decompressed if its ending says so.

    Raises:
        DataError: it cannot be read, its compression is damaged, or it becomes far larger than files of people do.
    """
    opener = OPEN_COMPRESSED.get(path.suffix.lower())
    try:
        if opener is None:
            return path.read_bytes()
        with opener(path) as stream:
            return _read_at_most(stream, path.stat().st_size, path.name)
    except DAMAGED as error:
        raise DataError(f"cannot read {path.name}: {error}") from error


def read_zip(path: Path, is_table: Callable[[PurePosixPath], bool]) -> tuple[str, bytes]:
    """Return name and content of the only table in a zip archive.

    Raises:
        DataError: it is damaged, encrypted, too large when unpacked, or holds no table or several.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir() and _is_shown(info.filename)]
            tables = [name for name in names if is_table(PurePosixPath(name))]
            if len(tables) != 1:
                found = f"the tables {', '.join(tables[:5])}" if tables else f"no table ({', '.join(names[:5])})"
                raise DataError(
                    f"{path.name} is a zip archive with {found}; one with a single table is read as it is. Unzip it, "
                    "and set data.source to the folder, or to one file in it"
                )
            info = archive.getinfo(tables[0])
            with archive.open(info) as stream:
                return PurePosixPath(info.filename).name, _read_at_most(stream, info.compress_size, path.name)
    except DAMAGED as error:
        raise DataError(
            f"cannot read {path.name}: {error}; unzip it, and set data.source to the table in it"
        ) from error


def _is_shown(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[0] != "__MACOSX" and not any(part.startswith(".") for part in parts)


def _read_at_most(stream: IO[bytes], compressed_bytes: int, file: str) -> bytes:
    """Return all of a stream, and stop where it has grown too much: what it would hold is not known before."""
    limit = max(ALWAYS_ALLOWED_BYTES, MOST_EXPANSION * compressed_bytes)
    content = io.BytesIO()
    while chunk := stream.read(CHUNK_BYTES):
        content.write(chunk)
        if content.tell() > limit:
            raise DataError(
                f"{file} unpacks to more than {MOST_EXPANSION} times its {compressed_bytes:,} bytes, as no file of "
                "texts or numbers does; if you trust it, unpack it and set data.source to what comes out"
            )
    return content.getvalue()


def decode(content: bytes, file: str, encoding: str | None, knob: str) -> tuple[str, str | None]:
    """Return the text of a file, and a sentence on its encoding where that is found and not UTF-8.

    Args:
        content: its bytes.
        file: its name, for messages.
        encoding: of the recipe; None: UTF-8, or what a byte order mark or zeros between the letters show.
        knob: what the recipe calls the encoding.

    Raises:
        DataError: the bytes are not in the encoding. What others would make of them is shown, and none is taken.
    """
    packed = next((what for start, what in OTHER_KINDS if content[:32].lower().startswith(start.lower())), None)
    if packed is not None:
        raise DataError(f"{file} is no table but {packed.format(file)}")
    if encoding is not None:
        return _decode_as_told(content, file, encoding, knob), None
    marked = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), None)
    found = marked or _utf16_without_mark(content) or "utf-8"
    try:
        text = content.decode(found)
    except UnicodeDecodeError as error:
        if found in ("utf-8", "utf-8-sig"):
            raise DataError(_not_utf8(content, error, file, knob)) from error
        raise DataError(f"{file} begins like {found.upper()} and is not: {error}; set {knob}") from error
    return text, None if found.startswith("utf-8") else f"{file} is read as {found.upper()}"


def _decode_as_told(content: bytes, file: str, encoding: str, knob: str) -> str:
    # The mark of UTF-8 is no text, whichever of its names is said.
    name = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    try:
        return content.decode(name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} is not in {encoding} (byte 0x{content[error.start]:02x} in line {line}); correct {knob}, or leave "
            "it out to be shown what others make of it"
        ) from error


def _utf16_without_mark(content: bytes) -> str | None:
    """Return the byte order of UTF-16 text, in which every second byte of an ASCII character is zero."""
    sample = content[: SAMPLE_BYTES - SAMPLE_BYTES % 2]
    if b"\0" not in sample or len(content) % 2:
        return None
    high, low = sample[1::2].count(0), sample[0::2].count(0)
    return "utf-16-le" if high > 10 * low else "utf-16-be" if low > 10 * high else None


def _not_utf8(content: bytes, error: UnicodeDecodeError, file: str, knob: str) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    start = f"{file} is not UTF-8 (byte 0x{content[error.start]:02x} in line {line})"
    odd = [each for each in content.split(b"\n") if not each.isascii()]
    damaged = sum(not _is_utf8(each) for each in odd)
    if 2 * damaged < len(odd):
        return f"{start}, and {len(odd) - damaged} other lines are: {damaged} lines are damaged; correct or remove them"
    shown = [f"{name} {excerpt!r}" for name, excerpt in _excerpts(content, error.start)]
    if not shown:
        return f"{start}, nor in another usual encoding; is it damaged, or no text? Save it as UTF-8"
    first = shown[0].partition(" ")[0]
    knob_first = f"{start}. Set {knob} to the one that reads right here: {', '.join(shown)}"
    if "/" in file:
        return knob_first
    return f"{knob_first}; or save it as UTF-8, for example with: iconv -f {first} -t UTF-8 {file} > new-{file}"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _excerpts(content: bytes, place: int) -> list[tuple[str, str]]:
    """Return encodings that the whole text can be in, likeliest first, and what they make of the first odd bytes."""
    start = content.rfind(b"\n", 0, place) + 1
    end = content.find(b"\n", place)
    line = content[start : end if end >= 0 else len(content)]
    # Whole lines: a cut in the middle of a character would rule out the right encoding.
    odd = (
        b"\n".join(each for each in content[start : start + SAMPLE_BYTES].split(b"\n")[:-1] if not each.isascii())
        or line
    )
    shown: dict[str, str] = {}
    texts: set[str] = set()
    for name in ENCODINGS:
        try:
            content.decode(name)
        except UnicodeDecodeError:
            continue
        if (text := odd.decode(name, "replace")) in texts:
            continue  # the same as the one before
        texts.add(text)
        first = max(0, len(line[: place - start].decode(name, "replace")) - CHARACTERS_SHOWN // 2)
        shown[name] = line.decode(name, "replace")[first : first + CHARACTERS_SHOWN].strip()
    likeliest = _likeliest(odd, list(shown))
    return sorted(shown.items(), key=lambda each: each[0] != likeliest)[:ENCODINGS_SHOWN]


def _likeliest(odd: bytes, names: list[str]) -> str | None:
    """Return the encoding that lines with odd bytes are likeliest in; few of them are accents of Latin letters."""
    few = sum(byte > 127 for byte in odd) < MOST_ACCENTS * len(odd)
    latin = (name for name in LATIN if name in names and not SIGN_IN_WORD.search(odd.decode(name)))
    if few and (first := next(latin, None)):
        return first
    best = from_bytes(odd, cp_isolation=names).best() if names else None
    return None if best is None else best.encoding
