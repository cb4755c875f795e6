"""A chat template: conversations as the text that it renders, and which part of that text it writes by itself."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.records import Message
from onebase.errors import DataError

SYSTEM, FIRST, ANSWER, SECOND = "zqsystem", "zqfirst", "zqanswer", "zqsecond"
"""Contents that are found again in a rendered text: no template writes them."""

CONVERSATIONS = (
    (Message("system", SYSTEM), Message("user", FIRST), Message("assistant", ANSWER), Message("user", SECOND)),
    (Message("user", FIRST), Message("assistant", ANSWER), Message("user", SECOND)),
    (Message("user", FIRST),),
)
"""To look at a template with, the one that shows most first: not every template takes a system message, or turns."""

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


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a template writes around the contents of a conversation."""

    head: str
    """Before the first question, system message included."""
    opening: str
    """Between a question and its answer; and behind the last question, where an answer is asked for."""
    between: str
    """Between an answer and the next question."""
    words: tuple[str, ...]
    """What opens an answer and what opens the next question, without white space: all that a text must spell to imitate
    turns where no control token stands between them."""
    tools: str
    """All of conversations with tools; empty where the template takes none."""
    source: str


class Template:
    """The template of a tokenizer, with the recipe's system message."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None) -> None:
        self._tokenizer = tokenizer
        self._system = system

    def with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages and the recipe's system message before them, unless they bring their own."""
        if self._system is None or messages[0].role == "system":
            return messages
        return (Message("system", self._system), *messages)

    def text(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The rendered conversation. generation: with the opening of an assistant's turn behind it.

        DataError where the template fails on it.
        """
        return self._render([{"role": one.role, "content": one.content} for one in messages], generation, None)

    def _render(self, turns: Sequence[dict[str, Any]], generation: bool, tools: list[Any] | None) -> str:
        try:
            rendered: Any = self._tokenizer.apply_chat_template(
                list(turns), tools=tools, tokenize=False, add_generation_prompt=generation
            )
        except Exception as error:  # a template is a program: it may raise whatever its expressions raise
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"chat.template: the template fails on a conversation of {roles}: {error}. "
                "Leave out what it does not take (chat.system, it may be), or pass another template."
            ) from None
        return rendered

    def frame(self) -> Frame:
        """What it writes by itself, seen on the first of CONVERSATIONS that it takes; DataError where it takes none."""
        for messages in CONVERSATIONS[:-1]:
            try:
                return self._frame_of(messages)
            except DataError:
                continue
        return self._frame_of(CONVERSATIONS[-1])

    def _frame_of(self, messages: Sequence[Message]) -> Frame:
        messages = self.with_system(messages)
        head, _, asked = self.text(messages, generation=True).partition(FIRST)
        opening, _, rest = asked.partition(ANSWER)
        between, _, closing = rest.partition(SECOND)
        if messages[-1].content == SECOND:
            # Many write more before the last answer than before earlier ones.
            closing += "\0" + self.text(messages[:-1], generation=False).partition(FIRST)[2].partition(ANSWER)[0]
        # A template that takes one question alone has no turns that a text could imitate.
        words = (opening.strip(), between.strip()) if messages[-1].content == SECOND else ()
        template: Any = self._tokenizer.chat_template
        return Frame(
            head=head,
            opening=f"{opening}\0{closing}",
            between=between,
            words=tuple(filter(None, words)),
            tools="\0".join(self._with_tools()),
            source=template if isinstance(template, str) else "\0".join(template.values()),
        )

    def _with_tools(self) -> list[str]:
        rendered: list[str] = []
        for turns, tools in itertools.product((TOOL_TURNS[:1], TOOL_TURNS), (None, [TOOL])):
            try:
                rendered.append(self._render(turns, True, tools))
            except DataError:
                continue
        return rendered
