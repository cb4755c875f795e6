"""The keys that change what a row means: none of them is ignored silently.

A key is read where that can be done correctly, and refused where it is filled and cannot be read.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from data.formats.key_groups import BAD, GOOD, NO, NOTHING, SPOKEN, SYSTEM, YES, Group, Rule, grouped_keys, plain
from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError

_WORDS: Mapping[Rule, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "verdict": (GOOD, BAD),
    "fault": (NO, YES),
    "learned": (YES, NO),
    "masked": ((*NO, "user", "human"), YES),  # NeMo's `mask` names whose turns are masked
}
"""What lets an answer be imitated, and what does not."""

NOT_IMITATED = "says that this is not to be imitated"

_NUMBER = re.compile(r"-?[0-9.]+")
_SCORES = re.compile(r"\w+:\d+(?:\.\d+)?(?:,\s*\w+:\d+(?:\.\d+)?)*")


def _leaves(value: Any) -> Iterator[Any]:
    """The values inside lists and objects, in order. No recursion: rows may be nested as deeply as JSON is read."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            inner = list(inner.values())
        if isinstance(inner, list | tuple):
            waiting.extend(reversed(inner))
        else:
            yield inner


def is_filled(value: Any) -> bool:
    """Whether there is something in a value: not null, false, NaN, blank, or a list or an object of such."""
    return any(
        leaf.strip().lower() not in NOTHING
        if isinstance(leaf, str)
        else leaf is not None and leaf is not False and leaf == leaf
        for leaf in _leaves(value)
    )


def refuse_content(entry: Mapping[str, Any], where: str, *, turn: bool = False) -> None:
    """DataError when a part of a row holds what is not read. where: its place, for the message. turn: whether it is a
    turn of a conversation, where a context is not read either."""
    rules = ("content", "answer", "context") if turn else ("content", "answer")
    for key, group in grouped_keys(tuple(entry)):
        if group.rule in rules and is_filled(_at(entry, key)) and not _is_repeated(entry, key, group, SPOKEN):
            raise _not_read(key, entry[key], group, where)


def _at(entry: Mapping[str, Any], key: str) -> Any:
    """A value that is looked at but not read: Watched counts what is taken by its own methods."""
    return dict.get(entry, key) if isinstance(entry, dict) else entry[key]


def is_learned(entry: Mapping[str, Any], where: str) -> bool:
    """Whether a turn, or another part of a row, is to be imitated, as far as its own keys say."""
    return all(
        group.rule in ("content", "answer", "context") or _allows_imitation(key, entry[key], group, where)
        for key, group in grouped_keys(tuple(entry))
    )


def check_row(row: Mapping[str, Any], reads: Collection[str], kind: type, origin: Origin) -> str:
    """Why a row is left out of the demonstrations, or ""; DataError when it holds what is not read.

    reads: keys that the row's format reads. kind: what the row is read as. A verdict on the answer does not concern a
    prompt, and a ranking has its own verdict.
    """
    left_out = ""
    for key, group in grouped_keys(tuple(row)):
        if key in reads or not group.beside_turns:
            continue
        if group.rule in ("content", "context") or (group.rule == "answer" and kind is not Prompt):
            value = _at(row, key)
            if is_filled(value) and not _only_a_setting(key, value) and not _is_repeated(row, key, group, reads):
                raise _not_read(key, value, group, str(origin))
        elif kind is Prompt or group.rule == "answer" or (group.rule == "score" and kind is Ranking):
            continue
        elif not _allows_imitation(key, row[key], group, str(origin)):
            if kind is Ranking:
                raise DataError(
                    f"{origin}: '{key}' is {_shown(row[key])} beside a ranking, and does not say which response it is "
                    "about. Remove the key or the row."
                )
            left_out = left_out or f"'{key}' {NOT_IMITATED}"
    return left_out if kind is Demonstration else ""


def _only_a_setting(key: str, value: Any) -> bool:
    """smoltalk2 writes `enable_thinking` beside each row, and its other settings are content; Nemotron's `reasoning` is
    on or off."""
    if value is True or value in ("on", "off"):
        return True
    if plain(key) != "chattemplatekwargs" or not isinstance(value, Mapping):
        return False
    return not any(is_filled(inner) for name, inner in value.items() if name != "enable_thinking")


def _is_repeated(row: Mapping[str, Any], key: str, group: Group, reads: Collection[str]) -> bool:
    """Whether a text that is read holds all that a context, thoughts or choices say."""
    if not group.repeatable:
        return False
    value = _at(row, key)
    labelled = isinstance(value, Mapping) and "text" in value  # ARC's choices: {text: [...], label: [...]}
    parts = list(_texts(_at(value, "text") if labelled else value))
    if not parts or (len(parts) == 1 and len(parts[0]) < 2):  # a single letter is in any text
        return False
    read = [name for name in (*reads, *SYSTEM) if name != key and name in row]
    return any(parts[0] in text and _hold_in_order(text, parts) for name in read for text in _texts(_at(row, name)))


def _hold_in_order(text: str, parts: Iterable[str]) -> bool:
    """Whether a text holds these as whole words, one behind the other: many texts hold short choices in no order."""
    place = 0
    for part in parts:
        where = re.compile(rf"(?<!\w){re.escape(part)}(?!\w)").search(text, place)
        if where is None:
            return False
        place = where.end()
    return True


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, stripped."""
    return (leaf.strip() for leaf in _leaves(value) if isinstance(leaf, str) and leaf.strip())


def _allows_imitation(key: str, value: Any, group: Group, where: str) -> bool:
    """Whether a verdict or a flag lets an answer be imitated; DataError when that is unclear."""
    if value is None or value != value or _is_blank(value, group) or _is_something_else(key, value, group):
        return True
    word = _word(value)
    if group.rule == "score":
        # A number is a score on some scale, but no scale has its good answers at 0 or -1.
        if word in BAD and _NUMBER.fullmatch(word) and not isinstance(value, bool):
            raise DataError(
                f"{where}: '{key}' is {_shown(value)}, which may say that the answer is bad. Keep the rows that are to "
                "be imitated and remove the key, or write the rest as true or false."
            )
        return word not in BAD
    good, bad = _WORDS[group.rule]
    if word in good or word in bad:
        return word in good
    raise DataError(
        f"{where}: '{key}' must be 0 or 1, true or false, found {_shown(value)}. It says {group.name}. Fix it, or "
        "remove the key."
    )


def _is_blank(value: Any, group: Group) -> bool:
    """Whether a value has no meaning. A list of falses under a verdict means that answers are wrong; under a fault it
    means nothing."""
    if isinstance(value, bool | int | float) or is_filled(value):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return group.rule not in ("verdict", "learned") or all(entry is not False for entry in inner)


def _is_something_else(key: str, value: Any, group: Group) -> bool:
    """Whether a key with a verdict's name holds something else: Infinity-Instruct's `label` is an object of abilities,
    Daring-Anteater's a text of scores ("quality:4,toxicity:0"), and `rejected` may be a reply."""
    if group.rule not in ("verdict", "fault"):
        return False
    if plain(key) in ("chosen", "rejected"):
        return not isinstance(value, bool)
    if isinstance(value, Mapping):
        return not any(isinstance(inner, bool | int | float) for inner in value.values())
    return isinstance(value, str) and _SCORES.fullmatch(value.strip()) is not None


def _word(value: Any) -> str:
    """A value as one of the words of key_groups, or "". A number is its digits."""
    if isinstance(value, str):
        word = value.strip()
        return word if _NUMBER.fullmatch(word) else word.lower().replace(" ", "_").replace("-", "_")
    return str(value).lower() if isinstance(value, float) or value in (-1, 0, 1) else ""


def _shown(value: Any) -> str:
    match value:
        case str():
            return repr(value if len(value) <= 40 else value[:40] + "...")
        case Mapping():
            return "an object"
        case list() | tuple():
            return f"a list of {len(value)}"
        case int() if abs(value) > 1e15:  # thousands of digits have no decimal form in Python
            return "a number of many digits"
        case _:
            return str(value)


def _not_read(key: str, value: Any, group: Group, where: str) -> DataError:
    return DataError(f"{where}: '{key}' ({group.name}) is {_shown(value)} and is not read. {group.advice}")
