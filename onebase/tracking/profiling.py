"""`--profile`: a few steps of a run under torch.profiler, for a person to look into."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from onebase.terminal import say

T = TypeVar("T")

STEPS = 2
"""Profiled steps: one of the demo's is 700,000 operations."""


def profiled(steps: Iterable[T], *, total: int, folder: Path) -> Iterator[T]:
    """Yield the steps; the second and third, or the only one, run under the profiler.

    It then writes `trace.json.gz` into the folder: every operation, in the parts that `onebase.tracking.usage` names.
    The first step is left out where there are others: it also warms up. total: how many steps there are.
    """
    steps, watched = iter(steps), 0
    yield from islice(steps, int(total > 1))
    devices = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=devices) as profiler:
        for step in islice(steps, STEPS):
            yield step
            watched += 1
    if watched:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json.gz"))
        say(f"profile of {watched} steps: {folder}/trace.json.gz")
    yield from steps
