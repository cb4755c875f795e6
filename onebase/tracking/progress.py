"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Generator, Iterable
from typing import TypeVar

from onebase.terminal import console, say

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15.0
"""In a log file, where a bar would be one endless line."""


def track(items: Iterable[T], *, total: int | None, description: str) -> Generator[T]:
    """Yield the items and show on stderr how many of `total` are done (None: how many there will be is not known)."""
    if sys.stderr.isatty():
        yield from _bar(items, total, description)
        return
    started = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown > SECONDS_BETWEEN_LINES or (done == total and now - started > SECONDS_BETWEEN_LINES):
            shown = now
            say(f"{description}: {done}{'' if total is None else f'/{total}'} after {now - started:.0f} s")


def _bar(items: Iterable[T], total: int | None, description: str) -> Generator[T]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # A bar without an end says nothing once it is over.
    with Progress(*columns, console=console(stderr=True), transient=total is None) as progress:
        yield from progress.track(items, total=total, description=description)
