"""The update: inner epochs of mini-batches over one rollout.

A mini-batch is one optimiser step. It is cut into micro-batches by token budget, whose gradients add up to exactly the
mini-batch's: every loss is a sum over tokens divided by the tokens of the whole mini-batch.

Where a rollout has one optimiser step, the value function's forward of the update is that of the rollout: it gives the
values, they give the targets of their own episodes, and the value function learns from them at once (`learn_values`).

Shapes: B = episodes, T = longest response, in tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from onebase.inference.scoring import TokenScores, token_scores, token_values
from onebase.memory import Halving
from onebase.model.roles import Roles
from onebase.tokens import standardise
from onebase.tracking.usage import Clock
from ppo.batch import Batch, Tally, minibatches, parts_of, to_batch
from ppo.maths.advantages import gae
from ppo.maths.losses import (
    explained_variance,
    importance_ratio,
    kl_from_old,
    outside_clip,
    policy_loss,
    reference_kl_loss,
    value_loss,
)
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Rollout, Targets


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns: the optimiser, its schedule, and the parameters of each trained role."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    trained: dict[str, list[torch.nn.Parameter]]


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
    batch = known = replace(to_batch(rollout, targets, roles.base.device, recipe), value_only=value_only)
    tally, epoch, norms = Tally(), Tally(), dict[str, list[float]]()
    per_epoch = len(rollout.episodes) // recipe.train.minibatch
    for number, rows in enumerate(minibatches(len(rollout.episodes), recipe, generator)):
        if number % per_epoch == 0 and number:
            if moved_enough(epoch, recipe):
                break
            epoch = Tally()
        extra = partial(mix, number) if not value_only else lambda recipe: None
        gradients = partial(gradients_of, roles, batch.select(rows), learner, recipe, extra, clock=clock)
        own, valued = halving.fit(gradients, size=recipe.largest)
        # The mini-batch is the whole batch where its values come from the update.
        known = batch if batch.rewards is None else valued
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
    explained = None
    if recipe.has_value:
        # NaN where all returns are one number: there is nothing to explain.
        explained = explained_variance(known.old_values, known.returns, known.episodes.mask.to(known.returns.device))
    return {
        **tally.means(),
        **{name: sum(values) / len(values) for name, values in norms.items()},
        **({} if value_only else {"ratio_max": tally.ratio_max}),
        **({} if explained is None or explained.isnan() else {"explained_variance": float(explained)}),
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
) -> tuple[Tally, Batch]:
    """The gradients of one mini-batch, and nothing else, in `.grad`; and the mini-batch with all of its values."""
    learner.optimizer.zero_grad(set_to_none=True)
    tally, recipe, clock = Tally(), recipe.halved(halvings), clock or Clock()
    valued = minibatch if minibatch.rewards is None else learn_values(roles, minibatch, recipe, tally, clock)
    tally.merge(backward(roles, valued, recipe, clock, with_values=valued is minibatch))
    extra(recipe)
    return tally, valued


def moved_enough(epoch: Tally, recipe: PpoRecipe) -> bool:
    """Whether an inner epoch has found the policy so far from the one that sampled that it should be the last."""
    limit = recipe.train.target_kl
    return limit is not None and epoch.means().get("kl_from_old", 0.0) > limit


def learn_values(roles: Roles, minibatch: Batch, recipe: PpoRecipe, tally: Tally, clock: Clock) -> Batch:
    """Add the value function's gradients of a whole rollout to `.grad`; the batch with its values and their targets.

    To be called before the rollout's only optimiser step: old and new values are then the same, and the targets of an
    episode need the values of no other.
    """
    assert minibatch.rewards is not None, "there is nothing left to find"
    values, returns, advantages = (torch.zeros_like(minibatch.rewards) for _ in range(3))
    settings = {"discount": recipe.train.discount, "trace": recipe.train.trace}
    for rows, part, weights in parts_of(roles, minibatch, recipe):
        assert part.rewards is not None
        with clock.part("train_value"), roles.training_forward():
            now = token_values(roles, "value", part.episodes)
            found, mask = now.detach(), part.episodes.mask.to(now.device)
            advantages[rows], returns[rows] = gae(part.rewards, found, mask, **settings)
            values[rows] = found
            _value_part(now, replace(part, old_values=found, returns=returns[rows]), weights, recipe, tally)
    if recipe.whitens:
        advantages = standardise(advantages, minibatch.episodes.mask.to(advantages.device))
    return replace(minibatch, old_values=values, returns=returns, advantages=advantages, rewards=None)


def backward(
    roles: Roles, minibatch: Batch, recipe: PpoRecipe, clock: Clock | None = None, *, with_values: bool = True
) -> Tally:
    """Add one mini-batch's gradients to `.grad`, a micro-batch at a time; what there is to log of it.

    with_values: False where the value function has learned from it already.
    """
    tally, clock = Tally(), clock or Clock()
    for _, part, own in parts_of(roles, minibatch, recipe):
        with roles.training_forward():
            if recipe.has_value and recipe.value.kind == "shared":
                with clock.part("train_policy"):
                    _shared_part(roles, part, own, recipe, tally)
            else:
                if not part.value_only:
                    with clock.part("train_policy"):
                        _policy_part(roles, part, own, recipe, tally)
                if recipe.has_value and with_values:
                    with clock.part("train_value"):
                        _value_part(token_values(roles, "value", part.episodes), part, own, recipe, tally)
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


def _value_part(values: Tensor, part: Batch, weights: Tensor, recipe: PpoRecipe, tally: Tally) -> None:
    losses = _value_losses(values, part, recipe, tally)
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
