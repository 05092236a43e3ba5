"""Figures of a finished run that were measured again: evaluations/NAME.json."""

import re
from collections.abc import Mapping
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

from hftoolkit.contracts import Emit, Message
from hftoolkit.errors import EnvironmentFault
from hftoolkit.runs.directory import RunDir, read_json, write_json

SAME = ("split", "data")  # two measurements with equal values of these are of the same rows


def keep_evaluation(run: RunDir, facts: Mapping[str, Any], found: Mapping[str, Any], emit: Emit) -> None:
    """Write figures into a run, and say where; a run that cannot be written to is a warning.

    The name is that of the split, or of the file or folder that was measured. An older measurement of the same rows is
    replaced; one of others that is called the same stays, and the new one gets a number.

    Args:
        run: that was measured.
        facts: ``split``, or ``data`` and what of it was used.
        found: what was measured, in plain JSON types.
        emit: is told.
    """
    path = _place(run.evaluations, facts)
    try:
        write_json(path, _finite({**facts, **found}))
    except EnvironmentFault as error:
        emit(Message(f"the figures are not kept: {error}", "warning"))
    else:
        emit(Message(f"figures   {path}"))


def _place(folder: Path, facts: Mapping[str, Any]) -> Path:
    name = (
        facts.get("split") or re.sub(r"[^\w.-]+", "-", Path(facts["data"]).stem, flags=re.ASCII).strip("-.") or "data"
    )
    for number in count(1):
        path = folder / f"{name}{'' if number == 1 else f'-{number}'}.json"
        if not path.is_file() or all(read_json(path).get(key) == facts.get(key) for key in SAME):
            return path
    raise AssertionError("numbers do not end")


def _finite(content: Any) -> Any:
    """Return plain JSON types, with None for numbers that are not finite, such as a metric that some class lacks."""
    match content:
        case dict():
            return {key: _finite(value) for key, value in content.items()}
        case list() | tuple():
            return [_finite(value) for value in content]
        case float():
            return content if isfinite(content) else None
    return content
