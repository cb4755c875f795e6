"""One side of a benchmark in a process of its own: memory starts from nothing, and no side warms another's caches.

Nothing heavy is imported here: on Linux a child's peak memory begins with that of the process that forked it.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PPO_PEER = "1.12.0"
"""The last release of trl with a PPO."""


def start(
    script: str,
    side: str,
    settings: dict[str, Any],
    threads: int,
    *,
    first: Sequence[Path] = (),
    python: Path | None = None,
    seconds: float | None = None,
) -> Any:
    """What `benchmarks/<script> <side>` printed on its last line.

    first: folders of libraries that go before others. python: of another environment, which sees nothing of ours but
    the benchmarks. seconds: after so many the process is ended, and with it the benchmark.
    """
    libraries = [*first, ROOT] if python is None else first
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # Long enough that no thread sleeps between two operations of an idle machine: both sides at their fastest.
        # Onebase sets 1000 for its users (onebase/cli/threads.py).
        "GOMP_SPINCOUNT": "10000",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join(map(str, libraries)),
    }
    command = [str(python or sys.executable), str(Path(__file__).with_name(script)), side]
    try:
        done = subprocess.run(
            [*command, "--settings", json.dumps(settings)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"{script} {side} had not ended after {error.timeout:.0f} s, and was ended") from None
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def machine(threads: int) -> dict[str, Any]:
    """Where it was measured, and on which commit."""
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "system": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": threads,
        "load": os.getloadavg()[0],
        "commit": commit.stdout.strip() or None,
    }


def cpu_name() -> str | None:
    """What the processor calls itself, where the system says it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
