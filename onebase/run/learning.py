"""The trained parts of a run as a state: the weights of roles, the optimiser and its schedule."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from onebase.errors import RecordError
from onebase.memory import is_out_of_memory
from onebase.model.roles import Roles
from onebase.recipe.sections import Schedule

OTHER_BYTES = 1 << 20
"""Random number generators, names and numbers of a checkpoint, at most."""


def learning_rate_factor(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """What the learning rate is multiplied by at optimiser step `step` of `total`, the first being 0.

    It rises linearly over `warmup` steps, and wastes no step on a rate of 0. Then it stays at 1, or falls to 0 as a
    line or as half a cosine (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5, one cycle).
    """
    rising = min(1.0, (step + 1) / (warmup + 1))
    # A step is the last of `total` when nothing is left of the way after it.
    done = min(1.0, max(0.0, (step - warmup) / max(1, total - warmup)))
    match schedule:
        case "constant":
            return rising
        case "linear":
            return rising * (1.0 - done)
        case "cosine":
            return rising * 0.5 * (1.0 + math.cos(math.pi * done))


def learning_state(
    roles: Roles,
    names: Sequence[str],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> dict[str, Any]:
    """Weights (heads included) of the named roles, optimiser and schedule, for a checkpoint."""
    return {
        "roles": {name: [parameter.detach() for parameter in roles.parameters(name)] for name in names},
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }


def state_bytes(roles: Roles, names: Sequence[str]) -> int:
    """Bytes of a checkpoint of these roles under AdamW: each fp32 weight with its two moments, and a little more."""
    weights = sum(
        parameter.numel() * parameter.element_size() for name in names for parameter in roles.parameters(name)
    )
    return 3 * weights + OTHER_BYTES


def restore_learning(
    state: Mapping[str, Any],
    roles: Roles,
    names: Sequence[str],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Put everything back, bit for bit; RecordError where the checkpoint does not fit these roles."""
    with restoring("what learns"):
        restore_weights(state["roles"], roles, names)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])


@contextlib.contextmanager
def restoring(what: str) -> Iterator[None]:
    """Inside, whatever a part of a checkpoint's state raises is a RecordError: its hashes are right, so another Onebase
    wrote it, or it was edited."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise RecordError(
            f"checkpoint: {what} cannot be put back ({type(error).__name__}: {error}): by another Onebase, or edited. "
            "Use the Onebase that wrote it, or start again with --restart."
        ) from error


def restore_weights(weights: Mapping[str, Sequence[torch.Tensor]], roles: Roles, names: Sequence[str]) -> None:
    """The weights alone."""
    for name in names:
        parameters = roles.parameters(name)
        saved = weights.get(name, ())
        if [tensor.shape for tensor in saved] != [parameter.shape for parameter in parameters]:
            raise RecordError(
                f"checkpoint: the weights of role '{name}' are missing or of other shapes. Use --restart."
            )
        for parameter, tensor in zip(parameters, saved, strict=True):
            parameter.data.copy_(tensor)
