"""What counts as the right answer, whatever is written around it.

Each kind of answer is a small frozen record that grades any text in [0, 1] and can be stored as JSON. A response must
commit itself: one that names a wrong option beside the right one gets 0. Listing every option or copying the question
earns nothing.
"""

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
        right = self._take(self.right, words)
        nearly = not right and self._take(self.near, words)
        if self._take(self.wrong, words):
            return 0.0
        return 1.0 if right else 0.5 if nearly else 0.0

    @staticmethod
    def _take(phrases: Sequence[str], words: list[str]) -> bool:
        """Whether a phrase occurs without a denial ("not Anna" does not answer "Anna"). Blanks out what it finds,
        longest first: a wrong option inside a right one ("no" in "no, Tom does not") is not counted again."""
        affirmed = False
        for phrase in sorted((words_of(phrase) for phrase in phrases), key=len, reverse=True):
            for start in occurrences(phrase, words) if phrase else ():
                affirmed = affirmed or start == 0 or words[start - 1] not in _DENIALS
                words[start : start + len(phrase)] = [""] * len(phrase)
        return affirmed


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
    """A whole number, in digits. Of other numbers only those of the question may occur."""

    value: int
    given: Sequence[int] = ()

    def correctness(self, response: str) -> float:
        numbers = {_canonical(number) for number in _NUMBER.findall(response)}
        return float(numbers - {str(number) for number in self.given} == {str(self.value)})


def _canonical(number: str) -> str:
    """Without separators and idle zeros. As text: int() refuses thousands of digits."""
    whole, _, fraction = number.replace(",", "").partition(".")
    fraction = fraction.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")


@dataclass(frozen=True)
class Order(Answer):
    """Items in a certain order. A wrong order gets half the share of items in their place, and the order of the
    question gets nothing."""

    items: Sequence[str]
    given: Sequence[str]
    """The items as the question lists them; with more items than the answer where some are to be left out."""

    def correctness(self, response: str) -> float:
        words = words_of(response)
        starts = {item: occurrences(words_of(item), words) for item in {*self.items, *self.given}}
        items = [item for _, item in sorted((start, item) for item, places in starts.items() for start in places)]
        size = len(self.items)
        if items and items == list(self.items) * (len(items) // size):
            return 1.0
        if len(items) > size or items == list(self.given) or not items:
            return 0.0
        return 0.5 * sum(item == right for item, right in zip(items, self.items, strict=False)) / size


@dataclass(frozen=True)
class Pick(Answer):
    """Some of the options, in any order: the share of right ones minus the share of wrong ones."""

    right: Sequence[str]
    wrong: Sequence[str]

    def correctness(self, response: str) -> float:
        words = words_of(response)
        hits = sum(bool(occurrences(words_of(item), words)) for item in self.right)
        misses = sum(bool(occurrences(words_of(item), words)) for item in self.wrong)
        return max(0.0, (hits - misses) / len(self.right))


@dataclass(frozen=True)
class Rewrite(Answer):
    """A rewritten text: 0 without the needed words or with words to avoid; else the share of its words that are there
    in order."""

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
            values = re.findall(rf"(?<!\w){re.escape(key)}(?!\w)[^\w\n]{{1,6}}(\w+)", response, flags=re.IGNORECASE)
            hits += bool(values) and {text.casefold() for text in values} == {value.casefold()}
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
    """A number of different members of a set, in singular or plural, and no barred one: the share of them; 0 for too
    many."""

    allowed: Sequence[str]
    barred: Sequence[str]
    count: int

    def correctness(self, response: str) -> float:
        words = set(words_of(response))
        if any(words & {word, plural(word)} for word in self.barred):
            return 0.0
        members = sum(bool(words & {word, plural(word)}) for word in self.allowed)
        return members / self.count if members <= self.count else 0.0


MARK = "####"
"""Marks the answer, behind whatever steps lead to it."""


@dataclass(frozen=True)
class Final(Answer):
    """The text behind the only mark, at the end of the response. The steps before it are not checked.

    It must be the answer alone: a second mark, a second number, a unit or another word earns 0. Case, spaces, a full
    stop and idle zeros do not matter.
    """

    right: str

    def correctness(self, response: str) -> float:
        _, mark, final = response.partition(MARK)
        return float(bool(mark) and _normalised(final) == _normalised(self.right))


def _normalised(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".")
    return _NUMBER.sub(lambda number: _canonical(number[0]), text)


KINDS: Mapping[str, Callable[..., Answer]] = {
    kind.__name__: kind for kind in (OneOf, Literal, Number, Order, Pick, Rewrite, Fields, Repeat, Members, Final)
}


def to_json(answer: Answer) -> dict[str, Any]:
    assert type(answer).__name__ in KINDS
    return {"kind": type(answer).__name__, **asdict(answer)}


def from_json(payload: Mapping[str, Any]) -> Answer:
    return KINDS[payload["kind"]](**{key: value for key, value in payload.items() if key != "kind"})
