"""A moving average of the policy's weights, as the role `ema` (InstructGPT, appendix C.4: decay 0.992).

    ema <- decay * ema + (1 - decay) * policy        after every optimiser step

It starts as the policy's copy, so there is no bias to correct. The average of LoRA's A and B is what is kept; B A of
the averages is not the average of B A, and the same is true of any other parametrisation of a network.
"""

import torch

from onebase.model.roles import Roles
from ppo.recipe.steering import EmaSection

ROLE = "ema"


def start(roles: Roles, section: EmaSection, optimizer: torch.optim.Optimizer) -> None:
    """Make the role, and let it follow every step that the optimiser takes; a skipped mini-batch takes none."""
    roles.copy("policy", ROLE)
    optimizer.register_step_post_hook(lambda *_: follow(roles, decay=section.decay))


@torch.no_grad()
def follow(roles: Roles, *, decay: float) -> None:
    """One step of the average."""
    for average, weight in zip(roles.parameters(ROLE), roles.parameters("policy"), strict=True):
        average.lerp_(weight, 1.0 - decay)
