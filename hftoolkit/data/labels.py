"""Class names, and which value in the data means which class."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from hftoolkit.contracts.names import LISTED, listed
from hftoolkit.errors import DataError, RecipeError

WHOLE_NUMBER = re.compile(r"(-?\d+)\.0+", re.ASCII)
NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?", re.ASCII)


def canonical_value(value: Any) -> str:
    """Return one text for all ways to write a label value; an empty text for a missing one.

    ``1``, ``1.0``, ``"1.0"`` and ``" 1 "`` are ``"1"``; ``True`` and ``"TRUE"`` are ``"true"``; None and
    NaN are ``""``.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = WHOLE_NUMBER.fullmatch(text) if ".0" in text else None
    return whole[1] if whole else text


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The classes in their order, and the values of the data that stand for them.

    Attributes:
        names: class names; a class is encoded as its place here.
        values: canonical text of a value in the data -> class name.
        multi_label: whether a text has any number of classes instead of exactly one.
    """

    names: tuple[str, ...]
    values: dict[str, str]
    multi_label: bool

    @classmethod
    def from_recipe(cls, mapping: Mapping[Any, str], multi_label: bool) -> Self:
        """Build from ``task.labels``; classes keep the order in which their names first appear.

        Raises:
            RecipeError: no labels, an empty name, or two keys that mean the same value.
        """
        values: dict[str, str] = {}
        for key, name in mapping.items():
            value = canonical_value(key)
            if value in values:
                raise RecipeError(f"task.labels lists the value {value!r} twice ({key!r} again); keep one of them")
            if not name.strip():
                raise RecipeError(f"task.labels gives the value {key!r} an empty name; write a name")
            values[value] = name.strip()
        if not values:
            raise RecipeError("task.labels is empty; list 'value: name' pairs, or leave it out to take the data's own")
        return cls(tuple(dict.fromkeys(values.values())), values, multi_label)

    @classmethod
    def from_values(cls, values: Iterable[Any], multi_label: bool) -> Self:
        """Build from the values found in the data, in natural order: ``2`` before ``10``; missing ones do not count."""
        texts = {canonical_value(value) for value in values} - {""}
        return cls.from_names(sorted(texts, key=natural_key), multi_label)

    @classmethod
    def from_names(cls, names: Sequence[str], multi_label: bool) -> Self:
        """Build from class names in the given order; each value stands for itself."""
        return cls(tuple(names), {canonical_value(name): name for name in names}, multi_label)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Rebuild what ``to_json`` returned.

        Raises:
            DataError: something else was stored.
        """
        try:
            return cls(tuple(stored["names"]), dict(stored["values"]), bool(stored["multi_label"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"this is not a stored label set ({error!r}); copy labels.json from the run again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"names": list(self.names), "values": dict(self.values), "multi_label": self.multi_label}

    def describe(self) -> str:
        """Return the classes in words."""
        count = f"{len(self.names)} classes" if len(self.names) > LISTED else "classes"
        return f"{count}: {listed(self.names)}"

    def check_names(self, names: Sequence[str], where: str) -> None:
        """Raise DataError unless the outputs of the model in ``where`` are these classes in the same order."""
        check_same(self, LabelSet.from_names(names, self.multi_label), where)

    def encode(self, value: Any) -> int | None:
        """Return the class of a value in the data, or of a class name; None if it is neither."""
        text = canonical_value(value)
        name = self.values.get(text, text)
        return self.names.index(name) if name in self.names else None

    def with_coded_names(self, names: Sequence[str]) -> Self:
        """Let the names of a coded label column stand for their codes, where these labels list the codes.

        A data set may store 0 and 1 and name them; ``task.labels`` may be written with either.
        """
        codes = [str(code) for code in range(len(names))]
        knows_names = all(self.encode(name) is not None for name in names)
        if knows_names or not all(code in self.values for code in codes):
            return self
        coded = {canonical_value(name): self.values[code] for name, code in zip(names, codes, strict=True)}
        return type(self)(self.names, coded, self.multi_label)


def natural_key(text: str) -> tuple[Any, ...]:
    """Return a sort key: numbers by value, then texts without regard to case and with their digits as numbers."""
    if NUMBER.fullmatch(text):
        return (0, float(text), text)
    chunks = re.split(r"(\d{1,15})", text.casefold(), flags=re.ASCII)
    return (1, tuple((int(chunk), "") if place % 2 else (0, chunk) for place, chunk in enumerate(chunks)), text)


def check_same(expected: LabelSet, found: LabelSet, where: str) -> None:
    """Raise DataError unless both have the same classes in the same order; ``where`` says whose ``found`` is."""
    if (expected.names, expected.multi_label) == (found.names, found.multi_label):
        return
    shown = [
        f"{listed(labels.names, 100)} ({'multi-label' if labels.multi_label else 'one label a text'})"
        for labels in (expected, found)
    ]
    raise DataError(
        f"the labels of {where} differ.\n  expected: {shown[0]}\n  found:    {shown[1]}\nOne of the two was changed "
        "after training; bring back labels.json and model/ of one run"
    )
