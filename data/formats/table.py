"""The table of formats, and how rows become records by it.

A recipe names the format, or the keys of the rows tell it. Of the formats with keys that a row has, one that needs more
keys than another takes precedence. Where two are left the row is refused and both are named.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeVar

from data.files.lines import Numbered
from data.formats import (
    comparisons,
    conversations,
    fields,
    grouped,
    instances,
    instructions,
    pairs,
    rankings,
    reddit,
    templates,
)
from data.formats.format import Format, Options, Outcome, Row, Skipped
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

_MODULES = (conversations, instructions, instances, templates, pairs, comparisons, rankings, grouped, reddit)

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
    """The records of one row: none, one, or (a conversation, a task file) many.

    format: its name, with options behind it; None: recognised by the row. report and note: see build_all. DataError
    names the row's place and the key.
    """
    if not isinstance(row, dict):
        raise _not_an_object(row, origin)
    row = unpacked(row)
    if format is None:
        chosen = FORMATS[recognise(row, kind, origin)]
        options = chosen.options
    else:
        chosen, options = _named(format, kind, str(origin))
        _require_keys(row, chosen, origin)
    yield from _records_among(_outcomes(row, chosen, kind, origin, options), kind, report, note)


def build_all(
    rows: Numbered,
    kind: type[K],
    source: str,
    *,
    format: str | None = None,
    report: Report | None = None,
    note: Note | None = None,
    unread: Unread | None = None,
) -> Iterator[K]:
    """The records of a file's numbered rows, one at a time; memory holds no more than the format needs to join rows.

    Without `format`, the first row that fits one tells the file's format. It holds for all rows with the same keys,
    unless a format that such keys fit looks at values as well. A row with other keys is recognised by its own: cells of
    a table may be empty, and a file may mix formats, except formats that join rows.

    report: takes the defects of rows, which are raised without it. note: takes what formats leave out by their rules.
    unread: counts which keys of the rows nothing was made of.
    """
    rows = _unpacked(rows)
    keys: frozenset[str] = frozenset()
    if format is None:
        chosen, keys, rows = _first_format(rows, kind)
        options = chosen.options if chosen is not None else {}
    else:
        chosen, options = _named(format, kind, f"data: {source}")
    if unread is not None:
        rows, report, note = unread.watch(rows, source), unread.watch_drops(report), unread.watch_drops(note)
    if chosen is not None and kind in chosen.files:
        sound = _sound_rows(rows, chosen, kind, source, report, note)
        yield from _records_among(chosen.files[kind](sound, options), kind, report, note)
        return
    for line, row in rows:
        origin = Origin(source, line)
        try:
            if not isinstance(row, dict):
                raise _not_an_object(row, origin)
            if chosen is None or (format is None and (present_keys(row) != keys or _values_tell(keys, kind))):
                chosen, keys = None, present_keys(row)
                chosen = FORMATS[recognise(row, kind, origin)]
                options = chosen.options
            elif format is not None:
                _require_keys(row, chosen, origin)
            yield from _records_among(_outcomes(row, chosen, kind, origin, options), kind, report, note)
        except DataError as error:
            if report is None:
                raise
            report(error)


def _unpacked(rows: Numbered) -> Numbered:
    for line, row in rows:
        # Nearly no row holds a list that is written as text.
        written = isinstance(row, dict) and any(isinstance(value, str) and OPENS.match(value) for value in row.values())
        yield line, unpacked(row) if written else row


def _not_an_object(row: Any, origin: Origin) -> DataError:
    return DataError(f"{origin}: expected an object with keys, found {type(row).__name__}.")


def _first_format(rows: Numbered, kind: type) -> tuple[Format | None, frozenset[str], Numbered]:
    """The format of the first row that fits one, the keys of that row, and all rows, those looked at among them."""
    held: list[tuple[int, Any]] = []
    for line, row in rows:
        held.append((line, row))
        fitting = candidates(row, kind) if isinstance(row, dict) else ()
        if len(fitting) == 1:
            return fitting[0], present_keys(row), chain(held, rows)
        if len(held) >= LOOKED_AT:
            break
    return None, frozenset(), chain(held, rows)


def _sound_rows(
    rows: Numbered, chosen: Format, kind: type, source: str, report: Report | None, note: Note | None
) -> Iterator[tuple[Row, Origin]]:
    """The rows of a format that joins them, without those that their own keys leave out."""
    for line, row in rows:
        origin = Origin(source, line)
        try:
            if not isinstance(row, dict):
                raise _not_an_object(row, origin)
            left_out = check_row(row, chosen.reads, kind, origin)
        except DataError as error:
            if report is None:
                raise
            report(error)
            continue
        if not left_out:
            yield row, origin
        elif note is not None:
            note(left_out, str(origin))


def _outcomes(row: Row, chosen: Format, kind: type, origin: Origin, options: Options) -> Iterable[Outcome]:
    """What one row becomes."""
    # Most rows have no keys but those of their format.
    if not row.keys() <= chosen.reads and (left_out := check_row(row, chosen.reads, kind, origin)):
        return [Skipped(left_out, origin)]
    if kind in chosen.rows:
        return chosen.rows[kind](row, origin, options)
    if kind is Ranking and chosen.ranking is not None:
        return [chosen.ranking(row, origin)]
    if kind in chosen.files:
        raise DataError(
            f"{origin}: rows of the format '{chosen.name}' are joined into {kind.__name__.lower()}s, so all rows of a "
            "file must have it, from the first on."
        )
    assert chosen.prompt is not None, "every other format makes prompts"
    prompt = chosen.prompt(row, origin)
    if kind is Prompt:
        return [prompt]
    answer = fields.text(row, chosen.answer, origin)
    if chosen.check_answer is not None:
        chosen.check_answer(answer, origin)
    return [Demonstration(prompt, answer)]


def _records_among(outcomes: Iterable[Outcome], kind: type[K], report: Report | None, note: Note | None) -> Iterator[K]:
    """The records; defects and what was left out go to `report` and `note`."""
    for outcome in outcomes:
        if isinstance(outcome, kind):
            yield outcome
        elif isinstance(outcome, DataError):
            if report is None:
                raise outcome
            report(outcome)
        else:
            assert isinstance(outcome, Skipped), f"a builder of {kind.__name__} gave {type(outcome).__name__}"
            if note is not None:
                note(outcome.reason, str(outcome.origin))


def recognise(row: Row, kind: type, origin: Origin) -> str:
    """The name of the one format that fits a row; DataError with the candidates when none does, or several."""
    fitting = candidates(row, kind)
    if len(fitting) == 1:
        return fitting[0].name
    if fitting:
        listed = ", ".join(map(_shown, fitting))
        raise DataError(f"{origin}: the row fits several formats: {listed}. Name one with `format`.")
    nearest = "; ".join(map(_shown, _nearest(present_keys(row), kind))) or "docs/data.md has all formats"
    raise DataError(
        f"{origin}: no {kind.__name__.lower()} can be made of the keys {sorted(map(str, row))}. Nearest: {nearest}."
    )


def present_keys(row: Row) -> frozenset[str]:
    """Keys with a value."""
    return frozenset(key for key, value in row.items() if value is not None)


def candidates(row: Row, kind: type) -> Sequence[Format]:
    """The formats that a row fits, except those that need fewer keys than another one. Formats that make the same of
    it count once."""
    present = present_keys(row)
    fitting = [known for known in FORMATS.values() if kind in known.makers and known.keys <= present]
    fitting = [known for known in fitting if known.looks is None or known.looks(row)]
    most = [known for known in fitting if not any(known.keys < other.keys for other in fitting)]
    return most[:1] if len({known.makers[kind] for known in most}) == 1 else most


@lru_cache(maxsize=1024)
def _values_tell(present: frozenset[str], kind: type) -> bool:
    """Whether some format that rows with these keys may fit looks at their values, too."""
    return any(known.looks for known in FORMATS.values() if kind in known.makers and known.keys <= present)


@lru_cache(maxsize=1024)
def _nearest(present: frozenset[str], kind: type) -> tuple[Format, ...]:
    """Formats that share a key with the row, those that lack least first."""
    sharing = [known for known in FORMATS.values() if known.keys & present and kind in known.makers]
    return tuple(sorted(sharing, key=lambda known: (len(known.keys - present), -len(known.keys)))[:NEAREST])


def _shown(format: Format) -> str:
    return f"{format.name} {{{', '.join(sorted(format.keys))}}}"


@lru_cache(maxsize=64)
def parse(format: str) -> tuple[str, Options]:
    """Name and options of what a recipe says: `helpsteer helpfulness=0.65 verbosity=-0.4`."""
    name, *assignments = format.split() or [""]
    if name not in FORMATS:
        close = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"Known: {', '.join(FORMATS)}."
        raise DataError(f"data: there is no format '{name}'; {hint}")
    options = dict(FORMATS[name].options)
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key not in options:
            known = ", ".join(options) or "none"
            raise DataError(f"data: format '{name}' has no option '{key}'. Its options: {known}.")
        options[key] = _number(value, key, name)
    return name, MappingProxyType(options)


def _number(text: str, key: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise DataError(f"data: format '{name}': {key} must be a number, found '{text}'.")
    return value


def _named(format: str, kind: type, where: str) -> tuple[Format, Options]:
    """The format that a recipe names, and its options; DataError where it does not make this kind of record."""
    name, options = parse(format)
    chosen = FORMATS[name]
    if kind not in chosen.makers:
        kinds = ", ".join(possible.__name__.lower() + "s" for possible in chosen.kinds)
        raise DataError(f"{where}: the format '{name}' gives {kinds}, not {kind.__name__.lower()}s.")
    return chosen, options


def _require_keys(row: Row, chosen: Format, origin: Origin) -> None:
    """For a format that the recipe names: its keys must be there, though values may be wrong."""
    for key in sorted(chosen.keys):
        if row.get(key) is None:
            raise DataError(
                f"{origin}: the row has no '{key}', which the format '{chosen.name}' needs: {_shown(chosen)}."
            )
