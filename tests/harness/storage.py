"""Disks that fill up, fail, or lose what was not synced: real ones where the system lets us.

A full disk is a small tmpfs of our own in a mount namespace of our own, filled up by a file. A failing disk is a
library of a few lines that the dynamic linker puts before libc (LD_PRELOAD): its write() and fsync() fail with EIO for
one file.

A lost page cache can only be simulated, for SIGKILL leaves it alone: `record_syncs` notes in the process to be killed
what was synced and what was renamed, and `lose` then does to the folder what a power cut may do: what was appended to a
file after its last fsync is cut off or reads as zeros, and a rename is undone unless its folder was synced after it.
Each loss is drawn by itself, seeded by the case: a disk writes in any order it likes.
"""

import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAILING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fnmatch.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* FAULT_CALL: write or fsync; FAULT_PATH: a pattern for the file's path; FAULT_COUNT: which matching call fails.
   FAULT_KILL: half of it is written, and then the process is killed. */
static int calls = 0;

static int fails(int file, const char *call) {
    const char *wanted = getenv("FAULT_CALL"), *pattern = getenv("FAULT_PATH"), *count = getenv("FAULT_COUNT");
    if (!wanted || !pattern || !count || strcmp(wanted, call)) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return !fnmatch(pattern, path, 0) && __sync_add_and_fetch(&calls, 1) == atoi(count);
}

ssize_t write(int file, const void *content, size_t size) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "write");
    if (!fails(file, "write")) return next(file, content, size);
    if (getenv("FAULT_KILL")) { next(file, content, size / 2); kill(getpid(), SIGKILL); }
    errno = EIO;
    return -1;
}

int fsync(int file) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fsync");
    if (fails(file, "fsync")) { errno = EIO; return -1; }
    return next(file);
}
"""


def enter_own_namespace() -> None:
    """Start this program again where mounts are its own and libc's calls can be made to fail, as far as the system
    allows; says what it does not allow."""
    if os.environ.get("FAULTS_STARTED"):
        return
    environment = {**os.environ, "FAULTS_STARTED": "yes"}
    library = build_failing()
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    for flags in ("--mount",), ("--user", "--map-root-user", "--mount"):
        probe = ["unshare", *flags, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0:
            command = ["unshare", *flags, sys.executable, *sys.argv]
            os.execvpe("unshare", command, {**environment, "FAULTS_MOUNTS": "yes"})
    print("ENOSPC: not attempted: this system lets us mount no tmpfs", flush=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def can_mount() -> bool:
    return bool(os.environ.get("FAULTS_MOUNTS"))


def can_fail() -> bool:
    return bool(os.environ.get("LD_PRELOAD"))


def build_failing() -> Path | None:
    """The library that makes calls fail, built with the system's compiler; None, and a line that says so, without."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        print("EIO: not attempted: there is no C compiler, or this is no Linux", flush=True)
        return None
    folder = Path(tempfile.gettempdir()) / f"faults-{os.getuid()}-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    source, library = folder / "failing.c", folder / "failing.so"
    source.write_text(FAILING)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    ctypes.CDLL(str(library))  # one that does not load would be ignored with a warning
    return library


def remove_failing() -> None:
    if can_fail():
        shutil.rmtree(Path(os.environ["LD_PRELOAD"]).parent)


def fail_calls(call: str, pattern: str, *, kill: bool = False) -> None:
    """From now on, in this process: the next `call` on a file of this name fails with EIO, and no other.

    kill: it writes one half, and the process is killed.
    """
    os.environ.update(FAULT_CALL=call, FAULT_PATH=pattern, FAULT_COUNT="1", **({"FAULT_KILL": "yes"} if kill else {}))


@contextmanager
def small_disk(place: Path, *, megabytes: int = 32) -> Iterator[Path]:
    """A disk of its own, empty."""
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,nr_inodes=2000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def make_read_only(place: Path) -> None:
    """Mount a folder over itself so that nothing can be made, written or removed in it."""
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)


def make_writable(place: Path) -> None:
    """Undo `make_read_only`."""
    subprocess.run(["umount", "--lazy", str(place)], check=True)


FILLER = "filler"


def fill(disk: Path, *, leave: int | None) -> None:
    """Fill a disk up to `leave` bytes; None: take its last inode instead."""
    filler = disk / FILLER
    filler.mkdir()
    if leave is None:
        for number in range(os.statvfs(disk).f_ffree):
            (filler / str(number)).touch()
        return
    room = os.statvfs(disk)
    with (filler / "bytes").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, room.f_bavail * room.f_frsize - leave)


def make_room(disk: Path) -> None:
    shutil.rmtree(disk / FILLER)


def record_syncs(log: Path) -> None:
    """From now on, in this process, note every fsync and every rename in `log`."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def note(**content: Any) -> None:
        os.write(handle, (json.dumps(content) + "\n").encode())

    def synced(file: int) -> None:
        fsync(file)
        status = os.fstat(file)
        note(synced=status.st_ino, size=status.st_size)

    def renamed(source: Any, target: Any) -> None:
        rename(source, target)
        note(source=str(source), target=str(target), folder=os.stat(Path(target).parent).st_ino)

    def replaced(source: Any, target: Any) -> None:
        # The old file is gone with it, so it cannot be undone: taken as kept.
        replace(source, target)

    os.fsync, os.rename, os.replace = synced, renamed, replaced


def lose(folder: Path, log: Path, case: str) -> list[str]:
    """What a power cut may do to `folder`; returns what was lost."""
    draw, sizes, renames, lost = random.Random(case), {}, [], []
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if "synced" in entry:
            sizes[entry["synced"]] = entry["size"]
            renames = [rename for rename in renames if rename["folder"] != entry["synced"]]
        else:
            renames.append(entry)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        kept = min(sizes.get(status.st_ino, 0), status.st_size)
        if kept == status.st_size or draw.random() < 0.5:
            continue
        # Its length may be on the disk before its bytes are: then they read as zeros.
        zeroed, half = draw.random() < 0.5, max(kept, status.st_size // 2)
        os.truncate(path, half if zeroed else kept)
        if zeroed:
            os.truncate(path, status.st_size)
        lost.append(f"{path.name} {'zeroed' if zeroed else 'cut'} at {half if zeroed else kept} of {status.st_size}")
    for entry in reversed(renames):
        source, target = Path(entry["source"]), Path(entry["target"])
        if target.exists() and not source.exists() and draw.random() < 0.5:
            source.parent.mkdir(exist_ok=True)  # its removal, once it was empty, is lost as well
            target.rename(source)
            lost.append(f"the rename to {target.name}")
    return lost
