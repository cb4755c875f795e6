"""The keys that change what a row means: none of them is passed over without a word.

A key is read where that can be done rightly, and refused where it is filled and cannot be read. The list is here and
nowhere else; docs/data.md shows it. Upper case, dashes, underscores and spaces in a key's name do not matter.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError

Rule = Literal["content", "answer", "context", "verdict", "fault", "score", "learned", "masked"]


@dataclass(frozen=True)
class Group:
    """Keys with one meaning."""

    rule: Rule
    name: str
    """What they hold, for a person."""
    keys: tuple[str, ...]
    advice: str = ""
    """What to do about a key that is not read."""
    beside_turns: bool = True
    """Whether they count beside a row's texts too, not only within a turn."""
    repeatable: bool = False
    """Whether they are passed over where a text that is read holds all of it."""


GROUPS = (
    Group(
        "content",
        "pictures, sound, files, documents",
        (
            *("images", "image", "image_url", "image_path", "pixel_values", "videos", "video", "audios", "audio"),
            *("files", "attachments", "multi_modal_data", "documents"),
        ),
        "Only text is read: drop the row, or remove the key where the text makes sense without it.",
    ),
    Group(
        "content",
        "tools",
        (
            *("tools", "functions", "tool_calls", "tool_call", "function_call", "tool_call_id", "tool_choice"),
            *("tool_responses", "available_tools", "chat_template_kwargs"),
        ),
        "Tool use is not read: drop the row, or remove the key where the text makes sense without it.",
    ),
    Group(
        "content",
        "choices of a question",
        (
            *("choices", "options", "answer_choices", "endings", "distractors", "mc1_targets"),
            *("opa", "opb", "choice_a", "choice_b", "option_a", "option_b", "choice1", "choice2", "option1", "option2"),
            "distractor1",
        ),
        "Write them into the question, and the right one as a text into the answer.",
        repeatable=True,
    ),
    Group(
        "content",
        "earlier turns",
        ("history",),
        "It is read as a list of [question, answer] beside a question as one text. Else write the row as 'messages'.",
    ),
    Group(
        "content",
        "who or what speaks, and what was withheld",
        ("name", "refusal"),
        "Remove the key where the text makes sense without it, or drop the row.",
        beside_turns=False,
    ),
    Group(
        "answer",
        "thoughts before an answer",
        (
            *("reasoning_content", "reasoning", "thinking", "thoughts", "thought", "cot", "chain_of_thought"),
            *("reasoning_trace", "reasoning_text", "reasoning_details", "thinking_content", "thinking_blocks"),
            *("thinking_trajectory", "thinking_trajectories", "deepseek_reasoning", "deepseek_thinking_trajectory"),
            *("complex_cot", "analysis_content", "scratchpad"),
        ),
        "Write it into the answer's text as the base's chat template has it, or remove the key.",
        repeatable=True,
    ),
    Group(
        "context",
        "what a question is about",
        ("context", "contexts", "passage", "passages", "document", "article", "input", "background"),
        "Write it into the prompt (it is passed over where the prompt holds it already), or remove the key.",
        repeatable=True,
    ),
    Group(
        "verdict",
        "whether the answer is good",
        (
            *("label", "kto_tag", "is_safe", "safe", "is_correct", "correct", "verified", "accepted", "approved"),
            *("passed", "good", "desirable", "thumbs", "thumb", "thumbs_up", "verdict", "judgement"),
            *(
                "judgment",
                "liked",
                "upvoted",
                "preferred",
                "valid",
                "answer_correct",
                "response_label",
                "response_harm_label",
            ),
            *("accept", "keep", "selected", "is_complete", "success", "chosen"),
        ),
    ),
    Group(
        "fault",
        "whether the answer is bad",
        (
            *("is_unsafe", "unsafe", "harmful", "toxic", "flagged", "thumbs_down", "disliked", "downvoted"),
            *("incorrect", "wrong", "undesirable", "bad", "is_rejected", "hallucinated", "hallucination"),
            *("reject", "rejected", "failed", "spam", "offensive", "dislike", "downvote", "deleted", "discard"),
            *("discarded", "exclude", "truncated", "incomplete", "cut_off"),
        ),
    ),
    Group(
        "score",
        "how good the answer is",
        ("score", "rating", "reward", "feedback", "quality", "grade", "vote", "correctness", "safety", "outcome"),
    ),
    Group(
        "score",
        "how the answer ended, and what was said of it",
        (
            *("finish_reason", "stop_reason", "status", "result", "human_label", "quality_label", "annotation"),
            *("response_type", "human_feedback", "user_feedback", "reaction", "helpful", "harmless"),
        ),
    ),
    Group(
        "learned",
        "whether a turn is learned",
        (
            *("weight", "loss_weight", "train", "loss", "learn", "learned", "trainable", "train_on_turn", "training"),
            *("loss_mask", "loss_scale", "compute_loss", "do_train", "include_in_loss", "sample_weight"),
            *("weights", "loss_weights", "train_detail", "training_detail"),
        ),
    ),
    Group(
        "masked",
        "whether a turn is left out of the loss",
        ("masked", "mask", "ignore", "ignore_loss", "no_loss", "mask_loss", "skip_loss", "exclude_from_loss"),
    ),
)

ADJECTIVES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            *("safe", "correct", "good", "valid", "verified", "accepted", "approved", "desirable", "preferred"),
            *("chosen", "helpful", "harmless", "successful", "success"),
        ),
        "verdict",
    ),
    **dict.fromkeys(
        (
            *("unsafe", "incorrect", "wrong", "bad", "invalid", "rejected", "harmful", "toxic", "undesirable"),
            *("flagged", "spam", "offensive", "deleted", "truncated", "failed", "error", "incomplete"),
        ),
        "fault",
    ),
}
"""What a key may end in that holds `is`, such as PKU-SafeRLHF's `is_response_0_safe`."""

NOTHING = ("", "[]", "{}", "null", "none", "nan", '""')
"""Texts that stand for no value, as CSV files have them."""

YES = ("true", "yes", "1", "1.0")
NO = ("false", "no", "0", "0.0")
GOOD = (*YES, "good", "up", "thumbs_up", "positive", "safe", "correct", "right", "accepted", "approved", "desirable")
GOOD += ("harmless", "unharmful", "pass", "passed", "success")
BAD = (*NO, "-1", "-1.0", "bad", "down", "thumbs_down", "negative", "unsafe", "incorrect", "wrong", "rejected")
BAD += ("undesirable", "harmful", "toxic", "fail", "failed", "failure", "poor", "very_poor", "very_bad", "terrible")
BAD += ("discarded", "deleted", "declined", "dislike", "incomplete", "truncated")
CUT_OFF = ("length", "max_tokens", "content_filter")
BAD += CUT_OFF

_OTHER = re.compile(r"[^a-z0-9]+")
_SCORES = re.compile(r"\w+:\d+(?:\.\d+)?(?:,\s*\w+:\d+(?:\.\d+)?)*")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

SPOKEN = ("content", "value", "text", "answer", "response", "output")
"""Keys of a turn, or of another part of a row, whose texts are read."""

SYSTEM = ("system", "system_prompt")
"""Keys that every format reads beside its own."""

NO_DEMONSTRATION = "says that this is not to be imitated"


def _plain(key: str) -> str:
    return _OTHER.sub("", key.lower())


_GROUP_OF = {_plain(key): group for group in GROUPS for key in group.keys}
_BY_RULE = {group.rule: group for group in GROUPS}


def group_of(key: Any) -> Group | None:
    """The group that a key belongs to, however it is spelled; None for a key that changes nothing."""
    if not isinstance(key, str):
        return None
    words = _OTHER.split(_HUMP.sub("_", key).lower())
    if "is" in words and words[-1] in ADJECTIVES:
        return _BY_RULE[ADJECTIVES[words[-1]]]
    return _GROUP_OF.get(_plain(key))


@lru_cache(maxsize=1024)
def _listed(keys: tuple[Any, ...]) -> tuple[tuple[str, Group], ...]:
    # Rows of a file have the same keys over and over, so a row costs one look into the cache.
    found = [(key, group) for key in keys if (group := group_of(key)) is not None]
    if "A" in keys and "B" in keys:  # C-Eval and MMLU write each choice under its letter
        found.append(("A", _GROUP_OF["choices"]))
    return tuple(found)


def is_filled(value: Any) -> bool:
    """Whether there is something in a value: not null, false, NaN, blank, or a list or an object of such."""
    waiting = [value]  # no recursion: rows may be nested as deeply as JSON is read
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            waiting.extend(inner.values())
        elif isinstance(inner, list | tuple):
            waiting.extend(inner)
        elif isinstance(inner, str):
            if inner.strip().lower() not in NOTHING:
                return True
        elif inner is not None and inner is not False and inner == inner:
            return True
    return False


def refuse_content(entry: Mapping[str, Any], where: str, *, turn: bool = False) -> None:
    """DataError when a part of a row holds what is not read. where: its place, for the message. turn: whether it is a
    turn, which is all text, so that a context beside it is not read either."""
    rules = ("content", "answer", "context") if turn else ("content", "answer")
    for key, group in _listed(tuple(entry)):
        if group.rule in rules and is_filled(_at(entry, key)) and not _is_repeated(entry, key, group, SPOKEN):
            raise _not_read(key, entry[key], group, where)


def _at(entry: Mapping[str, Any], key: str) -> Any:
    """A value that is looked at and not read: Watched counts what is asked for by its own methods."""
    return dict.get(entry, key) if isinstance(entry, dict) else entry[key]


def is_learned(entry: Mapping[str, Any], where: str) -> bool:
    """Whether a turn, or another part of a row, is to be imitated, as far as its own keys say."""
    return all(
        group.rule in ("content", "answer", "context") or _speaks_for(key, entry[key], group, where)
        for key, group in _listed(tuple(entry))
    )


def check_row(row: Mapping[str, Any], reads: Collection[str], kind: type, origin: Origin) -> str:
    """Why a row is no demonstration, or ""; DataError when it holds what is not read.

    reads: keys that the row's format reads itself. kind: what the row is read as. A verdict on the answer does not
    concern a prompt, and a ranking has its own.
    """
    listed = _listed(tuple(row))
    if not listed:
        return ""
    left_out = ""
    for key, group in listed:
        if key in reads or not group.beside_turns:
            continue
        if group.rule in ("content", "context") or (group.rule == "answer" and kind is not Prompt):
            value = _at(row, key)
            if is_filled(value) and not _only_a_setting(key, value) and not _is_repeated(row, key, group, reads):
                raise _not_read(key, value, group, str(origin))
        elif kind is Prompt or group.rule == "answer" or (group.rule == "score" and kind is Ranking):
            continue
        elif not _speaks_for(key, row[key], group, str(origin)):
            if kind is Ranking:
                raise DataError(
                    f"{origin}: '{key}' is {_shown(row[key])} beside a ranking, and nobody can say of which response. "
                    "Remove the key, or drop the row."
                )
            left_out = left_out or f"'{key}' {NO_DEMONSTRATION}"
    return left_out if kind is Demonstration else ""


def _only_a_setting(key: str, value: Any) -> bool:
    """smoltalk2 writes `enable_thinking` beside each row, and its other settings are content; Nemotron's `reasoning` is
    on or off."""
    if value is True or value in ("on", "off"):
        return True
    if _plain(key) != "chattemplatekwargs" or not isinstance(value, Mapping):
        return False
    return not any(is_filled(inner) for name, inner in value.items() if name != "enable_thinking")


def _is_repeated(row: Mapping[str, Any], key: str, group: Group, reads: Collection[str]) -> bool:
    """Whether a text that is read holds all that a context, thoughts or choices say."""
    if not group.repeatable:
        return False
    value = _at(row, key)
    labelled = isinstance(value, Mapping) and "text" in value  # ARC's choices: {text: [...], label: [...]}
    parts = list(_texts(_at(value, "text") if labelled else value))
    if not parts or (len(parts) == 1 and len(parts[0]) < 2):  # a letter by itself stands in any text
        return False
    read = [name for name in (*reads, *SYSTEM) if name != key and name in row]
    return any(parts[0] in text and _hold_in_order(text, parts) for name in read for text in _texts(_at(row, name)))


def _hold_in_order(text: str, parts: Iterable[str]) -> bool:
    """Whether these stand in a text as whole words, one behind the other: short choices may stand apart in many."""
    place = 0
    for part in parts:
        where = re.compile(rf"(?<!\w){re.escape(part)}(?!\w)").search(text, place)
        if where is None:
            return False
        place = where.end()
    return True


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, stripped; it may be nested as deeply as JSON is read."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            waiting.extend(reversed(list(inner.values())))
        elif isinstance(inner, list | tuple):
            waiting.extend(reversed(inner))
        elif isinstance(inner, str) and inner.strip():
            yield inner.strip()


def _speaks_for(key: str, value: Any, group: Group, where: str) -> bool:
    """Whether a verdict or a flag leaves an answer to be imitated; DataError when that cannot be told."""
    if value is None or value != value or _is_blank(value, group):
        return True
    if _is_no_verdict(key, value, group):
        return True
    word = _word(value)
    if group.rule == "score":
        if isinstance(value, bool) or not _is_number(word):
            return word not in BAD
        # A number is a score of whatever scale, but nobody's scale has its good answers at 0 or -1.
        if word in BAD:
            raise DataError(
                f"{where}: '{key}' is {_shown(value)}, which may say that the answer is bad. Keep the rows that are to "
                "be imitated and remove the key, or write the rest as true or false."
            )
        return True
    good, bad = {"verdict": (GOOD, BAD), "fault": (NO, YES), "learned": (YES, NO), "masked": (NO, YES)}[group.rule]
    if word in good:
        return True
    if word in bad:
        return False
    if group.rule == "masked" and word in ("user", "human"):
        return True  # NeMo's `mask` names whose turns are masked
    raise DataError(
        f"{where}: '{key}' must be 0 or 1, true or false, found {_shown(value)}. It says {group.name}. Mend it, or "
        "remove the key."
    )


def _is_blank(value: Any, group: Group) -> bool:
    """Whether nothing is said; a list of falses says that answers are wrong, and one of no faults says nothing."""
    if isinstance(value, bool | int | float) or is_filled(value):
        return False
    inner = value.values() if isinstance(value, Mapping) else value
    return group.rule not in ("verdict", "learned") or all(one is not False for one in inner)


def _is_no_verdict(key: str, value: Any, group: Group) -> bool:
    """What publishers have under the name of a verdict that is none: Infinity-Instruct's `label` is an object of
    abilities, Daring-Anteater's a text of scores ("quality:4,toxicity:0"), and `rejected` may be a reply."""
    if group.rule not in ("verdict", "fault"):
        return False
    if _plain(key) in ("chosen", "rejected"):
        return not isinstance(value, bool)
    if isinstance(value, Mapping):
        return not any(isinstance(inner, bool | int | float) for inner in value.values())
    return isinstance(value, str) and _SCORES.fullmatch(value.strip()) is not None


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value.strip().lower().replace(" ", "_").replace("-", "_") if not _is_number(value) else value.strip()
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2):
        return str(value).lower()
    return ""


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?[0-9.]+", word.strip()) is not None


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    # Thousands of digits have no decimal form in Python.
    return "a number of many digits" if isinstance(value, int) and abs(value) > 1e15 else str(value)


def _not_read(key: str, value: Any, group: Group, where: str) -> DataError:
    return DataError(f"{where}: '{key}' ({group.name}) is {_shown(value)} and is not read. {group.advice}")
