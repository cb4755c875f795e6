"""The update: inner epochs of mini-batches over one rollout.

A mini-batch is one optimiser step. It is cut into micro-batches by token budget, whose gradients add up to exactly the
mini-batch's: every loss is a sum over tokens divided by the tokens of the whole mini-batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from onebase.episodes import Episodes
from onebase.memory import Halving
from onebase.packing import microbatches
from onebase.roles import Roles
from onebase.scoring import token_scores, token_values
from onebase.tokens import masked_sum, standardise
from ppo.losses import explained_variance, importance_ratio, kl_from_old, outside_clip, policy_loss, value_loss
from ppo.recipe import PpoRecipe
from ppo.rollout import Rollout, Targets


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns: the optimiser, its schedule, and the parameters of each trained role."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    trained: dict[str, list[torch.nn.Parameter]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the losses read, episode by episode; per-token tensors on the model's device."""

    episodes: Episodes
    old_logprobs: Float[Tensor, "B T"]
    old_values: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]

    def select(self, rows: Sequence[int]) -> "Batch":
        index = torch.as_tensor(list(rows), device=self.returns.device)
        return type(self)(
            episodes=self.episodes.select(rows),
            old_logprobs=self.old_logprobs[index],
            old_values=self.old_values[index],
            returns=self.returns[index],
            advantages=self.advantages[index],
        )


class Tally:
    """Sums over tokens, so that what is logged is a mean over tokens and not a mean over micro-batches."""

    def __init__(self) -> None:
        self.tokens = 0
        self.sums: dict[str, float] = {}
        self.ratio_max = 0.0

    def add(self, mask: Tensor, ratio: Tensor, **per_token: Tensor) -> None:
        self.tokens += int(mask.sum())
        self.ratio_max = max(self.ratio_max, ratio.max().item())
        for name, values in per_token.items():
            self.sums[name] = self.sums.get(name, 0.0) + masked_sum(values.detach(), mask).item()

    def merge(self, other: "Tally") -> None:
        self.tokens += other.tokens
        self.ratio_max = max(self.ratio_max, other.ratio_max)
        for name, total in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + total

    def means(self) -> dict[str, float]:
        return {name: total / max(self.tokens, 1) for name, total in self.sums.items()}


def update(
    roles: Roles,
    rollout: Rollout,
    targets: Targets,
    learner: Learner,
    recipe: PpoRecipe,
    generator: torch.Generator,
    accept: Callable[[Sequence[float], Sequence[int]], bool],
    halving: Halving,
    mix: Callable[[int, PpoRecipe], None] = lambda minibatch, recipe: None,
) -> dict[str, float]:
    """Optimise policy and value on one rollout; returns metrics without their `ppo/` prefix.

    accept: told the gradient norms and the rows of each mini-batch; where it says no, the mini-batch is skipped.
    halving: what to do where a micro-batch does not fit into memory.
    mix: adds what is not PPO's to the gradients of a mini-batch, given by its number: pretraining texts.
    """
    mask = rollout.episodes.mask
    batch = to_batch(rollout, targets, roles.base.device)
    tally, norms = Tally(), dict[str, list[float]]()
    for number, rows in enumerate(minibatches(len(rollout.episodes), recipe, generator)):
        extra = partial(mix, number)
        own = halving.fit(partial(gradients_of, roles, batch.select(rows), learner, recipe, extra), size=recipe.largest)
        found = {
            role: torch.nn.utils.clip_grad_norm_(parameters, recipe.train.max_grad_norm).item()
            for role, parameters in learner.trained.items()
        }
        if not accept(list(found.values()), rows):
            continue
        tally.merge(own)
        for role, norm in found.items():
            norms.setdefault(f"grad_norm/{role}", []).append(norm)
        learner.optimizer.step()
        learner.schedule.step()
    return {
        **tally.means(),
        **{name: sum(values) / len(values) for name, values in norms.items()},
        "ratio_max": tally.ratio_max,
        "explained_variance": float(explained_variance(rollout.values, targets.returns, mask)),
        "learning_rate": float(learner.schedule.get_last_lr()[0]),
    }


def gradients_of(
    roles: Roles,
    minibatch: Batch,
    learner: Learner,
    recipe: PpoRecipe,
    extra: Callable[[PpoRecipe], None],
    halvings: int,
) -> Tally:
    """The gradients of one mini-batch, and nothing else, in `.grad`."""
    learner.optimizer.zero_grad(set_to_none=True)
    tally = backward(roles, minibatch, recipe.halved(halvings))
    extra(recipe.halved(halvings))
    return tally


def to_batch(rollout: Rollout, targets: Targets, device: torch.device) -> Batch:
    """Advantages are standardised here, over the whole batch, before it is cut into mini-batches."""
    return Batch(
        episodes=rollout.episodes,
        old_logprobs=rollout.logprobs.to(device),
        old_values=rollout.values.to(device),
        returns=targets.returns.to(device),
        advantages=standardise(targets.advantages, rollout.episodes.mask).to(device),
    )


def minibatches(episodes: int, recipe: PpoRecipe, generator: torch.Generator) -> Iterator[list[int]]:
    """Rows of each optimiser step: every inner epoch sees every episode once, in a new order."""
    for _ in range(recipe.train.inner_epochs):
        order = torch.randperm(episodes, generator=generator).tolist()
        for start in range(0, episodes, recipe.train.minibatch):
            yield order[start : start + recipe.train.minibatch]


def backward(roles: Roles, minibatch: Batch, recipe: PpoRecipe) -> Tally:
    """Add one mini-batch's gradients to `.grad`, a micro-batch at a time; what there is to log of it."""
    tally = Tally()
    tokens = int(minibatch.episodes.mask.sum())
    for rows in microbatches(minibatch.episodes.lengths, tokens=recipe.train.tokens_per_microbatch):
        with roles.training_forward():
            _backward_part(roles, minibatch.select(rows), tokens, recipe, tally)
    return tally


def _backward_part(roles: Roles, part: Batch, tokens: int, recipe: PpoRecipe, tally: Tally) -> None:
    """Losses and gradients of one micro-batch, as its share of a mini-batch of `tokens` response tokens."""
    mask, temperature = part.episodes.mask.to(roles.base.device), recipe.sampling.temperature
    shared = recipe.value.kind == "shared"
    now = token_scores(roles, "policy", part.episodes, temperature=temperature, value_head="policy" if shared else None)
    losses = policy_loss(now.logprobs, part.old_logprobs, part.advantages, mask, clip=recipe.train.clip)
    if not shared:
        # Backward at once: the policy's activations are gone before the value forward makes its own.
        (losses.sum() / tokens).backward()
    values = token_values(roles, "value", part.episodes) if now.values is None else now.values
    value_losses = value_loss(values, part.old_values, part.returns, mask, clip=recipe.value.clip)
    remaining = recipe.value.weight * value_losses.sum() + (losses.sum() if shared else 0.0)
    (remaining / tokens).backward()
    logprobs = now.logprobs.detach()
    ratio = importance_ratio(logprobs, part.old_logprobs, mask)
    tally.add(
        mask,
        ratio,
        policy_loss=losses,
        value_loss=value_losses,
        entropy=now.entropies,
        kl_from_old=kl_from_old(logprobs, part.old_logprobs, mask),
        clip_fraction=outside_clip(ratio, mask, clip=recipe.train.clip),
    )
