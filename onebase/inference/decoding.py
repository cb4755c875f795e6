"""Decoding in slots: a response that has ended makes room at once, and the next waiting prompt takes its place.

Every slot has its own keys and values from position 0, so nothing is padded. Prompts go in through
`onebase.sequences.tree`: what they share (a system text, or a whole prompt with several responses) is computed once.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache

from onebase.model.roles import Roles
from onebase.sequences.tree import pack
from onebase.tracking.usage import Clock


class Slots(Cache):
    """Keys and values of sequences, each in a slot of its own; the first `used` slots are taken."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(layers=[])
        self._shape = count, width
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._filling: list[tuple[int, Tensor]] = []
        self._positions: Tensor | None = None
        self._rows, self._reach = torch.arange(0), 0

    def fill(self, columns: Sequence[tuple[int, Tensor]]) -> None:
        """The next forward is a packed row of prompts: (slot, columns of its tokens in the row), for each."""
        self._filling, self._positions = list(columns), None

    def step(self, positions: Int[Tensor, " N"], reach: int) -> None:
        """The next forward is one token of each of the first N slots, at these positions, all below `reach`."""
        self._filling, self._positions, self._reach = [], positions, reach
        self._rows = torch.arange(len(positions), device=positions.device)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Called by each layer: keeps its new keys and values, and gives it those that it attends to."""
        if layer_idx == len(self._keys):
            count, width = self._shape
            for kept, new in ((self._keys, key_states), (self._values, value_states)):
                kept.append(new.new_zeros(count, new.shape[1], width, new.shape[3]))
        kept = self._keys[layer_idx], self._values[layer_idx]
        for store, new in zip(kept, (key_states, value_states), strict=True):
            for slot, columns in self._filling:
                store[slot, :, : len(columns)] = new[0, :, columns]
            if self._positions is not None:
                store[self._rows, :, self._positions] = new[:, :, 0]
        if self._positions is None:
            return key_states, value_states
        used = len(self._rows)
        return kept[0][:used, :, : self._reach], kept[1][:used, :, : self._reach]

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
    forwards. head: the role with a head to read at every state that a token is predicted from. clock: measures prefills
    and decoding steps.
    """

    def __init__(
        self,
        roles: Roles,
        prompts: Sequence[Sequence[int]],
        uniforms: Float[Tensor, "N L"],
        *,
        temperature: float,
        slots: int,
        head: str | None = None,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._roles, self._prompts, self._temperature, self._head = roles, prompts, temperature, head
        device = roles.base.device
        self._count, self._limit = min(slots, len(prompts)), uniforms.shape[1]
        self._uniforms = uniforms.to(device)
        self._stop_ids = torch.tensor(sorted(roles.base.stop_ids), device=device)
        self._cache = Slots(self._count, max(map(len, prompts)) + self._limit)
        self._waiting = deque(range(len(prompts)))
        self._active: list[int] = []
        """The episode of each slot in use."""
        self.tokens = torch.full(uniforms.shape, roles.base.pad_id, device=device)
        self.logprobs = torch.zeros(uniforms.shape, dtype=torch.float32, device=device)
        self.values = torch.zeros(uniforms.shape, dtype=torch.float32, device=device)
        self.lengths = [0] * len(prompts)

    def run(self) -> "Decoder":
        """Until every prompt has its response."""
        while self._waiting or self._active:
            if self._fills:
                with self._clock.part("rollout_prefill"):
                    self._fill(min(self._count - len(self._active), len(self._waiting)))
            with self._clock.part("rollout_decode"):
                while self._active and not self._fills:
                    self._step()
        return self

    @property
    def _fills(self) -> bool:
        """Whether prompts are next. A prefill for every slot that falls free would be many small ones."""
        return bool(self._waiting) and (not self._active or 4 * (self._count - len(self._active)) >= self._count)

    def _fill(self, count: int) -> None:
        first = len(self._active)
        new = [self._waiting.popleft() for _ in range(count)]
        self._active += new
        packed = pack([self._prompts[episode] for episode in new], device=self._roles.base.device)
        columns = [packed.columns(row, range(len(self._prompts[episode]))) for row, episode in enumerate(new)]
        device = self._roles.base.device
        self._cache.fill([(first + row, torch.tensor(places, device=device)) for row, places in enumerate(columns)])
        states = self._roles.forwards.packed_states(packed, cache=self._cache)
        self._emit(range(first, first + count), states[torch.tensor([places[-1] for places in columns], device=device)])

    def _step(self) -> None:
        last = [self.lengths[episode] - 1 for episode in self._active]
        places = [len(self._prompts[episode]) + place for episode, place in zip(self._active, last, strict=True)]
        # One copy to the device, and nothing read back from it before the tokens that were drawn.
        episodes, newest, positions = torch.tensor([self._active, last, places], device=self._roles.base.device)
        reach = max(places) + 1
        self._cache.step(positions, reach)
        tokens = self.tokens[episodes, newest].unsqueeze(1)
        states = self._roles.forwards.decoding_states(tokens, positions, self._cache, reach=reach)
        self._emit(range(len(self._active)), states)

    def _emit(self, slots: range, states: Float[Tensor, "N H"]) -> None:
        """Draw the next token of these slots; a slot is freed when its response ends."""
        episodes = [self._active[slot] for slot in slots]
        places = [episodes, [self.lengths[episode] for episode in episodes]]
        at = tuple(torch.tensor(places, device=states.device))
        token, logprob = draw(
            self._roles.forwards.lm_head(states).float(), temperature=self._temperature, uniform=self._uniforms[at]
        )
        self.tokens[at], self.logprobs[at] = token, logprob
        if self._head is not None:
            self.values[at] = self._roles.heads[self._head](states)
        stopped = torch.isin(token, self._stop_ids).tolist()
        for episode in episodes:
            self.lengths[episode] += 1
        # From the last slot on: what moves into a freed slot has been looked at already.
        for slot, stops in zip(reversed(slots), reversed(stopped), strict=True):
            if stops or self.lengths[self._active[slot]] == self._limit:
                self._free(slot)

    def _free(self, slot: int) -> None:
        """The last slot in use moves here: those in use stay the first ones."""
        moved = self._active.pop()
        if slot < len(self._active):
            # Its newest token has no keys and values yet: the next step writes them.
            self._cache.move(len(self._active), slot, len(self._prompts[moved]) + self.lengths[moved] - 1)
            self._active[slot] = moved


def draw(
    logits: Float[Tensor, "B V"], *, temperature: float, uniform: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """One token a row, and its log-probability in nats.

    By inversion: token = the first v with F(v) > u F(V), F the cumulated probabilities and u uniform in [0, 1). First
    the block of tokens that it lies in, then the token: only the blocks' sums and one block are cumulated. That is done
    in double, or rare tokens would never be drawn.
    """
    logits = logits if temperature in (0, 1) else logits / temperature
    token = logits.argmax(dim=-1) if temperature == 0 else _invert(torch.softmax(logits, dim=-1), uniform)
    chosen = logits.gather(-1, token.unsqueeze(-1)).squeeze(-1)
    return token, chosen - logits.logsumexp(dim=-1)


BLOCK = 256


def _invert(probabilities: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    vocabulary = probabilities.shape[1]
    blocks = nn.functional.pad(probabilities, (0, -vocabulary % BLOCK)).unflatten(1, (-1, BLOCK))
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
