"""Which kind of record a file holds: rankings, demonstrations or prompts."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

from data.files.readers import reader_of
from data.formats import table
from data.formats.serialised import unpacked
from data.records import Demonstration, Prompt, Ranking
from data.select.dropped import DroppedRows, TooManyError
from data.select.sources import Source, records_of
from onebase.errors import DataError
from onebase.terminal import say

Kind = Any
"""One of KINDS."""

KINDS: tuple[Kind, ...] = (Ranking, Demonstration, Prompt)
"""The most specific first: a ranking has a prompt too."""

LOOKED_AT = 1000
"""After so many unusable rows a file is not taken for one of a kind."""


def name_of(kind: Kind) -> str:
    return kind.__name__.lower()


def kind_of(source: Source) -> Kind:
    """The most specific kind of the first valid row. If no row is valid: the most specific kind that the keys fit.

    DataError if no row can be read as any kind, with the first reason for each.
    """
    source = source.model_copy(update={"on_bad_row": "drop", "split": None})
    looks: dict[Kind, DroppedRows] = {}
    defective: list[Kind] = []
    for kind in KINDS:
        if kind is Prompt and defective:
            # Nearly every row can be read as a prompt, which must not hide what is wrong with it.
            # Conversations that wait for an answer can be read as prompts only: say how.
            if _has_sound_row(source, Prompt, DroppedRows(LOOKED_AT)):
                say(f"{source.source}: some rows are sound as prompts; if you mean that, pass --kind prompt")
            return defective[0]
        dropped = looks[kind] = DroppedRows(LOOKED_AT)
        if _has_sound_row(source, kind, dropped):
            for other in defective:
                say(f"{source.source}: there is no sound {name_of(other)}; the first reason: {looks[other].first}")
            return kind
        if dropped.defects and _keys_fit(source, kind):
            defective.append(kind)
    if not any(dropped.total for dropped in looks.values()):
        raise DataError(f"{source.source}: the file has no row.")
    listed = "\n".join(f"  as {name_of(kind)}: {dropped.first}" for kind, dropped in looks.items())
    if all(dropped.total >= LOOKED_AT for dropped in looks.values()):
        raise DataError(
            f"{source.source}: no sound row among the first {LOOKED_AT:,}. If better ones follow, pass "
            f"--kind. The first reason\n{listed}"
        )
    raise DataError(f"{source.source}: no row of the file can be used. The first reason\n{listed}")


def _has_sound_row(source: Source, kind: Kind, dropped: DroppedRows) -> bool:
    with contextlib.suppress(TooManyError):
        return next(iter(records_of(source, kind, dropped)), None) is not None
    return False


def _keys_fit(source: Source, kind: Kind) -> bool:
    """Whether the first rows have the keys of a format that gives this kind, whatever their values."""
    path = Path(source.source)
    read = reader_of(path)
    if read is None:
        return False
    rows = itertools.islice(read(path, longest=source.longest_line, report=lambda _: None), LOOKED_AT)
    return any(isinstance(row, dict) and table.candidates(unpacked(row), kind) for _, row in rows)
