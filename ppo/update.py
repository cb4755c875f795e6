"""The update: inner epochs of mini-batches over one rollout.

A mini-batch is one optimiser step. It is cut into micro-batches by token budget, whose gradients add up to exactly the
mini-batch's: every loss is a sum over tokens divided by the tokens of the whole mini-batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from onebase.clock import Clock
from onebase.episodes import Episodes
from onebase.memory import Halving
from onebase.roles import Roles
from onebase.scoring import TokenScores, batches_of, token_scores, token_values
from onebase.tokens import masked_sum, standardise
from ppo.losses import (
    explained_variance,
    importance_ratio,
    kl_from_old,
    outside_clip,
    policy_loss,
    reference_kl_loss,
    token_weights,
    truncated_importance,
    value_loss,
)
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
    reference: Float[Tensor, "B T"] | None = None
    """Log-probabilities of the SFT policy, where its KL is a term of the loss."""
    importance: Float[Tensor, "B T"] | None = None
    """What the policy's loss of each token is multiplied by; None: 1."""
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
    *,
    value_only: bool = False,
    clock: Clock | None = None,
) -> dict[str, float]:
    """Optimise policy and value on one rollout; returns metrics without their `ppo/` prefix.

    accept: told the gradient norms and the rows of each mini-batch; where it says no, the mini-batch is skipped.
    halving: what to do where a micro-batch does not fit into memory.
    mix: adds what is not PPO's to the gradients of a mini-batch, given by its number: pretraining texts.
    value_only: the policy stays as it is.
    clock: told how long each role's training and the optimiser take.
    """
    clock = clock or Clock()
    mask = rollout.episodes.mask
    batch = replace(to_batch(rollout, targets, roles.base.device, recipe), value_only=value_only)
    tally, epoch, norms = Tally(), Tally(), dict[str, list[float]]()
    per_epoch = len(rollout.episodes) // recipe.train.minibatch
    for number, rows in enumerate(minibatches(len(rollout.episodes), recipe, generator)):
        if number % per_epoch == 0 and number:
            if moved_enough(epoch, recipe):
                break
            epoch = Tally()
        extra = partial(mix, number) if not value_only else lambda recipe: None
        gradients = partial(gradients_of, roles, batch.select(rows), learner, recipe, extra, clock=clock)
        own = halving.fit(gradients, size=recipe.largest)
        with clock.part("optimizer"):
            found = {
                role: torch.nn.utils.clip_grad_norm_(parameters, recipe.train.max_grad_norm).item()
                for role, parameters in learner.trained.items()
            }
        if not accept(list(found.values()), rows):
            continue
        tally.merge(own)
        epoch.merge(own)
        for role, norm in found.items():
            norms.setdefault(f"grad_norm/{role}", []).append(norm)
        with clock.part("optimizer"):
            learner.optimizer.step()
            learner.schedule.step()
    explained = explained_variance(rollout.values, targets.returns, mask) if recipe.has_value else None
    return {
        **tally.means(),
        **{name: sum(values) / len(values) for name, values in norms.items()},
        "ratio_max": tally.ratio_max,
        **({} if explained is None else {"explained_variance": float(explained)}),
        "learning_rate": float(learner.schedule.get_last_lr()[0]),
    }


def gradients_of(
    roles: Roles,
    minibatch: Batch,
    learner: Learner,
    recipe: PpoRecipe,
    extra: Callable[[PpoRecipe], None],
    halvings: int,
    clock: Clock | None = None,
) -> Tally:
    """The gradients of one mini-batch, and nothing else, in `.grad`."""
    learner.optimizer.zero_grad(set_to_none=True)
    tally = backward(roles, minibatch, recipe.halved(halvings), clock)
    extra(recipe.halved(halvings))
    return tally


def moved_enough(epoch: Tally, recipe: PpoRecipe) -> bool:
    """Whether an inner epoch has found the policy so far from the one that sampled that it should be the last."""
    limit = recipe.train.target_kl
    return limit is not None and epoch.means().get("kl_from_old", 0.0) > limit


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
        old_values=rollout.values.to(device),
        returns=targets.returns.to(device),
        advantages=advantages.to(device),
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


def backward(roles: Roles, minibatch: Batch, recipe: PpoRecipe, clock: Clock | None = None) -> Tally:
    """Add one mini-batch's gradients to `.grad`, a micro-batch at a time; what there is to log of it."""
    tally, clock = Tally(), clock or Clock()
    limit = recipe.sampling.max_new_tokens
    weights = token_weights(minibatch.episodes.mask, aggregation=recipe.aggregation, limit=limit)
    for rows in batches_of(roles, minibatch.episodes.sequences, tokens=recipe.train.tokens_per_microbatch):
        part, own = minibatch.select(rows), weights[rows].to(roles.base.device)
        with roles.training_forward():
            if recipe.has_value and recipe.value.kind == "shared":
                with clock.part("train_policy"):
                    _shared_part(roles, part, own, recipe, tally)
            else:
                if not part.value_only:
                    with clock.part("train_policy"):
                        _policy_part(roles, part, own, recipe, tally)
                if recipe.has_value:
                    with clock.part("train_value"):
                        _value_part(roles, part, own, recipe, tally)
        tally.tokens += int(part.episodes.mask.sum())
    return tally


def _shared_part(roles: Roles, part: Batch, weights: Tensor, recipe: PpoRecipe, tally: Tally) -> None:
    """One forward and one backward for the policy and the value head on its trunk."""
    now = _policy_now(roles, part, recipe, value_head="policy")
    assert now.values is not None, "a value head was asked for"
    losses, value_losses = _policy_losses(now, part, recipe, tally), _value_losses(now.values, part, recipe, tally)
    ((losses + recipe.value.weight * value_losses) * weights).sum().backward()


def _policy_part(roles: Roles, part: Batch, weights: Tensor, recipe: PpoRecipe, tally: Tally) -> None:
    """Backward at once: the policy's activations are gone before the value forward makes its own."""
    now = _policy_now(roles, part, recipe)
    (_policy_losses(now, part, recipe, tally) * weights).sum().backward()


def _value_part(roles: Roles, part: Batch, weights: Tensor, recipe: PpoRecipe, tally: Tally) -> None:
    losses = _value_losses(token_values(roles, "value", part.episodes), part, recipe, tally)
    (recipe.value.weight * losses * weights).sum().backward()


def _policy_now(roles: Roles, part: Batch, recipe: PpoRecipe, *, value_head: str | None = None) -> TokenScores:
    return token_scores(
        roles,
        "policy",
        part.episodes,
        temperature=recipe.sampling.temperature,
        value_head=value_head,
        entropy_gradient=recipe.train.entropy_weight > 0,
    )


def _policy_losses(now: TokenScores, part: Batch, recipe: PpoRecipe, tally: Tally) -> Float[Tensor, "B T"]:
    """The policy's loss of each token: clipped surrogate, KL term and entropy bonus where the recipe has them."""
    mask, settings = part.episodes.mask.to(now.logprobs.device), recipe.train
    bounds = {"clip": settings.clip, "dual_clip": settings.dual_clip}
    losses = policy_loss(now.logprobs, part.old_logprobs, part.advantages, mask, **bounds)
    logprobs = now.logprobs.detach()
    ratio = importance_ratio(logprobs, part.old_logprobs, mask)
    seen = {
        "policy_loss": losses,
        "entropy": now.entropies,
        "kl_from_old": kl_from_old(logprobs, part.old_logprobs, mask),
        "clip_fraction": outside_clip(ratio, mask, clip=settings.clip),
    }
    if part.importance is not None:
        losses = losses * part.importance
        seen["importance"] = part.importance
    if part.reference is not None:
        kl = reference_kl_loss(now.logprobs, part.reference, mask)
        losses = losses + part.kl_weight * kl
        seen["kl_loss"] = kl
    if settings.entropy_weight:
        losses = losses - settings.entropy_weight * now.entropies
    tally.add(mask, ratio=ratio, **seen)
    return losses


def _value_losses(values: Tensor, part: Batch, recipe: PpoRecipe, tally: Tally) -> Float[Tensor, "B T"]:
    mask = part.episodes.mask.to(values.device)
    losses = value_loss(values, part.old_values, part.returns, mask, clip=recipe.value.clip)
    tally.add(mask, value_loss=losses)
    return losses
