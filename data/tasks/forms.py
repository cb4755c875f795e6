"""Whether a response has the requested form, right or wrong: the answer alone, written as the task wants it.

1      exactly the form
0.7    the form under trimmings: quotes, a bullet, "Answer:", a full stop too many or missing
<=0.5  anything else, less the longer it rambles: 0.5 * sqrt(words of a tidy answer / words here)
x 0.2  where a run of words occurs twice in a row
0      nothing at all
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from data.tasks.answers import words_of

_LABEL = re.compile(r"^\s*(?:(?:answer|output|result)\s*:|[-*\u2022]\s|1[.)]\s)\s*", re.IGNORECASE)
_MOST_WORDS = 64
"""Repetition is searched for among these first words; the search is cubic, and built-in tasks want short answers."""


@dataclass(frozen=True)
class Form:
    """The form of a tidy answer."""

    pattern: str = ""
    """Regular expression of a whole answer; empty for JSON."""
    words: int = 1
    """Most words of a tidy answer."""
    keys: Sequence[str] = ()
    """Of a JSON object."""
    repeats: bool = False
    """Whether the task wants something twice in a row."""

    def grade(self, response: str) -> float:
        words = words_of(response)
        if not words:
            return 0.0
        repetition = 0.2 if not self.repeats and repetitive(words) else 1.0
        text = response.strip()
        if self.matches(text):
            return repetition
        if any(self.matches(variant) for variant in _trimmed(text)):
            return 0.7 * repetition
        return 0.5 * sqrt(min(1.0, self.words / len(words))) * repetition

    def matches(self, text: str) -> bool:
        if not self.keys:
            return re.fullmatch(self.pattern, text) is not None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and list(value) == list(self.keys)


def _trimmed(text: str) -> list[str]:
    """The text without label, quotes or emphasis around it, with and without a full stop and a capital."""
    bare = _LABEL.sub("", text).strip("\"'`*").removesuffix(".").strip("\"'`* ")
    return [bare, bare + ".", bare[:1].upper() + bare[1:] + "."]


def repetitive(words: Sequence[str]) -> bool:
    """Whether some run of words comes twice in a row."""
    words = words[:_MOST_WORDS]
    return any(
        words[start : start + size] == words[start + size : start + 2 * size]
        for size in range(1, len(words) // 2 + 1)
        for start in range(len(words) - 2 * size + 1)
    )


_TOKEN = r"[A-Za-z0-9'-]+"


def phrase(fewest: int = 1, most: int | None = None) -> Form:
    """Words and nothing else."""
    most = fewest if most is None else most
    return Form(rf"{_TOKEN}(?: {_TOKEN}){{{fewest - 1},{most - 1}}}", most)


def option(*options: str) -> Form:
    """One of these words, capital or not."""
    return Form("(?i:" + "|".join(map(re.escape, options)) + ")")


def digits() -> Form:
    return Form("[0-9]+")


def listing(count: int, separator: str = ", ") -> Form:
    """Single words between separators."""
    return Form(rf"{_TOKEN}(?:{re.escape(separator)}{_TOKEN}){{{count - 1}}}", count)


def sentence(fewest: int, most: int, end: str = ".") -> Form:
    """One sentence of so many words, with a capital and its stop."""
    return Form(rf"(?=[A-Z]){_TOKEN}(?: {_TOKEN}){{{fewest - 1},{most - 1}}}{re.escape(end)}", most)


def json_object(*keys: str) -> Form:
    return Form(keys=keys, words=2 * len(keys))
