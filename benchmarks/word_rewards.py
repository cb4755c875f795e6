"""Rewards that are known to the last bit: whether a word stands in a response. Both sides of `ppo_vs_agilerl.py` call
these very functions, so nothing here needs more than Python. The most that can be reached is 1."""

import re
from typing import Protocol

WANTED = "and"


class Asking(Protocol):
    """A prompt of ours, or anything else that knows its text."""

    @property
    def user_text(self) -> str: ...


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def constant(prompt: Asking, response: str) -> float:
    """1 where the response has the wanted word, whatever was asked."""
    return float(WANTED in words(response))


def longest(prompt: Asking, response: str) -> float:
    """1 where the response has the prompt's longest word, the first of several as long."""
    return float(max(words(prompt.user_text), key=len, default="") in words(response))
