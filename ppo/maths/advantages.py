"""Advantages of response tokens: how much better each was than expected.

gae compares with a learned value function. The others compare a response with the other responses to its prompt (its
group) and need no value function: every token of a response gets the same advantage.

Shapes: B = episodes, T = longest response, in tokens; G = responses of a group, which lie one behind the other.
mask[b, t]: token t of response b was generated.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onebase.masked import masked_sum_rows


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    discount: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimates and returns of each response token.

        delta_t = r_t + discount * V_{t+1} - V_t
        A_t     = delta_t + discount * gae_lambda * A_{t+1}
        R_t     = A_t + V_t

    with V and A zero past the last generated token: a response ends the episode, so there is nothing to bootstrap
    from. Both are 0 outside the mask. Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 11, 12 and 16.
    """
    # masked_fill, not `* mask`: padding may hold NaN, and NaN * 0 is NaN.
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    steps = rewards.shape[1]
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + discount * next_values - values
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(steps)):
        # Past the end deltas are 0, so nothing has accumulated when the last generated token is reached.
        following = deltas[:, step] + discount * gae_lambda * following
        advantages[:, step] = following
    return advantages.masked_fill(~mask, 0.0), (advantages + values).masked_fill(~mask, 0.0)


def rloo(returns: Float[Tensor, " B"], *, group: int) -> Float[Tensor, " B"]:
    """A response's return minus the mean return of the others of its group: an unbiased baseline.

        A_i = R_i - 1 / (G - 1) sum_{j != i} R_j

    Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, eq. 9 (Kool et al. 2019).
    """
    grouped = _grouped(returns, group)
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()


def grpo(returns: Float[Tensor, " B"], *, group: int) -> Float[Tensor, " B"]:
    """A response's return, standardised within its group; 0 in a group of equal returns.

        A_i = (R_i - mean(R)) / std(R)

    Shao et al. 2024, https://arxiv.org/abs/2402.03300, section 4.1.2; std divides by G - 1, as torch and TRL do.
    """
    grouped = _grouped(returns, group)
    return ((grouped - grouped.mean(dim=1, keepdim=True)) / (grouped.std(dim=1, keepdim=True) + 1e-4)).flatten()


def dr_grpo(returns: Float[Tensor, " B"], *, group: int) -> Float[Tensor, " B"]:
    """A response's return minus its group's mean, not divided by anything: dividing by the standard deviation gives
    questions that are nearly always or nearly never answered right more weight.

    Liu et al. 2025, https://arxiv.org/abs/2503.20783, eq. 3. (G - 1) / G times RLOO's.
    """
    grouped = _grouped(returns, group)
    return (grouped - grouped.mean(dim=1, keepdim=True)).flatten()


GROUPED: Mapping[str, Callable[..., Tensor]] = {"rloo": rloo, "grpo": grpo, "dr_grpo": dr_grpo}
"""Estimators that compare the responses to one prompt: no value function is loaded with them."""


def compare_groups(
    rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, kind: str, group: int
) -> Float[Tensor, "B T"]:
    """The advantage of each token by a grouped estimator, from the undiscounted return of its response.

    Exactly 0 in a group of equal returns, and outside the mask.
    """
    returns = masked_sum_rows(rewards, mask)
    # A mean of equal numbers may be a rounding off: GRPO's division would make a signal of it.
    advantages = GROUPED[kind](returns, group=group).masked_fill(_all_equal(returns, group), 0.0)
    return advantages.unsqueeze(1).expand(mask.shape).masked_fill(~mask, 0.0)


def _all_equal(returns: Float[Tensor, " B"], group: int) -> Bool[Tensor, " B"]:
    """For each response, whether all of its group have the same return."""
    grouped = _grouped(returns, group)
    return (grouped == grouped[:, :1]).all(dim=1).repeat_interleave(group)


def _grouped(returns: Float[Tensor, " B"], group: int) -> Float[Tensor, "P G"]:
    assert group > 1 and len(returns) % group == 0, "whole groups of two responses or more"
    return returns.view(-1, group)
