"""Files and folders written whole or not at all, their hashes, and old ones moved out of the way."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from onebase.errors import InputError
from onebase.files.disk import as_disk_error
from onebase.terminal import say

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of the disk. Another folder on it would not help."""


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def short_hash(value: object) -> str:
    """A value as an error names it: of a sha256 the first digits, anything else whole."""
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def create_file(path: Path) -> int:
    """Create a file and return its descriptor. A link or an old file of that name is removed first: others who may
    write to the folder can guess the names of our temporary files.

    FileExistsError if something appears under the name at that moment.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A new file beside `target` to write to. At the end of the block it is synced and takes the place of `target`: a
    reader (or a power cut) finds the old file or the whole new one. After an error it is removed.

    DiskError if the disk is full or fails.
    """
    with _replacing(target) as (temporary, descriptor):
        os.close(descriptor)
        yield temporary
        sync(temporary)


@contextlib.contextmanager
def atomic_stream(target: Path) -> Iterator[BinaryIO]:
    """The same as an open file. What is written goes to the file that was created, whatever takes its name."""
    with _replacing(target) as (_, descriptor), os.fdopen(descriptor, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[tuple[Path, int]]:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield temporary, create_file(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        failure = as_disk_error(error, target.parent)  # before the file is removed: it counts the free bytes
        if failure is None:
            raise
        raise failure from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(target: Path, *, aside: Path | None = None, needed: int | None = None) -> Iterator[Path]:
    """A new folder beside `target` to write to. At the end of the block all of it is synced and it is renamed to
    `target`, which must be free by then. After an error it is removed.

    aside: where a folder of that name goes right before, when nothing is left to fail but the renaming.
    needed: bytes that are written, for the error.
    DiskError if the disk is full or fails; FileExistsError if its temporary name is taken by a file, or by a link that
    somebody has put there.
    """
    for half in target.parent.glob(f".{target.name}.*"):  # left behind by processes that were killed
        if half.suffix[1:].isdecimal() and not half.is_symlink():
            shutil.rmtree(half, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            sync(path)
        sync(temporary)
        if aside is not None and os.path.lexists(target):
            os.rename(target, aside)
        os.rename(temporary, target)
        sync(target.parent)
    except FileExistsError:
        raise
    except Exception as error:  # safetensors and tokenizers have their own for a disk that fails
        failure = as_disk_error(error, target.parent, needed=needed)  # while what was written still takes its room
        if failure is None:
            raise
        raise failure from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_file(target: Path, text: str) -> None:
    """Write a text file whole or not at all; DiskError if the disk is full or fails."""
    with atomic_stream(target) as stream:
        stream.write(text.encode())


def canonical(content: Any) -> str:
    """JSON with sorted keys: equal content has equal bytes."""
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
