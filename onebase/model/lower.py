"""The lower decoder layers, where no adapter sits: one function for every role, so computed once for all of them.

    x -> layers 0 .. d-1 -> h            the same for policy, reference, reward and value: kept
    h -> layers d .. n-1 with LoRA       each role's own, with gradients where it learns

That is what `adapter.layers: top-half` is for. Nothing below the lowest adapter needs a gradient, so that h is a
constant to the backward pass as well. What is kept takes (tokens, shared prefixes once) x H x 4 bytes, or 2 where the
model computes in 16 bits: 64 episodes of 512 tokens and H = 4,096 are 512 MiB in fp32.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from onebase.errors import BaseError
from onebase.sequences.tree import Packed, pack, packs


@dataclass(frozen=True)
class Stack:
    """The n decoder layers of a model, and where they are held."""

    owner: nn.Module
    name: str
    layers: nn.ModuleList

    @contextlib.contextmanager
    def only(self, start: int, stop: int) -> Iterator[None]:
        """Forwards inside run these layers and no others."""
        setattr(self.owner, self.name, self.layers[start:stop])
        try:
            yield
        finally:
            setattr(self.owner, self.name, self.layers)


def find_stack(model: PreTrainedModel) -> Stack | None:
    """The one list of decoder layers that is as long as the configuration says; None where there is no such list."""
    count = model.config.get_text_config().num_hidden_layers
    found = [
        Stack(owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
        if all(isinstance(layer, GradientCheckpointingLayer) for layer in child)
    ]
    return found[0] if len(found) == 1 else None


def lower_half(model: PreTrainedModel, stack: Stack | None) -> str | None:
    """A pattern, as PEFT's `exclude_modules` takes it, of everything in layers 0 .. n//2 - 1; None where n is 1."""
    if stack is None:
        raise BaseError(
            f"adapter.layers=top-half: no single list of {model.config.get_text_config().num_hidden_layers} decoder "
            f"layers was found in {type(model).__name__}. Pass adapter.layers=all."
        )
    below = "|".join(map(str, range(len(stack.layers) // 2)))
    return rf"(.*\.)?{stack.name}\.({below})\..*" if below else None


@dataclass(frozen=True)
class LowerStates:
    """What the lowest layers give for some sequences: the input of layer `depth`."""

    depth: int
    states: Float[Tensor, "T H"]
    columns: Mapping[tuple[int, ...], Int[Tensor, " S"]]
    """Which of the T states are those of a sequence's tokens."""

    @classmethod
    def compute(
        cls,
        depth: int,
        forward: Callable[[Packed], Float[Tensor, "T H"]],
        sequences: Sequence[Sequence[int]],
        *,
        tokens: int,
        device: torch.device,
    ) -> "LowerStates":
        """Of all these sequences, in packed rows of about `tokens`. forward: the layers below `depth` on a row."""
        unique = list(dict.fromkeys(tuple(sequence) for sequence in sequences))
        rows, columns, before = list[Tensor](), dict[tuple[int, ...], Tensor](), 0
        for members in packs(unique, tokens=tokens):
            chosen = [unique[member] for member in members]
            packed = pack(chosen, device=device)
            rows.append(forward(packed))
            for row, sequence in enumerate(chosen):
                columns[sequence] = torch.tensor(packed.columns(row, range(len(sequence)))) + before
            before += len(rows[-1])
        return cls(depth, torch.cat(rows), columns)

    def of(self, sequences: Sequence[Sequence[int]], packed: Packed) -> "Below | None":
        """Those of the tokens of a row made of these sequences; None where one of them has not been kept."""
        kept = [self.columns.get(tuple(sequence)) for sequence in sequences]
        index = torch.empty(packed.input_ids.shape[1], dtype=torch.long)
        for own, runs in zip(kept, packed.runs, strict=True):
            if own is None:
                return None
            for start, stop, first in runs:
                index[first : first + stop - start] = own[start:stop]
        return Below(self.depth, self.states[index.to(self.states.device)])


@dataclass(frozen=True)
class Below:
    """The input of layer `depth` for each token of one row."""

    depth: int
    states: Float[Tensor, "T H"]
