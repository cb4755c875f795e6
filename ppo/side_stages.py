"""Finished stages beside the policy's own: `best/` and `ema/`, which compare and later stages take as they take it.

    parents: {ppo: runs/demo/ppo/best}

Each is written into a temporary sibling, synced, and put in place by renaming: it is there whole or not at all.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onebase import folders, record
from onebase.base import Base
from onebase.disk import sync
from onebase.errors import RecordError
from onebase.identity import RunIdentity
from onebase.record import DataIdentity, Found
from onebase.roles import Roles
from onebase.stages import Stopwatch
from ppo.recipe import PpoRecipe


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a record says of where its adapter came from."""

    recipe: PpoRecipe
    base: Base
    parents: Mapping[str, Found]
    data: Sequence[DataIdentity]
    identity: RunIdentity
    watch: Stopwatch


def write(name: str, roles: Roles, role: str, origin: Origin, metrics: Mapping[str, float]) -> Path:
    """Make `<stage>/<name>` the finished stage of this role as it is now, in place of an earlier one."""
    target = origin.recipe.out / name
    temporary, aside = target.with_name(f".{name}.{os.getpid()}"), target.with_name(f".{name}.old")
    for half in target.parent.glob(f".{name}.*"):  # of processes that were killed in here
        if half.suffix[1:].isdecimal() and not half.is_symlink():
            shutil.rmtree(half, ignore_errors=True)
    temporary.mkdir(parents=True)
    files = roles.save(role, temporary / "adapter")
    origin.base.tokenizer.save_pretrained(temporary / "tokenizer")
    files += [path for path in (temporary / "tokenizer").rglob("*") if path.is_file()]
    resources = origin.watch.resources
    # A sibling of the target: its parents are as far away, so that the links hold after the renaming.
    made = record.create(
        stage="ppo",
        folder=temporary,
        base=origin.base.identity,
        tokenizer=origin.base.tokenizer_identity,
        files=files,
        parents=origin.parents,
        recipe=origin.recipe,
        data=origin.data,
        metrics=metrics,
        resources=resources,
        parts=origin.identity.parts,
    )
    for path in files:
        sync(path)
    for folder in {path.parent for path in files}:
        sync(folder)
    record.write(temporary, made)
    _remove(aside)
    if os.path.lexists(target):
        os.rename(target, aside)
    os.rename(temporary, target)
    sync(origin.recipe.out)
    _remove(aside)
    return target


def _remove(aside: Path) -> None:
    """An earlier stage of that name; what is no stage of ours is kept, under a name that is free."""
    if folders.stage_of(aside) is not None and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    elif os.path.lexists(aside):
        folders.move_aside(aside)


def stands(folder: Path, metrics: Mapping[str, float]) -> bool:
    """Whether a finished stage with these very metrics is there, and verifies."""
    try:
        return record.read(folder, stage="ppo").record.metrics == record.finite(metrics)
    except RecordError:
        return False


def weights_of(roles: Roles, role: str) -> list[Tensor]:
    """A copy of a role's weights, on the CPU."""
    return [parameter.detach().to("cpu", copy=True) for parameter in roles.parameters(role)]


@contextlib.contextmanager
def holding(roles: Roles, role: str, weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the role has other weights; behind it, its own again, bit for bit."""
    own = weights_of(roles, role)
    try:
        _put(roles, role, weights)
        yield
    finally:
        _put(roles, role, own)


@torch.no_grad()
def _put(roles: Roles, role: str, weights: Sequence[Tensor]) -> None:
    for parameter, weight in zip(roles.parameters(role), weights, strict=True):
        parameter.copy_(weight)
