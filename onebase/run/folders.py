"""The owner of a folder: nothing is deleted, renamed or written over where somebody else's files are.

A stage takes a folder that is not there yet or is empty, and puts its mark into it before anything else:

    sft/.onebase.json      {"schema_version": 1, "stage": "sft", "recipe": sha256 of recipe, parents and data}

A folder with other content belongs to a run only if it has that mark, a stage record, or a checkpoint with the files
of its manifest: older runs have neither mark nor record until they end. Every other folder is refused.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from onebase.errors import InputError
from onebase.files.writing import FULL, canonical, hash_file, replace_file
from onebase.run.nearby import CHECKPOINTS, MARK
from onebase.run.record import FILE

SCHEMA = 1
MANIFEST = "manifest.json"
STEP = re.compile(r"step-\d{8,}")
"""Name of a checkpoint's folder."""

ENTRIES = (
    *("adapter", "tokenizer", CHECKPOINTS, "data", "nonfinite", "profile", "best", "ema", "wandb", MARK, FILE),
    *("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "evaluation_samples.jsonl", "report.json"),
)
"""What a stage writes into its folder."""
RUN_ENTRIES = ("evaluation", "plots", "summary.json", "lineage.json")
"""What a comparison writes into the run's folder, beside the stages."""

COMPARISON = ("summary.json", "plots", "evaluation/metrics.jsonl", "evaluation/samples.jsonl")
"""What a comparison writes last of these: they exist only beside summary.json."""
LOCK = re.compile(r"\..+\.lock")
"""Name of the lock beside a stage's folder."""

_held: dict[Path, FileLock] = {}


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Inside, what the system says against `folder` is an InputError; a disk that is full or fails stays one."""
    try:
        yield
    except TimeoutError:  # a lock that another process holds
        raise
    except OSError as error:
        if error.errno in FULL:
            raise
        reason = error.strerror or str(error)
        raise InputError(f"{folder}: cannot be written ({reason}). Give another out=FOLDER.") from None


def require_writable(folder: Path) -> None:
    """InputError where nothing could be written into `folder`, or it could not be made. Touches nothing."""
    with writable(folder):
        place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            reason = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(reason, os.strerror(reason))


def require_plain(out: Path) -> None:
    """InputError where `out` could not be a run's folder, whatever is in it: a file, a link, `.`, `..`, `/`, home."""
    with writable(out):
        if out.is_symlink():
            raise InputError(f"{out}: is a link to {os.readlink(out)}. Give the folder itself as out=FOLDER.")
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: is a file, and a run needs a folder. Give another out=FOLDER.")
        place, homes = out.resolve(), {Path.cwd(): "the folder that you are in"}
        with contextlib.suppress(RuntimeError):
            homes[Path.home().resolve()] = "your home folder"
        for home, name in homes.items():
            if place == home or place in home.parents:
                holds = name if place == home else f"the folder above {name}"
                raise InputError(f"out={out}: is {holds}. A run needs a folder of its own: out=runs/NAME.")
        _require_outside_stages(out, place)


def _require_outside_stages(out: Path, place: Path) -> None:
    """place: `out`, resolved."""
    for folder in place.parents:
        stage = stage_of(folder)
        if stage is not None:
            raise InputError(f"{out}: lies in {folder}, the folder of a stage '{stage}'. Pass another one.")


def require_own(out: Path, stage: str) -> None:
    """InputError unless `out` is free or a folder of this very stage. Touches nothing."""
    require_plain(out)
    with writable(out):
        if is_free(out):
            return
        theirs = stage_of(out)
        if not _holds_a_run(out):
            raise InputError(
                f"{out}: is not empty, and no run of Onebase: it holds {_some(out)}, and no {MARK}. Nothing in it was "
                "touched. Give another out=FOLDER, or move it away."
            )
        if theirs is not None and theirs != stage:
            raise InputError(
                f"{out}: is the folder of a stage '{theirs}', and this is stage '{stage}'. Give another out=FOLDER."
            )
        _require_no_links(out, ENTRIES)


def claim(out: Path, stage: str, recipe: str) -> None:
    """Make `out` this stage's: its folder, and the mark in it. recipe: sha256 of all that decides a result."""
    require_own(out, stage)
    with writable(out):
        out.mkdir(parents=True, exist_ok=True)
        if _mark_of(out) is None:
            replace_file(out / MARK, canonical({"schema_version": SCHEMA, "stage": stage, "recipe": recipe}))


def hold(folder: Path) -> None:
    """Let no other process work in this stage folder until this one ends; InputError when one does."""
    place = folder.resolve()
    if place in _held:
        return
    file = place.with_name(f".{place.name}.lock")
    lock = FileLock(file)
    try:
        with writable(folder):
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.is_symlink() or (file.exists() and (not file.is_file() or file.stat().st_size)):
                # To open it would empty it.
                raise InputError(f"{file}: is where the lock of a run lies, and is not a lock. Move it away.")
            lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{folder}: another process is working in this folder. Wait for it, stop it, or give another out=FOLDER."
        ) from None
    _held[place] = lock


def release(folder: Path) -> None:
    lock = _held.pop(folder.resolve(), None)
    if lock is not None:
        lock.release()


def require_run(out: Path) -> None:
    """InputError unless a comparison may write into `out`: free, or the folder around a run's stages."""
    require_plain(out)
    require_writable(out)
    with writable(out):
        stage = stage_of(out)
        if stage is not None:
            raise InputError(
                f"{out}: is the folder of a stage '{stage}'. Give the run's folder around it: {out.parent}."
            )
        # A lock is all that is left of a first stage that was refused before it had a folder.
        if is_free(out) or all(LOCK.fullmatch(name) for name in os.listdir(out)):
            return
        if _object_in(out / "summary.json", "schema_version", "run", "models") is None:
            ours = any(_holds_a_run(path) for path in out.iterdir() if path.is_dir())
            taken = [name for name in COMPARISON if os.path.lexists(out / name)]
            if not ours or taken:
                named = f"{taken[0]} in it is not a comparison's" if ours else f"it holds {_some(out)}"
                raise InputError(
                    f"{out}: is not the folder of a run of Onebase: {named}. Nothing in it was touched. "
                    "Give another out=FOLDER, or move that away."
                )
        _require_no_links(out, RUN_ENTRIES)
        _require_no_links(out / "evaluation", ("metrics.jsonl", "samples.jsonl", "responses", "answers.jsonl"))


def require_replaceable(folder: Path, main: str, keys: Sequence[str], others: Iterable[str]) -> None:
    """InputError where files that are to be written into `folder` are there and somebody else's.

    main: the JSON file that makes them ours, by its `keys`. others: what is written beside it.
    """
    with writable(folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"{folder}: is a file, and a folder is needed. Pass another one.")
        _require_outside_stages(folder, folder.resolve() / "-")
        if _object_in(folder / main, *keys) is not None:
            return
        taken = next((name for name in (main, *others) if os.path.lexists(folder / name)), None)
        if taken is not None:
            raise InputError(
                f"{folder / taken}: is there, and was not written by Onebase ({main} would say so). It is not written "
                "over: pass another folder, or move it away."
            )


def require_new(file: Path) -> None:
    """InputError where a file that is to be written is there already, or would lie in a stage's folder."""
    with writable(file):
        if os.path.lexists(file):
            raise InputError(f"{file}: is there already, and is not written over. Pass another name, or move it away.")
        _require_outside_stages(file, file.resolve())


def is_free(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it but what a mark cut short has left."""
    return not folder.exists() or all(re.fullmatch(rf"\.{re.escape(MARK)}\.\d+", name) for name in os.listdir(folder))


def stage_of(folder: Path) -> str | None:
    """The stage of this folder, by its mark or its record (which may fail to verify); None for any other folder."""
    holder = _mark_of(folder) or _object_in(folder / FILE, "schema_version", "stage", "recipe", "files")
    return holder["stage"] if holder is not None and isinstance(holder["stage"], str) else None


def _holds_a_run(folder: Path) -> bool:
    return stage_of(folder) is not None or any(True for _ in verified_checkpoints(folder))


def _mark_of(folder: Path) -> dict[str, Any] | None:
    mark = _object_in(folder / MARK, "schema_version", "stage")
    return mark if mark is not None and mark["schema_version"] == SCHEMA and isinstance(mark["stage"], str) else None


def _object_in(path: Path, *keys: str) -> dict[str, Any] | None:
    """The JSON object in a file of ours; None for a link, a missing file, or anything but an object with these keys."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
        if isinstance(content, dict) and content.keys() >= set(keys):
            return content
    return None


def _some(folder: Path) -> str:
    names = sorted(os.listdir(folder))
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _require_no_links(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (folder / name).is_symlink():
            raise InputError(
                f"{folder / name}: is a link to {os.readlink(folder / name)}, and a run writes to its own files only. "
                "Put the file or folder itself in its place, or give another out=FOLDER."
            )


# --- checkpoints --------------------------------------------------------------------------------------------------


def step_folders(checkpoints: Path) -> Iterator[Path]:
    """The folders of checkpoints by name, the newest last; whatever else is there is not ours."""
    # No list: beartype, which checks types in tests, would draw one of its elements from python's own generator, whose
    # state a checkpoint holds.
    if not checkpoints.is_dir():
        return iter(())
    named = (path for path in checkpoints.iterdir() if STEP.fullmatch(path.name))
    return iter(sorted(path for path in named if path.is_dir() and not path.is_symlink()))


def verified_checkpoints(out: Path) -> Iterator[Path]:
    """The checkpoints of a stage folder that have the files of their manifests, the newest first."""
    for folder in reversed([*step_folders(out / CHECKPOINTS)]):
        manifest = _object_in(folder / MANIFEST, "files", "recipe")
        with contextlib.suppress(OSError, ValueError, AttributeError):  # of an edited manifest
            files = {} if manifest is None else manifest["files"].items()
            if files and all(hash_file(folder / name) == expected for name, expected in files):
                yield folder


def what_follows(out: Path, *, restart: bool) -> str:
    """What giving the command again does, now that it has ended early; `restart`: it was given with --restart."""
    command = "the same command without --restart" if restart else "the same command"
    if stage_of(out) is not None and (out / FILE).is_file():
        return f"the stage is finished: {command} verifies it"
    checkpoint = next(verified_checkpoints(out), None)
    if checkpoint is None:
        return "no checkpoint was written yet, so the same command starts again"
    return f"{command} resumes from the last checkpoint, {checkpoint}"
