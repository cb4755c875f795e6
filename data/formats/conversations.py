"""Conversations of several turns: each reply of the assistant is a demonstration.

Chats come as lists of messages (OpenAI), as `from` and `value` (ShareGPT), or as one text with marks (Baize).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.formats import fields
from data.formats.format import Options, Outcome, Row, format_of
from data.formats.meaning import is_learned
from data.formats.serialised import SPEAKERS
from data.records import Demonstration, Message, Origin, Prompt
from onebase.errors import DataError

TurnsReader = Callable[[Row, Origin], Sequence[Message]]


def _chat(read: TurnsReader, entries_key: str = "") -> dict[str, Any]:
    """What makes prompts and demonstrations of a conversation. entries_key: the list that may mark its turns."""

    def prompt(row: Row, origin: Origin) -> Prompt:
        return _prompt_of(read(row, origin), origin, fields.facts(row))

    def demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        turns = read(row, origin)
        entries = row[entries_key] if entries_key else ()
        # A system prompt beside the entries comes first; an empty one among them is gone.
        not_learned = _not_learned(entries, origin, shift=len(turns) - len(entries))
        return _replies(turns, origin, fields.facts(row), not_learned)

    return {"prompt": prompt, "rows": {Demonstration: demonstrations}}


def _prompt_of(turns: Sequence[Message], origin: Origin, facts: dict[str, Any]) -> Prompt:
    """Everything before the assistant's last reply; or everything, when it is the assistant's turn."""
    return Prompt(tuple(turns[:-1] if turns[-1].role == "assistant" else turns), origin, facts)


def _replies(
    turns: Sequence[Message], origin: Origin, facts: dict[str, Any], not_learned: frozenset[int]
) -> Iterator[Outcome]:
    """Each reply of the assistant with everything before it.

    A conversation is sound or refused as a whole: what comes after a broken turn answers it.
    """
    if turns[-1].role != "assistant":
        raise DataError(
            f"{origin}: a demonstration must end with the assistant's message, found '{turns[-1].role}'. "
            "The conversation is cut off: complete it, or remove the row."
        )
    _prompt_of(turns, origin, facts)  # errors in the turns are best raised for the whole
    places = [index for index, message in enumerate(turns) if message.role == "assistant"]
    demonstrations = [
        Demonstration(Prompt(tuple(turns[:index]), origin, facts), turns[index].content) for index in places
    ]
    learned = [record for index, record in zip(places, demonstrations, strict=True) if index not in not_learned]
    if not learned:
        raise DataError(
            f"{origin}: every reply has the weight 0, or another mark not to learn it, so there is nothing to imitate. "
            "Remove the row."
        )
    yield from learned


def _not_learned(entries: Sequence[Row], origin: Origin, shift: int) -> frozenset[int]:
    """Turns with a mark not to imitate them, such as OpenAI's `weight: 0`; the model is shown them. shift: how much
    further down they are in the conversation that was made of the entries."""
    return frozenset(
        index + shift for index, entry in enumerate(entries) if not is_learned(entry, f"{origin}: message {index + 1}")
    )


def _messages(row: Row, origin: Origin) -> Sequence[Message]:
    """OpenAI's fine-tuning rows: {messages: [{role, content, weight?}]}."""
    return fields.under_system(row, fields.messages(row, "messages", origin), origin)


PAGE = re.compile(r'<div class="(?:markdown|flex|min-h)|<button class=')
"""The web page's own markup, in crawls that were not cleaned."""


def _sharegpt(row: Row, origin: Origin) -> Sequence[Message]:
    """ShareGPT's `conversations`: [{from: human | gpt | system, value}]; some write role and content for them."""
    turns = []
    for index, entry in enumerate(fields.objects(row, "conversations", origin)):
        speaker, key = ("from", "value") if entry.get("from") is not None else ("role", "content")
        role = SPEAKERS.get(fields.text(entry, speaker, origin).lower())
        if role is None:
            known = ", ".join(SPEAKERS)
            raise DataError(
                f"{origin}: turn {index + 1} is from {entry[speaker]!r}, which is not read. Known: {known}."
            )
        content = fields.text(entry, key, origin)
        if PAGE.search(content):
            raise DataError(
                f"{origin}: turn {index + 1} holds the web page's HTML. Use a cleaned copy, or remove the row."
            )
        turns.append(Message(role, content))  # pyright: ignore[reportArgumentType]  # a value of SPEAKERS
    return fields.under_system(row, fields.without_blank_system(turns), origin)


BAIZE = {"user": "[|Human|]", "assistant": "[|AI|]"}


def _baize(row: Row, origin: Origin) -> Sequence[Message]:
    """Baize's self-chat: {topic, input}, the transcript in `input`. It ends with the mark of a turn that never came."""
    turns = fields.split_turns(fields.text(row, "input", origin), BAIZE, "input", origin, preamble=True)
    if turns[-1] == Message("user", ""):
        turns.pop()
    if not turns:
        raise DataError(f"{origin}: the transcript has no turns. Remove the row.")
    return turns


def _is_baize(row: Row) -> bool:
    return isinstance(row["input"], str) and any(mark in row["input"] for mark in BAIZE.values())


MESSAGES = format_of("messages", "OpenAI fine-tuning, TRL", "messages", **_chat(_messages, "messages"))

FORMATS = [
    MESSAGES,
    format_of(
        "sharegpt",
        "ShareGPT, FastChat (Vicuna), WizardLM Evol-Instruct V2",
        "conversations",
        **_chat(_sharegpt, "conversations"),
    ),
    format_of("baize", "Baize self-chat, https://arxiv.org/abs/2304.01196", "input", **_chat(_baize), looks=_is_baize),
]
