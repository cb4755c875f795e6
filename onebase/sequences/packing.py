"""Micro-batches by token budget, and padding on the right.

Tokens decide how many sequences go through the model at once. Memory then depends on the budget alone. Sequences of
similar length share a micro-batch, so little of it is padding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def microbatches(lengths: Sequence[int], *, tokens: int) -> list[list[int]]:
    """Indices in groups with (longest x number) within `tokens`; a longer sequence is alone.

    Sorted by length, longest first, ties by index: what does not fit in memory fails at once. The grouping depends on
    the lengths only. Every index occurs exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pad_right(sequences: Sequence[Sequence[int]], *, pad_id: int, device: torch.device) -> Int[Tensor, "B S"]:
    """Token ids of different lengths as one tensor, padding behind each."""
    width = max(map(len, sequences))
    rows = [list(sequence) + [pad_id] * (width - len(sequence)) for sequence in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)


def pad_left(sequences: Sequence[Sequence[int]], *, pad_id: int, device: torch.device) -> Int[Tensor, "B S"]:
    """Token ids of different lengths as one tensor, padding in front of each: what cached decoding wants."""
    width = max(map(len, sequences))
    rows = [[pad_id] * (width - len(sequence)) + list(sequence) for sequence in sequences]
    return torch.tensor(rows, dtype=torch.long, device=device)
