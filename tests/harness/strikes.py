"""One case of `make faults`: a stage is struck, goes on, and its outcome is compared with an undisturbed run's."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import storage
from armed import FAILING, FAILS_FROM, FULL, POINTS, READ_ONLY, SIZES, WITHIN, Place, arm, find

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = ("KILL", "TERM", "INT")
PARENTS = {"sft": (), "reward": ("sft",), "ppo": ("sft", "reward"), "dpo": ("sft",)}


@dataclass(frozen=True, kw_only=True)
class Case:
    stage: str
    point: str
    kind: str
    control: bool = False

    @property
    def name(self) -> str:
        return "-".join([self.stage, "".join(filter(str.isalnum, self.point)), self.kind] + ["control"] * self.control)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    case: Case
    struck: bool
    survived: bool
    """The same command, given again, came to its end; where a disk failed, the last checkpoint had stood."""
    equal: bool
    detail: str

    def __str__(self) -> str:
        case = self.case
        start = "struck" if self.struck else "NOT STRUCK"
        end = "equal" if self.equal else f"{'NOT EQUAL' if self.survived else 'BROKEN'} {self.detail}"
        return f"{case.stage}{' (control)' * case.control}: {case.kind} at '{case.point}': {start}, {end}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where stages run, and with what."""

    home: Path
    base: Path | None
    """The tiny one; None: the recipes' own."""
    parents: Path | None
    recipes: Path = ROOT / "recipes/smoke"
    at: int | None = None
    """The backward pass at which a stage of other recipes is killed."""

    def command(self, stage: str, out: Path) -> list[str]:
        """A run of the tiny base has four steps and is saved after every one."""
        every = 10 if self.base is None else 1
        parents = () if self.parents is None else PARENTS[stage]
        return [
            str(self.recipes / f"{stage}.yaml"),
            *(f"out={out}", "track.wandb=off", f"checkpoint.every_steps={every}"),
            *(f"parents.{name}={self.parents}/{name}" for name in parents),
            *([] if self.base is None else [f"base.model={self.base}", *SIZES[stage]]),
        ]

    def place(self, case: Case) -> Place:
        return POINTS[case.stage][case.point] if self.at is None else ("torch:Tensor.backward", "before", self.at)


def run_forked(work: Callable[[], int]) -> int:
    """The exit status of `work` in a forked process, as `os.waitstatus_to_exitcode` gives it."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        code = work()
    finally:
        os._exit(code)


def run_stage(stage: str, command: Sequence[str], log: Path, *prepare: Callable[[], None]) -> int:
    """The stage's command, its output in `log`; `prepare` is called before it."""
    from onebase.cli.parser import main
    from pipeline import stages

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    for act in prepare:
        act()
    return main(stage, stages.loader(stage), "", "", command)


def weaken(home: Path) -> None:
    """The control: from now on, in this process, no file in `home` is verified and nothing is synced."""
    from onebase.files.writing import hash_file

    def unchecked(path: Path) -> str:
        return "unchecked" if home in path.parents else hash_file(path)

    for where in (
        "onebase.run.checkpoint:hash_file",
        "onebase.run.record:hash_file",
        "onebase.run.stage_files:hash_file",
    ):
        owner, name = find(where)
        setattr(owner, name, unchecked)
    os.fsync = lambda file: None


def outcome(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """Everything that must be equal: files by what they hold, metrics without times, samples.

    verify: whether a child would take it as its parent.
    """
    from onebase.run import record

    try:
        if verify:
            record.read(folder)
        return _read_outcome(folder)
    except (record.RecordError, OSError, ValueError, KeyError) as error:
        return {"files": str(error)}


def _read_outcome(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "stage.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def timed(name: str) -> bool:
        return "time/" in name or "memory/" in name or name.endswith("tokens_per_second")

    return {
        "files": {
            name: sha256(folder / name) for name in content["files"] if name.startswith(("adapter/", "tokenizer/"))
        },
        "metrics": [{name: value for name, value in row.items() if not timed(name)} for row in rows],
        "samples": (folder / "samples.jsonl").read_text(),
        "final": {name: value for name, value in content["metrics"].items() if not timed(name)},
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stands(folder: Path, *, halves: bool = False) -> bool:
    """Whether a checkpoint verifies by its own manifest, and nothing half-written lies beside it (halves: it may)."""
    checkpoints = folder / "checkpoints"
    for step in checkpoints.glob("step-*"):
        files = json.loads((step / "manifest.json").read_text())["files"]
        if any(sha256(step / name) != expected for name, expected in files.items()):
            return False
    return any(checkpoints.glob("step-*")) and (halves or not any(checkpoints.glob(".step-*")))


def strike(case: Case, bench: Bench, expected: Any) -> Verdict:
    """One case: start, be struck, go on, compare."""
    with contextlib.ExitStack() as stack:
        home = bench.home / case.name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        disk = stack.enter_context(storage.small_disk(home / "disk")) if case.kind == "ENOSPC" else home / "disk"
        disk.mkdir(exist_ok=True)
        folder, log, synced = disk / case.stage, home / "log.txt", home / "synced.txt"
        command = bench.command(case.stage, folder)
        armed, recorded = arming(case, bench, disk), [partial(storage.record_syncs, synced)]
        weakened = [partial(weaken, home)] if case.control else []
        code = run_forked(lambda: run_stage(case.stage, command, log, *recorded, *weakened, armed))
        printed = log.read_text()
        if case.kind in SIGNALS:
            number = signal.Signals[f"SIG{case.kind}"]
            struck, kept = code == (-int(number) if case.kind == "KILL" else 128 + int(number)), True
            lost = storage.lose(folder, synced, case.name) if case.kind == "KILL" else []
        else:
            struck, kept, lost = *disk_verdict(case, code, printed, folder), list[str]()
            if case.kind == "ENOSPC":
                storage.make_room(disk)
            if case.kind == "EROFS":
                storage.make_writable(disk)
        again = run_forked(lambda: run_stage(case.stage, command, log, *weakened))
        survived = again == 0 and kept
        result = outcome(folder, verify=not case.control) if again == 0 else {}
    differing = [key for key in expected if result.get(key) != expected[key]]
    ends = f"exit {code}, then {again}{'' if kept else ', no checkpoint stood'}"
    refused = [result["files"]] if isinstance(result.get("files"), str) else []
    detail = "; ".join([ends, *refused, *([f"differing: {', '.join(differing)}"] if differing else []), *lost])
    equal = struck and survived and not differing
    if equal:
        shutil.rmtree(home)
    return Verdict(case=case, struck=struck, survived=survived, equal=equal, detail=detail)


def disk_verdict(case: Case, code: int, printed: str, folder: Path) -> tuple[bool, bool]:
    """Whether a disk's fault was met and told as it should be; and whether a checkpoint stood."""
    words = os.strerror({"ENOSPC": 28, "EROFS": 30, "EIO": 5}[case.kind])
    if "start" in case.point:
        return (
            code == 2 and f"cannot be written ({words})" in printed and not folder.exists(),
            "Traceback" not in printed,
        )
    told = f"{words}: the disk at " in printed and " bytes free" in printed and "Traceback" not in printed
    # What cannot be written can be as little removed.
    return told and code in (0, 1), stands(folder, halves=case.kind == "EROFS")


def arming(case: Case, bench: Bench, disk: Path) -> Callable[[], None]:
    """What the process that is to be struck does before its command."""
    if case.kind == "ENOSPC":
        place, leave = FULL[case.point]
        return partial(arm, place, partial(storage.fill, disk, leave=leave))
    if case.kind == "EROFS":
        return partial(arm, READ_ONLY[case.point], partial(storage.make_read_only, disk))
    if case.kind == "EIO":
        return partial(arm, FAILS_FROM, partial(storage.fail_calls, *FAILING[case.point]))
    if case.point in WITHIN:
        return partial(arm, FAILS_FROM, partial(storage.fail_calls, *FAILING[WITHIN[case.point]], kill=True))
    number = signal.Signals[f"SIG{case.kind}"]
    return partial(arm, bench.place(case), lambda: os.kill(os.getpid(), number))


def undisturbed(stage: str, bench: Bench) -> dict[str, Any]:
    """The outcome of a run that nothing happens to."""
    folder, log = bench.home / f"{stage}-undisturbed", bench.home / "log.txt"
    if not (folder / "stage.json").is_file():
        code = run_forked(lambda: run_stage(stage, bench.command(stage, folder), log))
        assert code == 0, log.read_text()
    return outcome(folder)
