"""Prompts and a response to each, as token ids.

Scores, log-probabilities and values all take token ids, never text: a re-tokenised response is often another sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

TokenIds = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """B prompts and one response each. T = the longest response, in tokens."""

    prompts: tuple[TokenIds, ...]
    responses: Int[Tensor, "B T"]
    """Response tokens, end token included where the model emitted one; everything outside the mask is padding."""
    mask: Bool[Tensor, "B T"]
    """mask[b, t]: token t of response b was generated. Without gaps from the left; at least one in each row."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_id: int) -> "Episodes":
        """From plain lists of token ids."""
        assert len(prompts) == len(responses) and all(prompts) and all(responses), "each episode needs tokens"
        width = max(map(len, responses))
        tokens = torch.full((len(responses), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(responses), width), dtype=torch.bool)
        for row, response in enumerate(responses):
            tokens[row, : len(response)] = torch.tensor(list(response))
            mask[row, : len(response)] = True
        return cls(prompts=tuple(tuple(prompt) for prompt in prompts), responses=tokens, mask=mask)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def sequences(self) -> list[TokenIds]:
        """Prompt and response joined, no padding in between or behind."""
        kept = (row[mask].tolist() for row, mask in zip(self.responses, self.mask, strict=True))
        return [prompt + tuple(response) for prompt, response in zip(self.prompts, kept, strict=True)]

    def select(self, rows: Sequence[int]) -> "Episodes":
        """These rows, in this order. T stays as it is: per-token tensors of a selection fit each other."""
        index = torch.as_tensor(list(rows), dtype=torch.long)
        return type(self)(
            prompts=tuple(self.prompts[row] for row in rows), responses=self.responses[index], mask=self.mask[index]
        )
