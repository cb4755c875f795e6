"""Training rows that hold an evaluation prompt: the same, most of it, or a long run of its words.

A row is contaminated by the first of these that is true:

* its normalised prompt is an evaluation prompt, or an earlier turn of one. System messages do not count;
* it shares `words` consecutive words with an evaluation prompt (Brown et al. 2020, https://arxiv.org/abs/2005.14165,
  appendix C, uses 13). A run of words that more than `common` evaluation prompts share belongs to a template and does
  not count. An evaluation prompt shorter than `words` is found by the first rule alone;
* the sets of 3-word shingles of both prompts have a Jaccard similarity of `similarity` or more. MinHash (Broder 1997)
  finds candidates. The similarity of each is then computed: a row is never left out on an estimate.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from data.records import Demonstration, Prompt, Ranking, Record, conversation_of, normalised
from data.select.dropped import DroppedRows
from onebase.errors import DataError
from onebase.recipe.sections import Count, Section

K = TypeVar("K", Prompt, Demonstration, Ranking)

SHINGLE = 3
"""Words of a shingle."""
PERMUTATIONS = 128


def require_apart(key: str, held_out: Sequence[Record], training: Iterable[Record]) -> None:
    """DataError where a held-out row's prompt is one that is trained on. key: the recipe's, of the held-out rows."""
    trained = {conversation_of(record.prompt) for record in training}
    both = [record.prompt for record in held_out if conversation_of(record.prompt) in trained]
    if both:
        raise DataError(
            f"{key}: {len(both)} of {len(held_out)} prompts are trained on as well, such as {both[0].origin}: they "
            "cannot measure generalisation. Give another split or source."
        )


class ContaminationSection(Section):
    """How training rows are checked against evaluation prompts."""

    against: tuple[str, ...] = ()
    """Files of evaluation prompts; a stage may add its own prompts."""
    words: Count = 13
    """Length of a run of words that must not be shared."""
    common: Count = 10
    """Most evaluation prompts with the same run: one that more of them share belongs to a template."""
    similarity: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Jaccard similarity from which prompts are near-duplicates; None: not checked."""
    on_contaminated_row: Literal["error", "drop"] = "error"


class Evaluation:
    """Evaluation prompts, indexed; memory grows with them and not with the training rows."""

    def __init__(self, prompts: Iterable[Prompt], section: ContaminationSection) -> None:
        self.section = section
        self._origins: list[str] = []
        self._whole: dict[str, int] = {}
        self._shingles: list[frozenset[str]] = []
        sharing: dict[int, set[int]] = defaultdict(set)
        for index, prompt in enumerate(prompts):
            self._origins.append(str(prompt.origin))
            for question in _questions(prompt):
                self._whole.setdefault(question, index)
            words = _words(_user_text(prompt))
            self._shingles.append(_shingles(words))
            for run in _runs(words, section.words):
                sharing[run].add(index)
        self._runs = {run: min(indices) for run, indices in sharing.items() if len(indices) <= section.common}
        self._near = self._index_near() if section.similarity is not None else None

    def finding(self, record: Record) -> tuple[str, str] | None:
        """What is wrong with a record and the place of the evaluation prompt it holds; None when it is clean."""
        prompt = record.prompt
        if (index := self._whole.get(_questions(prompt)[-1])) is not None:
            return "the prompt is an evaluation prompt", self._origins[index]
        conversation = "\n".join(message.content for message in prompt.messages)
        for text in (conversation, *record.responses):
            for run in _runs(_words(text), self.section.words):
                if (index := self._runs.get(run)) is not None:
                    reason = f"shares {self.section.words} words in a row with an evaluation prompt"
                    return reason, self._origins[index]
        if (index := self._nearest(prompt)) is not None:
            return f"nearly an evaluation prompt (similarity {self.section.similarity} or more)", self._origins[index]
        return None

    def _index_near(self) -> Any:
        from datasketch import MinHashLSH

        # MinHash misses pairs near its threshold. Candidates are cheap, and each is checked: so the threshold is lower,
        # and the bands are chosen for few misses.
        threshold = 0.75 * float(self.section.similarity or 1.0)
        index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        for position, shingles in enumerate(self._shingles):
            if shingles:
                index.insert(position, _sketch(shingles))
        return index

    def _nearest(self, prompt: Prompt) -> int | None:
        shingles = _shingles(_words(_user_text(prompt)))
        if self._near is None or not shingles:
            return None
        for candidate in sorted(self._near.query(_sketch(shingles))):
            other = self._shingles[candidate]
            if len(shingles & other) >= (self.section.similarity or 1.0) * len(shingles | other):
                return candidate
        return None


def clean(
    records: Iterable[K], evaluation: Evaluation, section: ContaminationSection, dropped: DroppedRows
) -> Iterator[K]:
    """The records that hold no evaluation prompt. The others raise a DataError or are counted, as the section says."""
    for record in records:
        finding = evaluation.finding(record)
        if finding is None:
            yield record
            continue
        reason, where = finding
        if section.on_contaminated_row == "error":
            raise DataError(
                f"{record.prompt.origin}: {reason}: {where}. Remove the row, or leave such rows out with "
                "contamination.on_contaminated_row=drop."
            )
        dropped.add(reason, str(record.prompt.origin))


def _user_text(prompt: Prompt) -> str:
    """The user messages of a prompt. System messages and earlier answers belong to a template."""
    return "\n".join(message.content for message in prompt.messages if message.role == "user")


# Chinese, Japanese and Korean leave no space between words: there, a character counts as one.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")


def _questions(prompt: Prompt) -> list[str]:
    """The conversation up to each of its user messages, without the system message."""
    turns = [message for message in prompt.messages if message.role != "system"]
    return [
        normalised(replace(prompt, messages=tuple(turns[: index + 1])))
        for index, message in enumerate(turns)
        if message.role == "user"
    ]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str], length: int) -> Iterator[int]:
    """Python's hashes of all runs of `length` words: they live no longer than the process."""
    for start in range(len(words) - length + 1):
        yield hash(tuple(words[start : start + length]))


def _shingles(words: Sequence[str]) -> frozenset[str]:
    return frozenset(" ".join(words[start : start + SHINGLE]) for start in range(len(words) - SHINGLE + 1))


def _sketch(shingles: frozenset[str]) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
    sketch.update_batch([shingle.encode() for shingle in shingles])
    return sketch
