"""Runs the command of a stage, and turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 bad input, 129, 130 or 143 stopped by a signal with a checkpoint written, 141 stopped
for nobody reads what is printed.
"""

import contextlib
import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from onebase.errors import CodeError, InputError, Interrupted, RecordError
from onebase.files.disk import DiskError, as_disk_error
from onebase.files.writing import move_aside
from onebase.recipe import reader, sections
from onebase.recipe.differences import differences, summary
from onebase.recipe.sections import Section, StageRecipe
from onebase.run import folders, record
from onebase.terminal import NobodyReadsError, release_streams, say, show


class Stage(NamedTuple):
    recipe: type[StageRecipe]
    run: Callable[..., object]
    identify: Callable[..., Any]
    """What a run of a recipe goes by now, a `onebase.run.identity.RunIdentity`. A finished run is compared with it."""


Loader = Callable[[], Stage]
"""Imports a stage when it is needed: its recipe's class and its `run`. torch and trl take seconds; --help must not."""


def run_stage(
    stage: str,
    load: Loader,
    recipe_path: Path,
    overrides: Sequence[str],
    print_config: bool,
    restart: bool,
    **flags: bool,
) -> int:
    """Read the recipe, run the stage unless it is finished, and turn errors into exit codes. flags: for its `run`."""

    def work() -> None:
        recipe_class, run, identify = load()
        recipe = reader.read(recipe_path, recipe_class, overrides)
        if print_config:
            show(reader.dump(recipe).rstrip("\n"))
            return
        out = recipe.out
        folders.require_own(out, stage)
        if record.is_finished(out) and not restart:
            _verify_finished(stage, recipe, out, identify)
            return
        folders.require_writable(out)
        try:
            if not folders.is_free(out):
                _make_way(stage, out, restart)
            run(recipe, **flags)
        except (Interrupted, CodeError) as end:
            end.add_note(folders.what_follows(out, restart=restart))
            raise
        except Exception as error:
            failure = as_disk_error(error, out)
            if failure is not None:
                failure.add_note(folders.what_follows(out, restart=restart))
                raise failure from error
            raise
        finally:
            folders.release(out)

    return guarded(work)


QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # torch.profiler says when it starts and stops at every level below this one.
    "KINETO_LOG_LEVEL": "6",
}


def quieten() -> None:
    """Keep the libraries' bars and notices off the screen: ours say what happens, and errors still come through."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # bitsandbytes looks for an optional kernel package at import and logs that there is none.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # TRL 1.16 passes transformers' old names for activation checkpointing.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing.*")


@contextlib.contextmanager
def without_input() -> Iterator[None]:
    """Nothing may ask: a library that would (run this code? log in?) finds no terminal and the end of its input."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def guarded(work: Callable[[], int | None]) -> int:
    """Run `work`; its exit code (None: 0), or that of its error, with what the user needs to know on stderr."""
    quieten()
    try:
        with without_input():
            return work() or 0
    except BaseException as error:
        code, text = _ending(error)
        if text:
            say(text)
        return code
    finally:
        release_streams()


def _ending(error: BaseException) -> tuple[int, str]:
    """Exit code and words."""
    notes = getattr(error, "__notes__", [])
    match error:
        case InputError():
            return 2, _sentences(f"error: {error}", *notes)
        case Interrupted():
            return error.exit_code, "; ".join(["stopped", *notes])
        case KeyboardInterrupt():
            return 130, "interrupted"
        case SystemExit(code=code):
            # Nothing of ours calls sys.exit() in here: a library has, and its code may well be 0.
            return 1, f"error: something called sys.exit({'' if code is None else code!r}) in the middle of the work"
        case NobodyReadsError():
            return 128 + signal.SIGPIPE, ""  # as of any program whose reader has what it wanted
        case DiskError():
            return 1, _sentences(f"error: {error}.", REMEDIES.get(error.errno or 0, "Fix that"), *notes)
        case OSError(errno=int(number)) if error.filename is not None or number in REMEDIES:
            where = "" if error.filename is None else f"{error.filename}: "
            remedies = [REMEDIES[number]] if number in REMEDIES else []
            return 1, _sentences(f"error: {where}{os.strerror(number)}.", *remedies)
        case Exception():
            return 1, "".join(traceback.format_exception(error)).rstrip("\n")
        case _:
            raise error


REMEDIES = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room",
    errno.EIO: "Look at the disk",
    errno.EROFS: "Let it be written again",
    errno.EEXIST: "Move it away",
    errno.EISDIR: "Move it away",
}
"""What the user can do about a disk, or a file that is in the way."""


def _sentences(first: str, *notes: str) -> str:
    return " ".join([first, *(f"{note[:1].upper()}{note[1:]}." for note in notes)])


def _make_way(stage: str, out: Path, restart: bool) -> None:
    """Keep an unfinished run with checkpoints, to resume it; move anything else aside."""
    folders.hold(out)
    if not restart and next(folders.step_folders(out / folders.CHECKPOINTS), None) is not None:
        return  # that it verifies is seen to when it is read
    aside = move_aside(out)
    if not restart:
        say(f"{out} held an unfinished run without a checkpoint, now in {aside}; stage {stage} starts again.")


def _verify_finished(stage: str, recipe: Section, out: Path, identify: Callable[..., Any]) -> None:
    finished = record.read(out, stage=stage)
    now, before = recipe.model_dump(mode="json"), _with_defaults(recipe, finished.record.recipe)
    differing = [key for key in now if key not in sections.UNCOUNTED and now[key] != before.get(key)]
    which = summary(differences({key: before.get(key) for key in differing}, {key: now[key] for key in differing}))
    if set(differing) - {sections.PARENTS}:
        raise RecordError(
            f"{out}: stage '{stage}' is finished with another recipe: {which}. "
            "Pass --restart to move it aside and train again, or another out=FOLDER."
        )
    try:
        today = identify(recipe)
    except InputError as error:
        raise RecordError(
            f"{out}: stage '{stage}' is finished and its files are whole, but what it was made of cannot be "
            f"compared with what is there now: {error} Put that back, or use the stage as it is, without this command: "
            f"parents.{stage}={out}."
        ) from error
    today.require_of(finished.record, where=f"{out}: stage '{stage}'{f' ({which})' if which else ''}")
    say(f"{out}: stage '{stage}' is finished and verified; nothing to do.")


def _with_defaults(recipe: Section, recorded: dict[str, Any]) -> dict[str, Any]:
    """A recorded recipe with the defaults of keys that did not exist yet when it was written."""
    try:
        return type(recipe).model_validate(recorded).model_dump(mode="json")
    except ValidationError:
        return recorded
