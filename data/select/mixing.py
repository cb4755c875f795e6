"""Which records of which source, in which order: seeded, and stable: asking for more never reorders the first.

Everything here is a function of the seed and of positions, so that the mix from row n on is the mix without its first
n rows: a run that resumes needs to know the row and nothing else.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

from data.records import Demonstration, Prompt, Ranking, Record, normalised, prompt_of
from data.select.dropped import Dropped
from data.select.labelers import labeler_of
from onebase.errors import DataError
from onebase.seeding import stream

K = TypeVar("K", Prompt, Demonstration, Ranking)

Dedupe = Literal["none", "rows", "prompts"]
"""What is removed: nothing; rows whose prompt (normalised) and responses are those of an earlier row; or every
further row of a prompt."""

TASK_KEYS = ("task", "family", "template", "category")
"""Keys of a prompt's `meta` that may name its task; the first one that is there does."""

UNNAMED = "(none)"
"""The task of a prompt that names none."""


def task_of(record: Record) -> str:
    """The task a record belongs to, for caps and counts."""
    meta = prompt_of(record).meta
    return next((str(meta[key]) for key in TASK_KEYS if meta.get(key) not in (None, "")), UNNAMED)


class Deduplicator:
    """Passes each record once. It holds 16 bytes a record and not the records: this is what grows with the rows."""

    def __init__(self, dedupe: Dedupe) -> None:
        self.dedupe: Dedupe = dedupe
        self._seen: set[bytes] = set()

    def is_new(self, record: Record) -> bool:
        """Whether no record with this one's key was here before; the record counts from now on."""
        if self.dedupe == "none":
            return True
        key = digest_of(record, self.dedupe)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    @property
    def reason(self) -> str:
        """Why a record that is not new is left out."""
        return "copy of an earlier row" if self.dedupe == "rows" else "prompt of an earlier row"


def digest_of(record: Record, dedupe: Dedupe) -> bytes:
    """What two records must share to be copies of each other."""
    digest = hashlib.blake2b(normalised(prompt_of(record)).encode(), digest_size=16)
    if dedupe == "rows":
        match record:
            case Demonstration():
                digest.update(b"\0" + record.response.encode())
            case Ranking():
                for tier, response in sorted(zip(record.tiers, record.responses, strict=True)):
                    digest.update(f"\0{tier}\0{response}".encode())
                # Two people who agree are no copies of each other.
                digest.update(f"\0\0{labeler_of(record)}".encode())
            case _:
                pass
    return digest.digest()


def seeded_order(count: int, seed: int) -> list[int]:
    """Positions 0 .. count-1, sorted by a hash of seed and position, so that more rows never reorder the first ones."""
    return sorted(range(count), key=lambda index: stream(seed, "order", index))


def capped(records: Sequence[K], per_task: int, dropped: Dropped) -> list[K]:
    """The first `per_task` records of each task; the rest is counted."""
    counts: Counter[str] = Counter()
    kept = []
    for record in records:
        task = task_of(record)
        counts[task] += 1
        if counts[task] <= per_task:
            kept.append(record)
        else:
            dropped.add(f"over per_task={per_task} of its task")
    return kept


def turns(weights: Sequence[float], start: int = 0) -> Iterator[int]:
    """Which source gives row start, start + 1, ... of a mix: the one that lags furthest behind its share.

    No source is ever behind its share by as many rows as there are sources. Ties go to the earlier source, so nothing
    is drawn and the n-th turn depends on the weights alone.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    given = [0] * len(shares)
    for position in itertools.count():
        lag = [share * (position + 1) - count for share, count in zip(shares, given, strict=True)]
        # The rounding keeps sums of floats from deciding a tie.
        source = max(range(len(lag)), key=lambda index: (round(lag[index], 9), -index))
        given[source] += 1
        if position >= start:
            yield source


def mixed(sources: Sequence[Sequence[K]], weights: Sequence[float]) -> Iterator[tuple[int, K]]:
    """Records of all sources, each with its source's index, by the sources' weights.

    It ends when the source whose turn it is has no more: going on would change the shares, repeating would train on
    rows twice unsaid.
    """
    if any(weight <= 0 for weight in weights):
        raise DataError(f"data: weights must be positive, found {list(weights)}. Leave the source out instead.")
    iterators = [iter(records) for records in sources]
    for index in turns(weights):
        for record in itertools.islice(iterators[index], 1):
            yield index, record
            break
        else:
            return
