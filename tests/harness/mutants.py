"""Named faults, put in one by one: every one must turn the tests that its entry names red.

    python tests/harness/mutants.py [--jobs 2] [--only NAME ...]

Reads tests/harness/mutations.yaml. Works in copies of the repository in a temporary folder; the working tree is never
touched.

Many tests begin with a finished run, which takes longer than all the rest. It is made once, without a fault. Tests that
pass with its copy are run again with a run of their own: the fault may be in what makes it.
Exit code 0: all killed; 1: a fault left its tests green; 2: the tests do not pass without a fault, or could not run.
"""

import argparse
import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))

from forks import Forks

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = ROOT / "tests" / "harness" / "mutations.yaml"
PASSED, FAILED = 0, 1
"""Pytest's exit codes. Any other means that the tests did not run (2 interrupted or no import, 4 usage, 5 no tests)."""

FINISHES = "tests/pipeline/test_run.py::test_every_stage_of_a_run_is_recorded_and_verifies"
"""A test that makes the finished runs, in fp32 and in NF4."""

Verdict = Literal["killed", "survived", "error"]


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One fault: a text that occurs once in a file, what stands there instead, and the tests that must notice."""

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    mutation: Mutation
    verdict: Verdict
    seconds: float
    detail: str
    """The first failing test, or what went wrong."""


def read_mutations(path: Path = MUTATIONS) -> list[Mutation]:
    """All faults of the file; an entry with a missing or unknown key is a TypeError."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Mutation(**{**entry, "tests": _listed(entry.get("tests"))}) for entry in entries]


def _listed(tests: str | list[str]) -> tuple[str, ...]:
    return (tests,) if isinstance(tests, str) else tuple(tests)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Put in every fault of tests/harness/mutations.yaml; its tests must turn red."
    )
    parser.add_argument("--jobs", type=int, default=2, help="copies of the repository that work side by side")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults and no others")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    chosen = _choose(read_mutations(), options.only, parser)
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        copies = [copy_repository(Path(temporary) / str(job) / "onebase") for job in range(max(1, options.jobs))]
        for copy in copies:
            require_own_packages(copy)
        with contextlib.ExitStack() as stack:
            forks = {
                copy: stack.enter_context(contextlib.closing(Forks(copy, environment_of(copy)))) for copy in copies
            }
            if not _green_without_faults(forks, chosen, console):
                return 2
            several = options.only is None  # for a few faults the finished runs would take longer than they save
            if several and not _finish_runs(forks, console):
                return 2
            outcomes = list(_run_all(forks, chosen, console))
    console.print(_table(outcomes))
    survived, errors = (sum(outcome.verdict == verdict for outcome in outcomes) for verdict in ("survived", "error"))
    console.print(f"{len(outcomes) - survived - errors} of {len(outcomes)} faults killed.")
    return 1 if survived else 2 if errors else 0


def _choose(mutations: list[Mutation], only: list[str] | None, parser: argparse.ArgumentParser) -> list[Mutation]:
    unknown = sorted(set(only or ()) - {mutation.name for mutation in mutations})
    if unknown:
        parser.error(f"no fault named {', '.join(unknown)} in {MUTATIONS.relative_to(ROOT)}")
    return [mutation for mutation in mutations if only is None or mutation.name in only]


def copy_repository(target: Path) -> Path:
    """A copy of what git tracks or would track, as it stands in the working tree, changes included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a deleted file is still listed until the deletion is committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def environment_of(copy: Path) -> dict[str, str]:
    """That of pytest on a copy: its packages come before the installed ones, which are links into the working tree."""
    return {
        **os.environ,
        "PYTHONPATH": str(copy),
        # A fault must never be read from, or left behind in, a cache: two edits in one second have the same mtime.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # libraries start CUDA when they are imported, and no fork can use it after that
    }


def run_pytest(forks: Forks, *arguments: str) -> tuple[int, str]:
    """Exit code and output, up to the first failing test."""
    return forks.pytest("-x", "-q", "-p", "no:cacheprovider", *arguments)


def _green_without_faults(forks: Mapping[Path, Forks], mutations: Sequence[Mutation], console: Console) -> bool:
    """Whether all named tests pass as things are."""
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    start = time.perf_counter()
    with ThreadPoolExecutor(len(forks)) as pool:
        jobs = [(fork, tests[number :: len(forks)]) for number, fork in enumerate(forks.values())]
        done = list(pool.map(lambda job: run_pytest(job[0], *job[1]), [job for job in jobs if job[1]]))
    for code, printed in done:
        if code != PASSED:
            console.print(printed, markup=False, highlight=False)
            console.print("[red]The named tests are not green without any fault; nothing was tried.")
            return False
    console.print(f"{len(tests)} test files and tests are green without a fault ({time.perf_counter() - start:.0f} s).")
    return True


def require_own_packages(copy: Path) -> None:
    """Every package with a fault in it must come out of the copy; a RuntimeError otherwise."""
    packages = sorted({path.parent.name for path in copy.glob("*/__init__.py")})
    code = f"for name in {packages}: print(__import__(name).__file__)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(
        command, cwd=copy, env=environment_of(copy), capture_output=True, text=True, check=True
    ).stdout
    strangers = [line for line in printed.splitlines() if not Path(line).resolve().is_relative_to(copy.resolve())]
    if strangers or not packages:
        raise RuntimeError(f"{copy}: tests would import {strangers or 'nothing'} and not the copy.")


def _finish_runs(forks: Mapping[Path, Forks], console: Console) -> bool:
    """Make the finished runs of every copy, beside it."""
    with ThreadPoolExecutor(len(forks)) as pool:
        done = list(pool.map(lambda copy: run_pytest(forks[copy], f"--runs={_runs_of(copy)}", FINISHES), forks))
    for code, printed in done:
        if code != PASSED:
            console.print(printed, markup=False, highlight=False)
            return False
    for copy in forks:
        shutil.copytree(_runs_of(copy), _sound_runs_of(copy))
    return True


def _runs_of(copy: Path) -> Path:
    return copy.parent / "runs"


def _sound_runs_of(copy: Path) -> Path:
    return copy.parent / "sound"


def _restore_runs(copy: Path) -> None:
    """A fault may have written into them."""
    shutil.rmtree(_runs_of(copy), ignore_errors=True)
    shutil.copytree(_sound_runs_of(copy), _runs_of(copy))


def _run_all(forks: Mapping[Path, Forks], mutations: Sequence[Mutation], console: Console) -> Iterator[Outcome]:
    """Outcomes in the order of the file; each copy holds one fault at a time."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for copy in forks:
        free.put(copy)

    def tried(mutation: Mutation) -> Outcome:
        copy = free.get()
        try:
            return try_mutation(copy, forks[copy], mutation)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(forks)) as pool:
        for outcome in pool.map(tried, mutations):
            console.print(f"{outcome.verdict:9}{outcome.mutation.name}", style=_STYLES[outcome.verdict])
            yield outcome


def try_mutation(copy: Path, forks: Forks, mutation: Mutation) -> Outcome:
    """The verdict of the named tests on one fault; the copy is as before afterwards."""
    start = time.perf_counter()
    try:
        with applied(copy, mutation):
            code, printed = PASSED, ""
            if _sound_runs_of(copy).exists():
                _restore_runs(copy)
                code, printed = run_pytest(forks, f"--runs={_runs_of(copy)}", *mutation.tests)
            if code == PASSED:
                code, printed = run_pytest(forks, *mutation.tests)
    except ValueError as error:
        return Outcome(mutation=mutation, verdict="error", seconds=time.perf_counter() - start, detail=str(error))
    verdicts: dict[int, Verdict] = {FAILED: "killed", PASSED: "survived"}
    return Outcome(
        mutation=mutation,
        verdict=verdicts.get(code, "error"),
        seconds=time.perf_counter() - start,
        detail=_detail(code, printed),
    )


@contextlib.contextmanager
def applied(copy: Path, mutation: Mutation) -> Iterator[None]:
    """The fault in its file for as long as the block runs; ValueError when its text does not occur exactly once."""
    path = copy / mutation.file
    original = path.read_text(encoding="utf-8")
    if (count := original.count(mutation.find)) != 1:
        raise ValueError(f"{mutation.file}: the text to find occurs {count} times, expected once")
    if mutation.replace == mutation.find:
        raise ValueError(f"{mutation.file}: the replacement is the text itself")
    path.write_text(original.replace(mutation.find, mutation.replace), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(original, encoding="utf-8")


def _detail(code: int, printed: str) -> str:
    if code == PASSED:
        return "all tests passed"
    match = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", printed, flags=re.MULTILINE)
    last = printed.strip().splitlines()[-1:]
    return match[1] if match else f"pytest exited {code}: {''.join(last)}"


_STYLES: dict[Verdict, str] = {"killed": "green", "survived": "bold red", "error": "yellow"}


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("fault", "verdict", "seconds", "first failing test", title="Mutants")
    table.columns[2].justify = "right"
    table.columns[3].overflow = "fold"
    for outcome in outcomes:
        verdict = f"[{_STYLES[outcome.verdict]}]{outcome.verdict}"
        detail = outcome.detail.replace("tests/", "", 1).replace("[", r"\[")
        table.add_row(outcome.mutation.name, verdict, f"{outcome.seconds:.0f}", detail)
    return table


if __name__ == "__main__":
    sys.exit(main())
