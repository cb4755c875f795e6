"""Rewards of response tokens: a score at the last token, and a price for the KL to the SFT policy at every token.

Shapes: B = episodes, T = longest response, in tokens. mask[b, t]: token t of response b was generated.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onebase.masked import last_token

LARGEST_KL_ERROR = 0.2
"""Relative error of the KL that an adaptive weight follows at most."""


@dataclass(frozen=True, kw_only=True)
class ScoreMoments:
    """Number, mean and population variance of every score of the run so far."""

    count: float = 0.0
    mean: float = 0.0
    variance: float = 0.0

    def including(self, scores: Float[Tensor, " B"]) -> "ScoreMoments":
        """The moments of the scores so far and of these together.

            n = n_1 + n_2,   d = m_2 - m_1
            m = m_1 + d n_2 / n
            v = (n_1 v_1 + n_2 v_2 + d^2 n_1 n_2 / n) / n

        Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115.
        """
        more = float(len(scores))
        variance, mean = (moment.item() for moment in torch.var_mean(scores.double(), correction=0))
        count, apart = self.count + more, mean - self.mean
        squares = self.count * self.variance + more * variance + apart**2 * self.count * more / count
        return ScoreMoments(count=count, mean=self.mean + apart * more / count, variance=squares / count)

    def standardise(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scores minus the mean, over the standard deviation; 0 where all scores so far are equal."""
        # As `onebase.masked.standardise`: the floor keeps a constant score from being divided by nothing.
        return ((scores.double() - self.mean) * (self.variance + 1e-8) ** -0.5).float()


def overlong_penalty(lengths: Float[Tensor, " B"], *, limit: int, buffer: int) -> Float[Tensor, " B"]:
    """Share of the penalty for length that a response gets.

        0                                   where |y| <= limit - buffer
        (|y| - (limit - buffer)) / buffer   up to the limit, where it is 1

    The soft overlong punishment of DAPO, Yu et al. 2025, https://arxiv.org/abs/2503.14476, eq. 13.
    """
    return ((lengths - (limit - buffer)) / buffer).clamp(min=0.0, max=1.0)


def penalise_unfinished(
    scores: Float[Tensor, " B"], stopped: Bool[Tensor, " B"], *, penalty: float
) -> Float[Tensor, " B"]:
    """Scores, minus `penalty` where the response was cut before it ended.

    The reward model has only seen finished answers. The "EOS trick" of Huang et al. 2024,
    https://arxiv.org/abs/2403.17031, replaces the score; a subtraction keeps the order among cut responses.
    """
    return scores - penalty * (~stopped).to(scores.dtype)


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


def next_kl_weight(weight: float, kl: float, *, target: float, horizon: int, episodes: int) -> float:
    """The KL weight after a step of so many episodes with a mean KL of `kl` nats per response.

        error   = clamp((kl - target) / target, -0.2, 0.2)
        weight <- weight * (1 + error * episodes / horizon)

    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2 (there 0.1 in place of episodes / horizon).
    """
    error = max(-LARGEST_KL_ERROR, min(LARGEST_KL_ERROR, (kl - target) / target))
    return weight * (1.0 + error * episodes / horizon)
