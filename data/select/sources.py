"""Sources of records: built-in tasks, local files, and data sets of the hub.

Everything a source yields becomes a record or is counted as dropped with a reason.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, PositiveInt, field_validator

from data.files.lines import LONGEST_LINE
from data.files.readers import READERS, reader_of
from data.formats import table
from data.formats.unread import Unread
from data.records import Demonstration, Prompt, Ranking, Record, fingerprint, prompt_of
from data.select.contamination import ContaminationSection, Evaluation, clean
from data.select.dropped import Dropped
from data.select.mixing import Dedupe, Deduplicator, capped, mixed, seeded_order
from data.splits import FILE_SPLITS, split_of
from onebase.errors import DataError
from onebase.recipe.sections import Section
from onebase.run.record import DataIdentity

BUILTIN = {"builtin:tasks": "data.tasks.generate", "builtin:problems": "data.problems.generate"}
"""Built-in sources, and the modules that write their rows."""

FILE_ENDING = re.compile(r"\.(?!v\d)[A-Za-z]\w{0,7}")
"""What looks like a kind of file. Other dots are versions in the name of a hub's data set."""

MOST_RESPONSES = 9
"""Of a built-in ranking."""

K = TypeVar("K", Prompt, Demonstration, Ranking)


class Source(Section):
    """One source of records in a recipe."""

    source: str
    """`builtin:tasks` or `builtin:problems`, a .jsonl, .json, .csv or .parquet file (all but Parquet also .gz or .zst),
    or a hub id."""
    format: str | None = None
    """Name of the rows' format (docs/data.md), with its options behind it; None: recognised by the rows' keys."""
    split: str | None = None
    """Of a built-in source: sft, rl, heldout ...; of a file: train (90 %) or heldout (10 %), by a stable hash
    of the prompt; of a hub id: one of its own. None: everything, of a hub id `train`."""
    rows: PositiveInt | None = None
    """How many records; None: all there are. With weights: how many at most."""
    weight: Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)] | None = None
    """Share of the mix, relative to the other sources' weights; all sources of a list have one, or none has. The mix
    ends when the source whose turn it is has no more rows."""
    per_task: PositiveInt | None = None
    """How many records of one task at most, by the task, template or category that the rows name."""
    dedupe: Dedupe = "rows"
    contamination: ContaminationSection | None = None
    """Rows that hold an evaluation prompt; None: not checked."""
    responses: tuple[int, int] = Field(default=(4, 4))
    """Fewest and most responses of a built-in ranking, 2 to 9."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of built-in rankings: probability that the annotator takes two neighbours in the order for each other."""
    config: str | None = None
    """Of a hub id that has several: which one."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    longest_line: PositiveInt = LONGEST_LINE
    """Bytes of a line (characters of a row in a .json list) beyond which it is a bad row."""
    on_bad_row: Literal["error", "drop"] = "error"

    @field_validator("responses")
    @classmethod
    def _fewest_to_most(cls, responses: tuple[int, int]) -> tuple[int, int]:
        fewest, most = responses
        if not 2 <= fewest <= most <= MOST_RESPONSES:
            raise ValueError(
                f"expected the fewest and the most responses of a ranking, 2 <= fewest <= most <= {MOST_RESPONSES}"
            )
        return responses


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[K]):
    records: list[K]
    identities: list[DataIdentity]


def load(sources: Sequence[Source], kind: type[K], *, seed: int, evaluation: Iterable[Record] = ()) -> Loaded[K]:
    """Records of all sources: in the sources' order, or mixed by their weights; within a source in a seeded order that
    does not depend on `rows`.

    evaluation: records whose prompts must not be in sources that have a `contamination` section.
    """
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) < len(sources):
        without = next(source.source for source in sources if source.weight is None)
        raise DataError(f"data: some sources have a weight and {without} has none. Give all of them one, or none.")
    evaluated = [prompt_of(record) for record in evaluation]
    passers: dict[Dedupe, Deduplicator] = {}
    drops = [Dropped() for _ in sources]
    found = [
        _ordered(source, kind, seed, passers.setdefault(source.dedupe, Deduplicator(source.dedupe)), evaluated, dropped)
        for source, dropped in zip(sources, drops, strict=True)
    ]
    if weights:
        turns = list(mixed(found, weights))
        records = [record for _, record in turns]
        found = [[record for index, record in turns if index == own] for own in range(len(sources))]
        if not records:
            raise DataError("data: the mix has no rows.")
    else:
        records = [record for own in found for record in own]
    return Loaded(
        records=records,
        identities=[identify(*each) for each in zip(sources, found, drops, strict=True)],
    )


def identify(source: Source, records: Sequence[Record], dropped: Dropped) -> DataIdentity:
    """What a stage's record says of a source."""
    return DataIdentity(
        source=source.source,
        split=source.split,
        revision=source.revision,
        kept=len(records),
        dropped=dict(dropped.counts),
        sha256=fingerprint(records),
    )


def _ordered(
    source: Source, kind: type[K], seed: int, passer: Deduplicator, evaluated: Sequence[Prompt], dropped: Dropped
) -> list[K]:
    """The records that one source gives, in their order."""
    if source.source in BUILTIN:
        foreign = ("format", "config", "revision", "per_task", "longest_line", "on_bad_row")
        _refuse_settings(source, "a built-in source", *foreign)
        records = _builtin(source, kind, seed)
        return list(_decontaminated(records, source, evaluated, dropped))
    records: list[K] = []
    for record in _decontaminated(records_of(source, kind, dropped), source, evaluated, dropped):
        if passer.is_new(record):
            records.append(record)
        else:
            dropped.add(passer.reason, str(prompt_of(record).origin))
    if not records:
        raise DataError(f"{source.source}: no records{_why(dropped)}. The file is empty, or {_where(source)} is.")
    records = [records[index] for index in seeded_order(len(records), seed)]
    if source.per_task is not None:
        records = capped(records, source.per_task, dropped)
    if source.rows is not None and source.rows > len(records) and source.weight is None:
        raise DataError(
            f"{source.source}: {source.rows} rows asked for, but there are only {len(records)}{_why(dropped)}. "
            "Lower `rows`."
        )
    return records[: source.rows]


def _where(source: Source) -> str:
    return f"the split '{source.split}'" if source.split else "what is left of it"


def _why(dropped: Dropped) -> str:
    if not dropped.total:
        return ""
    (reason, count), *others = dropped.counts.most_common()
    more = f" and {len(others)} more reasons" if others else ""
    return f" ({dropped.total} rows dropped; {count}: {reason.rstrip('.')}{more})"


def _decontaminated(records: Iterable[K], source: Source, evaluated: Sequence[Prompt], dropped: Dropped) -> Iterator[K]:
    section = source.contamination
    if section is None:
        yield from records
        return
    prompts = list(evaluated)
    for name in section.against:
        prompts += records_of(Source(source=name), Prompt, Dropped())
    if not prompts:
        raise DataError(
            f"data: {source.source}: contamination has nothing to check against. Name files with contamination.against."
        )
    yield from clean(records, Evaluation(prompts, section), section, dropped)


def records_of(source: Source, kind: type[K], dropped: Dropped, unread: Unread | None = None) -> Iterator[K]:
    """The records of a file or a hub id in their own order, one at a time; what is left out is counted in `dropped`,
    and in `unread` which keys of its rows nothing was made of."""
    path = Path(source.source)
    if source.format is not None:
        table.parse(source.format)  # refuses what there is not, before a file is opened
    if source.source.startswith("builtin:"):
        raise DataError(f"data: '{source.source}' is not known; built in are {', '.join(BUILTIN)}.")
    if reader_of(path) is not None:
        return _from_file(source, kind, dropped, unread)
    if path.exists() or FILE_ENDING.fullmatch(path.suffix):
        known = ", ".join(READERS)
        raise DataError(
            f"data: {source.source}: files of this kind are not read. Known: {known}; or a hub id such as org/name."
        )
    return _from_hub(source, kind, dropped, unread)


def _refuse_settings(source: Source, what: str, *names: str) -> None:
    for name in names:
        if getattr(source, name) != Source.model_fields[name].default:
            raise DataError(f"data: {source.source}: `{name}` says nothing for {what}. Remove it.")


def _builtin(source: Source, kind: type[K], seed: int) -> list[K]:
    generate = importlib.import_module(BUILTIN[source.source])
    if source.split not in generate.SPLITS:
        known = ", ".join(generate.SPLITS)
        raise DataError(f"data: {source.source} has no split '{source.split}'. Give one of: {known}.")
    if source.rows is None:
        raise DataError(f"data: {source.source} is generated at any size: say how many with `rows`.")
    if hasattr(generate, "rankings"):
        if kind is Ranking:
            return generate.rankings(source.split, source.rows, seed, responses=source.responses, noise=source.noise)
    else:
        _refuse_settings(source, "a source without rankings", "responses", "noise")
        if kind is Ranking:
            raise DataError(f"data: {source.source} has no rankings: answers are right or wrong. Use builtin:tasks.")
    maker = generate.prompts if kind is Prompt else generate.demonstrations
    return maker(source.split, source.rows, seed)


def _from_file(source: Source, kind: type[K], dropped: Dropped, unread: Unread | None) -> Iterator[K]:
    path = Path(source.source)
    _refuse_settings(source, "a file", "config", "revision", "responses", "noise")
    if not path.is_file():
        what = f"{path} is a folder, not a file" if path.is_dir() else f"there is no file {path}"
        raise DataError(f"data: {what}. Check the path; it is relative to where the command runs.")
    if source.split is not None and source.split not in FILE_SPLITS:
        raise DataError(
            f"data: {path}: a file has no split '{source.split}'. Give one of: {', '.join(FILE_SPLITS)}, or none."
        )
    read = reader_of(path)
    assert read is not None, "the caller has asked for it"
    rows = read(path, longest=source.longest_line, report=dropped if source.on_bad_row == "drop" else None)
    for record in _build_all(rows, source, kind, dropped, unread):
        if source.split is None or split_of(prompt_of(record), FILE_SPLITS) == source.split:
            yield record


def _from_hub(source: Source, kind: type[K], dropped: Dropped, unread: Unread | None) -> Iterator[K]:
    _refuse_settings(source, "a hub id", "responses", "noise", "longest_line")
    return _build_all(rows_of_hub(source), source, kind, dropped, unread)


def rows_of_hub(source: Source) -> Iterator[tuple[int, Any]]:
    """The rows of a data set of the hub with their numbers; DataError where it gives none."""
    import datasets

    settings = {"split": source.split or "train", "revision": source.revision}
    try:
        rows = datasets.load_dataset(source.source, source.config, **settings)
    except Exception as error:  # the library raises a dozen kinds; all of them mean that this name gave no data
        raise DataError(
            f"data: '{source.source}' is no file here and the hub gave no data set ({type(error).__name__}: "
            f"{(str(error).splitlines() or ['no reason given'])[0]}). Check the name (and `config`, where it has "
            "several), or pass a file."
        ) from error
    return enumerate(rows, start=1)


def _build_all(
    rows: Iterator[tuple[int, Any]], source: Source, kind: type[K], dropped: Dropped, unread: Unread | None
) -> Iterator[K]:
    report = dropped if source.on_bad_row == "drop" else None
    return table.build_all(
        rows, kind, source.source, format=source.format, report=report, note=dropped.add, unread=unread
    )
