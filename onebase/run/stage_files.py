"""Which files of a stage folder its record has hashes of, and whether these files are unchanged.

    adapter/  tokenizer/                  handed on: every file, and nothing beside them
    *.jsonl, report.json, data/, plots/   what people read and quote
    nonfinite/                            batches that were skipped

Nothing writes to these once the record is there. Checkpoints, W&B's folder, profiles, and the stages in `best/` and
`ema/`, which have records of their own, are not among them.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from onebase.errors import RecordError
from onebase.files.json_file import short_path
from onebase.files.writing import hash_file

HANDED_ON = ("adapter", "tokenizer")
NEEDED = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
QUOTED = ("metrics.jsonl", "samples.jsonl", "evaluation_samples.jsonl", "alarms.jsonl", "report.json")
QUOTED_FOLDERS = ("data", "plots", "nonfinite")


def quoted_files(folder: Path) -> list[Path]:
    """What a stage has written for people to read; without links, which may lead anywhere."""
    files = [folder / name for name in QUOTED]
    for name in QUOTED_FOLDERS:
        files += (folder / name).rglob("*") if not (folder / name).is_symlink() else ()
    return [path for path in files if path.is_file() and not path.is_symlink()]


def require_unchanged(folder: Path, files: Mapping[str, str], *, record: Path) -> None:
    """RecordError where a file is missing, changed, a link, or beside those that are handed on.

    files: sha256 by path. record: where they are listed.
    """
    absent = [name for name in NEEDED if name not in files]
    if absent:
        raise RecordError(f"{record}: does not list {absent[0]}, which every stage has. It was edited.")
    try:
        for name, expected in files.items():
            require_plain_name(name, record)
            _require_file(folder, name, expected, record)
        surplus = sorted(set(_beside(folder)) - files.keys())
    except OSError as error:
        place = short_path(Path(error.filename)) if isinstance(error.filename, str) else record
        raise RecordError(f"{place}: cannot be read ({error.strerror}), though {record} lists it.") from None
    if surplus:
        raise RecordError(
            f"{folder / surplus[0]}: not part of the stage that {record.name} records, and a library may read it. "
            "Move it out of the folder."
        )


def require_plain_name(name: str, record: Path) -> None:
    """RecordError unless it is a path within the stage folder, written in the one way that there is."""
    plain = PurePosixPath(name)
    if name != plain.as_posix() or plain.is_absolute() or {"..", "."} & {*plain.parts, name} or "\0" in name:
        raise RecordError(f"{record}: the file name {name[:200]!r} leads out of the stage folder. It was edited.")
    if len(os.fsencode(name)) > 4000 or any(len(os.fsencode(part)) > 255 for part in plain.parts):
        raise RecordError(f"{record}: the file name {name[:60]!r}... has {len(name):,} letters. It was edited.")


def _require_file(folder: Path, name: str, expected: str, record: Path) -> None:
    path, place = folder / name, folder
    for part in PurePosixPath(name).parts:
        place = place / part
        if place.is_symlink():
            raise RecordError(f"{place}: leads out of the stage folder through a link. Replace the link by the file.")
    if not path.is_file():
        raise RecordError(f"{path}: missing, though {record} lists it. Put it back, or train the stage again.")
    sha256 = hash_file(path)
    if sha256 != expected:
        raise RecordError(
            f"{path}: damaged or edited: expected sha256 {expected[:12]}..., found {sha256[:12]}... "
            "Put the original back, or train the stage again."
        )


def _beside(folder: Path) -> Iterator[str]:
    """Whatever is in the folders that are handed on; a link or a device counts, an empty folder does not. Nor does what
    is hidden: systems put it there (`.DS_Store`, `._name`, `.nfs0001`) when a folder is looked at or copied, and no
    library reads it."""
    waiting = [folder / name for name in HANDED_ON if (folder / name).is_dir()]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir() and not path.is_symlink():
                waiting.append(path)
            else:
                yield path.relative_to(folder).as_posix()
