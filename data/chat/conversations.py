"""Conversations as tokens. The only place that knows about chat templates, end tokens and loss masks.

A prompt is rendered with the template's generation prompt. A response is what the template renders behind it, up to the
token that closes an assistant's turn, which is always learned (`data.chat.turns`). Nothing follows that token: a line
break behind it belongs to the next turn. Control tokens come from the template alone (`data.chat.marks`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.chat.frames import frame_of
from data.chat.marks import Marks, control_tokens
from data.chat.turns import ORDINARY, Template, Turn
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from onebase.errors import DataError
from onebase.model.base import Base
from onebase.recipe.sections import ChatSection, LimitsSection
from onebase.run.record import DataIdentity
from onebase.sequences.episodes import TokenIds
from onebase.terminal import say

R = TypeVar("R", Prompt, Demonstration, Ranking)

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
    def sequences(self) -> list[TokenIds]:
        """Prompt and response joined, for each response."""
        return [self.prompt_ids + response for response in self.responses_ids]


class Tokens(NamedTuple):
    """A prompt and responses to it."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    spells_control: bool
    """Whether a content spells a control token, which is then encoded as text."""


class Chat:
    """The chat format of one run."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], section: ChatSection) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.system = section.system
        self.template = Template(tokenizer, section.system)
        frame = frame_of(self.template)
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

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The conversation so far and the opening of the assistant's turn."""
        return self.encode(prompt).prompt

    def candidates(self, prompt: Prompt, responses: Sequence[str]) -> list[TokenIds]:
        """Prompt and response joined, for each response to score, empty ones too."""
        tokens = self.encode(prompt, *responses)
        return [tokens.prompt + response for response in tokens.responses]

    def encode(self, prompt: Prompt, *answers: str) -> Tokens:
        """Tokens of a prompt and of answers to it, each as it is rendered behind the prompt, with its end token.

        A control token that a text spells stays text. DataError with the prompt's place where they cannot be encoded.
        """
        messages: Sequence[Message] = prompt.messages
        if messages[0].role != "system":
            messages = (*self.template.system, *messages)
        spells_control = any(map(self.marks.are_spelled_in, (*(message.content for message in messages), *answers)))
        try:
            if self._words:
                self._require_no_imitation(messages)
            if spells_control:
                self._require_apart()
                messages = [Message(message.role, self.marks.held(message.content)) for message in messages]
                answers = tuple(map(self.marks.held, answers))
            opened = self.template.text(messages, generation=True)
            ids = self.marks.encode(opened) if spells_control else self.marks.plain(opened)
            tails = [self.turn.tail(messages, answer, opened) for answer in answers]
            responses = tuple(self.turn.ids(tail, held=spells_control) for tail in tails)
        except DataError as error:
            raise DataError(f"{prompt.origin}: {error}") from None
        return Tokens(tuple(ids), responses, spells_control)

    def _require_no_imitation(self, messages: Sequence[Message]) -> None:
        """Where a template parts turns by words alone, a message that spells them has the tokens of two turns."""
        for message in messages:
            if all(word in message.content for word in self._words):
                raise DataError(
                    f"a message spells {' and '.join(map(repr, self._words))}, which this template writes between "
                    "turns without a control token: it cannot be distinguished from several turns. Remove it, or use a "
                    "template that closes each turn by a control token."
                )

    def _require_apart(self) -> None:
        if not self._is_apart:
            question = self.turn.question
            opened = self.template.text(question, generation=True)
            self.marks.require_same([opened + self.turn.tail(question, answer, opened) for answer in ORDINARY])
        self._is_apart = True

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that belongs to no conversation."""
        if not self.marks.are_spelled_in(text):
            return tuple(self.marks.plain(text))
        self._require_apart()
        return tuple(self.marks.encode(self.marks.held(text)))

    def text(self, ids: Sequence[int]) -> str:
        """What people and reward functions read: without control tokens, and without what the template writes before an
        answer. Tokens that are content (`<think>`) are a part of it."""
        content = [token for token in self.turn.without_seam(ids) if token not in self.marks.ids]
        decoded = self.tokenizer.decode(content, skip_special_tokens=False)
        assert isinstance(decoded, str)
        return decoded.strip()

    def closed(self, sequences: Sequence[TokenIds]) -> list[TokenIds]:
        """Sampled sequences as a reward model should see them: with the end token in place of another stop token.

        Rankings end with the token that the template writes. A model may have several stop tokens. One that the reward
        model never saw would change the score, whatever the response.
        """
        return [(*sequence[:-1], self.end_id) if sequence[-1] in self.stop_ids else sequence for sequence in sequences]


@dataclass
class Limiter:
    """Keeps what fits the limits; raises or counts what does not, as the recipe says."""

    limits: LimitsSection
    dropped: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    """Rows within the limits, of all sources and splits together."""

    def leave_out(self, prompt: Prompt, part: str, length: int, limit: int) -> None:
        """Raise, or count a row with a part that is over its limit."""
        if self.limits.over == "error":
            raise DataError(
                f"{prompt.origin}: the {part} is {length} tokens, over limits.{part}_tokens={limit}. "
                "Raise the limit, or leave such rows out with limits.over=drop."
            )
        self.dropped[f"{part} over {limit} tokens"] += 1

    def settle(self, stage: str) -> list[DataIdentity]:
        """Report what was left out, and count it for the record as the source `limits`; nothing where all fitted. The
        other sources' rows were counted as they were read."""
        if not self.dropped:
            return []
        limits, dropped = self.limits.model_dump(mode="json"), dict(self.dropped)
        reasons = ", ".join(f"{count} with a {reason}" for reason, count in dropped.items())
        say(f"{stage}: rows left out: {reasons}; {self.kept} are within the limits.")
        content = json.dumps([limits, dropped, self.kept], sort_keys=True)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        return [
            DataIdentity(source="limits", split=None, revision=None, kept=self.kept, dropped=dropped, sha256=sha256)
        ]


def encode_prompts(chat: Chat, prompts: Sequence[Prompt], limiter: Limiter) -> list[EncodedPrompt]:
    return [EncodedPrompt(prompt, tokens.prompt) for prompt, tokens in _encode_all(chat, prompts, limiter)]


def encode_demonstrations(
    chat: Chat, demonstrations: Sequence[Demonstration], limiter: Limiter
) -> list[EncodedDemonstration]:
    encoded = _encode_all(chat, demonstrations, limiter)
    return [EncodedDemonstration(tokens.prompt, tokens.responses[0]) for _, tokens in encoded]


def encode_rankings(chat: Chat, rankings: Sequence[Ranking], limiter: Limiter) -> list[EncodedRanking]:
    encoded = _encode_all(chat, rankings, limiter)
    return [EncodedRanking(ranking, tokens.prompt, tokens.responses) for ranking, tokens in encoded]


def _encode_all(chat: Chat, records: Sequence[R], limiter: Limiter) -> list[tuple[R, Tokens]]:
    """The records within the limits and their tokens.

    Rows that spell control tokens are reported: they are valid, and nearly always somebody's mistake or attack.
    """
    fitting: list[tuple[R, Tokens]] = []
    spelling: list[Origin] = []
    limits = {"prompt": limiter.limits.prompt_tokens, "response": limiter.limits.response_tokens}
    try:
        for record in records:
            prompt = record.prompt
            tokens = chat.encode(prompt, *record.responses)
            if tokens.spells_control:
                spelling.append(prompt.origin)
            lengths = {"prompt": len(tokens.prompt), "response": max(map(len, tokens.responses), default=0)}
            over = [part for part, length in lengths.items() if length > limits[part]]
            if over:
                limiter.leave_out(prompt, over[0], lengths[over[0]], limits[over[0]])
            else:
                limiter.kept += 1
                fitting.append((record, tokens))
    finally:  # also before the error of a row that such a token breaks
        if spelling:
            say(
                f"rows that spell control tokens: {len(spelling)}, the first at {spelling[0]}; what they spell is "
                "encoded as text."
            )
    if not fitting:
        raise DataError(
            f"data: no row is within the limits: {dict(limiter.dropped)}. "
            "Raise limits.prompt_tokens or limits.response_tokens."
        )
    return fitting
