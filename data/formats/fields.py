"""Values of a row, read strictly: what is not of the expected type is refused by key. And prompts made of them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.files.lines import refuse_broken_text
from data.formats.format import Refusal, Row
from data.formats.meaning import is_filled, refuse_content
from data.formats.serialised import OPENS, is_conversation, parsed
from data.records import ROLES, Message, Origin, Prompt
from onebase.errors import DataError

_LARGEST = 1e15
"""No score is as large; beyond it floats no longer distinguish whole numbers."""

FACTS = {name: name for name in ("task", "family", "template", "category")}
FACTS |= {"task_name": "task", "template_name": "template"}
"""Keys of a row that name its task, and what they are called in a prompt's `meta`."""

LABELERS = ("labeler", "labeler_id", "labeller", "annotator", "annotator_id", "worker", "worker_id")
"""Keys of a row that name who ranked it, or wrote it; `labeler` in a prompt's `meta`."""

DIALOGUE = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:"}
"""Anthropic's marks, two line feeds included, which Nectar uses too."""


_IS: Mapping[str, Callable[[Any], bool]] = {
    "a number": lambda value: type(value) in (int, float) and -_LARGEST < value < _LARGEST,
    "a whole number": lambda value: type(value) is int,
    "true or false": lambda value: type(value) is bool,
}
"""What a number of each sort is."""


def _shown(value: Any) -> str:
    match value:
        case str():
            return f"the text {value[:20]!r}"
        case int() if abs(value) >= _LARGEST:  # thousands of digits have no decimal form in Python
            return "a number of many digits"
        case bool() | int() | float():
            return str(value)
        case _:
            return type(value).__name__


def require(condition: object, where: Origin | str, problem: str) -> None:
    """DataError unless the condition holds. problem: what is wrong, what was there, and what to do."""
    if not condition:
        raise DataError(f"{where}: {problem}")


def text(row: Row, key: str, origin: Origin) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{origin}: '{key}' must be text, found {type(value).__name__}. Fix or remove the row.")
    if OPENS.match(value) and is_conversation(value):
        raise DataError(
            f"{origin}: '{key}' is a list of messages written as text, found {value.strip()[:30]!r}..., and would be "
            "learned with its brackets. Write the messages as a list under 'messages' or 'prompt', or the text alone."
        )
    return value


def filled(row: Row, key: str, origin: Origin) -> str:
    """A text that is more than white space."""
    value = text(row, key, origin)
    require(value.strip(), origin, f"'{key}' is empty. Remove the row or fill it in.")
    return value


def optional_text(row: Row, key: str, origin: Origin) -> str:
    """A text; "" when the key is missing or null."""
    return "" if row.get(key) is None else text(row, key, origin)


def refuse(refusal: Refusal, content: str, origin: Origin) -> None:
    """DataError when a text holds what may not be in it."""
    search, problem = refusal
    if match := search(content):
        raise DataError(f"{origin}: {problem.format(match[0].strip())}")


def number(row: Row, key: str, origin: Origin, expected: str = "a number", allowed: Sequence[int] | None = None) -> Any:
    """A number; expected: of which sort, a key of _IS. allowed: the only ones that it may be."""
    value = row.get(key)
    if _IS[expected](value):
        if allowed is None or value in allowed:
            return value
        expected = f"one of {', '.join(map(str, allowed))}"
    raise DataError(f"{origin}: '{key}' must be {expected}, found {_shown(value)}. Fix or remove the row.")


def choice_of(row: Row, key: str, allowed: Sequence[int], origin: Origin) -> int:
    return number(row, key, origin, "a whole number", allowed)


def objects(row: Row, key: str, origin: Origin) -> list[dict[str, Any]]:
    """A list of objects, one at least."""
    value = row.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise DataError(f"{origin}: '{key}' must be a list of objects, found {_kinds(value)}. Fix or remove the row.")
    for index, entry in enumerate(value):
        refuse_content(entry, f"{origin}: '{key}' {index + 1}", turn=key == "conversations")
    return value


def texts(row: Row, key: str, origin: Origin) -> list[str]:
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise DataError(f"{origin}: '{key}' must be a list of texts.")
    return [text({key: entry}, key, origin) for entry in value]


def _kinds(value: Any) -> str:
    if not isinstance(value, list):
        return type(value).__name__
    return "an empty list" if not value else "a list with something else in it"


# --- messages ---


def messages(row: Row, key: str, origin: Origin) -> tuple[Message, ...]:
    """A list of {role, content}. Content may be OpenAI's list of text parts; `developer` is their word for system."""
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{origin}: '{key}' must be a list of {{role, content}}, found {_kinds(value)}. Fix or remove the row."
        )
    return without_blank_system([_message(entry, index, origin) for index, entry in enumerate(value)])


def without_blank_system(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns without an empty system message, which would be shown to the model as an empty turn."""
    blank = len(turns) > 1 and turns[0].role == "system" and not turns[0].content.strip()
    return tuple(turns[1:] if blank else turns)


def _message(entry: Any, index: int, origin: Origin) -> Message:
    role = entry.get("role") if isinstance(entry, dict) else type(entry).__name__
    role = "system" if role == "developer" else role
    if not isinstance(entry, dict) or role not in ROLES:
        raise DataError(f"{origin}: message {index + 1}: the role must be one of {', '.join(ROLES)}, found {role!r}.")
    if entry.get("tool_calls") or entry.get("function_call"):
        raise DataError(f"{origin}: message {index + 1} calls a tool, which is not read. Remove the row.")
    refuse_content(entry, f"{origin}: message {index + 1}", turn=True)
    content = entry.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part, index, origin) for part in content)
    content = text({"content": content}, "content", origin)
    return Message(role, content)  # pyright: ignore[reportArgumentType]  # role is in ROLES


def _text_part(part: Any, index: int, origin: Origin) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise DataError(f"{origin}: message {index + 1} holds {kind!r}; only text is read. Remove the row.")
    refuse_content(part, f"{origin}: message {index + 1}")
    return text(part, "text", origin)


def split_turns(
    transcript: str, marks: dict[str, str], key: str, origin: Origin, *, preamble: bool = False, waiting: str = ""
) -> list[Message]:
    """The turns of one long text. marks: what each role's turns begin with. preamble: text before the first is allowed.
    waiting: the role that speaks next. Its mark at the end is left out.

    White space around a turn belongs to the transcript and is removed.
    """
    pattern = "|".join(re.escape(mark) for mark in marks.values())
    before, *pieces = re.split(f"({pattern})", transcript)
    if not pieces or (before.strip() and not preamble):
        expected = " or ".join(repr(mark) for mark in marks.values())
        raise DataError(f"{origin}: '{key}' is not a dialogue: it must begin with {expected}. Fix or remove the row.")
    roles: dict[str, Any] = {mark: role for role, mark in marks.items()}
    turns = [Message(roles[mark], turn.strip()) for mark, turn in zip(pieces[::2], pieces[1::2], strict=True)]
    return turns[:-1] if turns[-1].role == waiting and not turns[-1].content else turns


def dialogue(row: Row, key: str, origin: Origin, *, waiting: str = "") -> list[Message]:
    """A transcript of Anthropic's; some copies have lost the line feeds in front."""
    transcript = "\n\n" + text(row, key, origin).lstrip("\n")
    return split_turns(transcript, DIALOGUE, key, origin, waiting=waiting)


# --- prompts ---


def prompt_of(
    row: Row, content: str | Sequence[Message], origin: Origin, *, task: str = "", history: bool = True
) -> Prompt:
    """A prompt of one user message, or of turns, under the system prompt that is beside them.

    task: where no key names it. history: whether `history` is what comes before a user message, and not the content
    itself. Turns have their earlier ones in themselves.
    """
    turns = (Message("user", content),) if isinstance(content, str) else tuple(content)
    before = earlier_turns(row, origin) if history and row.get("history") and isinstance(content, str) else []
    if row.get("history") is not None and not isinstance(content, str) and is_filled(row["history"]):
        raise DataError(
            f"{origin}: the prompt is a conversation, and 'history' beside it is not read. Put one into the other."
        )
    key = "system" if row.get("system") is not None else "system_prompt"
    system = "" if row.get(key) is None else text(row, key, origin)
    if turns and system.strip() and turns[0].role != "system":
        before.insert(0, Message("system", system))
    elif turns and system.strip() and turns[0].content != system:
        raise DataError(f"{origin}: there are two system prompts, one beside the messages and one in them. Remove one.")
    return Prompt((*before, *turns), origin, facts(row) | ({"task": task} if task else {}))


def given_prompt(row: Row, origin: Origin) -> Prompt:
    """`prompt` as text or as messages; or as a dialogue with Anthropic's marks, which is more than one message."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        content = messages(row, "prompt", origin)
    elif isinstance(prompt, str) and prompt.startswith(DIALOGUE["user"]):
        content = dialogue(row, "prompt", origin, waiting="assistant")
    else:
        content = text(row, "prompt", origin)
    return prompt_of(row, content, origin)


def earlier_turns(row: Row, origin: Origin) -> list[Message]:
    """`history` as LLaMA-Factory has it: a list of [question, answer]; or a list of messages."""
    value = row.get("history")
    if not is_filled(value):
        return []
    value = parsed(value) or value if isinstance(value, str) else value
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return list(messages({"history": value}, "history", origin))
    require(
        isinstance(value, list) and all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value),
        origin,
        f"'history' must be a list of [question, answer], found {_kinds(value)}. Write the row as "
        "'messages', or remove it.",
    )
    assert isinstance(value, list)
    pairs = [[text({"history": content}, "history", origin) for content in turn] for turn in value]
    return [
        message for question, answer in pairs for message in (Message("user", question), Message("assistant", answer))
    ]


def facts(row: Row) -> dict[str, Any]:
    """What a row tells about its prompt: our own `meta` (in Parquet a JSON text), its task, and who ranked it, by name
    or number."""
    known = _own_facts(row["meta"]) if "meta" in row else {}
    for key, name in FACTS.items():
        if key in row and isinstance(row[key], str) and row[key]:
            known.setdefault(name, row[key])
    for key in LABELERS:
        labeler = row.get(key)
        if isinstance(labeler, str | int) and not isinstance(labeler, bool) and str(labeler).strip():
            return {"labeler": str(labeler), **known}
    return known


def _own_facts(meta: Any) -> dict[str, Any]:
    """An object of JSON; anything else that a publisher has under this name is ignored."""
    try:
        content = json.loads(meta) if isinstance(meta, str) else meta
        refuse_broken_text(content)
        return json.loads(json.dumps(content, allow_nan=False)) if isinstance(content, dict) else {}
    except (TypeError, ValueError, RecursionError):
        return {}


def joined(instruction: str, task_input: str) -> str:
    """Alpaca's form: the input, where there is one, goes under the instruction. "<noinput>" is Alpaca's and
    self-instruct's word for none."""
    texts = [instruction] if task_input.strip() in ("", "<noinput>") else [instruction, task_input]
    return "\n".join(texts) if instruction.strip() else texts[-1]
