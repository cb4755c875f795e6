"""Checkpoints: the one mechanism by which any stage can be killed at any moment and resume to the same bits.

A checkpoint is a folder. It is used only if all of it verifies:

    checkpoints/step-00000012/
      tensors.safetensors    adapters, heads, optimiser, random number generators
      state.json             everything that is no tensor, with places for the tensors
      manifest.json          written last: sha256 of every file, step, hash of the recipe

It is written into a temporary sibling, each file is synced, then the folder, then it is renamed; only then are older
checkpoints deleted. Tensors are safetensors and the rest is JSON: reading a checkpoint never runs code.
"""

import contextlib
import errno
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.errors import InputError, RecordError
from onebase.files.json_file import read_object
from onebase.files.writing import atomic_folder, canonical, create_file, free_name, hash_file
from onebase.recipe.differences import differences, summary
from onebase.recipe.sections import UNCOUNTED, CheckpointSection
from onebase.run.folders import MANIFEST, step_folders
from onebase.terminal import say

SCHEMA = 1
STATE = "state.json"
TENSORS = "tensors.safetensors"
KEYS = {"schema_version", "step", "recipe", "settings", "files"}
"""Keys of a manifest."""
LARGEST, DEEPEST = 2**30, 256
"""Bytes of a state's JSON, and lists and objects in each other: `_pack` makes three of each level."""
OWN_HALF = re.compile(r"\.step-\d{8,}\.(\d+|old)")
"""Name of a checkpoint that is being written, or being removed."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that verified."""

    folder: Path
    step: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage folder."""

    def __init__(self, folder: Path, section: CheckpointSection, *, recipe: Mapping[str, Any]) -> None:
        """folder: `<stage>/checkpoints`. recipe: resolved; checkpoints of another one are refused."""
        self.folder = folder
        self._section = section
        self._settings = {key: value for key, value in recipe.items() if key not in UNCOUNTED}
        self.recipe = recipe_hash(self._settings)
        """`recipe`: sha256 of all that decides a result."""
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether step `step`, just finished, is to be saved."""
        steps, minutes = self._section.every_steps, self._section.every_minutes
        by_steps = steps is not None and step % steps == 0
        return by_steps or (minutes is not None and time.monotonic() - self._last >= 60.0 * minutes)

    def save(self, step: int, state: Mapping[str, Any], *, extra: Mapping[str, str] | None = None) -> Path:
        """Write a checkpoint, all of it or nothing, and rotate; OSError leaves the older ones as they were.

        state: a tree of dicts, lists, tuples, numbers, strings and tensors. extra: text files to keep beside it.
        """
        self._last = time.monotonic()
        target = self.folder / f"step-{step:08d}"
        with contextlib.suppress(OSError, ValueError, KeyError):
            self._verified(target)
            return target  # the same step of the same run: to replace it would leave a moment with neither
        tensors: dict[str, Tensor] = {}
        content = _pack(state, "", tensors)
        needed = sum(tensor.nbytes for tensor in tensors.values())
        with atomic_folder(target, needed=needed) as temporary:
            save_file(tensors, temporary / TENSORS)
            for name, text in {STATE: canonical(content), **(extra or {})}.items():
                (temporary / name).write_text(text, encoding="utf-8")
            files = {path.name: hash_file(path) for path in sorted(temporary.iterdir())}
            of = {"recipe": self.recipe, "settings": self._settings}
            manifest = {"schema_version": SCHEMA, "step": step, **of, "files": files}
            (temporary / MANIFEST).write_text(canonical(manifest), encoding="utf-8")
            if os.path.lexists(target):
                self._set_aside([target])
        self._rotate()
        return target

    def probe(self, size: int) -> None:
        """Take the room that saves of `size` bytes need at once, and give it back; InputError where it is not there.

        A run of hours that finds the disk full at its first save has lost them.
        """
        held = sum(path.stat().st_size for path in self.folder.glob("step-*/*"))
        needed = max(size, size * (self._section.keep + 1) - held)
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.is_dir())
        probe = place / f".room-{os.getpid()}"
        free = shutil.disk_usage(place).free
        try:
            with os.fdopen(create_file(probe), "wb") as stream:
                probe.unlink()  # now: whatever comes, the room is given back with the file's last handle
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(stream.fileno(), 0, needed)
            if free < needed and not hasattr(os, "posix_fallocate"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise InputError(f"{place}: cannot be written ({error.strerror}). Give another out=FOLDER.") from None
            raise InputError(
                f"{self.folder}: checkpoints need {needed:,} bytes (keep={self._section.keep} and one being written, "
                f"{size:,} each), and the disk has {free:,} free ({error.strerror}). Free some, give another "
                "out=FOLDER, or lower checkpoint.keep."
            ) from None

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None if there is not any.

        Says which were skipped and why. RecordError when there are some and none verifies, or when they are of
        another recipe: a silent fresh start would throw the work away.
        """
        if not self.folder.is_dir():
            return None
        for stale in self.folder.glob(".step-*"):
            if OWN_HALF.fullmatch(stale.name) and not stale.is_symlink():
                shutil.rmtree(stale, ignore_errors=True)
        problems: dict[Path, str] = {}
        for folder in reversed([*step_folders(self.folder)]):
            try:
                manifest, tensors = self._verified(folder), load_file(folder / TENSORS)
                state = _unpack(_read_json(folder / STATE), tensors)
                checkpoint = Checkpoint(folder=folder, step=manifest["step"], state=state)
            except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
                problems[folder] = f"{folder}: {error}"
                say(f"checkpoint skipped: {problems[folder]}")
            else:
                self._set_aside(problems)
                return checkpoint
        if problems:
            raise RecordError(
                f"{self.folder}: there are {len(problems)} checkpoints and none verifies: "
                f"{'; '.join(problems.values())}. Put one back, or start again with --restart."
            )
        return None

    def _set_aside(self, damaged: Iterable[Path]) -> None:
        """Out of the names that count: as the newest ones they would make the rotation remove valid ones."""
        for folder in damaged:
            aside = folder.with_name(f"damaged-{folder.name}")
            os.rename(folder, free_name(aside) if os.path.lexists(aside) else aside)

    def _verified(self, folder: Path) -> dict[str, Any]:
        """Its manifest, where every file is as it was written and it is of this recipe."""
        manifest = _read_json(folder / MANIFEST)
        if manifest["schema_version"] != SCHEMA:
            raise ValueError(f"schema version {manifest['schema_version']}, expected {SCHEMA}")
        if folder.name != f"step-{manifest['step']:08d}":
            raise ValueError(f"{MANIFEST} is of step {manifest['step']}")
        missing = sorted({STATE, TENSORS} - manifest["files"].keys())
        if missing:
            raise ValueError(f"{MANIFEST} does not list {missing[0]}")
        for name, expected in manifest["files"].items():
            if Path(name).name != name or (folder / name).is_symlink():
                raise ValueError(f"{name[:200]!r} is not a file of this folder")
            if hash_file(folder / name) != expected:
                raise ValueError(f"{name} is damaged: its sha256 is not the one in {MANIFEST}")
        if manifest.keys() != KEYS or recipe_hash(manifest["settings"]) != manifest["recipe"]:
            raise ValueError(f"{MANIFEST} is damaged: its recipe is not the one that it has the hash of")
        if manifest["recipe"] != self.recipe:
            which = summary(differences(manifest["settings"], self._settings))
            raise RecordError(
                f"{folder}: this checkpoint is of another recipe, so resuming from it would mix two runs: {which}. "
                "Give the recipe it was started with, or start again with --restart."
            )
        return manifest

    def _rotate(self) -> None:
        finished = [folder for folder in step_folders(self.folder) if (folder / MANIFEST).is_file()]
        for old in finished[: -self._section.keep]:
            # Out of the namespace first: a deletion cut short must not leave half a checkpoint under a good name.
            aside = old.with_name(f".{old.name}.old")
            os.rename(old, aside)
            shutil.rmtree(aside, ignore_errors=True)


def recipe_hash(settings: Mapping[str, Any]) -> str:
    """sha256 of what counts of the resolved recipe."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with places where tensors were; dicts with any keys and tuples survive."""
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory, and the live ones go on changing.
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        items = [[key, _pack(inner, f"{path}/{key}", tensors)] for key, inner in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        packed = [_pack(inner, f"{path}/{index}", tensors) for index, inner in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": packed}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}  # a metric of a skipped batch; JSON has no NaN
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, numpy.generic):
        return value.item()
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "items":
        return {key: _unpack(inner, tensors) for key, inner in content}
    packed = [_unpack(inner, tensors) for inner in content]
    return packed if kind == "list" else tuple(packed)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, largest=LARGEST, deepest=DEEPEST)[0]
    except RecordError as error:
        raise ValueError(str(error)) from None
