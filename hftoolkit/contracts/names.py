"""How names from data are shown: nothing that a terminal or Markdown obeys, not too long, not too many."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, invisible marks (also those that turn a line around), line ends
JOINERS = "\u200c\u200d"  # scripts and emoji need them
NAME_LENGTH = 48  # characters of a name in a sentence or a table
LISTED = 10  # names in a sentence
CUT = "..."


def visible(text: str, *, lines: bool = False) -> str:
    """Return a text with what a terminal would obey, or nobody sees, written out as Python does: ``\\x1b``.

    Args:
        text: any.
        lines: leave line feeds and tabs as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        _escaped(letter)
        if unicodedata.category(letter) in OBEYED and letter not in JOINERS and not (lines and letter in "\n\t")
        else letter
        for letter in text
    )


def short(name: str, length: int = NAME_LENGTH) -> str:
    """Return a visible name, and of a long one its beginning and its end."""
    name = visible(name)
    if len(name) <= length:
        return name
    tail = (length - len(CUT)) // 2
    return name[: length - len(CUT) - tail] + CUT + name[len(name) - tail :]


def short_names(names: Sequence[str], length: int = NAME_LENGTH) -> list[str]:
    """Return short names that differ; those that would not have their place, from 0, behind them."""
    found = [short(name, length) for name in names]
    often = Counter(found)
    return [f"{name} #{place}" if often[name] > 1 else name for place, name in enumerate(found)]


def listed(names: Sequence[str], count: int = LISTED) -> str:
    """Return short names in a row, the first ones of many: ``a, b, c and 57 more``."""
    shown = ", ".join(short(name) for name in names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown


def markdown(text: str) -> str:
    """Return a text that Markdown and HTML show as it is: on one line, no heading, no link, no tag."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_+|_+(?!\w)", lambda found: r"\_" * len(found[0]), text)
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def code_span(text: str) -> str:
    """Return a text as code in a line of Markdown."""
    text = visible(text)
    fence = "`" * (1 + _longest_run(text))
    pad = " " if "`" in (text[:1], text[-1:]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def code_block(text: str, language: str) -> str:
    """Return lines as a block of code in Markdown, which nothing in them ends."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
