"""What the base computes under the adapter that is active: forwards of padded, packed and decoded tokens, and what a
head reads from them.

The active role decides which adapter a forward uses, and nothing else. `Roles` decides what learns.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from onebase.errors import BaseError
from onebase.model.architecture import reach_of, trunk_of
from onebase.model.base import Base
from onebase.model.lora import freeze_linear
from onebase.sequences.tree import NAME, Packed, install, pack

PACKING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""How far a packed row's hidden states may be from those of separate rows, relative to the largest."""


class ScalarHead(nn.Module):
    """One number for each hidden state: `score = hidden . weight + bias`, in fp32.

    The reward head's bias is the shift that makes demonstrations score 0 on average (InstructGPT, section 3.5).
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))

    def forward(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.weight + self.bias


class Forwards:
    """The forwards of one base with adapters, of which one at most is active."""

    def __init__(self, base: Base) -> None:
        for module in base.model.modules():
            freeze_linear(module)
        head = base.model.get_output_embeddings()
        assert head is not None, "a causal language model has an LM head"
        self.base = base
        self.trunk = trunk_of(base.model)
        """The decoder without its LM head."""
        self.lm_head = head
        self.autocast = functools.partial(
            torch.autocast, base.device.type, dtype=torch.bfloat16, enabled=base.computes_in_bf16
        )
        """bf16 arithmetic where the base computes in it. Adapters stay fp32 masters."""
        self.adapted: Sequence[LoraLayer] = ()
        """The layers that hold adapters."""
        self.active_role: str | None = None
        self._reach = reach_of(base.model.config)
        self._checkpointed: list[GradientCheckpointingLayer] = []

    @contextlib.contextmanager
    def active(self, role: str | None) -> Iterator[None]:
        """Forwards inside use this role's adapter (None: the bare base). Never touches `requires_grad`."""
        assert role is None or any(role in layer.lora_A for layer in self.adapted), f"no role {role}"
        before = self.active_role
        self.activate(role)
        try:
            yield
        finally:
            self.activate(before)

    def activate(self, role: str | None) -> None:
        self.active_role = role
        for layer in self.adapted:
            layer._active_adapter = [] if role is None else [role]

    # --- recomputed activations -------------------------------------------------------------------------------------

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
            return contextlib.nullcontext(), self.active(self.active_role)

        self.base.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
        self._checkpointed = [m for m in self.base.model.modules() if isinstance(m, GradientCheckpointingLayer)]

    @contextlib.contextmanager
    def checkpointed(self) -> Iterator[None]:
        """Forwards inside are checkpointed where that is enabled. The model stays in eval mode: dropout never runs."""
        for layer in self._checkpointed:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    # --- forwards ---------------------------------------------------------------------------------------------------

    def require_reach(self, tokens: int) -> None:
        """BaseError where a forward would hold a sequence of more tokens than the model can take.

        Stages check their data and limits at the start, by name; no forward passes this line.
        """
        if self._reach is not None and tokens > self._reach.tokens:
            raise BaseError(
                f"a sequence of {tokens} tokens, and {self._reach.reason}. Lower the limits, or shorten the row."
            )

    def pad(
        self, sequences: Sequence[Sequence[int]], *, side: Literal["left", "right"] = "right"
    ) -> Int[Tensor, "B S"]:
        """Token ids of different lengths as one tensor on the base's device."""
        rows = [torch.tensor(ids, dtype=torch.long) for ids in sequences]
        padded = pad_sequence(rows, batch_first=True, padding_value=self.base.pad_id, padding_side=side)
        return padded.to(self.base.device)

    def hidden_states(self, input_ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
        """The active role's last hidden states, for sequences padded on the RIGHT.

        There is no mask: attention is causal, so a real token never looks at the padding behind it.
        """
        with self.autocast():
            return self.trunk(input_ids=input_ids, use_cache=False).last_hidden_state

    def packed_states(self, packed: Packed, *, cache: Cache | None = None) -> Float[Tensor, "T H"]:
        """The active role's last hidden states of sequences in one row (`onebase.sequences.tree`).

        cache: keeps the row's keys and values for decoding.
        """
        assert self.base.model.config._attn_implementation == NAME, "read `can_pack` first: else the tree is ignored"
        # Four dimensions tell transformers to build no mask of its own; the tree says who sees whom.
        unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device)
        with self.autocast():
            return self.trunk(
                input_ids=packed.input_ids,
                position_ids=packed.positions,
                attention_mask=unused,
                tree=packed,
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
        with self.autocast():
            return self.trunk(
                input_ids=tokens,
                position_ids=positions.unsqueeze(1),
                attention_mask=(columns <= positions.unsqueeze(1))[:, None, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]

    @functools.cached_property
    def can_pack(self) -> bool:
        """Whether this model computes the same on packed rows; set it to False to pad instead.

        Tried on a few tokens by the bare base: models with sliding windows, ALiBi or linear attention do not, whatever
        their configuration says.
        """
        config = self.base.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        # Windows and chunks that stand in the mask alone are longer than what is tried here.
        if kinds - {"full_attention"} or getattr(config, "attention_chunk_size", None):
            return False
        device, sequences = self.base.device, trial_sequences(self.base.model)
        packed = pack(sequences, device=device)
        before = self.base.model.config._attn_implementation or "eager"
        try:
            with torch.no_grad(), self.active(None):
                # Before `install`, or what the tree's attention leaves out would be missing on both sides.
                apart = [self.hidden_states(torch.tensor([ids], device=device))[0, -1] for ids in sequences]
                install(self.base.model)
                together = self.packed_states(packed)
        except (ValueError, TypeError, RuntimeError, KeyError, AssertionError):
            self.base.model.set_attn_implementation(before)
            return False
        last = [columns[-1] for columns in packed.columns]
        expected = torch.stack(apart).float()
        worst = (together[last].float() - expected).abs().max() / expected.abs().max()
        same = bool(worst <= PACKING_TOLERANCE[together.dtype])
        if not same:
            self.base.model.set_attn_implementation(before)
        return same


def trial_sequences(model: PreTrainedModel) -> list[list[int]]:
    """Two sequences of 13 and 19 tokens, on which it is tried what a model can do."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = [(7 * index + 3) % vocabulary for index in range(24)]
    return [ids[:13], ids[:8] + ids[13:]]
