"""A chosen and a rejected response: with a prompt beside them, or with the whole dialogue in both."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.formats import fields
from data.formats.demonstrations import MESSAGES, QUESTION, Question
from data.formats.format import Options, Outcome, PromptReader, Row, format_of
from data.formats.meaning import is_learned
from data.formats.rankings import compared
from data.records import Demonstration, Message, Origin, Prompt, Ranking

KEYS = ("chosen", "rejected")

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
"""What publishers call the scores that a pair was made from."""

Pair = tuple[Prompt, str, str]
"""Prompt, chosen, rejected."""


def _chosen_first(row: Row, parts: Sequence[Row], origin: Origin) -> tuple[int, ...]:
    """Scores, where the row has them, must say the same as the pair."""
    for better, worse in SCORES:
        if row.get(better) is None or row.get(worse) is None:
            continue
        fields.require(
            fields.number(row, better, origin) > fields.number(row, worse, origin),
            origin,
            f"contradictory: '{better}' is not above '{worse}'. Remove the row.",
        )
    return 0, 1


def _pair(read: Callable[[Row, Origin], Pair], prompt: PromptReader | None = None) -> dict[str, Any]:
    """The prompt and the ranking of a pair. prompt: what reads the prompt, where it can be known without the pair."""

    def ranking(row: Row, origin: Origin) -> Ranking:
        prompt, *responses = read(row, origin)
        return Ranking(prompt, tuple(responses), _chosen_first(row, (), origin))

    return {"prompt": prompt or (lambda row, origin: read(row, origin)[0]), "ranking": ranking}


def _ends(
    row: Row, origin: Origin, read: Callable[[Row, str, Origin], Sequence[Message]]
) -> tuple[tuple[Message, ...], str, str]:
    """The turns that chosen and rejected both begin with, and their last replies."""
    both: list[Sequence[Message]] = []
    for key in KEYS:
        turns = read(row, key, origin)
        fields.require(
            turns[-1].role == "assistant",
            origin,
            f"'{key}' is cut off: it ends with the {turns[-1].role}'s turn, not a reply. Remove the row.",
        )
        fields.require(turns[-1].content.strip(), origin, f"'{key}' ends with an empty reply. Remove the row.")
        both.append(turns)
    (*before, chosen), (*other, rejected) = both
    where = f"{origin}: chosen and rejected do not answer one prompt"
    fields.require(
        len(before) == len(other), where, f"they come after {len(before)} and {len(other)} messages. Remove the row."
    )
    for index, (message, other_message) in enumerate(zip(before, other, strict=True)):
        fields.require(message == other_message, where, f"message {index + 1} differs. Remove the row.")
    return tuple(before), chosen.content, rejected.content


# --- HH-RLHF ---


def _hh(row: Row, origin: Origin) -> Pair:
    """{chosen, rejected}: "\\n\\nHuman: ...\\n\\nAssistant: ...", equal except for the last reply.

    Bai et al. 2022, https://arxiv.org/abs/2204.05862.
    """
    before, chosen, rejected = _ends(row, origin, fields.dialogue)
    return fields.prompt_of(row, before, origin), chosen, rejected


def _is_hh(row: Row) -> bool:
    return any(isinstance(row[key], str) and row[key].lstrip("\n").startswith("Human:") for key in KEYS)


def _has_dialogue_prompt(row: Row) -> bool:
    return isinstance(row["prompt"], str) and row["prompt"].startswith(fields.DIALOGUE["user"])


# --- chosen and rejected as text or messages ---


def _as_messages(row: Row) -> bool:
    return any(isinstance(row[key], list) for key in KEYS)


def _text_pair(row: Row, origin: Origin) -> Pair:
    """{prompt, chosen, rejected} of texts; the prompt may be messages."""
    for key in KEYS:
        fields.require(
            not isinstance(row[key], str) or not row[key].startswith(fields.DIALOGUE["user"]),
            origin,
            f"'{key}' is a whole dialogue beside a 'prompt', which would be learned with the reply. "
            "Remove the prompt (the format is then hh-rlhf), or give the replies alone.",
        )
    return fields.given_prompt(row, origin), fields.text(row, "chosen", origin), fields.text(row, "rejected", origin)


def _ends_as_messages(row: Row, origin: Origin) -> tuple[tuple[Message, ...], str, str]:
    fields.require(
        all(isinstance(row[key], list) for key in KEYS),
        origin,
        "one of chosen and rejected is text and the other messages. Fix or remove the row.",
    )
    ends = _ends(row, origin, fields.messages)
    for key in KEYS:
        fields.require(
            is_learned(row[key][-1], f"{origin}: '{key}'"),
            origin,
            f"'{key}' ends with a reply that is marked not to be learned. Remove the row.",
        )
    return ends


def _without_prompt(row: Row, origin: Origin) -> Pair:
    """{chosen, rejected} of messages, the prompt's in both."""
    fields.require(
        _as_messages(row),
        origin,
        "chosen and rejected are texts without a prompt. Add a 'prompt', or give dialogues that begin with 'Human:'.",
    )
    before, chosen, rejected = _ends_as_messages(row, origin)
    return fields.prompt_of(row, before, origin), chosen, rejected


def _with_prompt(row: Row, origin: Origin) -> Pair:
    """{prompt, chosen, rejected}; chosen and rejected may repeat the prompt, with a system message."""
    prompt = fields.given_prompt(row, origin)
    if not _as_messages(row):
        return _text_pair(row, origin)
    before, chosen, rejected = _ends_as_messages(row, origin)
    if not before:
        return prompt, chosen, rejected
    (system, turns), (prompt_system, prompt_turns) = _apart(before), _apart(prompt.messages)
    # A plain prompt may be the last turn of a longer conversation.
    fields.require(
        turns[-len(prompt_turns) :] == prompt_turns and (not system or not prompt_system or system == prompt_system),
        origin,
        "'prompt' is not what chosen and rejected begin with. Remove the row.",
    )
    return Prompt((system or prompt_system) + turns, origin, prompt.meta), chosen, rejected


def _apart(turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system message, if there is one, and the other turns."""
    return (turns[:1], turns[1:]) if turns[0].role == "system" else ((), turns)


def _chosen_demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """`messages` is the chosen dialogue over again; where it is another one, it may be the rejected one."""
    turns, chosen = fields.messages(row, "messages", origin), fields.messages(row, "chosen", origin)
    fields.require(
        turns[-1] == chosen[-1], origin, "contradictory: 'messages' does not end with the chosen reply. Remove the row."
    )
    yield from MESSAGES.rows[Demonstration](row, origin, options)


FORMATS = [
    format_of(
        "hh-rlhf",
        "Anthropic HH-RLHF, https://arxiv.org/abs/2204.05862",
        "chosen rejected",
        looks=_is_hh,
        **_pair(_hh),
    ),
    format_of(
        "hh-rlhf-prompt",
        "HH-RLHF with the dialogue taken out (Dahoas/full-hh-rlhf)",
        "prompt chosen rejected",
        looks=_has_dialogue_prompt,
        prompt=fields.given_prompt,
        ranking=compared(fields.given_prompt, KEYS, _chosen_first, stripped=True),
    ),
    format_of(
        "chosen-rejected",
        "TRL, implicit prompt",
        "chosen rejected",
        looks=lambda row: not _is_hh(row),
        **_pair(_without_prompt),
    ),
    format_of(
        "prompt-chosen-rejected",
        "ours; TRL, explicit prompt",
        "prompt chosen rejected",
        looks=lambda row: not _as_messages(row) and not _has_dialogue_prompt(row),
        **_pair(_text_pair, fields.given_prompt),
        reads="history",
    ),
    format_of(
        "prompt-chosen-rejected-chat",
        "TRL, explicit prompt, chosen and rejected as messages",
        "prompt chosen rejected",
        looks=_as_messages,
        **_pair(_with_prompt),
        reads="history",
    ),
    format_of(
        "ultrafeedback-binarized",
        "HuggingFaceH4/ultrafeedback_binarized: a pair, and its chosen dialogue as messages",
        "prompt chosen rejected messages",
        **_pair(_with_prompt),
        rows={Demonstration: _chosen_demonstrations},
    ),
    format_of(
        "question-chosen-rejected",
        "Intel/orca_dpo_pairs",
        "question chosen rejected",
        prompt=QUESTION,
        ranking=compared(Question("question"), KEYS, _chosen_first),
        reads="history",
    ),
]
