"""A KL weight that is steered towards a target."""

from ppo.recipe.recipe import PpoRecipe
from ppo.recipe.reward import MOST


def adapted(weight: float, kl: float, *, target: float, horizon: int, episodes: int) -> float:
    """The KL weight after a step of so many episodes whose mean KL was `kl` nats a response.

        error   = clamp((kl - target) / target, -0.2, 0.2)
        weight <- weight * (1 + error * episodes / horizon)

    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2 (there 0.1 in place of episodes / horizon).
    """
    error = max(-MOST, min(MOST, (kl - target) / target))
    return weight * (1.0 + error * episodes / horizon)


def next_weight(weight: float, kl: float, recipe: PpoRecipe) -> float:
    """The weight of the next step; the same one where the recipe's does not adapt."""
    section = recipe.kl.adaptive
    if section is None:
        return weight
    return adapted(weight, kl, target=section.target, horizon=section.horizon, episodes=recipe.train.batch)
