"""Sampling responses with the log-probabilities of the sampled tokens kept.

There is no top-k and no top-p: the log-probability of a token is that of the distribution it was drawn from. Else the
KL to the reference would come out wrong, and often negative.

Decoding is in slots: a response that has ended makes room at once, and the next waiting prompt takes its place. Every
slot has its own keys and values from position 0, so nothing is padded. Prompts go in through `onebase.sequences.tree`:
what they share (a system text, or a whole prompt with several responses) is computed once. Models that take no packed
rows decode in padded batches (`onebase.inference.padded`).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import Cache

from onebase.inference.logprobs import draw
from onebase.inference.padded import Decoded, decode_padded
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from onebase.sequences.tree import pack
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
    settings: dict[str, Any] = {
        "temperature": temperature,
        "batch": batch,
        "head": value_head,
        "clock": clock or Clock(),
    }
    with roles.active(role), roles.forwards.autocast():
        if roles.forwards.can_pack:
            decoded = Decoder(roles, prompts, uniforms, **settings).run()
        else:
            decoded = decode_padded(roles, prompts, uniforms, **settings)
    tokens, lengths, logprobs, values = decoded
    width = max(lengths)
    tokens, mask = tokens[:, :width].cpu(), torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    episodes = Episodes(prompts=tuple(tuple(prompt) for prompt in prompts), responses=tokens, mask=mask)
    stopped = (torch.isin(tokens, torch.tensor(sorted(roles.base.stop_ids))) & mask).any(dim=1)
    return Sample(
        episodes=episodes,
        logprobs=logprobs[:, :width].cpu(),
        stopped=stopped,
        values=None if value_head is None else values[:, :width].cpu(),
    )


class Slots(Cache):
    """Keys and values of sequences, each in a slot of its own."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(layers=[])
        self._shape = count, width
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self.filling: Sequence[tuple[int, Tensor]] = ()
        """Where the next forward is a packed row of prompts: (slot, columns of its tokens in the row), for each."""
        self.places: tuple[Tensor, Tensor] | None = None
        """Where it is one token of each of the first N slots: the slots and the token's position in each."""
        self.reach = 0
        """All of these positions are below it."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Called by each layer: keeps its new keys and values, and gives it those that it attends to."""
        if layer_idx == len(self._keys):
            count, width = self._shape
            for kept, new in ((self._keys, key_states), (self._values, value_states)):
                kept.append(new.new_zeros(count, new.shape[1], width, new.shape[3]))
        stores = self._keys[layer_idx], self._values[layer_idx]
        for store, new in zip(stores, (key_states, value_states), strict=True):
            if self.places is not None:
                slots, positions = self.places
                store[slots, :, positions] = new[:, :, 0]
                continue
            for slot, columns in self.filling:
                store[slot, :, : len(columns)] = new[0, :, columns]
        if self.places is None:
            return key_states, value_states
        return tuple(store[: len(key_states), :, : self.reach] for store in stores)

    def move(self, source: int, target: int, length: int) -> None:
        """Slot `source`, `length` tokens long, into slot `target`."""
        for store in (*self._keys, *self._values):
            store[target, :, :length] = store[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked by models that would count positions by it; ours are always given."""
        return 0


class Decoder:
    """Responses to prompts under the active role. N = prompts, L = `uniforms.shape[1]`, the longest response.

    uniforms: [N, L] numbers in [0, 1) that decide every draw. Responses therefore do not depend on the grouping of
    forwards. batch: the slots. head: the role with a head to read at every state that a token is predicted from. clock:
    measures prefills and decoding steps.
    """

    def __init__(
        self,
        roles: Roles,
        prompts: Sequence[Sequence[int]],
        uniforms: Float[Tensor, "N L"],
        *,
        temperature: float,
        batch: int,
        head: str | None,
        clock: Clock,
    ) -> None:
        self._roles, self._prompts, self._temperature, self._head = roles, prompts, temperature, head
        self._clock = clock
        self._device = device = roles.base.device
        self._count, self._limit = min(batch, len(prompts)), uniforms.shape[1]
        self._uniforms = uniforms.to(device)
        self._stop_ids = torch.tensor(sorted(roles.base.stop_ids), device=device)
        self._cache = Slots(self._count, max(map(len, prompts)) + self._limit)
        self._waiting = deque(range(len(prompts)))
        self._active: list[int] = []
        """The episode of each slot in use."""
        self._tokens = torch.full(uniforms.shape, roles.base.pad_id, device=device)
        self._logprobs, self._values = torch.zeros(2, *uniforms.shape, dtype=torch.float32, device=device)
        self._lengths = [0] * len(prompts)

    def run(self) -> Decoded:
        """Until every prompt has its response."""
        while self._waiting:
            with self._clock.part("rollout_prefill"):
                self._fill()
            with self._clock.part("rollout_decode"):
                # A prefill for every slot that falls free would be many small ones: a quarter has to be free.
                while self._active and (not self._waiting or 4 * len(self._active) > 3 * self._count):
                    self._step()
        return self._tokens, self._lengths, self._logprobs, self._values

    def _fill(self) -> None:
        """Prompts into the free slots, and the first token of each response."""
        first = len(self._active)
        new = [self._waiting.popleft() for _ in range(min(self._count - first, len(self._waiting)))]
        self._active += new
        packed = pack([self._prompts[episode] for episode in new], device=self._device)
        columns = [torch.tensor(places, device=self._device) for places in packed.columns]
        self._cache.filling, self._cache.places = list(enumerate(columns, start=first)), None
        states = self._roles.forwards.packed_states(packed, cache=self._cache)
        last = torch.tensor([places[-1] for places in packed.columns], device=self._device)
        self._emit(range(first, len(self._active)), states[last])

    def _step(self) -> None:
        """The next token of every response in a slot."""
        last = [self._lengths[episode] - 1 for episode in self._active]
        places = [len(self._prompts[episode]) + place for episode, place in zip(self._active, last, strict=True)]
        # One copy to the device, and nothing read back from it before the tokens that were drawn.
        episodes, newest, positions = torch.tensor([self._active, last, places], device=self._device)
        self._cache.places = torch.arange(len(places), device=self._device), positions
        self._cache.reach = reach = max(places) + 1
        tokens = self._tokens[episodes, newest].unsqueeze(1)
        states = self._roles.forwards.decoding_states(tokens, positions, self._cache, reach=reach)
        self._emit(range(len(self._active)), states)

    def _emit(self, slots: range, states: Float[Tensor, "N H"]) -> None:
        """Draw the next token of these slots; a slot is freed when its response ends."""
        episodes = [self._active[slot] for slot in slots]
        places = [episodes, [self._lengths[episode] for episode in episodes]]
        at = tuple(torch.tensor(places, device=self._device))
        logits = self._roles.forwards.lm_head(states).float()
        token, logprob = draw(logits, temperature=self._temperature, uniform=self._uniforms[at])
        self._tokens[at], self._logprobs[at] = token, logprob
        if self._head is not None:
            self._values[at] = self._roles.heads[self._head](states)
        stopped = torch.isin(token, self._stop_ids).tolist()
        # From the last slot on: what moves into a freed slot has been looked at already.
        for slot, episode, stops in zip(reversed(slots), reversed(episodes), reversed(stopped), strict=True):
            self._lengths[episode] += 1
            if not stops and self._lengths[episode] < self._limit:
                continue
            moved = self._active.pop()
            if slot < len(self._active):
                # The last slot in use moves here: those in use stay the first ones. Its newest token has no keys and
                # values yet: the next step writes them.
                self._cache.move(len(self._active), slot, len(self._prompts[moved]) + self._lengths[moved] - 1)
                self._active[slot] = moved
