"""The keys that change what a row means, in groups with one meaning. docs/data.md shows the list.

Upper case, dashes, underscores and spaces in the name of a key do not matter.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

Rule = Literal["content", "answer", "context", "verdict", "fault", "score", "learned", "masked"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


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
    """Whether they are ignored where a text that is read holds all of it."""


GROUPS = (
    Group(
        "content",
        "pictures, sound, files, documents",
        _words(
            "images image image_url image_path pixel_values videos video audios audio files attachments "
            "multi_modal_data documents"
        ),
        advice="Only text is read: remove the row, or remove the key where the text makes sense without it.",
    ),
    Group(
        "content",
        "tools",
        _words(
            "tools functions tool_calls tool_call function_call tool_call_id tool_choice tool_responses "
            "available_tools chat_template_kwargs"
        ),
        advice="Tool use is not read: remove the row, or remove the key where the text makes sense without it.",
    ),
    Group(
        "content",
        "choices of a question",
        _words(
            "choices options answer_choices endings distractors mc1_targets opa opb choice_a choice_b option_a "
            "option_b choice1 choice2 option1 option2 distractor1"
        ),
        advice="Write them into the question, and the right one as a text into the answer.",
        repeatable=True,
    ),
    Group(
        "content",
        "earlier turns",
        _words("history"),
        advice="It is read as a list of [question, answer] beside a question as one text. Else write the row as "
        "'messages'.",
    ),
    Group(
        "content",
        "who or what speaks, and what was withheld",
        _words("name refusal"),
        advice="Remove the key where the text makes sense without it, or remove the row.",
        beside_turns=False,
    ),
    Group(
        "answer",
        "thoughts before an answer",
        _words(
            "reasoning_content reasoning thinking thoughts thought cot chain_of_thought reasoning_trace reasoning_text "
            "reasoning_details thinking_content thinking_blocks thinking_trajectory thinking_trajectories "
            "deepseek_reasoning deepseek_thinking_trajectory complex_cot analysis_content scratchpad"
        ),
        advice="Write it into the answer's text as the base's chat template has it, or remove the key.",
        repeatable=True,
    ),
    Group(
        "context",
        "what a question is about",
        _words("context contexts passage passages document article input background"),
        advice="Write it into the prompt (it is passed over where the prompt holds it already), or remove the key.",
        repeatable=True,
    ),
    Group(
        "verdict",
        "whether the answer is good",
        _words(
            "label kto_tag is_safe safe is_correct correct verified accepted approved passed good desirable thumbs "
            "thumb thumbs_up verdict judgement judgment liked upvoted preferred valid answer_correct response_label "
            "response_harm_label accept keep selected is_complete success chosen"
        ),
    ),
    Group(
        "fault",
        "whether the answer is bad",
        _words(
            "is_unsafe unsafe harmful toxic flagged thumbs_down disliked downvoted incorrect wrong undesirable bad "
            "is_rejected hallucinated hallucination reject rejected failed spam offensive dislike downvote deleted "
            "discard discarded exclude truncated incomplete cut_off"
        ),
    ),
    Group(
        "score",
        "how good the answer is",
        _words("score rating reward feedback quality grade vote correctness safety outcome"),
    ),
    Group(
        "score",
        "how the answer ended, and what was said of it",
        _words(
            "finish_reason stop_reason status result human_label quality_label annotation response_type human_feedback "
            "user_feedback reaction helpful harmless"
        ),
    ),
    Group(
        "learned",
        "whether a turn is learned",
        _words(
            "weight loss_weight train loss learn learned trainable train_on_turn training loss_mask loss_scale "
            "compute_loss do_train include_in_loss sample_weight weights loss_weights train_detail training_detail"
        ),
    ),
    Group(
        "masked",
        "whether a turn is left out of the loss",
        _words("masked mask ignore ignore_loss no_loss mask_loss skip_loss exclude_from_loss"),
    ),
)

ADJECTIVES: Mapping[str, Rule] = {
    **dict.fromkeys(
        _words(
            "safe correct good valid verified accepted approved desirable preferred chosen helpful harmless successful "
            "success"
        ),
        "verdict",
    ),
    **dict.fromkeys(
        _words(
            "unsafe incorrect wrong bad invalid rejected harmful toxic undesirable flagged spam offensive deleted "
            "truncated failed error incomplete"
        ),
        "fault",
    ),
}
"""What a key with `is` in it may end in, such as PKU-SafeRLHF's `is_response_0_safe`."""

NOTHING = ("", "[]", "{}", "null", "none", "nan", '""')
"""Texts that mean no value, as in CSV files."""

YES = ("true", "yes", "1", "1.0")
NO = ("false", "no", "0", "0.0")
GOOD = YES + _words(
    "good up thumbs_up positive safe correct right accepted approved desirable harmless unharmful pass passed success"
)
CUT_OFF = ("length", "max_tokens", "content_filter")
BAD = (*NO, "-1", "-1.0", *CUT_OFF)
BAD += _words(
    "bad down thumbs_down negative unsafe incorrect wrong rejected undesirable harmful toxic fail failed failure poor "
    "very_poor very_bad terrible discarded deleted declined dislike incomplete truncated"
)

SPOKEN = ("content", "value", "text", "answer", "response", "output")
"""Keys of a turn, or of another part of a row, with texts that are read."""

SYSTEM = ("system", "system_prompt")
"""Keys that every format reads beside its own."""

_OTHER = re.compile(r"[^a-z0-9]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def plain(key: str) -> str:
    """A key without what does not matter in its name."""
    return _OTHER.sub("", key.lower())


_GROUP_OF = {plain(key): group for group in GROUPS for key in group.keys}
_BY_RULE = {group.rule: group for group in GROUPS}


def group_of(key: Any) -> Group | None:
    """The group that a key belongs to, however it is spelled; None for a key that changes nothing."""
    if not isinstance(key, str):
        return None
    words = _OTHER.split(_HUMP.sub("_", key).lower())
    if "is" in words and words[-1] in ADJECTIVES:
        return _BY_RULE[ADJECTIVES[words[-1]]]
    return _GROUP_OF.get(plain(key))


@lru_cache(maxsize=1024)
def grouped_keys(keys: tuple[Any, ...]) -> tuple[tuple[str, Group], ...]:
    """The keys of a row that belong to a group. Cached: the rows of a file have the same keys over and over."""
    grouped = [(key, group) for key in keys if (group := group_of(key)) is not None]
    if "A" in keys and "B" in keys:  # C-Eval and MMLU write each choice under its letter
        grouped.append(("A", _GROUP_OF["choices"]))
    return tuple(grouped)
