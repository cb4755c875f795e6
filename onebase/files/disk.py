"""Files that reach the disk, and disks that fail or are full: which one it is, and how many bytes it has left."""

import errno
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError


class DiskError(OSError):
    """A disk is full, fails or takes nothing. The message names the disk and its bytes, or the file."""

    def __str__(self) -> str:
        return str(self.strerror)  # OSError puts "[Errno 28]" before it


def as_disk_error(error: BaseException, folder: Path, *, needed: int | None = None) -> DiskError | None:
    """What to say where `error` came from the disk that holds `folder`; None where it is about something else.

    needed: bytes that were to be written.
    """
    if isinstance(error, DiskError):
        return error
    number = _number(error)
    path = Path(error.filename) if isinstance(error, OSError) and isinstance(error.filename, str) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
        disk = mount_point(folder if path is None else path.parent)  # when it is known: it may lie in a cache
        what = f"{os.strerror(number)}: the disk at {disk} has {shutil.disk_usage(disk).free} bytes free"
        needs = "" if needed is None else f", and {needed} bytes were to be written"
        return DiskError(number, f"{what}{needs}: {path or folder}")
    # What the system has against a file in the folder: taken away, made read-only, replaced by something else.
    if path is not None and number is not None and path.absolute().is_relative_to(folder.absolute()):
        return DiskError(number, f"{os.strerror(number)}: {path.absolute()}")
    return None


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors and tokenizers tell what the system said in words only, the latter in a bare Exception.
    in_words = isinstance(error, SafetensorError) or type(error) is Exception
    match = re.search(r"os error (\d+)", str(error)) if in_words else None
    return int(match[1]) if match else None


def mount_point(folder: Path) -> Path:
    """Where the disk that holds `folder` (which need not exist yet) is mounted."""
    folder = folder.absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists()).resolve()
    return next(path for path in (place, *place.parents) if os.path.ismount(path))
