"""Conversations as tokens. The only place that knows about chat templates, end tokens and loss masks.

A prompt is rendered with the template's generation prompt; a response is what the template renders behind it, up to the
token that closes an assistant's turn, which is always learned (`data.chat.turns`). Nothing follows that token:
templates that print a line break behind it do so for the next turn. Control tokens come from the template alone
(`data.chat.marks`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.chat.marks import Marks, control_tokens
from data.chat.templates import Template
from data.chat.turns import ORDINARY, QUESTION, Turn
from data.records import Demonstration, Message, Prompt, Ranking, Record, answers_of, prompt_of
from onebase.errors import DataError
from onebase.inference.rankings import Candidates
from onebase.model.base import Base
from onebase.recipe.sections import ChatSection, LimitsSection
from onebase.run.record import DataIdentity
from onebase.sequences.episodes import TokenIds
from onebase.terminal import say

T = TypeVar("T")

IGNORED = -100
"""The label of a token that is not learned, in transformers and TRL."""


@dataclass(frozen=True)
class EncodedPrompt:
    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True)
class EncodedDemonstration:
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def input_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.response_ids]

    @property
    def labels(self) -> list[int]:
        """The response's tokens, its end token included; the prompt is not learned."""
        return [*([IGNORED] * len(self.prompt_ids)), *self.response_ids]


@dataclass(frozen=True)
class EncodedRanking:
    ranking: Ranking
    prompt_ids: tuple[int, ...]
    responses_ids: tuple[tuple[int, ...], ...]

    @property
    def candidates(self) -> Candidates:
        return Candidates(self.prompt_ids, self.responses_ids)

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """Prompt and response joined, for each response."""
        return self.candidates.sequences


class Chat:
    """The chat format of one run."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], section: ChatSection) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.system = section.system
        self.template = Template(tokenizer, section.system)
        frame = self.template.frame()
        self.marks = Marks(tokenizer, control_tokens(tokenizer, stop_ids, frame))
        self.turn = Turn(self.template, self.marks, stop_ids)
        self._is_apart = False
        self._words = () if self.marks.are_spelled_in(frame.between) else frame.words

    @classmethod
    def of(cls, base: Base, section: ChatSection) -> "Chat":
        return cls(base.tokenizer, base.stop_ids, section)

    @property
    def end_id(self) -> int:
        """The token that closes an assistant's turn: of several stop tokens the one that the template writes."""
        return self.turn.end_id

    def spells_control(self, messages: Sequence[Message], *answers: str) -> bool:
        """Whether a content spells a control token, which is then encoded as the text that it is."""
        contents = [message.content for message in self.template.with_system(messages)]
        return any(map(self.marks.are_spelled_in, (*contents, *answers)))

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The conversation so far and the opening of the assistant's turn."""
        return self._encoded(prompt)[0]

    def response_ids(self, text: str) -> tuple[int, ...]:
        """A response's tokens and the end token, as the template renders them behind a prompt.

        A control token that is spelled out in the text stays text: there is one end, and it is at the end.
        """
        (ids,) = self._encode(QUESTION, (text,))[1]
        return ids

    def demonstration(self, demonstration: Demonstration) -> EncodedDemonstration:
        prompt, (response,) = self._encoded(demonstration.prompt, demonstration.response)
        return EncodedDemonstration(prompt, response)

    def ranking(self, ranking: Ranking) -> EncodedRanking:
        return EncodedRanking(ranking, *self._encoded(ranking.prompt, *ranking.responses))

    def candidates(self, prompt: Prompt, responses: Sequence[str]) -> Candidates:
        """Responses to score, empty ones too."""
        return Candidates(*self._encoded(prompt, *responses))

    def _encoded(self, prompt: Prompt, *responses: str) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        try:
            return self._encode(prompt.messages, responses)
        except DataError as error:
            raise DataError(f"{prompt.origin}: {error}") from None

    def _encode(
        self, messages: Sequence[Message], answers: Sequence[str]
    ) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """Tokens of a prompt and of answers to it."""
        messages = self.template.with_system(messages)
        self._require_no_imitation(messages)
        held = self.spells_control(messages, *answers)
        if held:
            self._require_apart()
            messages = [Message(one.role, self.marks.held(one.content)) for one in messages]
            answers = [self.marks.held(one) for one in answers]
        opened = self.turn.open(messages)
        prompt = self.marks.encode(opened) if held else self.marks.plain(opened)
        tails = [self.turn.tail(messages, one, opened) for one in answers]
        return tuple(prompt), tuple(self.turn.ids(tail, held=held) for tail in tails)

    def _require_no_imitation(self, messages: Sequence[Message]) -> None:
        """Where a template parts turns by words alone, a message that spells them has the tokens of two turns."""
        for content in (one.content for one in messages) if self._words else ():
            if all(word in content for word in self._words):
                raise DataError(
                    f"a message spells {' and '.join(map(repr, self._words))}, which this template writes between "
                    "turns without a control token: it cannot be told from several turns. Remove it, or use a template "
                    "that closes each turn by a control token."
                )

    def _require_apart(self) -> None:
        if not self._is_apart:
            self.marks.require_same([self.turn.open(QUESTION) + self.turn.tail(QUESTION, one) for one in ORDINARY])
        self._is_apart = True

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that belongs to no conversation."""
        if not self.marks.are_spelled_in(text):
            return tuple(self.marks.plain(text))
        self._require_apart()
        return tuple(self.marks.encode(self.marks.held(text)))

    def text(self, ids: Sequence[int]) -> str:
        """What a person reads, and a reward function: without control tokens, and without what the template writes
        before an answer. Tokens that are content (`<think>`) are a part of it."""
        kept = [one for one in self.turn.without_seam(ids) if one not in self.marks.ids]
        decoded = self.tokenizer.decode(kept, skip_special_tokens=False)
        assert isinstance(decoded, str)
        return decoded.strip()

    def closed(self, sequences: Sequence[TokenIds]) -> list[TokenIds]:
        """Sampled sequences as a reward model should see them: with the end token in place of another stop token.

        Rankings end with the one that the template writes; a model has several, and one that it never saw there would
        be scored for what it is and not for the response.
        """
        return [(*one[:-1], self.end_id) if one[-1] in self.stop_ids else one for one in sequences]


class Limiter:
    """Keeps what fits the limits; raises or counts what does not, as the recipe says."""

    def __init__(self, limits: LimitsSection) -> None:
        self.limits = limits
        self.dropped: Counter[str] = Counter()
        self.kept = 0
        """Rows within the limits, of all sources and splits together."""

    def fits(self, prompt: Prompt, kind: Literal["prompt", "response"], tokens: int) -> bool:
        limit = self.limits.prompt_tokens if kind == "prompt" else self.limits.response_tokens
        if tokens <= limit:
            return True
        if self.limits.over == "error":
            raise DataError(
                f"{prompt.origin}: the {kind} is {tokens} tokens, over limits.{kind}_tokens={limit}. "
                "Raise the limit, or leave such rows out with limits.over=drop."
            )
        self.dropped[f"{kind} over {limit} tokens"] += 1
        return False

    def settle(self, who: str) -> list[DataIdentity]:
        """Say what was left out, and count it for the record, beside the sources, whose rows were counted as they were
        read; nothing where all fitted. who: the stage, for the message."""
        if not self.dropped:
            return []
        limits, dropped = self.limits.model_dump(mode="json"), dict(self.dropped)
        told = ", ".join(f"{count} with a {reason}" for reason, count in dropped.items())
        say(f"{who}: rows left out: {told}; {self.kept} are within the limits.")
        content = json.dumps([limits, dropped, self.kept], sort_keys=True)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        return [
            DataIdentity(source="limits", split=None, revision=None, kept=self.kept, dropped=dropped, sha256=sha256)
        ]


def count_spelling(chat: Chat, records: Sequence[Record]) -> None:
    """Say how many rows spell control tokens: they are sound, and nearly always somebody's mistake or attack."""
    spelling = [one for one in records if chat.spells_control(prompt_of(one).messages, *answers_of(one))]
    if spelling:
        say(
            f"rows that spell control tokens: {len(spelling)}, the first at {prompt_of(spelling[0]).origin}; what they "
            "spell is encoded as text."
        )


def encode_prompts(chat: Chat, prompts: Sequence[Prompt], limiter: Limiter) -> list[EncodedPrompt]:
    count_spelling(chat, prompts)
    encoded = (EncodedPrompt(prompt, chat.prompt_ids(prompt)) for prompt in prompts)
    return _some([one for one in encoded if limiter.fits(one.prompt, "prompt", len(one.ids))], limiter)


def encode_demonstrations(
    chat: Chat, demonstrations: Sequence[Demonstration], limiter: Limiter
) -> list[EncodedDemonstration]:
    count_spelling(chat, demonstrations)

    def kept() -> Iterator[EncodedDemonstration]:
        for one in demonstrations:
            encoded = chat.demonstration(one)
            if limiter.fits(one.prompt, "prompt", len(encoded.prompt_ids)) and limiter.fits(
                one.prompt, "response", len(encoded.response_ids)
            ):
                yield encoded

    return _some(list(kept()), limiter)


def encode_rankings(chat: Chat, rankings: Sequence[Ranking], limiter: Limiter) -> list[EncodedRanking]:
    count_spelling(chat, rankings)

    def kept() -> Iterator[EncodedRanking]:
        for one in rankings:
            encoded = chat.ranking(one)
            longest = max(map(len, encoded.responses_ids))
            if limiter.fits(one.prompt, "prompt", len(encoded.prompt_ids)) and limiter.fits(
                one.prompt, "response", longest
            ):
                yield encoded

    return _some(list(kept()), limiter)


def _some(kept: list[T], limiter: Limiter) -> list[T]:
    if not kept:
        raise DataError(
            f"data: no row is within the limits: {dict(limiter.dropped)}. "
            "Raise limits.prompt_tokens or limits.response_tokens."
        )
    limiter.kept += len(kept)
    return kept
