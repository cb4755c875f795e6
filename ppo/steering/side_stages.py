"""Finished stages beside the policy's own: `best/` and `ema/`, which compare and later stages accept like the
policy's stage.

    parents: {ppo: runs/demo/ppo/best}

Each is written into a temporary sibling, synced, and put in place by renaming: it is there whole or not at all.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.errors import RecordError
from onebase.files.writing import atomic_folder, move_aside
from onebase.model.roles import Roles
from onebase.run import folders, record, stages
from onebase.run.stages import Origin


def write(name: str, roles: Roles, role: str, origin: Origin[Any], metrics: Mapping[str, float]) -> Path:
    """Make `<stage>/<name>` the finished stage of this role as it is now, in place of an earlier one."""
    target, aside = origin.recipe.out / name, origin.recipe.out / f".{name}.old"
    # A sibling of the target: its parents are as far away, so that the links hold after the renaming.
    _remove(aside)
    with atomic_folder(target, aside=aside) as temporary:
        made = stages.save_stage(temporary, origin, roles, role, metrics)
        record.write(temporary, made)
    _remove(aside)
    return target


def _remove(aside: Path) -> None:
    """Remove an earlier stage of that name. Anything else is kept, under a free name."""
    if folders.stage_of(aside) is not None and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    elif os.path.lexists(aside):
        move_aside(aside)


def is_finished(folder: Path, metrics: Mapping[str, float]) -> bool:
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
    """Inside, the role has other weights; afterwards its former ones, bit for bit."""
    before = weights_of(roles, role)
    try:
        _put(roles, role, weights)
        yield
    finally:
        _put(roles, role, before)


@torch.no_grad()
def _put(roles: Roles, role: str, weights: Sequence[Tensor]) -> None:
    for parameter, weight in zip(roles.parameters(role), weights, strict=True):
        parameter.copy_(weight)
