"""Rewards of response tokens: a score at the end, and a price for leaving the SFT policy on the way.

Shapes: B = episodes, T = longest response, in tokens. mask[b, t]: token t of response b was generated.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onebase.tokens import last_token


def kl_to_reference(
    policy: Float[Tensor, "B T"], reference: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Each sampled token's log-probability ratio in nats, log pi(a|s) - log pi_ref(a|s); 0 outside the mask.

    Summed over a response its mean is an unbiased estimate of KL(policy || reference): the estimator k1 of
    http://joschu.net/blog/kl-approx.html. Single tokens may be negative; the mean over many responses is not.
    """
    return (policy - reference).masked_fill(~mask, 0.0)


def token_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, kl_weight: float
) -> Float[Tensor, "B T"]:
    """The reward of each token: minus kl_weight x KL at every token, plus the score at the last generated one.

        r_t = -kl_weight * (log pi(a_t) - log pi_ref(a_t))  +  [t is the last token] * score

    InstructGPT, https://arxiv.org/abs/2203.02155, eq. 2 (objective), with the penalty given a token at a time as in
    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.
    """
    rewards = (-kl_weight * kl).masked_fill(~mask, 0.0)
    at_end = torch.zeros_like(rewards).scatter(1, last_token(mask).unsqueeze(1), scores.unsqueeze(1))
    return rewards + at_end


def penalise_unfinished(
    scores: Float[Tensor, " B"], stopped: Bool[Tensor, " B"], *, penalty: float
) -> Float[Tensor, " B"]:
    """Scores, less `penalty` where the response was cut before it ended.

    The reward model has only seen finished answers. The "EOS trick" of Huang et al. 2024,
    https://arxiv.org/abs/2403.17031, replaces the score; a subtraction keeps the order among cut responses.
    """
    return scores - penalty * (~stopped).to(scores.dtype)
