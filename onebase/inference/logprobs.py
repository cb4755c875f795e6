"""Log-probabilities, entropies and KL without a full [B, T, V] tensor.

Pure functions of tensors. Shapes: N = tokens in a flat list, H = hidden size, V = vocabulary.
"""

from collections.abc import Callable, Sequence
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
    for start in range(0, hidden.shape[0], chunk):
        block = (hidden[start : start + chunk], targets[start : start + chunk])
        if torch.is_grad_enabled() and hidden.requires_grad:
            parts.append(cast(tuple[Tensor, Tensor], checkpoint(one_chunk, *block, use_reentrant=False)))
        else:
            parts.append(one_chunk(*block))
    return _joined(hidden, parts)


class _LogprobsWithGradient(torch.autograd.Function):
    """`token_logprobs` that differentiates itself on the way: d log p_n / d z_n = (onehot(target_n) - p_n)."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch's own is (*args)
        ctx: Any, hidden: Tensor, targets: Tensor, lm_head: Callable[[Tensor], Tensor], temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        parts: list[tuple[Tensor, Tensor]] = []
        gradient = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            target = targets[rows].unsqueeze(-1)
            with torch.enable_grad():
                block = hidden[rows].detach().requires_grad_()
                logits = lm_head(block)
            table = _log_softmax(logits.detach(), temperature)
            chosen = table.gather(-1, target).squeeze(-1)
            p = table.exp()
            parts.append((chosen, -table.mul_(p).sum(dim=-1)))
            slope = p.neg_().scatter_add_(-1, target, torch.ones_like(target, dtype=p.dtype)).div_(temperature)
            (gradient[rows],) = torch.autograd.grad(logits, block, slope.to(logits.dtype))
        ctx.save_for_backward(gradient)
        logprobs, entropies = _joined(hidden, parts)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return (grad_outputs[0].unsqueeze(-1) * gradient).to(gradient.dtype), None, None, None, None


def _log_softmax(logits: Float[Tensor, "N V"], temperature: float) -> Float[Tensor, "N V"]:
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def _joined(hidden: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if not parts:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


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
        for start in range(0, hidden.shape[0], chunk):
            p = _log_softmax(lm_head(hidden[start : start + chunk]), temperature)
            q = _log_softmax(lm_head(reference[start : start + chunk]), temperature)
            parts.append((p.exp() * (p - q)).sum(dim=-1))
    # Rounding may leave -1e-8 where the two are equal.
    return torch.cat(parts).clamp(min=0.0) if parts else hidden.new_zeros(0, dtype=torch.float32)
