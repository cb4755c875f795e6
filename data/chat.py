"""Conversations as tokens. The only place that knows about chat templates, end tokens and loss masks.

A prompt is rendered with the template's generation prompt; a response is its text's tokens and the token that closes an
assistant's turn, which is always learned. Nothing follows that token: templates that print a line break behind it do so
for the next turn.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from jinja2 import TemplateError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.records import Demonstration, Message, Prompt, Ranking
from onebase.base import Base
from onebase.command import say
from onebase.errors import DataError
from onebase.rankings import Candidates
from onebase.recipes import ChatSection, LimitsSection
from onebase.record import DataIdentity

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
        self.end_id = self._find_end()

    @classmethod
    def of(cls, base: Base, section: ChatSection) -> "Chat":
        return cls(base.tokenizer, base.stop_ids, section)

    def _find_end(self) -> int:
        """The token that closes an assistant's turn; DataError when the template closes it with no stop token."""
        question = (Message("user", "a"),)
        opened = self._render(question, generation=True)
        whole = self._render((*question, Message("assistant", "b")), generation=False)
        if whole[: len(opened)] != opened:
            raise DataError(
                "chat.template: a rendered answer does not begin with its own generation prompt, so responses cannot "
                "be told from prompts. Pass a template whose generation prompt is a prefix, with chat.template=FILE."
            )
        closing = [token for token in whole[len(opened) :] if token in self.stop_ids]
        if not closing:
            raise DataError(
                "chat.template: the assistant's turn is not closed by a stop token "
                f"({sorted(self.stop_ids)}), so the model would never learn to stop. Pass another template."
            )
        return closing[0]

    def _render(self, messages: Sequence[Message], *, generation: bool) -> list[int]:
        turns: list[dict[str, str]] = [{"role": message.role, "content": message.content} for message in messages]
        if self.system is not None and messages[0].role != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        try:
            encoded: Any = self.tokenizer.apply_chat_template(
                turns, tokenize=True, add_generation_prompt=generation, return_dict=True
            )
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"chat.template: the template fails on a conversation of {roles}: {error}. "
                "Leave out what it does not take (chat.system, it may be), or pass another template."
            ) from None
        return list(encoded["input_ids"])

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The conversation so far and the opening of the assistant's turn."""
        try:
            return tuple(self._render(prompt.messages, generation=True))
        except DataError as error:
            raise DataError(f"{prompt.origin}: {error}") from None

    def response_ids(self, text: str) -> tuple[int, ...]:
        """A response's tokens and the end token.

        A special token that is spelled out in the text stays text: there is one end, and it is at the end.
        """
        return (*self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), self.end_id)

    def demonstration(self, demonstration: Demonstration) -> EncodedDemonstration:
        return EncodedDemonstration(self.prompt_ids(demonstration.prompt), self.response_ids(demonstration.response))

    def ranking(self, ranking: Ranking) -> EncodedRanking:
        responses = tuple(self.response_ids(response) for response in ranking.responses)
        return EncodedRanking(ranking, self.prompt_ids(ranking.prompt), responses)

    def text(self, ids: Sequence[int]) -> str:
        """What a person reads: special tokens left out."""
        decoded = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(decoded, str)
        return decoded.strip()


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


def encode_prompts(chat: Chat, prompts: Sequence[Prompt], limiter: Limiter) -> list[EncodedPrompt]:
    encoded = (EncodedPrompt(prompt, chat.prompt_ids(prompt)) for prompt in prompts)
    return _some([one for one in encoded if limiter.fits(one.prompt, "prompt", len(one.ids))], limiter)


def encode_demonstrations(
    chat: Chat, demonstrations: Sequence[Demonstration], limiter: Limiter
) -> list[EncodedDemonstration]:
    def kept() -> Iterator[EncodedDemonstration]:
        for one in demonstrations:
            encoded = chat.demonstration(one)
            if limiter.fits(one.prompt, "prompt", len(encoded.prompt_ids)) and limiter.fits(
                one.prompt, "response", len(encoded.response_ids)
            ):
                yield encoded

    return _some(list(kept()), limiter)


def encode_rankings(chat: Chat, rankings: Sequence[Ranking], limiter: Limiter) -> list[EncodedRanking]:
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
