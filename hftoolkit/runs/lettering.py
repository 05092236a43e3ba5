"""Letters in pictures: fonts that have them, stand-ins for those that no font here has, and lines that fit."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING
from unicodedata import bidirectional, east_asian_width

from hftoolkit.contracts.names import short_names, visible

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib, and has Latin, Greek, Cyrillic and most signs
PREFERRED = ("Noto Sans", "WenQuanYi", "Source Han", "Droid Sans Fallback")  # beginnings of families with many letters
NEVER = re.compile("last ?resort|emoji", re.IGNORECASE)  # boxes, and colours that are drawn as blanks
BOX = "\u25a1"
NOTE = "class N: its place in labels.json, from 0;\nno font on this machine has its letters"
TURNED = ("R", "AL")  # letters of scripts that run to the left


def families_for(texts: Iterable[str]) -> list[str]:
    """Return the font families whose letters draw texts, as far as there are any."""
    return _cover(frozenset("".join(texts)))[0]


def legible(text: str) -> str:
    """Return a text as it can be drawn here; a letter that cannot be is written ``\\u72ac``."""
    text = visible(text, lines=True)
    missing = _missing(text)
    if not missing:
        return text
    return "".join(c.encode("unicode_escape").decode("ascii") if c in missing else c for c in text)


def drawable_names(names: Sequence[str], length: int) -> list[str]:
    """Return short class names as they can be drawn here; one with letters that cannot be is ``class 3``, its place."""
    shown = short_names(names, length)
    return [StandIn(f"class {place}") if _missing(name) else name for place, name in enumerate(shown)]


class StandIn(str):
    """What is drawn in place of a name."""


def note_on(names: Sequence[str]) -> str:
    """Return what a picture says of names that stand in for others; nothing where all are drawn themselves."""
    return NOTE if any(isinstance(name, StandIn) for name in names) else ""


def one_letter_each(text: str) -> str:
    """Return a text of equal length with a box for what cannot be drawn, and blanks for line ends."""
    missing = _missing(text)
    return "".join(" " if c.isspace() else BOX if c in missing or not c.isprintable() else c for c in text)


def wrapped(text: str, width: float, size: float) -> str:
    """Return a text in lines that fit; broken at blanks and signs where there are any.

    Args:
        text: one or more lines.
        width: in points.
        size: of the letters, in points.
    """
    return "\n".join(line for given in text.split("\n") for line in _lines(given, width / size))


def _lines(text: str, width: float) -> Iterator[str]:
    """Yield lines no wider than ``width``, in sizes of a letter."""
    line, used = "", 0.0
    for piece in re.findall(r"[^\s_/.-]+[\s_/.-]*|[\s_/.-]+", text):
        wide = sum(map(_width, piece.rstrip()))
        if line and used + wide > width:
            yield line.rstrip()
            line, used = "", 0.0
        for letter in piece:
            if line and used + _width(letter) > width and not letter.isspace():
                yield line.rstrip()
                line, used = "", 0.0
            line, used = line + letter, used + _width(letter)
    yield line.rstrip()


@lru_cache(maxsize=4096)
def _width(letter: str) -> float:
    """Return how wide a letter is, in sizes of a letter."""
    font = _font(DEFAULT_FAMILY)
    if font is None or ord(letter) not in font.get_charmap():
        return 1.05 if east_asian_width(letter) in "WF" else 0.8
    font.set_size(100, 72)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536 / 100


def _missing(text: str) -> frozenset[str]:
    return _cover(frozenset(text))[1]


@lru_cache(maxsize=256)
def _cover(letters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Return families that together have the letters, and the letters that none has or that cannot be set."""
    turned = set() if _turns_lines() else {letter for letter in letters if bidirectional(letter) in TURNED}
    wanted = {letter for letter in letters if not letter.isspace()} - turned
    families = [DEFAULT_FAMILY]
    missing = wanted - _letters_of(DEFAULT_FAMILY)
    for family in _installed() if missing else ():
        if missing & _letters_of(family):
            families.append(family)
            missing -= _letters_of(family)
        if not missing:
            break
    return families, frozenset(missing | turned)


@cache
def _turns_lines() -> bool:
    """Return whether this matplotlib sets scripts that run to the left, and joins their letters."""
    import matplotlib

    return matplotlib.__version_info__[:2] >= (3, 11)


@cache
def _installed() -> dict[str, str]:
    """Return the font families with an upright font of normal weight, and its file; likely ones come first."""
    from matplotlib.font_manager import fontManager

    upright = [
        each for each in fontManager.ttflist if (each.style, each.weight) in (("normal", 400), ("normal", "normal"))
    ]
    files = {each.name: each.fname for each in upright if not NEVER.search(each.name)}
    return {name: files[name] for name in sorted(files, key=lambda name: (not name.startswith(PREFERRED), name))}


@cache
def _letters_of(family: str) -> frozenset[str]:
    font = _font(family)
    return frozenset() if font is None else frozenset(map(chr, font.get_charmap()))


@cache
def _font(family: str) -> "FT2Font | None":
    """Return the font of a family; None where there is none, or it cannot be read or drawn."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import get_font

    own = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    try:
        font = get_font(own if family == DEFAULT_FAMILY else _installed()[family])
    except (OSError, RuntimeError, KeyError):  # removed since, or damaged
        return None
    return font if font.scalable else None
