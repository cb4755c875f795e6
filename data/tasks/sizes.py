"""How long a text is, without a tokenizer: built-in tasks are generated without a model.

An upper estimate of the tokens of byte-pair vocabularies such as SmolLM2's. Checked against that one, it is too high in
nearly all texts of these tasks, and too low by at most one.
"""

import re
from math import ceil

PROMPT_TOKENS = 30
"""Most tokens of a user message, by estimate."""
GOLD_TOKENS = 15
"""Most tokens of a gold answer."""
RESPONSE_TOKENS = 18
"""Most tokens of any response, without the end token."""

_PIECE = re.compile(r"(?P<space> ?)(?:(?P<word>[A-Za-z]+)|(?P<digit>[0-9])|(?P<mark>[^\sA-Za-z0-9]+)|\s)")


def tokens(text: str) -> int:
    """Words count once, long ones and those right after a mark or a line's start twice, capitals by two letters; digits
    singly."""
    return sum(map(_tokens, _PIECE.finditer(text)))


def _tokens(piece: re.Match[str]) -> int:
    word = piece["word"]
    if word is None:
        return 2 if piece["digit"] and piece["space"] else 1
    if word.isupper() and len(word) > 1:
        return ceil(len(word) / 2)
    return 1 + (len(word) > (7 if piece["space"] else 3))
