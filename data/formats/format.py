"""What a format of rows is: which keys it has, and which function makes which kind of record of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from data.records import Origin, Record
from onebase.errors import DataError

Row = Mapping[str, Any]
Numbered = Iterator[tuple[int, Any]]
Options = Mapping[str, float]


@dataclass(frozen=True)
class Part(Origin):
    """One of the many things that a row holds, such as an instance of a task file: shown as file:line:part."""

    part: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.part}"


@dataclass(frozen=True)
class Skipped:
    """What a format leaves out by its own rule: no defect, but counted."""

    reason: str
    origin: Origin


Outcome = Record | DataError | Skipped
"""A record; or what came of a part of the row instead of one. The other parts stay."""

Builder = Callable[[Row, Origin, Options], Iterator[Outcome]]
"""Makes the records of one row. It raises DataError when the whole row is bad, before its first outcome."""

WholeBuilder = Callable[[Numbered, str, Options], Iterator[Outcome]]
"""Makes the records of a whole file, whose rows say something only together: builder(rows, source, options)."""


def any_values(row: Row) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Format:
    """A published shape of rows."""

    name: str
    publisher: str
    """Who publishes rows of this shape, and where it is described."""
    keys: frozenset[str]
    """What a row of this format has; a key whose value is null counts as missing."""
    looks: Callable[[Row], bool] = any_values
    """Whether the values speak for this format, where the keys alone do not tell. Never raises."""
    rows: Mapping[type, Builder] = field(default_factory=dict)
    """By kind of record: for formats whose rows stand alone."""
    files: Mapping[type, WholeBuilder] = field(default_factory=dict)
    """By kind of record: where rows must be joined."""
    reads: frozenset[str] = frozenset()
    """Keys of data.formats.meaning that it reads itself, besides `keys`; all others are checked for it."""
    options: Options = field(default_factory=dict)
    """Numbers that a recipe may set behind the name, with their defaults: `helpsteer verbosity=-0.4`."""

    @property
    def kinds(self) -> tuple[type, ...]:
        """Which of Prompt, Demonstration and Ranking it gives."""
        return (*self.rows, *self.files)

    @cached_property
    def read_keys(self) -> frozenset[str]:
        """Keys that data.formats.meaning has nothing to say about."""
        return self.keys | self.reads

    @property
    def whole(self) -> bool:
        """Whether some kind of record takes the whole file."""
        return bool(self.files)

    def recognise(self, row: Row) -> bool:
        """Whether a row has this format's keys and looks like it."""
        return all(row.get(key) is not None for key in self.keys) and self.looks(row)
