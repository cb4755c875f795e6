"""Masked statistics.

Pure functions of tensors. Shapes: B = sequences, T = response tokens. mask[b, t]: token t of response b was generated
(padding is False and may hold anything, NaN included).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_sum(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Sum over the entries where `mask` holds."""
    # masked_fill, not `* mask`: padding may hold NaN, and NaN * 0 is NaN.
    return x.masked_fill(~mask, 0.0).sum()


def masked_sum_rows(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum of each row's entries where `mask` holds."""
    return x.masked_fill(~mask, 0.0).sum(dim=1)


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the entries where `mask` holds; 0 without any."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def masked_variance(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Population variance (divided by n, not n - 1) over the entries where `mask` holds."""
    # Filled before any arithmetic: NaN in the padding would otherwise reach the gradient through the square.
    x = x.masked_fill(~mask, 0.0)
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def standardise(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Shift and scale to mean 0 and variance 1 over the mask; 0 outside it.

    A constant input becomes 0: the variance is floored at 1e-8, as in the PPO of OpenAI baselines.
    """
    x = x.masked_fill(~mask, 0.0)
    scaled = (x - masked_mean(x, mask)) * torch.rsqrt(masked_variance(x, mask) + 1e-8)
    return scaled.masked_fill(~mask, 0.0)


def last_token(mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """Index of each row's last True. Every row must hold at least one: an empty response has no last token."""
    assert bool(mask.any(dim=1).all()), "a response without a token has no last token"
    positions = torch.arange(mask.shape[1], device=mask.device)
    return positions.masked_fill(~mask, -1).amax(dim=1)
