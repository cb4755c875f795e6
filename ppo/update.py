"""The update: epochs of mini-batches over one experience.

A mini-batch is one optimiser step. It is cut into micro-batches by token budget. Their gradients add up to exactly the
mini-batch's: every loss is a sum over tokens divided by the tokens of the whole mini-batch.

Shapes: B = episodes, T = longest response, in tokens.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from onebase.inference.scoring import TokenScores, batches_of, token_scores, token_values
from onebase.masked import masked_sum
from onebase.memory import Budget
from onebase.model.roles import Roles
from onebase.tracking.usage import Clock
from ppo.maths.losses import (
    explained_variance,
    importance_ratio,
    kl_by_k3,
    outside_clip,
    policy_loss,
    value_loss,
)
from ppo.method import Method
from ppo.recipe.training import TrainSection
from ppo.rollout import Experience

Accept = Callable[[Sequence[float], Sequence[int]], bool]
"""Gets the gradient norms and the rows of a mini-batch; False skips it."""

Mix = Callable[[int, int], None]
"""Adds gradients that are not PPO's to a mini-batch, given its number and the tokens of a micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What learns: the optimiser, its schedule, and the parameters of each trained role."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    trained: dict[str, list[torch.nn.Parameter]]


@dataclass
class Tally:
    """Sums over tokens: what is logged is a mean over tokens, not over micro-batches."""

    tokens: int = 0
    ratio_max: float = 0.0
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, mask: Tensor, **per_token: Tensor) -> None:
        """Add sums over some tokens. The caller counts these in `tokens`, once for everything that is added of them."""
        if "ratio" in per_token:
            self.ratio_max = max(self.ratio_max, per_token.pop("ratio").max().item())
        for name, values in per_token.items():
            self.sums[name] += masked_sum(values.detach(), mask).item()

    def merge(self, other: "Tally") -> None:
        self.tokens += other.tokens
        self.ratio_max = max(self.ratio_max, other.ratio_max)
        for name, total in other.sums.items():
            self.sums[name] += total

    def means(self) -> dict[str, float]:
        return {name: total / max(self.tokens, 1) for name, total in self.sums.items()}


def minibatches(episodes: int, *, size: int, epochs: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Rows of each optimiser step: every epoch sees every episode once, in a new order."""
    for _ in range(epochs):
        order = torch.randperm(episodes, generator=generator).tolist()
        for start in range(0, episodes, size):
            yield order[start : start + size]


def update(
    roles: Roles,
    experience: Experience,
    learner: Learner,
    method: Method,
    generator: torch.Generator,
    accept: Accept,
    budget: Budget,
    mix: Mix = lambda number, tokens: None,
    *,
    kl_weight: float,
    learn_policy: bool = True,
    clock: Clock | None = None,
) -> dict[str, float]:
    """Optimise policy and value on one experience; returns metrics without their `ppo/` prefix.

    kl_weight: of the KL's term in the loss, with kl.estimator k3. learn_policy: False leaves the policy as it is.
    clock: measures the training of each role and the optimiser.
    """
    clock, train, device = clock or Clock(), method.train, roles.base.device
    tally, norms = Tally(), defaultdict[str, list[float]](list)
    order = minibatches(len(experience.episodes), size=train.minibatch, epochs=train.epochs, generator=generator)
    for number, rows in enumerate(order):
        gradients = partial(
            backward,
            *(roles, experience.select(rows, device), learner, method, budget, partial(mix, number)),
            kl_weight=kl_weight,
            learn_policy=learn_policy,
            clock=clock,
        )
        sums = budget.fit(gradients)
        with clock.part("optimizer"):
            norm_of = {
                role: torch.nn.utils.clip_grad_norm_(parameters, train.max_grad_norm).item()
                for role, parameters in learner.trained.items()
            }
        if not accept(list(norm_of.values()), rows):
            continue
        tally.merge(sums)
        for role, norm in norm_of.items():
            norms[f"grad_norm/{role}"].append(norm)
        with clock.part("optimizer"):
            learner.optimizer.step()
            learner.schedule.step()
    metrics = tally.means() | {name: sum(values) / len(values) for name, values in norms.items()}
    if learn_policy:
        metrics["ratio_max"] = tally.ratio_max
    if method.value_role is not None:
        explained = explained_variance(experience.values, experience.returns, experience.episodes.mask)
        # NaN where all returns are one number: there is nothing to explain.
        metrics |= {} if explained.isnan() else {"explained_variance": float(explained)}
    return metrics | {"learning_rate": float(learner.schedule.get_last_lr()[0])}


def backward(
    roles: Roles,
    minibatch: Experience,
    learner: Learner,
    method: Method,
    budget: Budget,
    mix: Callable[[int], None] = lambda tokens: None,
    *,
    kl_weight: float = 0.0,
    learn_policy: bool = True,
    clock: Clock | None = None,
) -> Tally:
    """Put one mini-batch's gradients, and nothing older, into `.grad`; returns what there is to log of it.

    minibatch: on the model's device. mix: adds to the policy's gradients, given the tokens of a micro-batch.
    A shared value head takes part in the policy's forward and backward. A value adapter has a forward and backward of
    its own, after the policy's: their activations are never in memory together.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    tally, clock, device = Tally(), clock or Clock(), roles.base.device
    weights = method.weigh(minibatch.episodes.mask)
    for rows in batches_of(roles, minibatch.episodes.sequences, tokens=budget.tokens):
        part, weight = minibatch.select(rows), weights[rows].to(device)
        if learn_policy:
            with roles.forwards.checkpointed(), clock.part("train_policy"):
                now = token_scores(
                    roles,
                    "policy",
                    part.episodes,
                    temperature=method.sampling.temperature,
                    value_head="policy" if method.value_role == "policy" else None,
                    entropy_gradient=method.train.entropy_weight > 0,
                )
                losses = policy_losses(now, part, method.train, kl_weight, tally)
                values = now.values
                shared = 0.0 if values is None else value_losses(values, part, method.value.clip, tally)
                ((losses + method.value.weight * shared) * weight).sum().backward()
        if method.value_role == "value":
            with roles.forwards.checkpointed(), clock.part("train_value"):
                values = token_values(roles, "value", part.episodes)
                (method.value.weight * value_losses(values, part, method.value.clip, tally) * weight).sum().backward()
        tally.tokens += int(part.episodes.mask.sum())
    if learn_policy:
        mix(budget.tokens)
    return tally


def policy_losses(
    now: TokenScores, part: Experience, train: TrainSection, kl_weight: float, tally: Tally
) -> Float[Tensor, "B T"]:
    """The loss of each token in the policy's forward: the clipped surrogate, and KL term and entropy bonus where the
    recipe has them."""
    mask, logprobs = part.episodes.mask.to(now.logprobs.device), now.logprobs.detach()
    losses = policy_loss(now.logprobs, part.logprobs, part.advantages, mask, clip=train.clip)
    ratio = importance_ratio(logprobs, part.logprobs, mask)
    logged = {
        "policy_loss": losses,
        "entropy": now.entropies,
        "kl_from_old": kl_by_k3(part.logprobs, logprobs, mask),
        "clip_fraction": outside_clip(ratio, mask, clip=train.clip),
    }
    if part.importance is not None:
        losses = losses * part.importance
        logged["importance"] = part.importance
    if kl_weight:
        logged["kl_loss"] = kl_by_k3(now.logprobs, part.reference_logprobs, mask)
        losses = losses + kl_weight * logged["kl_loss"]
    if train.entropy_weight:
        losses = losses - train.entropy_weight * now.entropies
    tally.add(mask, ratio=ratio, **logged)
    return losses


def value_losses(values: Tensor, part: Experience, clip: float, tally: Tally) -> Float[Tensor, "B T"]:
    """The value function's loss of each token."""
    mask = part.episodes.mask.to(values.device)
    losses = value_loss(values, part.values, part.returns, mask, clip=clip)
    tally.add(mask, value_loss=losses)
    return losses
