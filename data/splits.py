"""Splits by a stable hash of how a conversation opens: rows, order and copies do not change a prompt's split.

Each reply of a conversation can be a demonstration with everything before it as its prompt. If whole prompts were
hashed, a held-out prompt of a later turn could hold a training prompt and its answer.
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import replace

from data.records import Prompt, normalised

FILE_SPLITS: Mapping[str, float] = {"train": 0.9, "heldout": 0.1}
"""Shares of a user's own file when a recipe asks for a split of it."""


def opening(prompt: Prompt) -> Prompt:
    """The conversation up to its first user turn, the system message included."""
    first = 2 if prompt.messages[0].role == "system" else 1
    return prompt if len(prompt.messages) == first else replace(prompt, messages=prompt.messages[:first])


def split_of(prompt: Prompt, shares: Mapping[str, float]) -> str:
    """The split of a prompt, which is that of every prompt of its conversation.

    shares: positive, adding up to 1, in a fixed order.
    """
    assert abs(sum(shares.values()) - 1.0) < 1e-9, "shares must add up to 1"
    digest = hashlib.sha256(normalised(opening(prompt)).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    ends = itertools.accumulate(shares.values())
    *_, last = shares  # rounding may leave the sum below 1
    return next((name for name, end in zip(shares, ends, strict=True) if position < end), last)
