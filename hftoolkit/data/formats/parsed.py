"""What every reader of a file returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Columns = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be read; its cells are None.

    Attributes:
        reason: the same for all rows of this kind.
        place: where it is in the file, like ``line 5``.
        detail: what was found, in words.
    """

    reason: str
    place: str
    detail: str


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The columns of one file.

    Attributes:
        columns: column name -> cells; all of one length. A name that occurs twice is made distinct.
        broken: rows that could not be read, by 1-based number.
        repeated: a name that several columns have -> what each of them is called in ``columns``.
        notes: sentences on how the file was read, where that is not what its ending says.
        header: whether the names are the first line of the file.
        schema: the Arrow schema, where the file has one.
    """

    columns: Columns
    broken: Mapping[int, Broken] = field(default_factory=dict)
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    header: bool = False
    schema: Any = None


def by_name(names: Sequence[Any], cells: Sequence[list[Any]]) -> tuple[Columns, dict[str, list[str]]]:
    """Return columns by tidy names, and which names several of them have.

    Names lose surrounding blanks and byte order marks; a nameless column is called by its place, and so is each of
    several with one name: ``note (column 3)``.
    """
    tidy = [str(name).strip("\ufeff \t\r\n") or f"column {place}" for place, name in enumerate(names, start=1)]
    twice = {name for name in tidy if tidy.count(name) > 1} if len(set(tidy)) < len(tidy) else set()
    repeated: dict[str, list[str]] = {name: [] for name in tidy if name in twice}
    columns: Columns = {}
    for place, (name, column) in enumerate(zip(tidy, cells, strict=True), start=1):
        distinct = f"{name} (column {place})" if name in twice else name
        if name in twice:
            repeated[name].append(distinct)
        columns[distinct] = column
    return columns, repeated
