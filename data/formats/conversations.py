"""Conversations of several turns: every reply of the assistant is a demonstration of its own.

Chats come as lists of messages (OpenAI), as `from` and `value` (ShareGPT), or as one text with marks (Baize, HH-RLHF).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from data.formats import fields
from data.formats.format import Builder, Format, Options, Outcome, Row
from data.formats.meaning import is_learned
from data.formats.serialised import SPEAKERS
from data.records import Demonstration, Message, Origin, Prompt
from onebase.errors import DataError


def conversation_prompt(said: Sequence[Message], origin: Origin, facts: dict[str, Any]) -> Prompt:
    """All there is before the assistant's last reply; or everything, when it is the assistant's turn."""
    return Prompt(tuple(said[:-1] if said[-1].role == "assistant" else said), origin, facts)


def replies(
    said: Sequence[Message], origin: Origin, facts: dict[str, Any], left_out: frozenset[int] = frozenset()
) -> Iterator[Outcome]:
    """Each reply of the assistant with all that was said before it. left_out: indices of messages not to imitate.

    A conversation is sound or refused as a whole: what comes after a broken turn answers it.
    """
    if said[-1].role != "assistant":
        raise DataError(
            f"{origin}: a demonstration must end with the assistant's message, found '{said[-1].role}'. "
            "The conversation is cut off: complete it, or drop the row."
        )
    conversation_prompt(said, origin, facts)  # what is wrong with the turns is best said of the whole
    places = [index for index, message in enumerate(said) if message.role == "assistant"]
    found = [Demonstration(Prompt(tuple(said[:index]), origin, facts), said[index].content) for index in places]
    kept = [one for index, one in zip(places, found, strict=True) if index not in left_out]
    if not kept:
        raise DataError(
            f"{origin}: every reply has the weight 0, or another mark not to learn it, so there is nothing to imitate. "
            "Remove the row."
        )
    yield from kept


def not_learned(entries: Sequence[Row], origin: Origin, shift: int) -> frozenset[int]:
    """Turns that say themselves that they are not to be imitated, such as by OpenAI's `weight: 0`; the model is shown
    them. shift: how much further down they stand in the conversation that was made of the entries."""
    return frozenset(
        index + shift for index, entry in enumerate(entries) if not is_learned(entry, f"{origin}: message {index + 1}")
    )


def messages_prompt(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    said = fields.under_system(row, fields.messages(row, "messages", origin), origin)
    yield conversation_prompt(said, origin, fields.facts(row))


def messages_demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """OpenAI's fine-tuning rows: {messages: [{role, content, weight?}]}."""
    said = fields.under_system(row, fields.messages(row, "messages", origin), origin)
    left_out = not_learned(row["messages"], origin, len(said) - len(row["messages"]))
    yield from replies(said, origin, fields.facts(row), left_out)


PAGE = re.compile(r'<div class="(?:markdown|flex|min-h)|<button class=')
"""What the web page's own markup looks like, in the crawls that were not cleaned."""


def _sharegpt(row: Row, origin: Origin) -> tuple[Message, ...]:
    """ShareGPT's `conversations`: [{from: human | gpt | system, value}]; some write role and content for them."""
    said = []
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
                f"{origin}: turn {index + 1} holds the web page's HTML. Use a cleaned copy, or drop the row."
            )
        said.append(Message(role, content))  # pyright: ignore[reportArgumentType]  # a value of SPEAKERS
    return fields.under_system(row, fields.without_blank_system(said), origin)


def _sharegpt_prompt(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    yield conversation_prompt(_sharegpt(row, origin), origin, fields.facts(row))


def _sharegpt_demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    said = _sharegpt(row, origin)
    left_out = not_learned(row["conversations"], origin, len(said) - len(row["conversations"]))
    yield from replies(said, origin, fields.facts(row), left_out)


def split_turns(
    transcript: str, marks: dict[str, str], key: str, origin: Origin, *, preamble: bool = False
) -> list[Message]:
    """The turns of one long text. marks: what each role's turns begin with. preamble: text before the first is allowed.

    White space around a turn belongs to the transcript and goes.
    """
    pattern = "|".join(re.escape(mark) for mark in marks.values())
    before, *pieces = re.split(f"({pattern})", transcript)
    if not pieces or (before.strip() and not preamble):
        expected = " or ".join(repr(mark) for mark in marks.values())
        raise DataError(f"{origin}: '{key}' is no dialogue: it must begin with {expected}. Mend the row, or drop it.")
    roles: dict[str, Any] = {mark: role for role, mark in marks.items()}
    said = zip(pieces[::2], pieces[1::2], strict=True)
    return [Message(roles[mark], content.strip()) for mark, content in said]


BAIZE = {"user": "[|Human|]", "assistant": "[|AI|]"}
DIALOGUE = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:"}
"""Anthropic's marks, two line feeds included, which Nectar has taken over."""


def dialogue(transcript: str, key: str, origin: Origin) -> list[Message]:
    """A transcript of Anthropic's; some copies have lost the line feeds in front."""
    return split_turns("\n\n" + transcript.lstrip("\n"), DIALOGUE, key, origin)


def is_dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:")


def dialogue_prompt(row: Row, origin: Origin) -> Prompt:
    """A `prompt` that is a dialogue as text; it ends with the mark of the reply that is to come."""
    said = dialogue(fields.text(row, "prompt", origin), "prompt", origin)
    if said[-1] == Message("assistant", ""):
        said.pop()
    fields.no_earlier_turns(row, "prompt", origin)
    return Prompt(fields.under_system(row, tuple(said), origin), origin, fields.facts(row))


def _baize(row: Row, origin: Origin) -> list[Message]:
    """Baize's self-chat: {topic, input}, the transcript in `input`. It ends with the mark of a turn that never came."""
    said = split_turns(fields.text(row, "input", origin), BAIZE, "input", origin, preamble=True)
    if said[-1] == Message("user", ""):
        said.pop()
    if not said:
        raise DataError(f"{origin}: the transcript has no turns. Remove the row.")
    return said


def _baize_prompt(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    yield conversation_prompt(_baize(row, origin), origin, fields.facts(row))


def _baize_demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    yield from replies(_baize(row, origin), origin, fields.facts(row))


def _is_baize(row: Row) -> bool:
    return isinstance(row["input"], str) and any(mark in row["input"] for mark in BAIZE.values())


def _chat(name: str, publisher: str, key: str, prompt: Builder, demonstrations: Builder, **more: Any) -> Format:
    rows: dict[type, Builder] = {Prompt: prompt, Demonstration: demonstrations}
    return Format(name=name, publisher=publisher, keys=frozenset({key}), rows=rows, **more)


FORMATS = [
    _chat("messages", "OpenAI fine-tuning, TRL", "messages", messages_prompt, messages_demonstrations),
    _chat(
        "sharegpt",
        "ShareGPT, FastChat (Vicuna), WizardLM Evol-Instruct V2",
        "conversations",
        _sharegpt_prompt,
        _sharegpt_demonstrations,
    ),
    _chat(
        "baize",
        "Baize self-chat, https://arxiv.org/abs/2304.01196",
        "input",
        _baize_prompt,
        _baize_demonstrations,
        looks=_is_baize,
    ),
]
