"""Sampling from models that take no packed rows: padded batches, with transformers' own cache."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from onebase.inference.logprobs import draw
from onebase.model.roles import Roles
from onebase.tracking.usage import Clock

Decoded = tuple[Int[Tensor, "N L"], list[int], Float[Tensor, "N L"], Float[Tensor, "N L"]]
"""Tokens, how many each response has, their log-probabilities, and values (0 without a head)."""


def decode_padded(
    roles: Roles,
    prompts: Sequence[Sequence[int]],
    uniforms: Float[Tensor, "N L"],
    *,
    temperature: float,
    batch: int,
    head: str | None,
    clock: Clock,
) -> Decoded:
    """`batch` prompts at a time, padded on the left. Arguments as those of `onebase.inference.sampling.Decoder`."""
    tokens = torch.full(uniforms.shape, roles.base.pad_id, device=roles.base.device)
    logprobs, values = torch.zeros(2, *uniforms.shape, device=roles.base.device)
    lengths: list[int] = []
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        places = tokens[rows], logprobs[rows], values[rows]
        lengths += _fill_batch(*places, roles, prompts[rows], uniforms[rows], temperature, head, clock)
    return tokens, lengths, logprobs, values


def _fill_batch(
    tokens: Tensor,
    logprobs: Tensor,
    values: Tensor,
    roles: Roles,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    temperature: float,
    head: str | None,
    clock: Clock,
) -> list[int]:
    """Decode into the first three; returns the lengths of the responses."""
    device, pad_id = roles.base.device, roles.base.pad_id
    stop_ids = torch.tensor(sorted(roles.base.stop_ids), device=device)
    inputs = roles.forwards.pad(prompts, side="left")
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    attended = torch.arange(inputs.shape[1], device=device) >= inputs.shape[1] - lengths.unsqueeze(1)
    positions = (attended.long().cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=roles.base.model.config)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    drawn = torch.zeros(len(prompts), dtype=torch.long, device=device)
    for step in range(uniforms.shape[1]):
        with clock.part("rollout_decode" if step else "rollout_prefill"):
            output = roles.forwards.trunk(
                input_ids=inputs,
                attention_mask=attended.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            states = output.last_hidden_state[:, -1]
            logits = roles.forwards.lm_head(states).float()
            token, logprob = draw(logits, temperature=temperature, uniform=uniforms[:, step].to(device))
            tokens[:, step] = token.masked_fill(~running, pad_id)
            logprobs[:, step] = logprob.masked_fill(~running, 0.0)
            if head is not None:
                values[:, step] = roles.heads[head](states).masked_fill(~running, 0.0)
            drawn += running
            running = running & ~torch.isin(token, stop_ids)
            if not running.any():
                break
            inputs = tokens[:, step : step + 1]
            attended = torch.cat([attended, torch.ones_like(attended[:, :1])], dim=1)
            positions = (lengths + step).unsqueeze(1)
    return drawn.tolist()
