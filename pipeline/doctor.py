"""`onebase doctor`: what this machine has, and what would break a run on it."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from onebase.files.paths import expanded
from onebase.run.record import LIBRARIES
from onebase.terminal import console

PACKAGES = ("onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline")
FREE_BYTES = 5 * 2**30
"""What a run of the demo needs at most: the base in the cache, adapters, records."""


def report(path: Path) -> int:
    """Print the findings; 1 when one of them would break a run, else 0."""
    findings = [*_software(), *_machine(path)]
    table = Table(Column(style="bold"), Column(overflow="fold"), show_header=False, box=None)
    for name, value, _ in findings:
        table.add_row(name, value)
    screen = console()
    screen.print(table)
    problems = [problem for _, _, problem in findings if problem]
    for problem in problems:
        screen.print(Text.assemble(("problem:", "bold red"), f" {problem}"))
    if not problems:
        screen.print("Nothing here would break a run.", style="green")
    return 1 if problems else 0


Finding = tuple[str, str, str]
"""Name, value, and the problem with it (empty: none)."""


def _software() -> Iterator[Finding]:
    problem = "" if sys.version_info >= (3, 11) else "Onebase needs Python 3.11 or newer."
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", problem
    for name in LIBRARIES:
        try:
            yield name, metadata.version(name), ""
        except metadata.PackageNotFoundError:
            yield name, "missing", f"{name} is not installed: pip install -c constraints.txt -e ."
    home = Path(__file__).resolve().parent.parent
    strangers = _strangers(home)
    problem = f"other packages hide those of Onebase: {'; '.join(strangers)}" if strangers else ""
    yield "packages", f"all in {home}" if not strangers else "shadowed", problem


def _strangers(home: Path) -> list[str]:
    """Another package of the same name (`data` is a common one) would be imported instead of ours."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    return [
        f"{name} is {spec.origin if spec else 'missing'}"
        for name, spec in specs.items()
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != home
    ]


def _machine(path: Path) -> Iterator[Finding]:
    """path: where runs will be written."""
    import torch

    from onebase.model import base as bases
    from onebase.tracking.dashboard import logged_in

    device = bases.default_device()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        described = f"CPU, {os.cpu_count()} cores, {memory:.0f} GiB of memory"
    yield "device", described, ""
    slow = "; bf16 only emulated, 25 to 100 times slower, and refused"
    yield "computes in", "fp32, nf4" + (", bf16" if bases.has_fast_bf16(device) else slow), ""
    mode = os.environ.get("WANDB_MODE")
    online = "logged in: runs go online" if logged_in() else "not logged in: runs stay offline (`wandb sync`)"
    yield "W&B", f"WANDB_MODE={mode}" if mode else online, ""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    yield "threads", ", ".join(f"{name}={os.environ.get(name, 'not set')}" for name in names), ""
    path = expanded(path).absolute()
    # The folder of runs may not exist yet.
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    problem = "" if free >= FREE_BYTES else f"{place.resolve()} has {free / 2**30:.1f} GiB free; a run may need 5."
    yield "disk", f"{free / 2**30:.1f} GiB free in {place.resolve()}", problem
