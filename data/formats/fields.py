"""Values of a row, read strictly: what is not of the expected type is refused by key."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from data.files.strict_json import refuse_broken_text
from data.formats.format import Part, Row
from data.formats.meaning import is_filled, refuse_content
from data.formats.serialised import OPENING, is_conversation, parsed
from data.records import ROLES, Message, Origin, Prompt
from onebase.errors import DataError

R = TypeVar("R")

_LARGEST = 1e15
"""No score is as large; beyond it floats no longer tell whole numbers apart."""

FACTS = {
    "task": "task",
    "family": "family",
    "template": "template",
    "category": "category",
    "task_name": "task",
    "template_name": "template",
}
"""Keys of a row that name its task, and what they are called in a prompt's `meta`."""

LABELERS = ("labeler", "labeler_id", "labeller", "annotator", "annotator_id", "worker", "worker_id")
"""Keys of a row that name who ranked it, or wrote it; `labeler` in a prompt's `meta`."""


def text(row: Row, key: str, origin: Origin) -> str:
    """A text; DataError naming the key when it is something else."""
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{origin}: '{key}' must be text, found {type(value).__name__}. Mend the row, or drop it.")
    refuse_written_messages(value, key, origin)
    return value


def refuse_written_messages(value: str, key: str, origin: Origin) -> None:
    if value[:1] in OPENING and is_conversation(value):
        raise DataError(
            f"{origin}: '{key}' is a list of messages written as text, found {value.strip()[:30]!r}..., and would be "
            "learned with its brackets. Write the messages as a list under 'messages' or 'prompt', or the text alone."
        )


def filled(row: Row, key: str, origin: Origin) -> str:
    """A text that is more than white space."""
    value = text(row, key, origin)
    if not value.strip():
        raise DataError(f"{origin}: '{key}' is empty. Remove the row or fill it in.")
    return value


def optional_text(row: Row, key: str, origin: Origin) -> str:
    """A text; "" when the key is missing or null."""
    return "" if row.get(key) is None else text(row, key, origin)


def whole_number(row: Row, key: str, origin: Origin) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{origin}: '{key}' must be a whole number, found {_shown(value)}. Mend the row, or drop it.")
    return value


def number(row: Row, key: str, origin: Origin) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        raise DataError(f"{origin}: '{key}' must be a number, found {_shown(value)}. Mend the row, or drop it.")
    return float(value)


def truth(row: Row, key: str, origin: Origin) -> bool:
    value = row.get(key)
    if not isinstance(value, bool):
        raise DataError(f"{origin}: '{key}' must be true or false, found {_shown(value)}. Mend the row, or drop it.")
    return value


def one_of(row: Row, key: str, allowed: Sequence[int], origin: Origin) -> int:
    value = whole_number(row, key, origin)
    if value not in allowed:
        known = ", ".join(map(str, allowed))
        raise DataError(f"{origin}: '{key}' must be one of {known}, found {_shown(value)}. Mend the row, or drop it.")
    return value


def objects(row: Row, key: str, origin: Origin) -> list[dict[str, Any]]:
    """A list of objects, one at least."""
    value = row.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(entry, dict) for entry in value):
        raise DataError(
            f"{origin}: '{key}' must be a list of objects, found {_kinds(value)}. Mend the row, or drop it."
        )
    for index, entry in enumerate(value):
        refuse_content(entry, f"{origin}: '{key}' {index + 1}", turn=key == "conversations")
    return value


def texts(row: Row, key: str, origin: Origin) -> list[str]:
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise DataError(f"{origin}: '{key}' must be a list of texts.")
    for entry in value:
        refuse_written_messages(entry, key, origin)
    return value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value[:20]!r}"
    if isinstance(value, int) and abs(value) >= _LARGEST:  # thousands of digits have no decimal form in Python
        return "a number of many digits"
    return str(value) if isinstance(value, bool | int | float) else type(value).__name__


def _kinds(value: Any) -> str:
    if not isinstance(value, list):
        return type(value).__name__
    return "an empty list" if not value else "a list with something else in it"


def facts(row: Row) -> dict[str, Any]:
    """What a row says of its prompt: our own `meta` (in Parquet a JSON text), and the name of its task."""
    known = _own_facts(row["meta"]) if "meta" in row else {}
    for key, name in FACTS.items():
        if key in row and isinstance(row[key], str) and row[key]:
            known.setdefault(name, row[key])
    return known | labeler(row) if "labeler" not in known else known


def labeler(row: Row) -> dict[str, str]:
    """Who ranked, by name or number, as {"labeler": name}; nothing where no key tells."""
    for key in LABELERS:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return {"labeler": str(value)}
    return {}


def _own_facts(meta: Any) -> dict[str, Any]:
    """An object of JSON; anything else that a publisher has under this name is nothing to us."""
    try:
        found = json.loads(meta) if isinstance(meta, str) else meta
        refuse_broken_text(found)
        return json.loads(json.dumps(found, allow_nan=False)) if isinstance(found, dict) else {}
    except (TypeError, ValueError, RecursionError):
        return {}


def system_of(row: Row, origin: Origin) -> str:
    """The system prompt, which some publishers put beside the conversation; "" where it is blank."""
    key = "system" if row.get("system") is not None else "system_prompt"
    given = optional_text(row, key, origin)
    return given if given.strip() else ""


def asked(row: Row, content: str, origin: Origin, *, task: str = "", earlier: bool = True) -> Prompt:
    """A prompt of one user message, under the row's system prompt and behind its `history`, where there are such.
    task: where no key names it. earlier: whether `history` is earlier turns, and not the content itself."""
    said = [Message("user", content)]
    if earlier and row.get("history"):
        said = [*earlier_turns(row, origin), *said]
    if system := system_of(row, origin):
        said.insert(0, Message("system", system))
    known = facts(row)
    if task:
        known["task"] = task
    return Prompt(tuple(said), origin, known)


def earlier_turns(row: Row, origin: Origin) -> list[Message]:
    """`history` as LLaMA-Factory has it: a list of [question, answer]; or a list of messages."""
    value = row.get("history")
    if not is_filled(value):
        return []
    value = parsed(value) or value if isinstance(value, str) else value
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return list(messages({"history": value}, "history", origin))
    if not isinstance(value, list) or not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        raise DataError(
            f"{origin}: 'history' must be a list of [question, answer], found {_kinds(value)}. Write the row as "
            "'messages', or drop it."
        )
    said = []
    for question, answer in value:
        said.append(Message("user", text({"history": question}, "history", origin)))
        said.append(Message("assistant", text({"history": answer}, "history", origin)))
    return said


def under_system(row: Row, said: tuple[Message, ...], origin: Origin) -> tuple[Message, ...]:
    """A conversation under the system prompt that stands beside it, where there is one."""
    system = system_of(row, origin)
    if not system or not said:
        return said
    if said[0].role == "system" and said[0].content != system:
        raise DataError(f"{origin}: there are two system prompts, one beside the messages and one in them. Remove one.")
    return said if said[0].role == "system" else (Message("system", system), *said)


def no_earlier_turns(row: Row, key: str, origin: Origin) -> None:
    """DataError for a `history` beside a conversation, which has its earlier turns in itself."""
    if is_filled(row.get("history")):
        raise DataError(
            f"{origin}: '{key}' is a conversation, and 'history' beside it is not read. Put one into the other."
        )


def joined(instruction: str, given: str) -> str:
    """Alpaca's form: the input, where there is one, goes under the instruction. "<noinput>" is Alpaca's and
    self-instruct's word for none."""
    if not given.strip() or given.strip() == "<noinput>":
        return instruction
    return f"{instruction}\n{given}" if instruction.strip() else given


def messages(row: Row, key: str, origin: Origin) -> tuple[Message, ...]:
    """A list of {role, content}. Content may be OpenAI's list of text parts; `developer` is their word for system."""
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{origin}: '{key}' must be a list of {{role, content}}, found {_kinds(value)}. Mend the row, or drop it."
        )
    return without_blank_system([_message(entry, index, origin) for index, entry in enumerate(value)])


def without_blank_system(said: Sequence[Message]) -> tuple[Message, ...]:
    """An empty system message says that there is none, and would be shown to the model as an empty turn."""
    blank = len(said) > 1 and said[0].role == "system" and not said[0].content.strip()
    return tuple(said[1:] if blank else said)


def _message(entry: Any, index: int, origin: Origin) -> Message:
    role = entry.get("role") if isinstance(entry, dict) else type(entry).__name__
    role = "system" if role == "developer" else role
    if not isinstance(entry, dict) or not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{origin}: message {index + 1}: the role must be one of {', '.join(ROLES)}, found {role!r}.")
    if entry.get("tool_calls") or entry.get("function_call"):
        raise DataError(f"{origin}: message {index + 1} calls a tool, which is not read. Remove the row.")
    refuse_content(entry, f"{origin}: message {index + 1}", turn=True)
    content = entry.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part, index, origin) for part in content)
    said = text({"content": content}, "content", origin)
    return Message(role, said)  # pyright: ignore[reportArgumentType]  # role is in ROLES


def _text_part(part: Any, index: int, origin: Origin) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        found = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise DataError(f"{origin}: message {index + 1} holds {found!r}; only text is read. Remove the row.")
    refuse_content(part, f"{origin}: message {index + 1}")
    return text(part, "text", origin)


def attempt(make: Callable[[], R]) -> R | DataError:
    """What `make` gives, or its DataError as a value: one bad part does not take the others with it."""
    try:
        return make()
    except DataError as error:
        return error


def part(origin: Origin, index: int) -> Origin:
    """The place of the part with this index (from 0) in a row."""
    return Part(origin.source, origin.line, index + 1)
