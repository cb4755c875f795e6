"""What a format of rows is: which keys it has, and what makes which kind of record of it."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from data.records import Demonstration, Origin, Prompt, Ranking, Record
from onebase.errors import DataError

Row = Mapping[str, Any]
Options = Mapping[str, float]


@dataclass(frozen=True)
class Part(Origin):
    """One of the many things that a row holds, such as an instance of a task file: shown as file:line:part."""

    part: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.part}"


@dataclass(frozen=True)
class Skipped:
    """What a format leaves out by its own rule: not a defect, but counted."""

    reason: str
    origin: Origin


Outcome = Record | DataError | Skipped
"""A record, or why a part of the row gave none. The other parts are kept."""

RowBuilder = Callable[[Row, Origin, Options], Iterator[Outcome]]
"""Makes the records of one row. It raises DataError when the whole row is bad, before its first outcome."""

FileBuilder = Callable[[Iterator[tuple[Row, Origin]], Options], Iterator[Outcome]]
"""Makes the records of a file in which several rows make one record."""

PromptReader = Callable[[Row, Origin], Prompt]
RankingReader = Callable[[Row, Origin], Ranking]


Refusal = tuple[Callable[[str], re.Match[str] | None], str]
"""The search for what a text may not hold, and what to say of it behind the row's place; {0!r} is what was there."""


@dataclass(frozen=True)
class Answer:
    """How a demonstration is read: by its prompt, and the key of its response."""

    prompt: PromptReader
    key: str
    refused: Refusal | None = None
    """Responses that mean "no answer"."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A published shape of rows."""

    name: str
    publisher: str
    """Who publishes rows of this shape, and where it is described."""
    keys: frozenset[str]
    """What a row of this format has; a key with the value null counts as missing."""
    reads: frozenset[str]
    """Its keys, and those of data.formats.meaning that it reads as well. All others are checked for it."""
    looks: Callable[[Row], bool] | None
    """Whether the values fit this format, where the keys alone do not tell. Called with all `keys` present, and never
    raises."""
    rows: Mapping[type, RowBuilder]
    """By kind of record: for rows that become several records, or are left out by a rule."""
    files: Mapping[type, FileBuilder]
    """By kind of record: where rows must be joined."""
    makers: Mapping[type, Any]
    """By kind of record: `rows` and `files`, and what reads the records of all other rows: a PromptReader, an Answer or
    a RankingReader. Two formats with equal makers make the same of a row."""
    options: Options
    """Numbers that a recipe may set behind the name, with their defaults: `helpsteer verbosity=-0.4`."""


def format_of(
    name: str,
    publisher: str,
    keys: str | frozenset[str],
    *,
    prompt: PromptReader | None = None,
    answer: str = "",
    refused: Refusal | None = None,
    ranking: RankingReader | None = None,
    rows: Mapping[type, RowBuilder] = MappingProxyType({}),
    files: Mapping[type, FileBuilder] = MappingProxyType({}),
    reads: str = "",
    looks: Callable[[Row], bool] | None = None,
    options: Options = MappingProxyType({}),
) -> Format:
    """keys and reads: names separated by spaces; `keys` may be a set, for names with spaces in them."""
    listed = frozenset(keys.split()) if isinstance(keys, str) else keys
    demonstration = Answer(prompt, answer, refused) if prompt and answer else None
    readers = {Prompt: prompt, Demonstration: demonstration, Ranking: ranking}
    return Format(
        name=name,
        publisher=publisher,
        keys=listed,
        reads=listed | frozenset(reads.split()),
        looks=looks,
        rows=rows,
        files=files,
        makers={kind: reader for kind, reader in readers.items() if reader} | dict(rows) | dict(files),
        options=options,
    )
