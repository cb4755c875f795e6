"""What a format of rows is: which keys it has, and which functions make which kind of record of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    prompt: PromptReader | None
    answer: str
    """The key of a demonstration's response; "" where a row has none."""
    check_answer: Callable[[str, Origin], None] | None
    """Raises DataError for responses that mean "no answer"."""
    ranking: RankingReader | None
    rows: Mapping[type, RowBuilder]
    """By kind of record: for rows that become several records, or are left out by a rule. They come before `prompt`,
    `answer` and `ranking`."""
    files: Mapping[type, FileBuilder]
    """By kind of record: where rows must be joined."""
    options: Options
    """Numbers that a recipe may set behind the name, with their defaults: `helpsteer verbosity=-0.4`."""
    makers: Mapping[type, Any]
    """What makes each kind of record: two formats with equal makers make the same of a row."""

    @property
    def kinds(self) -> tuple[type, ...]:
        """Which of Prompt, Demonstration and Ranking it gives."""
        return tuple(self.makers)


def format_of(
    name: str,
    publisher: str,
    keys: str | frozenset[str],
    *,
    prompt: PromptReader | None = None,
    answer: str = "",
    check_answer: Callable[[str, Origin], None] | None = None,
    ranking: RankingReader | None = None,
    rows: Mapping[type, RowBuilder] | None = None,
    files: Mapping[type, FileBuilder] | None = None,
    reads: str = "",
    looks: Callable[[Row], bool] | None = None,
    options: Options | None = None,
) -> Format:
    """keys and reads: names separated by spaces; `keys` may be a set, for names with spaces in them."""
    listed = frozenset(keys.split()) if isinstance(keys, str) else keys
    makers: dict[type, Any] = {}
    if prompt is not None:
        makers[Prompt] = prompt
    if answer:
        makers[Demonstration] = (prompt, answer, check_answer)
    if ranking is not None:
        makers[Ranking] = ranking
    makers |= {**(rows or {}), **(files or {})}
    return Format(
        name=name,
        publisher=publisher,
        keys=listed,
        reads=listed | frozenset(reads.split()),
        looks=looks,
        prompt=prompt,
        answer=answer,
        check_answer=check_answer,
        ranking=ranking,
        rows=rows or {},
        files=files or {},
        options=options or {},
        makers=makers,
    )
