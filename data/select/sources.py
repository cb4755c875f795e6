"""Sources of records: built-in tasks, local files, and data sets of the hub.

Everything a source yields becomes a record or is counted as dropped with a reason.
"""

import hashlib
import importlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, field_validator

from data.files.lines import LONGEST_LINE
from data.files.readers import READERS, reader_of, why_no_file
from data.formats import table
from data.formats.unread import Unread
from data.records import Demonstration, Prompt, Ranking, Record, fingerprint, normalised
from data.select.contamination import ContaminationSection, Evaluation, clean
from data.select.dropped import DroppedRows
from data.select.mixing import capped, mixed
from data.splits import FILE_SPLITS, split_of
from onebase.errors import DataError
from onebase.recipe.sections import Count, Section
from onebase.run.record import DataIdentity
from onebase.seeding import seeded_order

BUILTIN = {"builtin:tasks": "data.tasks.generate", "builtin:problems": "data.problems.generate"}
"""Built-in sources, and the modules that write their rows."""

FILE_ENDING = re.compile(r"\.(?!v\d)[A-Za-z]\w{0,7}")
"""What looks like the ending of a file. Other dots are versions in the name of a data set on the hub."""

Dedupe = Literal["none", "rows", "prompts"]
"""What is removed: nothing; rows with the prompt (normalised) and responses of an earlier row; or every further row of
a prompt."""

UNUSED = {
    "a built-in source": ("format", "config", "revision", "per_task", "longest_line", "on_bad_row"),
    "a file": ("config", "revision", "responses", "noise"),
    "a hub id": ("responses", "noise", "longest_line"),
    "a source without rankings": ("responses", "noise"),
}
"""Settings that have no effect for each kind of source."""

MOST_RESPONSES = 9
"""Most responses of a built-in ranking."""

K = TypeVar("K", Prompt, Demonstration, Ranking)


class Source(Section):
    """One source of records in a recipe."""

    source: str
    """`builtin:tasks` or `builtin:problems`, a .jsonl, .json, .csv or .parquet file (all but Parquet also .gz or .zst),
    or a hub id."""
    format: str | None = None
    """Name of the rows' format (docs/data.md), with its options behind it; None: recognised by the rows' keys."""
    split: str | None = None
    """Name of a split. Of a built-in source: sft, rl, heldout ...; of a file: train (90 %) or heldout (10 %), by a
    stable hash of the prompt; of a hub id: its own names. None: everything; of a hub id `train`."""
    rows: Count | None = None
    """How many records; None: all. With weights: at most so many."""
    weight: Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)] | None = None
    """Share of the mix, relative to the other sources' weights. Give all sources of a list a weight, or none of them.
    The mix ends when the source with the next turn has no more rows."""
    per_task: Count | None = None
    """Most records of one task, by the task, template or category that the rows name."""
    dedupe: Dedupe = "rows"
    contamination: ContaminationSection | None = None
    """Rows that hold an evaluation prompt; None: not checked."""
    responses: tuple[int, int] = Field(default=(4, 4))
    """Fewest and most responses of a built-in ranking, 2 to 9."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that the annotator of built-in rankings confuses two neighbours in the order."""
    config: str | None = None
    """Which configuration of a hub id, if it has several."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    longest_line: Count = LONGEST_LINE
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
class LoadedRecords(Generic[K]):
    records: list[K]
    identities: list[DataIdentity]


@dataclass
class Deduplicator:
    """Lets each record through once. It holds 16 bytes a record and not the records: this is what grows with the
    rows."""

    dedupe: Dedupe
    _digests: set[bytes] = field(default_factory=set)

    def is_new(self, record: Record) -> bool:
        """Whether no earlier record was a copy of this one; from now on it counts itself."""
        if self.dedupe == "none":
            return True
        digest = hashlib.blake2b(normalised(record.prompt).encode(), digest_size=16)
        if self.dedupe == "rows" and isinstance(record, Demonstration):
            digest.update(b"\0" + record.response.encode())
        elif self.dedupe == "rows" and isinstance(record, Ranking):
            for tier, response in sorted(zip(record.tiers, record.responses, strict=True)):
                digest.update(f"\0{tier}\0{response}".encode())
            # Rankings of two people who agree are not copies of each other.
            digest.update(f"\0\0{record.labeler}".encode())
        known = len(self._digests)
        self._digests.add(digest.digest())
        return len(self._digests) > known

    @property
    def reason(self) -> str:
        """Why a record that is not new is left out."""
        return "copy of an earlier row" if self.dedupe == "rows" else "prompt of an earlier row"


def load(sources: Sequence[Source], kind: type[K], *, seed: int, evaluation: Iterable[Record] = ()) -> LoadedRecords[K]:
    """Records of all sources: in the sources' order, or mixed by their weights; within a source in a seeded order that
    does not depend on `rows`.

    evaluation: records with prompts that must not be in sources with a `contamination` section.
    """
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) < len(sources):
        without = next(source.source for source in sources if source.weight is None)
        raise DataError(f"data: some sources have a weight and {without} has none. Give all of them one, or none.")
    evaluated = [record.prompt for record in evaluation]
    deduplicators: dict[Dedupe, Deduplicator] = {}
    drops = [DroppedRows() for _ in sources]
    records_by_source: list[list[K]] = []
    for source, dropped in zip(sources, drops, strict=True):
        deduplicator = deduplicators.setdefault(source.dedupe, Deduplicator(source.dedupe))
        records_by_source.append(_load_source(source, kind, seed, deduplicator, evaluated, dropped))
    if weights:
        mix = list(mixed(records_by_source, weights))
        records = [record for _, record in mix]
        records_by_source = [[record for turn, record in mix if turn == index] for index in range(len(sources))]
        if not records:
            raise DataError("data: the mix has no rows.")
    else:
        records = [record for of_source in records_by_source for record in of_source]
    identities = [identify(*each) for each in zip(sources, records_by_source, drops, strict=True)]
    return LoadedRecords(records=records, identities=identities)


def identify(source: Source, records: Sequence[Record], dropped: DroppedRows) -> DataIdentity:
    """What a stage's record tells about a source."""
    return DataIdentity(
        source=source.source,
        split=source.split,
        revision=source.revision,
        kept=len(records),
        dropped=dict(dropped.counts),
        sha256=fingerprint(records),
    )


def _load_source(
    source: Source,
    kind: type[K],
    seed: int,
    deduplicator: Deduplicator,
    evaluated: Sequence[Prompt],
    dropped: DroppedRows,
) -> list[K]:
    """The records of one source, in their order."""
    is_builtin = source.source in BUILTIN
    records: Iterable[K] = _builtin(source, kind, seed) if is_builtin else records_of(source, kind, dropped)
    if source.contamination is not None:
        files = (records_of(Source(source=name), Prompt, DroppedRows()) for name in source.contamination.against)
        prompts = [*evaluated, *itertools.chain.from_iterable(files)]
        if not prompts:
            raise DataError(
                f"data: {source.source}: contamination has nothing to check against. Name files with "
                "contamination.against."
            )
        records = clean(records, Evaluation(prompts, source.contamination), source.contamination, dropped)
    if is_builtin:
        return list(records)
    distinct: list[K] = []
    for record in records:
        if deduplicator.is_new(record):
            distinct.append(record)
        else:
            dropped.add(deduplicator.reason, str(record.prompt.origin))
    if not distinct:
        emptied = f"the split '{source.split}'" if source.split else "what is left of it"
        raise DataError(f"{source.source}: no records{dropped.summary()}. The file is empty, or {emptied} is.")
    ordered = [distinct[index] for index in seeded_order(len(distinct), seed)]
    if source.per_task is not None:
        ordered = capped(ordered, source.per_task, dropped)
    if source.rows is not None and source.rows > len(ordered) and source.weight is None:
        raise DataError(
            f"{source.source}: `rows` is {source.rows}, but there are only {len(ordered)}{dropped.summary()}. "
            "Lower `rows`."
        )
    return ordered[: source.rows]


def records_of(source: Source, kind: type[K], dropped: DroppedRows, unread: Unread | None = None) -> Iterator[K]:
    """The records of a file or a hub id in their own order, one at a time. What is left out is counted in `dropped`,
    and keys of the rows that are not read in `unread`."""
    path = Path(source.source)
    if source.format is not None:
        table.parse(source.format)  # refuses an unknown one before a file is opened
    if source.source.startswith("builtin:"):
        if source.source in BUILTIN:
            raise DataError(f"data: '{source.source}' is made by Onebase; only files and hub ids can be read here.")
        raise DataError(f"data: '{source.source}' is not known; built in are {', '.join(BUILTIN)}.")
    report = dropped if source.on_bad_row == "drop" else None
    read = reader_of(path)
    if read is not None:
        _refuse_unused(source, "a file")
        if not path.is_file():
            raise DataError(f"data: {why_no_file(path)}. Check the path; it is relative to where the command runs.")
        if source.split not in (None, *FILE_SPLITS):
            known = ", ".join(FILE_SPLITS)
            raise DataError(f"data: {path}: a file has no split '{source.split}'. Give one of: {known}, or none.")
        rows = read(path, longest=source.longest_line, report=report)
    elif path.exists() or FILE_ENDING.fullmatch(path.suffix):
        known = ", ".join(READERS)
        raise DataError(
            f"data: {source.source}: files of this kind are not read. Known: {known}; or a hub id such as org/name."
        )
    else:
        _refuse_unused(source, "a hub id")
        rows = rows_of_hub(source)
    records = table.build_all(
        rows, kind, source.source, format=source.format, report=report, note=dropped.add, unread=unread
    )
    if read is None or source.split is None:
        return records
    return (record for record in records if split_of(record.prompt, FILE_SPLITS) == source.split)


def _refuse_unused(source: Source, kind_of_source: str) -> None:
    for name in UNUSED[kind_of_source]:
        if getattr(source, name) != Source.model_fields[name].default:
            raise DataError(f"data: {source.source}: `{name}` has no effect for {kind_of_source}. Remove it.")


def _builtin(source: Source, kind: type[K], seed: int) -> list[K]:
    _refuse_unused(source, "a built-in source")
    generate = importlib.import_module(BUILTIN[source.source])
    if source.split not in generate.SPLITS:
        known = ", ".join(generate.SPLITS)
        raise DataError(f"data: {source.source} has no split '{source.split}'. Give one of: {known}.")
    if source.rows is None:
        raise DataError(f"data: {source.source} is generated at any size: give the number of records with `rows`.")
    if hasattr(generate, "rankings"):
        if kind is Ranking:
            return generate.rankings(source.split, source.rows, seed, responses=source.responses, noise=source.noise)
    else:
        _refuse_unused(source, "a source without rankings")
        if kind is Ranking:
            raise DataError(f"data: {source.source} has no rankings: answers are right or wrong. Use builtin:tasks.")
    maker = generate.prompts if kind is Prompt else generate.demonstrations
    return maker(source.split, source.rows, seed)


def rows_of_hub(source: Source) -> Iterator[tuple[int, Any]]:
    """The numbered rows of a data set of the hub; DataError where it gives none."""
    import datasets

    settings = {"split": source.split or "train", "revision": source.revision}
    try:
        rows = datasets.load_dataset(source.source, source.config, **settings)
    except Exception as error:  # the library raises a dozen kinds; all of them mean that this name gave no data
        raise DataError(
            f"data: '{source.source}' is not a file here and the hub gave no data set ({type(error).__name__}: "
            f"{(str(error).splitlines() or ['no reason given'])[0]}). Check the name (and `config`, where it has "
            "several), or pass a file."
        ) from error
    return enumerate(rows, start=1)
