"""What a chat template writes around the contents of a conversation, seen on a few conversations that it renders."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

from data.chat.marks import Frame
from data.chat.turns import ANSWER, FIRST, SECOND, Template
from data.records import Message
from onebase.errors import DataError

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "zqtool", "description": "", "parameters": {"type": "object", "properties": {}}},
}
CALL: dict[str, Any] = {"id": "call00000", "type": "function", "function": {"name": "zqtool", "arguments": {}}}
TOOL_TURNS: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": FIRST},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "zqtool", "tool_call_id": "call00000", "content": ANSWER},
)


def frame_of(template: Template) -> Frame:
    """What the template writes, seen on the first of its conversations that it takes; DataError where it takes none."""
    *others, last = template.conversations
    for messages in others:
        with contextlib.suppress(DataError):
            return _frame_of(template, messages)
    return _frame_of(template, last)


def _frame_of(template: Template, messages: Sequence[Message]) -> Frame:
    head, _, behind_first = template.text(messages, generation=True).partition(FIRST)
    opening, _, behind_answer = behind_first.partition(ANSWER)
    between, _, closing = behind_answer.partition(SECOND)
    has_second_turn = messages[-1].content == SECOND
    if has_second_turn:
        # Many write more before the last answer than before earlier ones.
        closing += "\0" + template.text(messages[:-1], generation=False).partition(FIRST)[2].partition(ANSWER)[0]
    # A template that takes only one question has no turns that a text could imitate.
    words = (opening.strip(), between.strip()) if has_second_turn else ()
    source: Any = template.tokenizer.chat_template
    return Frame(
        head=head,
        opening=f"{opening}\0{closing}",
        between=between,
        words=tuple(filter(None, words)),
        tools="\0".join(_with_tools(template)),
        source=source if isinstance(source, str) else "\0".join(source.values()),
    )


def _with_tools(template: Template) -> list[str]:
    rendered: list[str] = []
    for turns, tools in itertools.product((TOOL_TURNS[:1], TOOL_TURNS), (None, [TOOL])):
        with contextlib.suppress(DataError):
            rendered.append(template.text(turns, generation=True, tools=tools))
    return rendered
