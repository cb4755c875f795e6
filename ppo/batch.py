"""What an update reads and what it logs: a rollout as a batch, its mini-batches and micro-batches, sums over tokens.

Shapes: B = episodes, T = longest response, in tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from onebase.inference.scoring import batches_of
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from onebase.tokens import masked_sum, standardise
from ppo.maths.losses import token_weights, truncated_importance
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Rollout, Targets


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the losses read, episode by episode; per-token tensors on the model's device."""

    episodes: Episodes
    old_logprobs: Float[Tensor, "B T"]
    old_values: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    reference: Float[Tensor, "B T"] | None = None
    """Log-probabilities of the SFT policy, where its KL is a term of the loss."""
    importance: Float[Tensor, "B T"] | None = None
    """What the policy's loss of each token is multiplied by; None: 1."""
    rewards: Float[Tensor, "B T"] | None = None
    """Where the values, and what follows from them, are still to be found: NaN until then."""
    kl_weight: float = 0.0
    """Of the KL's term in the loss."""
    value_only: bool = False
    """Whether the policy waits for the value function to learn."""

    def select(self, rows: Sequence[int]) -> "Batch":
        index = torch.as_tensor(list(rows), device=self.returns.device)
        chosen = {
            field.name: value[index] for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, episodes=self.episodes.select(rows), **chosen)


class Tally:
    """Sums over tokens, so that what is logged is a mean over tokens and not a mean over micro-batches."""

    def __init__(self) -> None:
        self.tokens = 0
        self.sums: dict[str, float] = {}
        self.ratio_max = 0.0

    def add(self, mask: Tensor, **per_token: Tensor) -> None:
        """Sums over some of the tokens; `tokens` is counted by the caller, once for all that is added of them."""
        if "ratio" in per_token:
            self.ratio_max = max(self.ratio_max, per_token.pop("ratio").max().item())
        for name, values in per_token.items():
            self.sums[name] = self.sums.get(name, 0.0) + masked_sum(values.detach(), mask).item()

    def merge(self, other: "Tally") -> None:
        self.tokens += other.tokens
        self.ratio_max = max(self.ratio_max, other.ratio_max)
        for name, total in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + total

    def means(self) -> dict[str, float]:
        return {name: total / max(self.tokens, 1) for name, total in self.sums.items()}


def to_batch(rollout: Rollout, targets: Targets, device: torch.device, recipe: PpoRecipe) -> Batch:
    """Advantages are standardised here, over the whole batch, before it is cut into mini-batches."""
    mask, cap = rollout.episodes.mask, recipe.train.importance_cap
    advantages = standardise(targets.advantages, mask) if recipe.whitens else targets.advantages
    importance = None
    if cap is not None and rollout.sampled is not None:
        importance = truncated_importance(rollout.logprobs, rollout.sampled, mask, cap=cap).to(device)
    return Batch(
        episodes=rollout.episodes,
        old_logprobs=rollout.logprobs.to(device),
        old_values=(targets.returns if rollout.values is None else rollout.values).to(device),
        returns=targets.returns.to(device),
        advantages=advantages.to(device),
        rewards=targets.rewards.to(device) if rollout.values is None else None,
        reference=rollout.reference.to(device) if targets.kl_weight else None,
        importance=importance,
        kl_weight=targets.kl_weight,
    )


def minibatches(episodes: int, recipe: PpoRecipe, generator: torch.Generator) -> Iterator[list[int]]:
    """Rows of each optimiser step: every inner epoch sees every episode once, in a new order."""
    for _ in range(recipe.train.inner_epochs):
        order = torch.randperm(episodes, generator=generator).tolist()
        for start in range(0, episodes, recipe.train.minibatch):
            yield order[start : start + recipe.train.minibatch]


def parts_of(roles: Roles, minibatch: Batch, recipe: PpoRecipe) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """The rows of each micro-batch, the micro-batch, and the weight that the loss of each of its tokens has."""
    limit = recipe.sampling.max_new_tokens
    weights = token_weights(minibatch.episodes.mask, aggregation=recipe.aggregation, limit=limit)
    for rows in batches_of(roles, minibatch.episodes.sequences, tokens=recipe.train.tokens_per_microbatch):
        yield rows, minibatch.select(rows), weights[rows].to(roles.base.device)
