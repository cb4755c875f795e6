"""PPO's losses, and metrics that show whether an update was healthy.

Shapes: B = episodes, T = longest response, in tokens. mask[b, t]: token t of response b was generated. Losses are per
token and 0 outside the mask. The caller sums them and divides by the tokens of the whole mini-batch: micro-batches of
any size then add up to the same gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onebase.masked import masked_variance


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip: float,
) -> Float[Tensor, "B T"]:
    """The clipped surrogate, as a loss.

        ratio = pi(a|s) / pi_old(a|s)
        L     = -min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A)

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7.
    """
    ratio = importance_ratio(logprobs, old_logprobs, mask)
    advantages = advantages.masked_fill(~mask, 0.0)
    gain = torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)
    return (-gain).masked_fill(~mask, 0.0)


def kl_by_k3(
    sampled: Float[Tensor, "B T"], other: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """KL(sampled || other) per token, in nats, on samples of the first: the estimator k3, which is never negative.

        k3 = q / p - 1 - log(q / p)          p: what sampled the token, q: the other

    http://joschu.net/blog/kl-approx.html. The penalty of GRPO is this with the reference as q, outside the reward:
    Shao et al. 2024, https://arxiv.org/abs/2402.03300, eq. 4. Its value is an unbiased estimate of the KL. Its gradient
    by p is not that of the KL but that of KL(q || p), so the penalty has an optimum of its own.
    """
    log_ratio = (other - sampled).masked_fill(~mask, 0.0)
    # expm1: exp(x) - 1 loses all digits of a small x and may come out negative.
    return torch.expm1(log_ratio) - log_ratio


def token_weights(mask: Bool[Tensor, "B T"], *, aggregation: str, limit: int) -> Float[Tensor, "B T"]:
    """The weight of each token's loss. A mini-batch's loss is the sum of weight times loss. 0 outside the mask.

        token-mean       1 / tokens of the mini-batch       (Ziegler et al. 2019; DAPO)
        sequence-mean    1 / (B * tokens of the response)   (GRPO)
        constant         1 / (B * limit)                    (Dr. GRPO: a token weighs the same in any response)

    limit: the most tokens that a response can have. Computed once for a mini-batch:
    micro-batches of any size add up to the same gradient.
    """
    if aggregation == "token-mean":
        weights = torch.full(mask.shape, 1.0 / max(1, int(mask.sum())))
    elif aggregation == "sequence-mean":
        weights = (1.0 / (len(mask) * mask.sum(dim=1, keepdim=True).clamp(min=1))).expand(mask.shape).cpu()
    else:
        weights = torch.full(mask.shape, 1.0 / (len(mask) * limit))
    return weights.to(mask.device).masked_fill(~mask, 0.0)


def truncated_importance(
    trained: Float[Tensor, "B T"], sampled: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, cap: float
) -> Float[Tensor, "B T"]:
    """Probability of each token in the trained model, divided by that in the engine that sampled it, at most `cap`.

        w = min(pi_trained(a|s) / pi_sampled(a|s), cap)

    Multiplied into the policy's loss it corrects for samples that are not quite the policy's own (another engine, other
    arithmetic), at the price of a little bias: Ionides 2008, https://doi.org/10.1198/106186008X320456. 1 outside.
    """
    return (trained - sampled).masked_fill(~mask, 0.0).exp().clamp(max=cap)


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip: float,
) -> Float[Tensor, "B T"]:
    """Half the squared error: the larger of the error of the value and that of the value clipped to near the old one.

        L = 1/2 max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2)

    The clipped value function of OpenAI baselines' ppo2 and of https://github.com/openai/lm-human-preferences
    (Huang et al. 2024, https://arxiv.org/abs/2403.17031).
    """
    # Filled before any arithmetic: NaN in the padding would otherwise reach the gradient through the maximum.
    values, old_values, returns = (x.masked_fill(~mask, 0.0) for x in (values, old_values, returns))
    held = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)


def importance_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """pi(a|s) / pi_old(a|s) of each token; 1 outside the mask."""
    return (logprobs - old_logprobs).masked_fill(~mask, 0.0).exp()


def outside_clip(ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, clip: float) -> Float[Tensor, "B T"]:
    """1 for each token with a ratio outside [1 - clip, 1 + clip], whether or not the loss was cut there; else 0.

    Its mean over tokens is the clip fraction.
    """
    return (((ratio - 1.0).abs() > clip) & mask).float()


def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """1 - Var(R - V) / Var(R): 1 is a perfect value function, 0 a constant one, below 0 worse than a constant; NaN
    where the returns do not differ."""
    spread = masked_variance(returns.masked_fill(~mask, 0.0), mask)
    unexplained = masked_variance((returns - values).masked_fill(~mask, 0.0), mask)
    return torch.where(spread > 1e-8, 1.0 - unexplained / spread, torch.nan)
