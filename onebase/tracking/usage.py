"""Time and memory that a run uses."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

import torch


class Clock:
    """Seconds of each named part since the clock was made, and of the rest.

        clock = Clock(device)
        with clock.part("rollout_decode"):
            ...
        clock.seconds("ppo/time/")   # .../rollout_decode: 1.5, .../other: 0.2, .../step: 1.7

    No part holds another: all of them and `other` add up to the step. A part's name is also the one that it has
    in the traces of torch.profiler.
    """

    def __init__(self, device: torch.device | None = None, *, now: Callable[[], float] = time.perf_counter) -> None:
        """device: a GPU is waited for at both ends of a part: its kernels still run after the calls have returned."""

        def finished() -> float:
            torch.cuda.synchronize(device)
            return now()

        self._read = finished if device is not None and device.type == "cuda" else now
        self._started = now()
        self._parts: dict[str, float] = {}
        self._inside: str | None = None

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs in here is `name`'s, also where it ends in an error: the time is spent."""
        assert self._inside is None, f"{name} inside {self._inside} would be counted twice"
        self._inside, start = name, self._read()
        try:
            with torch.profiler.record_function(name):
                yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + self._read() - start
            self._inside = None

    def seconds(self, prefix: str = "") -> dict[str, float]:
        """Of every part so far, of the rest (`other`), and of all together (`step`)."""
        step = self._read() - self._started
        parts = {**self._parts, "other": step - sum(self._parts.values()), "step": step}
        return {f"{prefix}{name}": seconds for name, seconds in parts.items()}


class Stopwatch:
    """What this process has used since it was made."""

    def __init__(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def usage(self) -> dict[str, float]:
        """Seconds, CPU seconds of all threads, and peak memory in bytes."""
        return {
            "seconds": round(time.perf_counter() - self._started, 1),
            "cpu_seconds": round(time.process_time() - self._cpu, 1),
            "peak_rss_bytes": peak_rss_bytes(),
            "peak_gpu_bytes": peak_gpu_bytes(),
        }


def peaks() -> dict[str, float]:
    """What a step logs of memory, in bytes, at most so far: of the process, and of torch's allocator on a GPU."""
    on_gpu = {"memory/cuda_peak": float(peak_gpu_bytes())} if torch.cuda.is_available() else {}
    return {"memory/peak": float(peak_rss_bytes()), **on_gpu}


def peak_gpu_bytes() -> int:
    """The most memory that torch's allocator has held on the GPU so far; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def peak_rss_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
