"""Messages that came as a text: JSON, or what Python and numpy print, as CSV files have them.

A text that is nothing but messages is parsed where that can be done in one way, and refused where it cannot: learned
unchanged it would teach a model to write brackets. A text with words around such messages stays a text, and so does
JSON that is not a conversation.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping
from itertools import product
from typing import Any

from data.files.lines import Defect, refuse_broken_text
from data.files.readers import STRICT
from data.records import ROLES

SPEAKERS: Mapping[str, str] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant", "model"), "assistant"),
    "system": "system",
}
"""What the names of ShareGPT's speakers mean."""

OTHER_SPEAKERS = ("developer", "tool", "function", "function_call", "observation", "ipython", "environment", "bot")

LISTS = frozenset(
    ("messages", "conversations", "completions", "answers", "summaries", "instances", "responses", "tiers", "ranks")
) | frozenset(("passages", "preference", "info"))
"""Keys that hold a list or an object in every format that has them: a text there can only be a written one."""

CONVERSATIONS = ("prompt", "chosen", "rejected", "context")
"""Keys that may hold messages as well as a text."""

REPLIES = ("response", "completion", "output", "answer", "response1", "response2")
"""Keys that hold a reply, which one message of the assistant may stand for."""

DEEPEST = 3
"""Times that a text may be written into a text."""

_names = "|".join((*SPEAKERS, *OTHER_SPEAKERS))
OPENS = re.compile(r"""[ \t\r\n]*(?:[\[{("']|array\()""")
"""How a written list or object can begin: nearly all texts do not, and one look at their start is all they cost."""
_SPEAKS = re.compile(rf"""["'](?:role|from)\\*["']\s*:\s*\\*["'](?:{_names})\\*["']""", re.IGNORECASE)
_BEGINS = re.compile(r"""[\s"'\[(]*(?:array\([\s"'\[(]*)?\{\s*\\*["'](?:role|from|content|value)\\*["']\s*:""")
_ARRAY = re.compile(r"array\((.*?)(?:,\s*dtype=object)?\)", re.DOTALL)
_BETWEEN = re.compile(r"\}[ \t]*\n\s*\{")
_CLOSES = re.compile(r"[\]}]")


def unpacked(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its messages, and other lists where only lists can be, parsed; the same row without such."""
    written = [(key, value) for key, value in row.items() if type(value) is str and OPENS.match(value)]
    values = {key: value for key, text in written if (value := _value_of(key, text)) is not None}
    return {**row, **values} if values else row


def is_conversation(text: str) -> bool:
    """Whether a text is nothing but messages, whole or damaged."""
    if OPENS.match(text) is None or _SPEAKS.search(text) is None:
        return False
    value = parsed(text)
    if value is None:
        return _BEGINS.match(text) is not None and not _continues_in_words(text)
    return any(map(_is_message, value)) if isinstance(value, list) else _messages(value) is not None


def _value_of(key: str, text: str) -> Any:
    if key not in LISTS and (key not in (*CONVERSATIONS, *REPLIES) or _SPEAKS.search(text) is None):
        return None
    value = parsed(text)
    messages = _messages(value)
    if messages is None or (key in LISTS and key != "messages"):
        return (messages or value) if key in LISTS else None
    turns = list(map(_as_role, messages))
    if key not in REPLIES:
        return turns
    alone = len(turns) == 1 and set(turns[0]) == {"role", "content"} and turns[0]["role"] == "assistant"
    return turns[0]["content"] if alone and isinstance(turns[0]["content"], str) else None


def _messages(value: Any) -> list[dict[str, Any]] | None:
    """The messages that a parsed value is: a list of them, a single one, or an object that holds nothing else."""
    if isinstance(value, dict) and len(value) == 1 and set(value) <= {"messages", "conversations"}:
        (value,) = value.values()
    value = [value] if isinstance(value, dict) else value
    return value if isinstance(value, list) and value and all(map(_is_message, value)) else None


def _is_message(value: Any) -> bool:
    names = (*SPEAKERS, *OTHER_SPEAKERS)
    return isinstance(value, dict) and any(
        isinstance(name := value.get(speaker), str) and name.lower() in names and content in value
        for speaker, content in (("role", "content"), ("from", "value"))
    )


def _as_role(message: dict[str, Any]) -> dict[str, Any]:
    """ShareGPT's `from` and `value` under OpenAI's names."""
    if "role" in message:
        return message
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": SPEAKERS.get(message["from"].lower(), message["from"]), "content": message["value"], **rest}


def parsed(text: str) -> Any:
    """The list or object that a text is when it is JSON, or a literal of Python; None when it is neither."""
    value: Any = text.strip()
    for _ in range(DEEPEST):
        value = _parsed_once(value)
        if isinstance(value, list):
            value = [
                _parsed_once(entry) or entry if isinstance(entry, str) and _SPEAKS.search(entry) else entry
                for entry in value
            ]
        if not isinstance(value, str):
            break
    return value if isinstance(value, list | dict) else None


def _parsed_once(text: str) -> Any:
    array = _ARRAY.fullmatch(text)
    text = array[1] if array else text
    # numpy writes no commas between the elements; a line feed inside a text would be escaped, so this one is not.
    for written, parse in product((text, _BETWEEN.sub("},{", text)), (STRICT.decode, ast.literal_eval)):
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
                value = parse(written)
            refuse_broken_text(value)
            json.dumps(value)  # a literal of Python may hold sets or bytes
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, Defect):
            continue
        return list(value) if isinstance(value, tuple) else value
    return None


def _continues_in_words(text: str) -> bool:
    """Whether a valid list or object at the start of a text has words behind it: then the text is about it."""
    for closing in [match.end() for match in _CLOSES.finditer(text)][-20:]:
        rest = text[closing:].strip()
        if rest and OPENS.match(rest) is None and rest[0] not in "]})," and parsed(text[:closing]) is not None:
            return True
    return False


assert set(SPEAKERS.values()) == set(ROLES)
