"""Rollouts: responses sampled from the policy, and everything that the update learns from.

Shapes: B = episodes, T = longest response, in tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onebase.inference.sampling import Sample
from onebase.inference.scoring import in_microbatches, logprobs, token_values
from onebase.masked import standardise
from onebase.memory import Budget
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from onebase.tracking.usage import Clock
from ppo.maths.advantages import compare_groups, gae
from ppo.maths.losses import truncated_importance
from ppo.maths.rewards import ScoreMoments, kl_to_reference, token_rewards
from ppo.method import Method
from ppo.scores import EpisodeScores, PromptBatch, score_episodes, shape_scores

DECODING_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}
"""Nats a token by which log-probs kept from cached decoding may differ from those of a training forward."""


@dataclass(frozen=True, kw_only=True)
class PpoState:
    """What a step hands to the next one, besides weights and optimiser."""

    kl_weight: float
    """Reward lost per nat of KL to the SFT policy."""
    score_moments: ScoreMoments = field(default_factory=ScoreMoments)


@dataclass(frozen=True, kw_only=True)
class Experience:
    """One batch of sampled episodes, complete: the update only slices it. Tensors are 0 outside episodes.mask."""

    episodes: Episodes
    """Prompts, responses and mask."""
    stopped: Bool[Tensor, " B"]
    logprobs: Float[Tensor, "B T"]
    """Log-probabilities of the policy that sampled: pi_old in the ratio."""
    decoding_logprobs: Float[Tensor, "B T"] | None
    """The same as decoding computed them, where `logprobs` are recomputed."""
    importance: Float[Tensor, "B T"] | None
    """Factor of each token's policy loss; None: 1."""
    reference_logprobs: Float[Tensor, "B T"]
    """Log-probabilities of the SFT policy."""
    kl: Float[Tensor, "B T"]
    """log pi_old - log pi_ref of each token, in nats."""
    scores: Float[Tensor, " B"]
    """The sum of the reward's terms, each times its weight, before whitening, clipping and penalties."""
    terms: dict[str, Float[Tensor, " B"]]
    """Each term of the score by its name, unweighted."""
    members: dict[str, Float[Tensor, " B"]]
    """The score of each reward model by its role, unweighted."""
    rewards: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    """0 without a value function, as the returns."""
    returns: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    """Standardised over the batch, unless the recipe leaves them as they are."""

    def select(self, rows: Sequence[int], device: torch.device | None = None) -> "Experience":
        """These episodes, in this order; their tensors on the device, `episodes` where they are."""
        index = list(rows)
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        terms, members = ({k: v[index] for k, v in part.items()} for part in (self.terms, self.members))
        return replace(
            self,
            episodes=self.episodes.select(index),
            terms=terms,
            members=members,
            **{name: value[index].to(device) for name, value in tensors.items()},
        )


def collect(
    roles: Roles,
    batch: PromptBatch,
    method: Method,
    generator: torch.Generator,
    budget: Budget,
    state: PpoState,
    *,
    clock: Clock | None = None,
) -> tuple[Experience, PpoState]:
    """Sample a response to each prompt, then let reference, reward and value score it.

    clock: measures sampling and the pass of each role. Returns the experience, and the state with the moments of its
    scores.
    """
    clock = clock or Clock()
    sampling, value_role, recomputed = method.sampling, method.value_role, method.train.old_logprobs == "recomputed"
    forwards = {"temperature": sampling.temperature, "tokens_per_microbatch": budget.tokens}
    drawn = method.engine(
        roles,
        "policy",
        [prompt.ids for prompt in batch.prompts],
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        generator=generator,
        batch=budget.episodes,
        # A shared value function sits on the trunk that decodes: its values cost nothing more.
        value_head="policy" if value_role == "policy" and not recomputed else None,
        clock=clock,
    )
    episodes = drawn.episodes
    with clock.part("score_reference"):
        reference = logprobs(roles, "reference", episodes, **forwards)
    with clock.part("score_reward"):
        scores = score_episodes(roles, episodes, batch, method.reward, tokens_per_microbatch=budget.tokens)
    values = None if value_role is None else drawn.values  # an engine may fill them unasked
    if values is None and value_role is not None:
        with clock.part("score_value"):
            values = in_microbatches(
                roles, lambda part: token_values(roles, value_role, part), episodes, tokens=budget.tokens
            )
    policy = None
    if recomputed:
        with clock.part("score_policy"):
            policy = logprobs(roles, "policy", episodes, **forwards)
    state = replace(state, score_moments=state.score_moments.including(scores.total))
    experience = make_experience(
        drawn, scores, method, state, reference=reference, values=values, recomputed_logprobs=policy
    )
    return experience, state


def make_experience(
    drawn: Sample,
    scores: EpisodeScores,
    method: Method,
    state: PpoState,
    *,
    reference: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"] | None,
    recomputed_logprobs: Float[Tensor, "B T"] | None = None,
) -> Experience:
    """Rewards of tokens, then advantages and returns: everything that follows from what the roles have computed.

    state: includes the moments of these scores. values: None without a value function.
    """
    mask, train = drawn.episodes.mask, method.train
    logprobs = drawn.logprobs if recomputed_logprobs is None else recomputed_logprobs
    kl = kl_to_reference(logprobs, reference, mask)
    lengths = mask.sum(dim=1).float()
    shaped = shape_scores(scores.total, drawn.stopped, lengths, method.reward, state.score_moments)
    # k3 is a term of the loss instead.
    rewards = token_rewards(shaped, kl, mask, kl_weight=state.kl_weight if method.kl.estimator == "k1" else 0.0)
    if values is not None:
        advantages, returns = gae(rewards, values, mask, discount=train.discount, gae_lambda=train.gae_lambda)
    else:
        group = method.sampling.responses_per_prompt
        advantages = compare_groups(rewards, mask, kind=method.advantages.kind, group=group)
        values = returns = torch.zeros_like(rewards)
    if method.standardises:
        advantages = standardise(advantages, mask)
    importance = None
    if train.importance_cap is not None:
        importance = truncated_importance(logprobs, drawn.logprobs, mask, cap=train.importance_cap)
    return Experience(
        episodes=drawn.episodes,
        stopped=drawn.stopped,
        logprobs=logprobs,
        decoding_logprobs=None if recomputed_logprobs is None else drawn.logprobs,
        importance=importance,
        reference_logprobs=reference,
        kl=kl,
        scores=scores.total,
        terms=scores.terms,
        members=scores.members,
        rewards=rewards,
        values=values,
        returns=returns,
        advantages=advantages,
    )


def require_zero_kl(roles: Roles, experience: Experience, *, temperature: float, tokens_per_microbatch: int) -> float:
    """Before the first update policy and reference are the same adapter, so their KL is 0; returns decoding's error.

    Exactly: one function over the same micro-batches must give equal bits. Log-probs kept from decoding come out of
    other matrix shapes and must agree within a tolerance, unless they are recomputed. Anything else means that dropout
    is on, padding leaks, or the wrong adapter is active. Such a run would optimise a wrong objective, so it ends here.
    """
    policy = logprobs(
        roles, "policy", experience.episodes, temperature=temperature, tokens_per_microbatch=tokens_per_microbatch
    )
    if not torch.equal(policy, experience.reference_logprobs):
        worst = (policy - experience.reference_logprobs).abs().max().item()
        raise RuntimeError(
            f"KL(policy, reference) is not 0 before the first update: a token differs by {worst:.3g} nats. "
            "Policy and reference must start as the same adapter; this run would optimise the wrong objective."
        )
    recomputed = experience.decoding_logprobs is not None
    decoded = experience.logprobs if experience.decoding_logprobs is None else experience.decoding_logprobs
    error = (policy - decoded).abs().max().item()
    stored = roles.base.identity.quantization
    half = stored == "bf16" or (roles.base.device.type == "cuda" and stored == "nf4")
    tolerance = DECODING_TOLERANCE["bfloat16" if half else "float32"]
    if not math.isfinite(error):
        raise RuntimeError("Log-probs from decoding are not all numbers: the sampling engine is broken.")
    if error > tolerance and not recomputed:
        raise RuntimeError(
            f"Log-probs from decoding differ from those of a training forward by up to {error:.3g} nats a token "
            f"(allowed: {tolerance:g}). Pass train.old_logprobs=recomputed to continue without them."
        )
    return error
