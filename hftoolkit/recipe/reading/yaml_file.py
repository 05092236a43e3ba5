"""Read and write the YAML of recipes: strict YAML 1.2, plain Python data, a line number for every key.

ruamel.yaml, which nothing else imports, only splits the text into events. What a scalar means is decided here, so that
``1e-3`` is a number, ``no``, ``22:22`` and ``2024-01-31`` are text, and nothing can construct an object.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from hftoolkit.errors import RecipeError

Key = str | int | float | bool | None
KeyPath = tuple[Key, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
# YAML allows no longer key without the rare '? ' form, and an escaped character takes up to ten.
MAX_KEY_CHARACTERS = 100
# 64 bits in any base but octal; int() itself gives up at a few thousand digits.
MAX_WHOLE_NUMBER_CHARACTERS = 20

_CONSTANTS: dict[str, Key] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **{sign + word: math.inf for sign in ("", "+") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_LOST_ZERO = re.compile(r"[-+]?[0-9]*\.[0-9]+0")  # 1.10 as a name, of a version, is another one than 1.1
_WHOLE_NUMBER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NEEDS_NO_QUOTES = re.compile(r"[A-Za-z_]([A-Za-z0-9_./@+-]| (?=[A-Za-z0-9_]))*")
# Readers of YAML 1.1, PyYAML among them, take these for booleans.
_YAML_1_1_BOOLEANS = frozenset(("y", "n", "yes", "no", "on", "off"))
# NUL ends file names, and half a surrogate pair can be neither printed nor saved.
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML file.

    Attributes:
        data: dict, list, str, int, float, bool and None only.
        lines: 1-based line of each key and list entry, by its path from the top.
    """

    data: dict[Key, Any]
    lines: Mapping[KeyPath, int]


def read_yaml_file(path: Path) -> Document:
    """Return the document in a UTF-8 file of at most ``MAX_BYTES``.

    Raises:
        FileNotFoundError: nothing is there; the caller knows what to suggest.
        RecipeError: it cannot be read, or ``read_yaml`` refuses it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise RecipeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path}:1: the file is larger than {MAX_BYTES} bytes; a recipe takes a few hundred")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    return read_yaml(text, str(path))


def read_yaml(text: str, origin: str) -> Document:
    """Return the one mapping in ``text``.

    Raises:
        RecipeError: a syntax error, duplicate key, anchor, alias, tag, second document, ambiguous number, or anything
            but a mapping at the top. The message starts with ``origin:line:``.
    """
    reader = _Reader(text, lambda line: f"{origin}:{line}")
    data = reader.read()
    if data is None:
        reader.fail(1, (), "there is nothing in it; write 'key: value' lines")
    if not isinstance(data, dict):
        reader.fail(1, (), f"{write_value(data)[:40]} is no mapping; write 'key: value' lines")
    return Document(data, reader.lines)


def read_value(text: str, origin: str) -> Any:
    """Return what ``text`` means on the right of ``key:``, by the rules of ``read_yaml``; empty text is None.

    Raises:
        RecipeError: as ``read_yaml``; the message starts with ``origin:``.
    """
    return _Reader(text, lambda line: origin).read()


def read_scalar(text: str) -> Key:
    """Return what an unquoted scalar means in the core schema of YAML 1.2.

    Raises:
        ValueError: a whole number that other readers take for another one, or that does not fit 64 bits.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _WHOLE_NUMBER.fullmatch(text):
        return _whole_number(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return text


def _whole_number(text: str) -> int:
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(
            f"{text[:40]} starts with a zero, which some read as octal; write it without the zero, "
            "or quote it if text is meant"
        )
    if len(text) > MAX_WHOLE_NUMBER_CHARACTERS:
        raise ValueError(f"{text[:MAX_WHOLE_NUMBER_CHARACTERS]}... is too long a number; quote it if text is meant")
    return int(text, 0)


class _Reader:
    """Turns the events of one text into data, and refuses what recipes may not hold."""

    def __init__(self, text: str, where: Callable[[int], str]) -> None:
        self.text = text
        self.where = where  # 1-based line -> start of the error message
        self.lines: dict[KeyPath, int] = {}

    def fail(self, line: int, path: KeyPath, problem: str) -> NoReturn:
        key = f"{dotted(path)}: " if path else ""
        raise RecipeError(f"{self.where(line)}: {key}{problem}")

    def read(self) -> Any:
        if len(self.text) > MAX_BYTES:
            self.fail(1, (), f"the text is longer than {MAX_BYTES} characters")
        try:
            return self._document()
        except MarkedYAMLError as error:
            self.fail(*_syntax_error(error))
        except YAMLError:  # only the check for control characters raises it without a place
            self.fail(1, (), "there is a control character in it; remove it, or write it as an escape in quotes")
        except (OverflowError, ValueError):  # the scanner gives chr() whatever number follows \U
            self.fail(1, (), "an escape in a quoted text names no Unicode character")

    def _document(self) -> Any:
        self.events = YAML(typ="safe", pure=True).parse(self.text)
        next(self.events)  # the stream starts
        start = next(self.events)
        if isinstance(start, StreamEndEvent):
            return None
        if isinstance(start, DocumentStartEvent) and (start.version not in (None, (1, 2)) or start.tags):
            self.fail(1, (), "% directives are refused, except %YAML 1.2")
        data = self._node(next(self.events), ())
        next(self.events)  # the document ends
        after = next(self.events)
        if not isinstance(after, StreamEndEvent):
            self.fail(_line(after), (), "a second document starts here; keep one")
        return data

    def _node(self, event: Event, path: KeyPath) -> Any:
        line = _line(event)
        if isinstance(event, AliasEvent):
            self.fail(line, path, f"the alias *{event.anchor} is refused; write the value out")
        assert isinstance(event, ScalarEvent | CollectionStartEvent)
        self._check_properties(event, event.tag, path)
        if isinstance(event, ScalarEvent):
            return self._scalar(event, path)
        if len(path) >= MAX_DEPTH:
            self.fail(line, path[:4], f"this is nested deeper than {MAX_DEPTH} levels")
        return self._mapping(path) if isinstance(event, MappingStartEvent) else self._sequence(path)

    def _check_properties(self, event: NodeEvent, tag: str | None, path: KeyPath) -> None:
        if event.anchor is not None:
            self.fail(
                _line(event), path, f"the anchor &{event.anchor} is refused; write the value out where it is used"
            )
        if tag is not None:
            self.fail(_line(event), path, f"the tag {tag} is refused; recipes hold plain values only")

    def _scalar(self, event: ScalarEvent, path: KeyPath) -> Key:
        text = str(event.value)
        if _UNUSABLE.search(text):
            self.fail(_line(event), path, "the text holds a character that cannot be saved")
        if event.style is not None:
            return text
        try:
            return read_scalar(text)
        except ValueError as error:
            self.fail(_line(event), path, str(error))

    def _mapping(self, path: KeyPath) -> dict[Key, Any]:
        result: dict[Key, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key, line = self._key(event, path), _line(event)
            if key in result:
                quote = "" if isinstance(key, str) else ", or quote both if texts are meant"
                first = self.lines[*path, key]
                self.fail(line, (*path, key), f"duplicate key, first on line {first}; keep one{quote}")
            self.lines[*path, key] = line
            result[key] = self._node(next(self.events), (*path, key))
        return result

    def _key(self, event: Event, path: KeyPath) -> Key:
        if isinstance(event, CollectionStartEvent):
            self.fail(_line(event), path, "a key must be one word or number; quote a text that starts with [ or {")
        key: Key = self._node(event, path)
        if isinstance(key, str) and len(key) > MAX_KEY_CHARACTERS:
            self.fail(_line(event), path, f"the key {key[:20]}... is longer than {MAX_KEY_CHARACTERS} characters")
        if isinstance(key, float) and isinstance(event, ScalarEvent) and _LOST_ZERO.fullmatch(str(event.value)):
            written = str(event.value)
            self.fail(
                _line(event), path, f"the key {written} is the number {key}; quote it if text is meant: '{written}'"
            )
        return key

    def _sequence(self, path: KeyPath) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            entry = (*path, len(result))
            self.lines[entry] = _line(event)
            result.append(self._node(event, entry))
        return result


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _syntax_error(error: MarkedYAMLError) -> tuple[int, KeyPath, str]:
    """Return line, path and problem; the errors that nearly everybody makes get their usual cause."""
    mark = error.problem_mark or error.context_mark
    problem = " ".join((error.problem or error.context or "this is not YAML").split())
    if ("end of stream" in problem or "<stream end>" in problem) and error.context_mark:
        mark, problem = error.context_mark, "what is opened here is never closed; close the quote or bracket"
    elif "mapping values are not allowed" in problem:
        problem = f"{problem}; quote a text that holds ': ', and check the indentation"
    elif r"'\t'" in problem:
        problem = f"{problem}; indent with spaces"
    return (mark.line + 1 if mark else 1), (), problem


def dotted(path: KeyPath) -> str:
    """Return ``("task", "labels", 1)`` as ``task.labels.1``; keys that YAML would quote are quoted."""
    return ".".join(_write_scalar(key) for key in path)


def write_yaml(data: Mapping[Any, Any], indent: str = "") -> str:
    """Return block YAML that ``read_yaml`` reads back to equal data, in the same order.

    Args:
        data: mappings, lists or tuples, and scalars.
        indent: put before each line.
    """
    return "".join(_write_entry(key, value, indent) for key, value in data.items())


def _write_entry(key: Key, value: Any, indent: str) -> str:
    start = f"{indent}{_write_scalar(key)}:"
    if isinstance(value, Mapping) and value:
        return f"{start}\n{write_yaml(value, indent + '  ')}"
    return f"{start} {write_value(value)}\n"


def write_value(value: Any) -> str:
    """Return one line of YAML that ``read_value`` reads back to an equal value."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_write_scalar(key)}: {write_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(write_value, value)) + "]"
    return _write_scalar(value)


def _write_scalar(value: Key) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        special = value in _CONSTANTS or value.lower() in _YAML_1_1_BOOLEANS
        return value if _NEEDS_NO_QUOTES.fullmatch(value) and not special else _quoted(value)
    if math.isfinite(value):
        # PyYAML takes 1e-05, which has no point, for text.
        return re.sub(r"^(-?[0-9]+)e", r"\1.0e", repr(value))
    return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 1 << 8 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
