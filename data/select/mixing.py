"""How many records of a task, and which source gives the next record of a mix.

Turns depend on weights and positions alone. The mix from row n on is the mix without its first n rows, so a run that
resumes needs to know the row and nothing else.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

from data.records import Demonstration, Prompt, Ranking, Record
from data.select.dropped import DroppedRows
from onebase.errors import DataError

K = TypeVar("K", Prompt, Demonstration, Ranking)

TASK_KEYS = ("task", "family", "template", "category")
"""Keys of a prompt's `meta` that may name its task; the first one that is there does."""

UNNAMED = "(none)"
"""The task of a prompt that names none."""


def task_of(record: Record) -> str:
    """The task a record belongs to, for caps and counts."""
    meta = record.prompt.meta
    return next((str(meta[key]) for key in TASK_KEYS if meta.get(key) not in (None, "")), UNNAMED)


def capped(records: Sequence[K], per_task: int, dropped: DroppedRows) -> list[K]:
    """The first `per_task` records of each task; the others are counted as dropped."""
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

    No source is ever behind its share by as many rows as there are sources. Ties go to the earlier source: nothing is
    drawn, and the n-th turn depends on the weights alone.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    counts = [0] * len(shares)
    for position in itertools.count():
        lag = [share * (position + 1) - count for share, count in zip(shares, counts, strict=True)]
        # The rounding keeps sums of floats from deciding a tie.
        source = max(range(len(lag)), key=lambda index: (round(lag[index], 9), -index))
        counts[source] += 1
        if position >= start:
            yield source


def mixed(sources: Sequence[Sequence[K]], weights: Sequence[float]) -> Iterator[tuple[int, K]]:
    """Records of all sources, each with its source's index, by the sources' weights.

    It ends when the source with the next turn has no more records. To continue would change the shares, and to repeat
    records would silently train on them twice.
    """
    if any(weight <= 0 for weight in weights):
        raise DataError(f"data: weights must be positive, found {list(weights)}. Leave the source out instead.")
    iterators = [iter(records) for records in sources]
    for index in turns(weights):
        try:
            yield index, next(iterators[index])
        except StopIteration:
            return
