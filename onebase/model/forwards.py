"""What the base computes under the adapter of whichever role is active: forwards of padded, packed and decoded tokens.

`Roles` adds the adapters themselves, what is trained, and the disk.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from onebase.errors import BaseError
from onebase.model.architecture import Reach, reach_of, trunk_of
from onebase.model.base import Base
from onebase.model.lower import Below, LowerStates, Stack, find_stack
from onebase.model.products import freeze_linear
from onebase.sequences.tree import NAME, Packed, install, pack

PACKING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""How far a packed row's hidden states may be from those of separate rows, and a forward in two parts from a whole one,
relative to the largest."""


class Forwards:
    """One base with adapters, of which one at most is active."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.peft: PeftModel | None = None
        self.lower: LowerStates | None = None
        """Of the sequences that were kept last, inside `shared_lower`."""
        self._layers: list[LoraLayer] = []
        self._active: str | None = None
        self._checkpointed: list[GradientCheckpointingLayer] = []
        self._sharing = False
        self._splits: dict[int, bool] = {}
        for module in base.model.modules():
            freeze_linear(module)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.peft.peft_config) if self.peft is not None else ()

    @property
    def trunk(self) -> nn.Module:
        """The decoder without its LM head."""
        return trunk_of(self.base.model)

    @property
    def lm_head(self) -> nn.Module:
        head = self.base.model.get_output_embeddings()
        assert head is not None, "a causal language model has an LM head"
        return head

    def require_reach(self, tokens: int) -> None:
        """BaseError where a forward would hold a sequence of more tokens than the model can take.

        Stages check their data and limits at the start, by name; no forward passes this line.
        """
        reach = self._reach
        if reach is not None and tokens > reach.tokens:
            raise BaseError(f"a sequence of {tokens} tokens, and {reach.reason}. Lower the limits, or shorten the row.")

    @functools.cached_property
    def _reach(self) -> Reach | None:
        return reach_of(self.base.model.config)

    # --- which role computes ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def active(self, role: str | None) -> Iterator[None]:
        """Forwards inside use this role's adapter (None: the bare base). Never touches `requires_grad`."""
        assert role is None or role in self.names, f"no role {role}; there are {self.names}"
        before = self._active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, role: str | None) -> None:
        self._active = role
        for layer in self._layers:
            layer._active_adapter = [] if role is None else [role]

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them (Chen et al. 2016, arXiv:1604.06174).

        The recomputation runs under the role that was active in the forward pass: by the time of `backward()` another
        role may be active, and its adapter would silently give wrong gradients. BaseError where the model has none.
        """
        if not self.base.model.supports_gradient_checkpointing:
            raise BaseError(
                f"train.activation_checkpointing: transformers has none for {type(self.base.model).__name__}. "
                "Pass train.activation_checkpointing=false."
            )

        def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
            return contextlib.nullcontext(), self.active(self._active)

        self.base.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
        self._checkpointed = [m for m in self.base.model.modules() if isinstance(m, GradientCheckpointingLayer)]

    @contextlib.contextmanager
    def training_forward(self) -> Iterator[None]:
        """Switches checkpointing on where it is enabled. The model itself stays in eval mode: dropout never runs."""
        for layer in self._checkpointed:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    # --- forwards ---------------------------------------------------------------------------------------------------

    def hidden_states(self, input_ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
        """The active role's last hidden states, for sequences padded on the RIGHT.

        There is no mask: attention is causal, so a real token never looks at the padding behind it.
        """
        with self.base.autocast():
            return self.trunk(input_ids=input_ids, use_cache=False).last_hidden_state

    def packed_states(
        self, packed: Packed, *, cache: Cache | None = None, below: Below | None = None
    ) -> Float[Tensor, "T H"]:
        """The active role's last hidden states of sequences in one row (`onebase.sequences.tree`).

        cache: keeps the row's keys and values, where decoding goes on from it. below: what the lower layers give
        for the row, where that is known; they are not run then.
        """
        assert self.base.model.config._attn_implementation == NAME, "ask `packs` first: without it the tree is ignored"
        # Four dimensions tell transformers to build no mask of its own; the tree says who sees whom.
        unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device)
        tokens = {"input_ids": packed.input_ids} if below is None else {"inputs_embeds": below.states.unsqueeze(0)}
        with self.base.autocast(), self._above(below):
            return self.trunk(
                **tokens,
                position_ids=packed.positions,
                attention_mask=unused,
                tree=packed.tree,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state[0]

    def decoding_states(
        self, tokens: Int[Tensor, "B 1"], positions: Int[Tensor, " B"], cache: Cache, *, reach: int
    ) -> Float[Tensor, "B H"]:
        """The active role's last hidden states of one token a sequence, each with a cache from its own position 0.

        reach: of the cache, one more than the last position.
        """
        columns = torch.arange(reach, device=tokens.device)
        with self.base.autocast():
            return self.trunk(
                input_ids=tokens,
                position_ids=positions.unsqueeze(1),
                attention_mask=(columns <= positions.unsqueeze(1))[:, None, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]

    @functools.cached_property
    def packs(self) -> bool:
        """Whether this model computes the same on packed rows; set it to False to pad instead.

        Tried on a few tokens by the bare base: models with sliding windows, ALiBi or linear attention do not, whatever
        their configuration says.
        """
        config = self.base.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        # Windows and chunks that stand in the mask alone are longer than what is tried here.
        if kinds - {"full_attention"} or getattr(config, "attention_chunk_size", None):
            return False
        sequences, packed = self._trial()
        before = self.base.model.config._attn_implementation or "eager"
        try:
            with torch.no_grad(), self.active(None):
                # Before `install`, or what the tree's attention leaves out would be missing on both sides.
                apart = [self.hidden_states(torch.tensor([one], device=self.base.device))[0, -1] for one in sequences]
                install(self.base.model)
                together = self.packed_states(packed)
        except (ValueError, TypeError, RuntimeError, KeyError, AssertionError):
            self.base.model.set_attn_implementation(before)
            return False
        last = [packed.columns(row, range(len(one) - 1, len(one)))[0] for row, one in enumerate(sequences)]
        expected = torch.stack(apart).float()
        worst = (together[last].float() - expected).abs().max() / expected.abs().max()
        same = bool(worst <= PACKING_TOLERANCE[together.dtype])
        if not same:
            self.base.model.set_attn_implementation(before)
        return same

    def _trial(self) -> tuple[list[list[int]], Packed]:
        """A few tokens that it is tried on what a model can do."""
        sequences = trial_sequences(self.base.model)
        return sequences, pack(sequences, device=self.base.device)

    # --- the layers below every adapter (`onebase.model.lower`) -----------------------------------------------------

    @contextlib.contextmanager
    def shared_lower(self) -> Iterator[None]:
        """Sequences given to `keep_lower` inside go through the untouched layers once, for all roles and passes."""
        self._sharing = True
        try:
            yield
        finally:
            self._sharing, self.lower = False, None

    def keep_lower(self, sequences: Sequence[Sequence[int]], *, tokens: int) -> None:
        """Compute and keep what the untouched layers give for these sequences, `tokens` at once, instead of those kept
        before; forwards of other sequences stay whole.

        Outside `shared_lower`, or where an adapter sits on the lowest layer, nothing happens. Results differ from those
        of whole forwards by rounding, for the lower layers have seen other batches.
        """
        self.lower = None
        depth = self.untouched
        if not (self._sharing and depth and self.splits(depth)):
            return
        below = functools.partial(self._states_below, depth)
        self.lower = LowerStates.compute(depth, below, sequences, tokens=tokens, device=self.base.device)

    @torch.no_grad()
    def _states_below(self, depth: int, packed: Packed) -> Float[Tensor, "T H"]:
        """The input of layer `depth` on a packed row, by the bare base and without gradients."""
        assert self.stack is not None, "ask `untouched` first"
        found: list[Any] = []
        hook = self.stack.layers[depth - 1].register_forward_hook(lambda layer, given, out: found.append(out))
        try:
            with self.active(None), self.stack.only(0, depth):
                self.packed_states(packed)
        finally:
            hook.remove()
        return (found[0][0] if isinstance(found[0], tuple) else found[0])[0]

    @functools.cached_property
    def stack(self) -> Stack | None:
        """The decoder layers, where they can be told."""
        return find_stack(self.base.model)

    @property
    def untouched(self) -> int:
        """How many of the lowest layers hold no adapter of any role; 0 where one sits outside the layers."""
        if self.stack is None:
            return 0
        counts = [sum(isinstance(part, LoraLayer) for part in layer.modules()) for layer in self.stack.layers]
        if sum(counts) < len(self._layers):
            return 0
        return next((index for index, count in enumerate(counts) if count), 0)

    def splits(self, depth: int) -> bool:
        """Whether packed rows can go through the layers below `depth`, then through those above; tried as `packs` is.

        Models that scale what they take for embeddings, or count their layers, do not.
        """
        if not self.packs:
            return False
        if depth not in self._splits:
            _, packed = self._trial()
            try:
                with torch.no_grad(), self.active(None):
                    whole = self.packed_states(packed)
                    parts = self.packed_states(packed, below=Below(depth, self._states_below(depth, packed)))
                worst = float((parts - whole).float().abs().max() / whole.float().abs().max())
                self._splits[depth] = worst <= PACKING_TOLERANCE[whole.dtype]
            except (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError):
                self._splits[depth] = False
        return self._splits[depth]

    def _above(self, below: Below | None) -> contextlib.AbstractContextManager[None]:
        if below is None:
            return contextlib.nullcontext()
        assert self.stack is not None, "ask `untouched` first"
        return self.stack.only(below.depth, len(self.stack.layers))


def trial_sequences(model: PreTrainedModel) -> list[list[int]]:
    """Two sequences of 13 and 19 tokens, on which it is tried what a model can do."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = [(7 * index + 3) % vocabulary for index in range(24)]
    return [ids[:13], ids[:8] + ids[13:]]
