"""`onebase doctor`: what this machine has, and what would break a run on it."""

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onebase.files.paths import expanded
from onebase.run.record import LIBRARIES
from onebase.terminal import console

PACKAGES = ("onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline")
FREE_BYTES = 5 * 2**30
"""What a run of the demo needs at most: the base in the cache, adapters, records."""


def report(path: Path) -> int:
    """Print the findings; 1 when one of them would break a run, else 0."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    problems: list[str] = []
    for name, value, problem in (
        _python(),
        *_libraries(),
        _shadowed(),
        *_device(),
        _wandb(),
        _threads(),
        _disk(path),
    ):
        table.add_row(name, value)
        if problem:
            problems.append(problem)
    screen = console()
    screen.print(table)
    for problem in problems:
        screen.print(Text.assemble(("problem:", "bold red"), f" {problem}"))
    if not problems:
        screen.print("Nothing here would break a run.", style="green")
    return 1 if problems else 0


Finding = tuple[str, str, str]
"""Name, value, and the problem with it (empty: none)."""


def _python() -> Finding:
    problem = "" if sys.version_info >= (3, 11) else "Onebase needs Python 3.11 or newer."
    return "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", problem


def _libraries() -> list[Finding]:
    findings = []
    for name in LIBRARIES:
        try:
            findings.append((name, metadata.version(name), ""))
        except metadata.PackageNotFoundError:
            problem = f"{name} is not installed: pip install -c constraints.txt -e ."
            findings.append((name, "missing", problem))
    return findings


def _shadowed() -> Finding:
    """Another package of the same name (`data` is a common one) would be imported instead of ours."""
    home = Path(__file__).resolve().parent.parent
    strangers = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != home:
            strangers.append(f"{name} is {spec.origin if spec else 'missing'}")
    problem = f"other packages hide those of Onebase: {'; '.join(strangers)}" if strangers else ""
    return "packages", f"all in {home}" if not strangers else "shadowed", problem


def _device() -> list[Finding]:
    torch = importlib.import_module("torch")
    bases = importlib.import_module("onebase.model.base")
    device = bases.default_device()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        described = f"CPU, {os.cpu_count()} cores, {_memory():.0f} GiB of memory"
    fast = bases.has_fast_bf16(device)
    formats = "fp32, nf4" + (", bf16" if fast else "; bf16 only emulated, 25 to 100 times slower, and refused")
    return [("device", described, ""), ("computes in", formats, "")]


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _wandb() -> Finding:
    from onebase.tracking.dashboard import logged_in

    mode = os.environ.get("WANDB_MODE")
    if mode:
        return "W&B", f"WANDB_MODE={mode}", ""
    return "W&B", "logged in: runs go online" if logged_in() else "not logged in: runs stay offline (`wandb sync`)", ""


def _threads() -> Finding:
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return "threads", ", ".join(f"{name}={os.environ.get(name, 'not set')}" for name in names), ""


def _disk(path: Path) -> Finding:
    path = expanded(path).absolute()
    while not path.exists():  # the folder of runs may not exist yet
        path = path.parent
    free = shutil.disk_usage(path).free
    problem = "" if free >= FREE_BYTES else f"{path.resolve()} has {free / 2**30:.1f} GiB free; a run may need 5."
    return "disk", f"{free / 2**30:.1f} GiB free in {path.resolve()}", problem
