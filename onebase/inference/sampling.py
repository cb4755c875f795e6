"""Sampling responses with the log-probabilities of the sampled tokens kept.

It decodes in slots (`onebase.inference.decoding`), or in padded batches for models that take no packed rows. There is
no top-k and no top-p: the log-probability of a token is that of the distribution it was drawn from. Else the KL to the
reference would come out wrong, and often negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from onebase.inference.decoding import Decoder, draw
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from onebase.sequences.packing import pad_left
from onebase.tracking.usage import Clock


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sampled episodes. B = episodes, T = longest response."""

    episodes: Episodes
    logprobs: Float[Tensor, "B T"]
    """Of each sampled token, from decoding; 0 outside the mask."""
    stopped: Bool[Tensor, " B"]
    """Whether the response ended with a stop token (else it was cut at max_new_tokens)."""
    values: Float[Tensor, "B T"] | None = None
    """Of the state that each token was drawn from, where a head was asked for; 0 outside the mask."""


@runtime_checkable
class Engine(Protocol):
    """What a rollout asks for: prompts in; tokens, their log-probabilities and a mask out. `sample` is the one in here.

    Another one (a server that is given the policy's adapter) will compute log-probabilities that differ from those of a
    training forward: `train.old_logprobs: recomputed` and `train.importance_cap` are there for that.
    """

    def __call__(
        self,
        roles: Roles,
        role: str | None,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        generator: torch.Generator,
        batch: int,
        value_head: str | None = None,
        clock: Clock | None = None,
    ) -> Sample: ...


@torch.no_grad()
def sample(
    roles: Roles,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    batch: int,
    value_head: str | None = None,
    clock: Clock | None = None,
) -> Sample:
    """One response for each prompt, at most `batch` of them at a time, in the given order.

    temperature: 1 samples the model's own distribution; 0 is greedy (log-probs are then those at 1).
    generator: a CPU generator. It draws one number for every token of every response. Equal generators therefore give
    equal responses on a machine, whatever `batch` is, except for ties that rounding decides.
    value_head: the role with a head to read on this same trunk, at the state that each token is drawn from.
    clock: measures `rollout_prefill` and `rollout_decode`.
    """
    roles.forwards.require_reach(max(map(len, prompts)) + max_new_tokens)
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator, dtype=torch.float64)
    clock = clock or Clock()
    with roles.active(role), roles.forwards.autocast():
        if roles.forwards.can_pack:
            slots = Decoder(
                roles, prompts, uniforms, temperature=temperature, slots=batch, head=value_head, clock=clock
            ).run()
            tokens, lengths, logprobs, values = slots.tokens, slots.lengths, slots.logprobs, slots.values
        else:
            decoded = _padded(roles, prompts, uniforms, temperature, batch, value_head, clock)
            tokens, lengths, logprobs, values = decoded
    lengths = torch.tensor(lengths)
    width = int(lengths.max())
    tokens, mask = tokens[:, :width].cpu(), torch.arange(width) < lengths.unsqueeze(1)
    episodes = Episodes(prompts=tuple(tuple(prompt) for prompt in prompts), responses=tokens, mask=mask)
    stopped = (torch.isin(tokens, torch.tensor(sorted(roles.base.stop_ids))) & mask).any(dim=1)
    return Sample(
        episodes=episodes,
        logprobs=logprobs[:, :width].cpu(),
        stopped=stopped,
        values=None if value_head is None else values[:, :width].cpu(),
    )


Decoded = tuple[Int[Tensor, "N L"], list[int], Float[Tensor, "N L"], Float[Tensor, "N L"]]
"""Tokens, how many each response has, log-probabilities, values."""


def _padded(
    roles: Roles,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    temperature: float,
    batch: int,
    head: str | None,
    clock: Clock,
) -> Decoded:
    """For models with attention that takes no packed rows: `batch` prompts at a time, padded on the left."""
    tokens = torch.full(uniforms.shape, roles.base.pad_id)
    logprobs, values = torch.zeros(uniforms.shape), torch.zeros(uniforms.shape)
    lengths: list[int] = []
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        part, mask, logprob, value = _padded_batch(roles, prompts[rows], uniforms[rows], temperature, head, clock)
        width = part.shape[1]
        tokens[rows, :width], logprobs[rows, :width], values[rows, :width] = part, logprob, value
        lengths += mask.sum(dim=1).tolist()
    return tokens, lengths, logprobs, values


def _padded_batch(
    roles: Roles, prompts: Sequence[Sequence[int]], uniforms: Tensor, temperature: float, head: str | None, clock: Clock
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"], Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    device, pad_id = roles.base.device, roles.base.pad_id
    stop_ids = torch.tensor(sorted(roles.base.stop_ids), device=device)
    inputs = pad_left(prompts, pad_id=pad_id, device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    attended = torch.arange(inputs.shape[1], device=device) >= inputs.shape[1] - lengths.unsqueeze(1)
    positions = (attended.long().cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=roles.base.model.config)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    tokens, masks, logprobs, values = [], [], [], []
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
            tokens.append(token.masked_fill(~running, pad_id))
            masks.append(running)
            logprobs.append(logprob.masked_fill(~running, 0.0))
            value = torch.zeros_like(logprob) if head is None else roles.heads[head](states)
            values.append(value.masked_fill(~running, 0.0))
            running = running & ~torch.isin(token, stop_ids)
            if not running.any():
                break
            inputs = tokens[-1].unsqueeze(1)
            attended = torch.cat([attended, torch.ones_like(attended[:, :1])], dim=1)
            positions = (lengths + step).unsqueeze(1)
    joined = [torch.stack(parts, dim=1).cpu() for parts in (tokens, masks, logprobs, values)]
    return joined[0], joined[1], joined[2], joined[3]
