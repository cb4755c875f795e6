"""Rollouts: responses sampled from the policy, with everything the update needs to know about them.

Shapes: B = episodes, T = longest response, in tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onebase.inference.sampling import Engine, Sample, sample
from onebase.inference.scoring import in_microbatches, logprobs, token_values
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from onebase.tracking.usage import Clock
from ppo.maths.advantages import compare_groups, gae
from ppo.maths.rewards import kl_to_reference, penalise_unfinished, token_rewards
from ppo.maths.whitening import Seen
from ppo.recipe.recipe import PpoRecipe
from ppo.scores import Asked, overlong_penalty, rewarded_sequences, score_episodes

DECODING_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}
"""Nats a token by which log-probs kept from cached decoding may differ from those of a training forward."""


@runtime_checkable
class Answered(Protocol):
    """What shaping a score reads of B answers: those of a rollout, or of held-out prompts."""

    @property
    def scores(self) -> Tensor: ...
    @property
    def stopped(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One batch of sampled episodes, as they were when sampled. Per-token tensors are 0 outside episodes.mask."""

    episodes: Episodes
    stopped: Bool[Tensor, " B"]
    logprobs: Float[Tensor, "B T"]
    """Of the policy that sampled: pi_old in the ratio."""
    sampled: Float[Tensor, "B T"] | None = None
    """As decoding said, where `logprobs` are recomputed."""
    reference: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"] | None
    """None: not asked for here, for the update's own forward says them."""
    scores: Float[Tensor, " B"]
    """The sum of the reward's terms, each times its weight, before whitening, clipping and penalties."""
    members: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    """What each reward model says by itself, unweighted, by role."""
    terms: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)
    """Each term of the score by its name, unweighted."""

    @property
    def lengths(self) -> Float[Tensor, " B"]:
        """Of the responses, in tokens."""
        return self.episodes.mask.sum(dim=1).float()


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the update pulls towards, computed once for a rollout."""

    advantages: Float[Tensor, "B T"]
    """Not yet standardised. NaN, as the returns, where the rollout has no values yet."""
    returns: Float[Tensor, "B T"]
    kl: Float[Tensor, "B T"]
    """log pi_old - log pi_ref of each token, in nats."""
    rewards: Float[Tensor, "B T"]
    kl_weight: float = 0.0
    """Of the KL's term in the loss; 0 where it is in the rewards."""


def collect(
    roles: Roles,
    prompts: Sequence[Sequence[int]],
    recipe: PpoRecipe,
    generator: torch.Generator,
    asked: Asked | None = None,
    clock: Clock | None = None,
    *,
    with_values: bool = True,
    engine: Engine = sample,
) -> Rollout:
    """Sample a response to each prompt, then let reference, reward and value look at it.

    asked: the prompts as they were read, for rewards that are functions. clock: told how long sampling and each role's
    pass take. with_values: False where the update's own forward says the values. engine: what draws the responses.
    """
    clock = clock or Clock()
    settings, budget = recipe.sampling, recipe.train.tokens_per_microbatch
    # A shared value function sits on the trunk that decodes: its values cost nothing more.
    in_passing = recipe.has_value and recipe.value.kind == "shared" and recipe.train.old_logprobs == "sampled"
    sampled = engine(
        roles,
        "policy",
        prompts,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        generator=generator,
        batch=settings.batch,
        value_head="policy" if in_passing else None,
        clock=clock,
    )
    episodes = sampled.episodes
    with clock.part("score_reference"):
        roles.keep_lower([*episodes.sequences, *rewarded_sequences(episodes, asked)], tokens=budget)
        given = {"temperature": settings.temperature, "tokens_per_microbatch": budget}
        reference = logprobs(roles, "reference", episodes, **given)
    with clock.part("score_reward"):
        scored = score_episodes(roles, episodes, recipe, asked)
    values = sampled.values if recipe.has_value else torch.zeros(episodes.mask.shape)
    if values is None and with_values:
        role = "value" if recipe.value.kind == "adapter" else "policy"
        with clock.part("score_value"):
            values = in_microbatches(roles, lambda part: token_values(roles, role, part), episodes, tokens=budget)
    old = _old_logprobs(roles, sampled, recipe, clock)
    return Rollout(
        episodes=episodes,
        stopped=sampled.stopped,
        logprobs=old,
        sampled=None if recipe.train.old_logprobs == "sampled" else sampled.logprobs,
        reference=reference,
        values=values,
        scores=scored.total,
        members=scored.members,
        terms=scored.terms,
    )


def compute_targets(
    rollout: Rollout, recipe: PpoRecipe, *, kl_weight: float | None = None, seen: Seen | None = None
) -> Targets:
    """Per-token rewards, then advantages and returns. kl_weight: in place of the recipe's, where it adapts. seen: the
    scores of the run up to these, where they are whitened."""
    weight = recipe.kl.weight if kl_weight is None else kl_weight
    in_reward = recipe.kl.estimator == "k1"
    mask = rollout.episodes.mask
    kl = kl_to_reference(rollout.logprobs, rollout.reference, mask)
    scores = shape_scores(rollout, recipe, seen)
    rewards = token_rewards(scores, kl, mask, kl_weight=weight if in_reward else 0.0)
    if rollout.values is None:
        advantages = returns = torch.full_like(rewards, torch.nan)
    elif recipe.has_value:
        settings = {"discount": recipe.train.discount, "trace": recipe.train.trace}
        advantages, returns = gae(rewards, rollout.values, mask, **settings)
    else:
        group = recipe.sampling.responses_per_prompt
        advantages = compare_groups(rewards, mask, kind=recipe.advantages.kind, group=group)
        returns = torch.zeros_like(advantages)
    in_loss = 0.0 if in_reward else weight
    return Targets(advantages=advantages, returns=returns, kl=kl, rewards=rewards, kl_weight=in_loss)


def shape_scores(rollout: Answered, recipe: PpoRecipe, seen: Seen | None = None) -> Float[Tensor, " B"]:
    """Scores as they are rewarded: whitened, clipped, less the penalties for being cut and for length. Evaluation
    chooses `best/` by their mean on held-out prompts (`ppo.steering.objective`)."""
    section, scores = recipe.reward, rollout.scores
    if section.whiten:
        scores = (seen or Seen().with_more(scores)).standardised(scores)
    if section.clip is not None:
        scores = scores.clamp(-section.clip, section.clip)
    if section.overlong is not None:
        limit, buffer = recipe.sampling.max_new_tokens, section.overlong.buffer
        scores = scores - section.overlong.weight * overlong_penalty(rollout.lengths, limit=limit, buffer=buffer)
    return penalise_unfinished(scores, rollout.stopped, penalty=section.eos_penalty)


def require_zero_kl(roles: Roles, rollout: Rollout, recipe: PpoRecipe) -> float:
    """Before the first update policy and reference are the same adapter, so their KL is 0; returns decoding's error.

    Exactly: one function over the same micro-batches must give equal bits. And the log-probs kept from decoding, which
    come out of other matrix shapes, must agree within a tolerance, unless they are recomputed. Anything else means that
    dropout is on, that padding leaks, or that the wrong adapter is active; such a run would optimise a wrong objective,
    so it ends here.
    """
    policy = logprobs(
        roles,
        "policy",
        rollout.episodes,
        temperature=recipe.sampling.temperature,
        tokens_per_microbatch=recipe.train.tokens_per_microbatch,
    )
    if not torch.equal(policy, rollout.reference):
        worst = (policy - rollout.reference).abs().max().item()
        raise RuntimeError(
            f"KL(policy, reference) is not 0 before the first update: a token differs by {worst:.3g} nats. "
            "Policy and reference must start as the same adapter; this run would optimise the wrong objective."
        )
    error = (policy - (rollout.logprobs if rollout.sampled is None else rollout.sampled)).abs().max().item()
    stored = roles.base.identity.quantization
    half = stored == "bf16" or (roles.base.device.type == "cuda" and stored == "nf4")
    tolerance = DECODING_TOLERANCE["bfloat16" if half else "float32"]
    if not math.isfinite(error):
        raise RuntimeError("Log-probs from decoding are not all numbers: what drew the responses is broken.")
    if error > tolerance and rollout.sampled is None:
        raise RuntimeError(
            f"Log-probs from decoding differ from those of a training forward by up to {error:.3g} nats a token "
            f"(allowed: {tolerance:g}). Pass train.old_logprobs=recomputed to go on without them."
        )
    return error


def _old_logprobs(roles: Roles, sampled: Sample, recipe: PpoRecipe, clock: Clock) -> Tensor:
    if recipe.train.old_logprobs == "sampled":
        return sampled.logprobs
    with clock.part("score_policy"):
        return logprobs(
            roles,
            "policy",
            sampled.episodes,
            temperature=recipe.sampling.temperature,
            tokens_per_microbatch=recipe.train.tokens_per_microbatch,
        )
