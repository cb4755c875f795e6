"""The table of formats, and how rows become records by it.

A recipe names the format, or the keys of the rows tell it. Of the formats with keys that a row has, one that needs more
keys than another takes precedence. Where two are left the row is refused and both are named.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, TypeVar

from data.files.lines import Numbered
from data.formats import (
    comparisons,
    demonstrations,
    fields,
    grouped,
    instances,
    pairs,
    rankings,
    reddit,
)
from data.formats.format import Answer, Format, Outcome, Row, Skipped
from data.formats.meaning import check_row
from data.formats.serialised import OPENS, unpacked
from data.formats.unread import Unread
from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError

K = TypeVar("K", Prompt, Demonstration, Ranking)

Report = Callable[[DataError], None]
"""Takes the defect of a row or its part; reading continues. Without a report the defect is raised."""
Note = Callable[[str, str], None]
"""Takes the reason and the place of what a format leaves out by its own rule."""

_MODULES = (demonstrations, instances, pairs, comparisons, rankings, grouped, reddit)

FORMATS: Mapping[str, Format] = MappingProxyType({known.name: known for module in _MODULES for known in module.FORMATS})

NEAREST = 4
"""Formats that are shown for a row that fits none."""

LOOKED_AT = 100
"""Rows at the start of a file that may fit no format before the search for one that joins rows is given up."""


def build(
    row: Any,
    kind: type[K],
    origin: Origin,
    *,
    format: str | None = None,
    report: Report | None = None,
    note: Note | None = None,
) -> Iterator[K]:
    """The records of one row: none, one, or (a conversation, a task file) many. See build_all."""
    rows = iter([(origin.line, row)])
    return build_all(rows, kind, origin.source, format=format, report=report, note=note, joins=False)


def build_all(
    rows: Numbered,
    kind: type[K],
    source: str,
    *,
    format: str | None = None,
    report: Report | None = None,
    note: Note | None = None,
    unread: Unread | None = None,
    joins: bool = True,
) -> Iterator[K]:
    """The records of a file's numbered rows, one at a time; memory holds no more than the format needs to join rows.

    format: its name, with options behind it. Without it each row is recognised by its own keys: cells of a table may be
    empty, and a file may mix formats. Formats that join rows are not mixed with others: the first row that fits any
    format tells whether the file has such a one.

    report: takes the defects of rows, which are raised without it. note: takes what formats leave out by their rules.
    unread: counts which keys of the rows nothing was made of. joins: whether rows are joined; else such are refused.
    """
    named = None if format is None else _named(format, kind, source)
    chosen, looked_at = named, []
    # Nearly no row holds a list that is written as text.
    rows = (
        (line, unpacked(row))
        if isinstance(row, dict) and any(type(value) is str and OPENS.match(value) for value in row.values())
        else (line, row)
        for line, row in rows
    )
    for line, row in islice(rows, 0 if named else LOOKED_AT):
        looked_at.append((line, row))
        fitting = candidates(row, kind) if isinstance(row, dict) else ()
        if len(fitting) == 1:
            chosen = fitting[0]
            break
    rows, report, note = chain(looked_at, rows), report or _raise, note or (lambda reason, place: None)
    if unread is not None:
        rows, report, note = unread.watch(rows, source), unread.watch_drops(report), unread.watch_drops(note)
    if joins and chosen is not None and kind in chosen.files:
        outcomes = chosen.files[kind](_sound_rows(rows, chosen, kind, source, report, note), chosen.options)
    else:
        outcomes = _outcomes(rows, named, kind, source)
    for outcome in outcomes:
        match outcome:
            case DataError():
                report(outcome)
            case Skipped():
                note(outcome.reason, str(outcome.origin))
            case _:
                assert isinstance(outcome, kind), f"a builder of {kind.__name__} gave {type(outcome).__name__}"
                yield outcome


def _raise(error: DataError) -> None:
    raise error


def _not_an_object(row: Any, origin: Origin) -> DataError:
    return DataError(f"{origin}: expected an object with keys, found {type(row).__name__}.")


def _sound_rows(
    rows: Numbered, chosen: Format, kind: type, source: str, report: Report, note: Note
) -> Iterator[tuple[Row, Origin]]:
    """The rows of a format that joins them, without those that their own keys leave out."""
    for line, row in rows:
        origin = Origin(source, line)
        try:
            if not isinstance(row, dict):
                raise _not_an_object(row, origin)
            left_out = check_row(row, chosen.reads, kind, origin)
        except DataError as error:
            report(error)
            continue
        if left_out:
            note(left_out, str(origin))
        else:
            yield row, origin


def _outcomes(rows: Numbered, named: Format | None, kind: type, source: str) -> Iterator[Outcome]:
    """What each row becomes, without the others. named: the format that the recipe names."""
    for line, row in rows:
        origin = Origin(source, line)
        try:
            if not isinstance(row, dict):
                raise _not_an_object(row, origin)
            fitting = candidates(row, kind) if named is None else (named,)
            if len(fitting) != 1:
                raise _unrecognised(row, fitting, kind, origin)
            chosen = fitting[0]
            if named is not None:
                _require_keys(row, chosen, origin)
            # Most rows have no keys but those of their format.
            left_out = "" if row.keys() <= chosen.reads else check_row(row, chosen.reads, kind, origin)
            if left_out:
                yield Skipped(left_out, origin)
            elif kind in chosen.rows:
                yield from chosen.rows[kind](row, origin, chosen.options)
            elif kind in chosen.files:
                raise DataError(
                    f"{origin}: rows of the format '{chosen.name}' are joined into {kind.__name__.lower()}s, so all "
                    "rows of a file must have it, from the first on."
                )
            elif kind is Demonstration:
                answer: Answer = chosen.makers[kind]
                prompt, response = answer.prompt(row, origin), fields.text(row, answer.key, origin)
                if answer.refused is not None:
                    fields.refuse(answer.refused, response, origin)
                yield Demonstration(prompt, response)
            else:
                yield chosen.makers[kind](row, origin)
        except DataError as error:
            yield error


def _unrecognised(row: Row, fitting: Sequence[Format], kind: type, origin: Origin) -> DataError:
    """fitting: the formats that the row fits, if it fits several."""
    if fitting:
        listed = ", ".join(map(_shown, fitting))
        return DataError(f"{origin}: the row fits several formats: {listed}. Name one with `format`.")
    present = frozenset(key for key, value in row.items() if value is not None)
    nearest = "; ".join(map(_shown, _nearest(present, kind))) or "docs/data.md has all formats"
    return DataError(
        f"{origin}: no {kind.__name__.lower()} can be made of the keys {sorted(map(str, row))}. Nearest: {nearest}."
    )


@lru_cache(maxsize=1024)
def _nearest(present: frozenset[str], kind: type) -> list[Format]:
    """Formats that share a key with the row, those that lack least first."""
    sharing = [known for known in FORMATS.values() if known.keys & present and kind in known.makers]
    return sorted(sharing, key=lambda known: (len(known.keys - present), -len(known.keys)))[:NEAREST]


def candidates(row: Row, kind: type) -> Sequence[Format]:
    """The formats that a row fits, except those that need fewer keys than another one. Formats that make the same of
    it count once."""
    fitting = _with_keys(frozenset([key for key, value in row.items() if value is not None]), kind)
    if len(fitting) == 1 and fitting[0].looks is None:
        return fitting
    fitting = [known for known in fitting if known.looks is None or known.looks(row)]
    most = [known for known in fitting if not any(known.keys < other.keys for other in fitting)]
    return most[:1] if len({known.makers[kind] for known in most}) == 1 else most


@lru_cache(maxsize=1024)
def _with_keys(present: frozenset[str], kind: type) -> Sequence[Format]:
    """Formats of a kind, by the keys of a row. Those that need fewer than one that looks at no value are left out."""
    fitting = [known for known in FORMATS.values() if kind in known.makers and known.keys <= present]
    certain = [known.keys for known in fitting if known.looks is None]
    return [known for known in fitting if not any(known.keys < keys for keys in certain)]


def _shown(format: Format) -> str:
    return f"{format.name} {{{', '.join(sorted(format.keys))}}}"


@lru_cache(maxsize=64)
def parse(format: str) -> Format:
    """What a recipe names: a format and its options, such as `helpsteer helpfulness=0.65 verbosity=-0.4`."""
    name, *assignments = format.split() or [""]
    if name not in FORMATS:
        close = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"Known: {', '.join(FORMATS)}."
        raise DataError(f"data: there is no format '{name}'; {hint}")
    options = dict(FORMATS[name].options)
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        known = ", ".join(options) or "none"
        fields.require(key in options, "data", f"format '{name}' has no option '{key}'. Its options: {known}.")
        try:
            options[key] = float(text)
        except ValueError:
            options[key] = float("nan")
        is_number = abs(options[key]) < float("inf")
        fields.require(is_number, f"data: format '{name}'", f"{key} must be a number, found '{text}'.")
    return replace(FORMATS[name], options=MappingProxyType(options))


def _named(format: str, kind: type, source: str) -> Format:
    """The format that a recipe names; DataError where it does not make this kind of record."""
    chosen = parse(format)
    kinds = ", ".join(possible.__name__.lower() + "s" for possible in chosen.makers)
    fields.require(
        kind in chosen.makers,
        f"data: {source}",
        f"the format '{chosen.name}' gives {kinds}, not {kind.__name__.lower()}s.",
    )
    return chosen


def _require_keys(row: Row, chosen: Format, origin: Origin) -> None:
    """For a format that the recipe names: its keys must be there, though values may be wrong."""
    for key in sorted(chosen.keys):
        if row.get(key) is None:
            raise DataError(
                f"{origin}: the row has no '{key}', which the format '{chosen.name}' needs: {_shown(chosen)}."
            )
