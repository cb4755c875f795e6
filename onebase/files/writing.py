"""Files written whole or not at all, what identifies them, and old ones moved out of the way."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from onebase.errors import InputError
from onebase.files.disk import as_disk_error
from onebase.terminal import say

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""No fault of the folder that was given."""


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def create_file(path: Path) -> int:
    """A descriptor to write a new file of this name, never through a link: somebody who may write into the folder can
    guess the names of our temporary files. What a process that was killed has left under this name is removed.

    FileExistsError where something is put there at this very moment.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def sync(path: Path) -> None:
    """Make sure that a file or folder is on the disk and not only on its way there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(target: Path, text: str) -> None:
    """Write through a temporary sibling, so that a reader (or a power cut) sees the old file or the whole new one."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with os.fdopen(create_file(temporary), "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        told = as_disk_error(error, target.parent)  # while what was written still takes its room
        with contextlib.suppress(OSError):
            temporary.unlink()
        if told is None:
            raise
        raise told from error


def canonical(content: Any) -> str:
    """JSON with sorted keys, so that equal content has equal bytes."""
    return json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def move_aside(path: Path) -> Path:
    """Rename a file or folder of ours to the first free `<name>.old-<number>` beside it, which is returned."""
    aside = free_name(path)
    try:
        os.rename(path, aside)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"{path}: cannot be moved to {aside} ({error.strerror}). Move it by hand.") from None
    say(f"{path}: what was there is now in {aside}")
    return aside


def free_name(path: Path) -> Path:
    """The first `<name>.old-<number>` beside it that is not there yet."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.old-{number}")):
        number += 1
    return aside
