"""Log-probabilities, entropies and KL without a full [B, T, V] tensor, and the draw of a token.

Pure functions of tensors. Shapes: N = tokens in a flat list, H = hidden size, V = vocabulary.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] - torch leaves it untyped


def token_logprobs(
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    lm_head: Callable[[Tensor], Tensor],
    *,
    temperature: float,
    chunk: int,
    entropy_gradient: bool = True,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each target and entropy of each distribution, in nats.

        log p_n  = z_n[target_n] - logsumexp(z_n),     z_n = lm_head(hidden_n) / temperature
        H_n      = - sum_v p_n[v] log p_n[v]

    `chunk` tokens at a time: no more than chunk x V logits exist, in the backward pass as well (they are computed
    again there). The logits are fp32 whatever `lm_head` computes in.

    entropy_gradient: False where the entropy is only looked at and `lm_head` is frozen. The gradient of log p_n in
    hidden_n is then kept from the forward, H numbers a token, and the logits are not computed again: two products with
    the LM head in place of three.
    """
    if torch.is_grad_enabled() and hidden.requires_grad and not entropy_gradient:
        return cast(tuple[Tensor, Tensor], _LogprobsWithGradient.apply(hidden, targets, lm_head, temperature, chunk))  # pyright: ignore[reportUnknownMemberType] - torch leaves it untyped

    def one_chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        table = _log_softmax(lm_head(hidden), temperature)
        return table.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(table.exp() * table).sum(dim=-1)

    parts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, max(1, len(hidden)), chunk):
        block = (hidden[start : start + chunk], targets[start : start + chunk])
        if torch.is_grad_enabled() and hidden.requires_grad:
            parts.append(cast(tuple[Tensor, Tensor], checkpoint(one_chunk, *block, use_reentrant=False)))
        else:
            parts.append(one_chunk(*block))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


class _LogprobsWithGradient(torch.autograd.Function):
    """`token_logprobs` that differentiates itself on the way: d log p_n / d z_n = (onehot(target_n) - p_n)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's own is (*args)
        ctx: Any, hidden: Tensor, targets: Tensor, lm_head: Callable[[Tensor], Tensor], temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(2))
        gradient = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            target = targets[rows].unsqueeze(-1)
            with torch.enable_grad():
                block = hidden[rows].detach().requires_grad_()
                logits = lm_head(block)
            table = _log_softmax(logits.detach(), temperature)
            logprobs[rows] = table.gather(-1, target).squeeze(-1)
            p = table.exp()
            entropies[rows] = -table.mul_(p).sum(dim=-1)
            slope = p.neg_().scatter_add_(-1, target, torch.ones_like(target, dtype=p.dtype)).div_(temperature)
            (gradient[rows],) = torch.autograd.grad(logits, block, slope.to(logits.dtype))
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return (grad_outputs[0].unsqueeze(-1) * gradient).to(gradient.dtype), None, None, None, None


def _log_softmax(logits: Float[Tensor, "N V"], temperature: float) -> Float[Tensor, "N V"]:
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def token_kl(
    hidden: Float[Tensor, "N H"],
    reference: Float[Tensor, "N H"],
    lm_head: Callable[[Tensor], Tensor],
    *,
    temperature: float,
    chunk: int,
) -> Float[Tensor, " N"]:
    """KL(p_n || q_n) of the two next-token distributions at each position, in nats, over the whole vocabulary.

        KL_n = sum_v p_n[v] (log p_n[v] - log q_n[v])

    Exact where the log-ratio of one sampled token is an estimate: never negative, and far less noisy. No gradients.
    """
    parts: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, max(1, len(hidden)), chunk):
            p = _log_softmax(lm_head(hidden[start : start + chunk]), temperature)
            q = _log_softmax(lm_head(reference[start : start + chunk]), temperature)
            parts.append((p.exp() * (p - q)).sum(dim=-1))
    # Rounding may leave -1e-8 where the two are equal.
    return torch.cat(parts).clamp(min=0.0)


def draw(
    logits: Float[Tensor, "B V"], *, temperature: float, uniform: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """One token a row, and its log-probability in nats. temperature: 0 is greedy, with log-probs at 1."""
    logits = logits if temperature in (0, 1) else logits / temperature
    token = logits.argmax(dim=-1) if temperature == 0 else invert(torch.softmax(logits, dim=-1), uniform)
    chosen = logits.gather(-1, token.unsqueeze(-1)).squeeze(-1)
    return token, chosen - logits.logsumexp(dim=-1)


BLOCK = 256


def invert(probabilities: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The first v with F(v) > u F(V), F the cumulated probabilities and u uniform in [0, 1).

    First the block of tokens that it lies in, then the token: only the blocks' sums and one block are cumulated. That
    is done in double, or rare tokens would never be drawn.
    """
    vocabulary = probabilities.shape[1]
    padding = probabilities.new_zeros(len(probabilities), -vocabulary % BLOCK)
    blocks = torch.cat([probabilities, padding], dim=1).view(len(probabilities), -1, BLOCK)
    ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniform.double().unsqueeze(1) * ends[:, -1:]
    block = _first_above(ends, target)
    within = blocks.gather(1, block.unsqueeze(-1).expand(-1, 1, BLOCK)).squeeze(1).double().cumsum(dim=-1)
    start = ends.gather(1, block) - within[:, -1:]
    return (block * BLOCK + _first_above(within, target - start)).squeeze(1).clamp(max=vocabulary - 1)


def _first_above(cumulated: Float[Tensor, "B N"], target: Float[Tensor, "B 1"]) -> Int[Tensor, "B 1"]:
    """Whatever rounding has done to the target, what is found adds something to the sum: no token of probability 0."""
    target = torch.minimum(target.clamp(min=0), cumulated[:, -1:] * (1 - 1e-12))
    # NaN is above nothing; it is for the guards to find.
    return torch.searchsorted(cumulated, target, right=True).clamp(max=cumulated.shape[1] - 1)
