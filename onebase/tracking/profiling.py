"""`--profile`: a few steps of a run under torch.profiler, for a person to look into."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from onebase.terminal import say

T = TypeVar("T")

STEPS = 2
"""That are profiled: one of the demo's is 700,000 operations."""

SHOWN = 60
"""Operations in the table."""


def profiled(steps: Iterable[T], *, total: int, folder: Path, logged: Callable[[], Mapping[str, float]]) -> Iterator[T]:
    """Yield the steps; the second and third, or the only one, run under the profiler, which then writes into `folder`.

    trace.json.gz   every operation, in the parts that `onebase.tracking.usage` names
    table.txt       seconds by part, then by operation

    The first step is left out where there are others: it also warms up. total: how many steps there are. logged: the
    metrics of the step that has just ended, of which the seconds by part are `<stage>/time/<part>`.
    """
    steps, rows = iter(steps), []
    yield from islice(steps, int(total > 1))
    devices = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=devices) as found:
        for step in islice(steps, STEPS):
            yield step
            rows.append(logged())
    if rows:
        folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(folder / "trace.json.gz"))
        tables = [by_part(rows), *by_operation(events_of(found))]
        (folder / "table.txt").write_text("\n".join(tables), encoding="utf-8")
        say(f"profile of {len(rows)} steps: {folder}/table.txt, trace.json.gz")
    yield from steps


def by_part(rows: Sequence[Mapping[str, float]]) -> str:
    """Mean seconds of each part of a step, the longest first, with its share; a step without that part counts as 0."""
    names = dict.fromkeys(name for row in rows for name in row if "/time/" in name)
    means = {name.partition("/time/")[2]: fmean(row.get(name, 0.0) for row in rows) for name in names}
    lines = [f"{seconds:12.3f} {seconds / means['step']:7.1%}  {part}" for part, seconds in _longest_first(means)]
    title = f"A step under the profiler, which slows it down (mean of {len(rows)})"
    return "\n".join([title, f"{'seconds':>12} {'share':>7}  part", *lines, ""])


def events_of(found: profile) -> list[Any]:
    """What was recorded. Not `key_averages()`: on a step of the demo it takes a minute and 3 GB more than this."""
    assert found.profiler is not None and found.profiler.kineto_results is not None, "it has run"
    return [event for event in found.profiler.kineto_results.events() if not event.is_async()]


def by_operation(events: Sequence[Any]) -> Iterator[str]:
    """Where the GPU's time went, where there is one, and the CPU's."""
    on_cpu = [event for event in events if event.device_type().name == "CPU"]
    # Ranges of the GPU's time line that bear our parts' names hold the kernels and would count them twice.
    on_gpu = [one for one in events if one.device_type().name == "CUDA" and not one.is_user_annotation()]
    kernels = Counter[str]()
    for one in on_gpu:
        kernels[one.name()] += one.duration_ns()
    if kernels:
        seconds = {name: nanoseconds / 1e9 for name, nanoseconds in kernels.items()}
        yield _table("Kernels on the GPU by their time", seconds, on_gpu)
    title = "Operations on the CPU by the time in themselves, without what they call"
    yield _table(title, self_seconds(on_cpu), on_cpu)


def self_seconds(events: Sequence[Any]) -> dict[str, float]:
    """Seconds by name, without those of events within an event: events of a thread hold one another or are apart."""
    nanoseconds, open_events = Counter[str](), list[tuple[int, int, str]]()
    for event in sorted(events, key=lambda one: (one.start_thread_id(), one.start_ns(), -one.end_ns())):
        thread, start = event.start_thread_id(), event.start_ns()
        while open_events and (open_events[-1][0] != thread or open_events[-1][1] <= start):
            open_events.pop()
        if open_events:
            nanoseconds[open_events[-1][2]] -= event.duration_ns()
        nanoseconds[event.name()] += event.duration_ns()
        open_events.append((thread, event.end_ns(), event.name()))
    return {name: one / 1e9 for name, one in nanoseconds.items()}


def _table(title: str, seconds: Mapping[str, float], events: Sequence[Any]) -> str:
    calls = Counter(event.name() for event in events)
    rows = [f"{one:12.3f} {calls[name]:9}  {name[:80]}" for name, one in _longest_first(seconds)[:SHOWN]]
    return "\n".join([title, f"{'seconds':>12} {'calls':>9}  operation", *rows, ""])


def _longest_first(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda pair: -pair[1])
