"""The table of formats, and what turns rows into records by it.

A recipe names the format, or lets each row's keys tell. Of the formats whose keys a row has, one that asks for more
keys than another takes precedence; where two are left the row is refused and both are named.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeVar

from data.formats import (
    comparisons,
    conversations,
    grouped,
    instances,
    instructions,
    pairs,
    rankings,
    reddit,
    templates,
)
from data.formats.format import Format, Numbered, Options, Outcome, Row, Skipped, any_values
from data.formats.grouped import require_object
from data.formats.meaning import check_row
from data.formats.serialised import unpacked
from data.formats.unread import Unread
from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError

K = TypeVar("K", Prompt, Demonstration, Ranking)

Report = Callable[[DataError], None]
"""Takes the defect of a row or of a part of it; reading goes on. Without one the defect is raised."""
Note = Callable[[str, str], None]
"""Takes the reason and the place of what a format leaves out by its own rule."""

_MODULES = (conversations, instructions, instances, templates, pairs, comparisons, rankings, grouped, reddit)

FORMATS: Mapping[str, Format] = MappingProxyType({one.name: one for module in _MODULES for one in module.FORMATS})

NEAREST = 4
"""Formats that are shown for a row that fits none."""

SILENT = 100
"""Rows at the start of a file that may say nothing of its format before rows are read one by one."""


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
    yield from _build(unpacked(row), kind, origin, format=format, report=report, note=note)


def _build(
    row: Any, kind: type[K], origin: Origin, *, format: str | None, report: Report | None, note: Note | None
) -> Iterator[K]:
    """See build; for a row whose written lists are parsed."""
    require_object(row, origin)
    if format is None:
        chosen = FORMATS[recognise(row, kind, origin)]
        options = chosen.options
    else:
        name, options = parse(format)
        chosen = FORMATS[name]
        _require_kind(chosen, kind, str(origin))
        _require_keys(row, chosen, origin)
    builder = chosen.rows.get(kind)
    if builder is None:
        raise DataError(
            f"{origin}: rows of the format '{chosen.name}' are joined into {kind.__name__.lower()}s, so all rows of a "
            "file must have it, from the first on."
        )
    if left_out := check_row(row, chosen.read_keys, kind, origin):
        yield from _kept(iter([Skipped(left_out, origin)]), kind, report, note)
    else:
        yield from _kept(builder(row, origin, options), kind, report, note)


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

    Without `format`, formats that join rows are recognised by the first row that says anything; all others row by row.
    report: takes the defects of rows, which are raised without it. note: takes what formats leave out by their rules.
    unread: counts which keys of the rows nothing was made of.
    """
    rows = ((line, unpacked(row)) for line, row in rows)
    if format is None:
        format, rows = _joining_format(rows, kind)
    if unread is not None:
        rows, report, note = unread.watch(rows, source), _passing_over(unread, report), _passing_over(unread, note)
    if format is not None:
        name, options = parse(format)
        _require_kind(FORMATS[name], kind, f"data: {source}")
        if kind in FORMATS[name].files:
            rows = _meant(rows, FORMATS[name], kind, source, report, note)
            yield from _kept(FORMATS[name].files[kind](rows, source, options), kind, report, note)
            return
    for line, row in rows:
        try:
            yield from _build(row, kind, Origin(source, line), format=format, report=report, note=note)
        except DataError as error:
            if report is None:
                raise
            report(error)


def _passing_over(unread: Unread, count: Callable[..., None] | None) -> Callable[..., None] | None:
    """The same report or note, which says to `unread` too that a row was left out."""
    if count is None:
        return None

    def counting(*said: Any) -> None:
        unread.pass_over(str(said[-1]))
        count(*said)

    return counting


def _meant(
    rows: Numbered, chosen: Format, kind: type, source: str, report: Report | None, note: Note | None
) -> Numbered:
    """The rows of a format that joins them, without those that their own keys leave out."""
    for line, row in rows:
        origin = Origin(source, line)
        try:
            left_out = check_row(row, chosen.read_keys, kind, origin) if isinstance(row, dict) else ""
        except DataError as error:
            if report is None:
                raise
            report(error)
            continue
        if not left_out:
            yield line, row
        elif note is not None:
            note(left_out, str(origin))


def _joining_format(rows: Numbered, kind: type) -> tuple[str | None, Numbered]:
    """The format of the first rows, where it is one that joins rows; and all rows, those among them."""
    held: list[tuple[int, Any]] = []
    for line, row in rows:
        held.append((line, row))
        if isinstance(row, dict) and len(found := candidates(row, kind)) == 1:
            return (found[0].name if kind in found[0].files else None), chain(held, rows)
        if len(held) >= SILENT:
            break
    return None, chain(held, rows)


def _kept(outcomes: Iterator[Outcome], kind: type[K], report: Report | None, note: Note | None) -> Iterator[K]:
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


def recognise(row: Any, kind: type, origin: Origin) -> str:
    """The name of the one format that fits a row; DataError with the candidates when it is none, or several."""
    found = candidates(require_object(row, origin), kind)
    if len(found) == 1:
        return found[0].name
    if found:
        fitting = ", ".join(_shown(one) for one in found)
        raise DataError(f"{origin}: the row fits several formats: {fitting}. Say which with `format`.")
    nearest = [_shown(one) for one in _nearest(frozenset(_present(row)), kind)]
    expected = "; ".join(nearest) if nearest else "docs/data.md has all formats"
    raise DataError(
        f"{origin}: no {kind.__name__.lower()} can be made of the keys {sorted(map(str, row))}. Nearest: {expected}."
    )


def candidates(row: Row, kind: type) -> Sequence[Format]:
    """The formats that a row fits, but for those that ask for less than another one. Those that make the same of it
    count once."""
    fitting, by_keys = _with_keys(frozenset(_present(row)), kind)
    if by_keys is not None:
        return by_keys
    # `looks` may take its format's keys for granted, so only formats whose keys are all there are asked.
    return _foremost([one for one in fitting if one.looks(row)], kind)


def _present(row: Row) -> list[str]:
    return [key for key, value in row.items() if value is not None]


@lru_cache(maxsize=1024)
def _with_keys(present: frozenset[str], kind: type) -> tuple[Sequence[Format], Sequence[Format] | None]:
    """The formats whose keys are there; and the candidates among them, where the keys decide."""
    fitting = [one for one in FORMATS.values() if one.keys <= present and kind in one.kinds]
    return fitting, _foremost(fitting, kind) if all(one.looks is any_values for one in fitting) else None


def _foremost(fitting: Sequence[Format], kind: type) -> Sequence[Format]:
    most = [one for one in fitting if not any(one.keys < other.keys for other in fitting)]
    builders = {id(one.rows[kind] if kind in one.rows else one.files[kind]) for one in most}
    return most[:1] if len(builders) == 1 else most


@lru_cache(maxsize=1024)
def _nearest(present: frozenset[str], kind: type) -> tuple[Format, ...]:
    """Formats that share a key with the row, the ones that lack least first."""
    sharing = [one for one in FORMATS.values() if one.keys & present and kind in one.kinds]
    return tuple(sorted(sharing, key=lambda one: (len(one.keys - present), -len(one.keys)))[:NEAREST])


def _shown(one: Format) -> str:
    return f"{one.name} {{{', '.join(sorted(one.keys))}}}"


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


def _number(value: str, key: str, name: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = float("nan")
    if not abs(found) < float("inf"):
        raise DataError(f"data: format '{name}': {key} must be a number, found '{value}'.")
    return found


def _require_kind(chosen: Format, kind: type, where: str) -> None:
    if kind not in chosen.kinds:
        given = ", ".join(one.__name__.lower() + "s" for one in chosen.kinds)
        raise DataError(f"{where}: the format '{chosen.name}' gives {given}, not {kind.__name__.lower()}s.")


def _require_keys(row: Row, chosen: Format, origin: Origin) -> None:
    """For a format that the recipe names: its keys must be there, though values may be wrong."""
    for key in sorted(chosen.keys):
        if row.get(key) is None:
            raise DataError(
                f"{origin}: the row has no '{key}', which the format '{chosen.name}' needs: {_shown(chosen)}."
            )
