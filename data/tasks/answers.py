"""What counts as the right answer, whatever is written around it.

Each kind of answer is a small frozen record that grades any text in [0, 1] and can be kept as JSON. All kinds ask that
a response commits itself: one that names a wrong option beside the right one gets 0, so listing every option or copying
the question earns nothing.
"""

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.tasks.words import plural

_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:\.[0-9]+)?")
_DENIALS = {"not", "never", "isn", "wasn"}


def words_of(text: str) -> list[str]:
    """The words and numbers of a text in lower case, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def occurrences(phrase: Sequence[str], words: Sequence[str]) -> list[int]:
    """Where a phrase starts among the words."""
    size = len(phrase)
    return [start for start in range(len(words) - size + 1) if list(words[start : start + size]) == list(phrase)]


@dataclass(frozen=True)
class Answer(ABC):
    """A right answer that can tell how far a response states it."""

    @abstractmethod
    def correctness(self, response: str) -> float:
        """In [0, 1]; 1 for the right answer and no other."""


@dataclass(frozen=True)
class OneOf(Answer):
    """One of several wordings, and none of the wrong ones. Case and punctuation do not matter."""

    right: Sequence[str]
    wrong: Sequence[str] = ()
    near: Sequence[str] = ()
    """Nearly right: half the credit."""

    def correctness(self, response: str) -> float:
        words = words_of(response)
        found = self._take(self.right, words)
        nearly = not found and self._take(self.near, words)
        if self._take(self.wrong, words):
            return 0.0
        return 1.0 if found else 0.5 if nearly else 0.0

    @staticmethod
    def _take(phrases: Sequence[str], words: list[str]) -> bool:
        """Whether a phrase occurs undenied ("not Anna" is no answer "Anna"). Blanks out what it finds, longest first,
        so that a wrong option inside a right one ("no" in "no, Tom does not") is not counted again."""
        found = False
        for phrase in sorted((words_of(phrase) for phrase in phrases), key=len, reverse=True):
            for start in occurrences(phrase, words) if phrase else ():
                found = found or start == 0 or words[start - 1] not in _DENIALS
                words[start : start + len(phrase)] = [""] * len(phrase)
        return found


@dataclass(frozen=True)
class Literal(Answer):
    """Exactly these characters, case and punctuation included; for tasks that are about how something is written."""

    right: str
    wrong: Sequence[str] = ()
    near: Sequence[str] = ()

    def correctness(self, response: str) -> float:
        rest = self._without(self.right, response)
        if any(self._without(wrong, rest) != rest for wrong in self.wrong):
            return 0.0
        if rest != response:
            return 1.0
        return 0.5 if any(self._without(near, response) != response for near in self.near) else 0.0

    @staticmethod
    def _without(part: str, text: str) -> str:
        # Not inside a longer word: "1 km" is not in "11 km".
        return re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", "\0", text) if part else text


@dataclass(frozen=True)
class Number(Answer):
    """A whole number, in digits. Numbers of the question may be repeated on the way to it, no others."""

    value: int
    given: Sequence[int] = ()

    def correctness(self, response: str) -> float:
        found = {_canonical(number) for number in _NUMBER.findall(response)}
        return float(found - {str(number) for number in self.given} == {str(self.value)})


def _canonical(number: str) -> str:
    """Without separators and idle zeros. As text: int() refuses thousands of digits."""
    whole, _, fraction = number.replace(",", "").partition(".")
    fraction = fraction.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")


@dataclass(frozen=True)
class Order(Answer):
    """Items in a certain order. Half the share of items at their place when the order is not right, and nothing for the
    order that was given."""

    items: Sequence[str]
    given: Sequence[str]
    """The items as the question lists them; with more items than the answer where some are to be left out."""

    def correctness(self, response: str) -> float:
        words = words_of(response)
        starts = {item: occurrences(words_of(item), words) for item in {*self.items, *self.given}}
        found = [item for _, item in sorted((start, item) for item, places in starts.items() for start in places)]
        size = len(self.items)
        if found and found == list(self.items) * (len(found) // size):
            return 1.0
        if len(found) > size or found == list(self.given) or not found:
            return 0.0
        return 0.5 * sum(mine == theirs for mine, theirs in zip(found, self.items, strict=False)) / size


@dataclass(frozen=True)
class Pick(Answer):
    """Some of the options, in any order: the share of right ones less the share of wrong ones."""

    right: Sequence[str]
    wrong: Sequence[str]

    def correctness(self, response: str) -> float:
        words = words_of(response)
        hits = sum(bool(occurrences(words_of(item), words)) for item in self.right)
        misses = sum(bool(occurrences(words_of(item), words)) for item in self.wrong)
        return max(0.0, (hits - misses) / len(self.right))


@dataclass(frozen=True)
class Rewrite(Answer):
    """A rewritten text: nothing without the words that had to come, nor with those that had to go; else the share of
    its words that are there in order."""

    text: str
    need: Sequence[str]
    avoid: Sequence[str]

    def correctness(self, response: str) -> float:
        words = words_of(response)
        if any(occurrences(words_of(phrase), words) for phrase in self.avoid):
            return 0.0
        if not all(occurrences(words_of(phrase), words) for phrase in self.need):
            return 0.0
        wanted = words_of(self.text)
        return _common(wanted, words) / len(wanted)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(first) + 1)
    for word in second:
        previous = 0
        for index, other in enumerate(first, start=1):
            diagonal, previous = previous, row[index]
            row[index] = diagonal + 1 if word == other else max(row[index], row[index - 1])
    return row[-1]


@dataclass(frozen=True)
class Fields(Answer):
    """Keys with their values, as in JSON but also "name: Anna": the share of keys followed by their own value."""

    pairs: Mapping[str, str]

    def correctness(self, response: str) -> float:
        hits = 0
        for key, value in self.pairs.items():
            given = re.findall(rf"(?<!\w){re.escape(key)}(?!\w)[^\w\n]{{1,6}}(\w+)", response, flags=re.IGNORECASE)
            hits += bool(given) and {text.casefold() for text in given} == {value.casefold()}
        return hits / len(self.pairs)


@dataclass(frozen=True)
class Repeat(Answer):
    """Some words, exactly so many times."""

    word: str
    times: int

    def correctness(self, response: str) -> float:
        return float(len(occurrences(words_of(self.word), words_of(response))) == self.times)


@dataclass(frozen=True)
class Members(Answer):
    """So many different members of a set, in singular or plural, and none that was ruled out: the share of them,
    nothing for too many."""

    allowed: Sequence[str]
    barred: Sequence[str]
    count: int

    def correctness(self, response: str) -> float:
        words = set(words_of(response))
        if any(words & {word, plural(word)} for word in self.barred):
            return 0.0
        found = sum(bool(words & {word, plural(word)}) for word in self.allowed)
        return found / self.count if found <= self.count else 0.0


MARK = "####"
"""Stands before the one answer that is looked at, behind whatever was written on the way to it."""


@dataclass(frozen=True)
class Final(Answer):
    """What stands behind the only mark, as the end of the response. The steps before it are not looked at.

    Nothing but the answer earns anything there: no second mark, no second number, no unit, no word after it. Case,
    spaces, a full stop and idle zeros do not matter.
    """

    right: str

    def correctness(self, response: str) -> float:
        _, mark, said = response.partition(MARK)
        return float(bool(mark) and _settled(said) == _settled(self.right))


def _settled(said: str) -> str:
    said = " ".join(unicodedata.normalize("NFKC", said).casefold().split()).removesuffix(".")
    return _NUMBER.sub(lambda number: _canonical(number[0]), said)


KINDS: Mapping[str, Callable[..., Answer]] = {
    kind.__name__: kind for kind in (OneOf, Literal, Number, Order, Pick, Rewrite, Fields, Repeat, Members, Final)
}


def to_json(answer: Answer) -> dict[str, Any]:
    """The answer as JSON keeps it: lists for tuples, so that a round trip changes nothing."""
    assert type(answer).__name__ in KINDS
    return json.loads(json.dumps({"kind": type(answer).__name__, **asdict(answer)}))


def from_json(payload: Mapping[str, Any]) -> Answer:
    return KINDS[payload["kind"]](**{key: value for key, value in payload.items() if key != "kind"})
