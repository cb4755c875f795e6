"""A chosen and a rejected response: with a prompt beside them, or with the whole dialogue in both."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data.formats import fields
from data.formats.conversations import DIALOGUE, dialogue, is_dialogue, messages_demonstrations
from data.formats.format import Builder, Format, Options, Outcome, Row
from data.formats.instructions import PROMPT, QUESTION, given_prompt, prompts
from data.formats.meaning import is_learned
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from onebase.errors import DataError

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


def _refuse_contradiction(row: Row, origin: Origin) -> None:
    """Scores, where the row has them, must say the same as the pair."""
    for better, worse in SCORES:
        if row.get(better) is None or row.get(worse) is None:
            continue
        if fields.number(row, better, origin) <= fields.number(row, worse, origin):
            raise DataError(f"{origin}: contradictory: '{better}' is not above '{worse}'. Drop the row.")


def rankings(read: Callable[[Row, Origin], Pair]) -> Builder:
    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        prompt, chosen, rejected = read(row, origin)
        _refuse_contradiction(row, origin)
        yield Ranking(prompt, (chosen, rejected), (0, 1))

    return build


def _prompts(read: Callable[[Row, Origin], Pair]) -> Builder:
    return prompts(lambda row, origin: read(row, origin)[0])


def _split(said: Sequence[Message], key: str, origin: Origin) -> tuple[tuple[Message, ...], str]:
    """What was said before, and the reply that the dialogue ends with."""
    last = said[-1]
    if last.role != "assistant":
        raise DataError(
            f"{origin}: '{key}' is cut off: it ends with the {last.role}'s turn, not a reply. Drop the row."
        )
    if not last.content.strip():
        raise DataError(f"{origin}: '{key}' ends with an empty reply. Drop the row.")
    return tuple(said[:-1]), last.content


def _same_start(chosen: Sequence[Message], rejected: Sequence[Message], origin: Origin) -> None:
    unlike = f"{origin}: chosen and rejected are no answers to one prompt"
    if len(chosen) != len(rejected):
        raise DataError(f"{unlike}: they come after {len(chosen)} and {len(rejected)} messages. Drop the row.")
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        if one != other:
            raise DataError(f"{unlike}: message {index + 1} differs. Drop the row.")


# --- HH-RLHF ---


def _hh(row: Row, origin: Origin) -> Pair:
    """{chosen, rejected}: "\\n\\nHuman: ...\\n\\nAssistant: ...", equal but for the last reply.

    Bai et al. 2022, https://arxiv.org/abs/2204.05862.
    """
    (before, chosen), (other, rejected) = (
        _split(dialogue(fields.text(row, key, origin), key, origin), key, origin) for key in KEYS
    )
    _same_start(before, other, origin)
    return Prompt(fields.under_system(row, before, origin), origin, fields.facts(row)), chosen, rejected


def _is_hh(row: Row) -> bool:
    return any(is_dialogue(row[key]) for key in KEYS)


def _is_not_hh(row: Row) -> bool:
    return not _is_hh(row)


def _hh_with_prompt(row: Row, origin: Origin) -> Pair:
    chosen, rejected = (fields.text(row, key, origin).strip() for key in KEYS)
    return given_prompt(row, origin), chosen, rejected


def _asks_as_dialogue(row: Row) -> bool:
    return isinstance(row["prompt"], str) and row["prompt"].startswith(DIALOGUE["user"])


# --- chosen and rejected as text or messages ---


def _as_messages(row: Row) -> bool:
    return any(isinstance(row[key], list) for key in KEYS)


def _as_texts(row: Row) -> bool:
    return not _as_messages(row) and not _asks_as_dialogue(row)


def _text_pair(row: Row, origin: Origin) -> Pair:
    """{prompt, chosen, rejected} of texts; the prompt may be messages."""
    for key in KEYS:
        if isinstance(row[key], str) and row[key].startswith(DIALOGUE["user"]):
            raise DataError(
                f"{origin}: '{key}' is a whole dialogue beside a 'prompt', which would be learned with the reply. "
                "Remove the prompt (the format is then hh-rlhf), or give the replies alone."
            )
    return given_prompt(row, origin), fields.text(row, "chosen", origin), fields.text(row, "rejected", origin)


def _ends(row: Row, origin: Origin) -> tuple[tuple[Message, ...], str, str] | None:
    """What chosen and rejected both begin with, and their replies; None when neither is a list of messages."""
    as_messages = [isinstance(row[key], list) for key in KEYS]
    if not any(as_messages):
        return None
    if not all(as_messages):
        raise DataError(f"{origin}: one of chosen and rejected is text and the other messages. Mend the row.")
    (before, chosen), (other, rejected) = (_split(fields.messages(row, key, origin), key, origin) for key in KEYS)
    _same_start(before, other, origin)
    for key in KEYS:
        if not is_learned(row[key][-1], f"{origin}: '{key}'"):
            raise DataError(f"{origin}: '{key}' ends with a reply that is marked not to be learned. Drop the row.")
    return before, chosen, rejected


def _alone(row: Row, origin: Origin) -> Pair:
    """{chosen, rejected} of messages, the prompt's in both."""
    ends = _ends(row, origin)
    if ends is None:
        raise DataError(
            f"{origin}: chosen and rejected are texts without a prompt. Add a 'prompt', or give dialogues that begin "
            "with 'Human:'."
        )
    before, chosen, rejected = ends
    before = fields.under_system(row, before, origin) if before else before
    return Prompt(before, origin, fields.facts(row)), chosen, rejected


def _with_prompt(row: Row, origin: Origin) -> Pair:
    """{prompt, chosen, rejected}; the prompt may stand in chosen and rejected a second time, with a system message."""
    prompt = given_prompt(row, origin)
    ends = _ends(row, origin)
    if ends is None:
        return _text_pair(row, origin)
    before, chosen, rejected = ends
    # An empty system message is what chats without one are left with.
    before = before[1:] if before and before[0].role == "system" and not before[0].content.strip() else before
    if not before:
        return prompt, chosen, rejected
    (system, turns), (own_system, own_turns) = _apart(before), _apart(prompt.messages)
    # A plain prompt may be the last turn of a longer conversation.
    if turns[-len(own_turns) :] != own_turns or (system and own_system and system != own_system):
        raise DataError(f"{origin}: 'prompt' is not what chosen and rejected begin with. Drop the row.")
    return Prompt((system or own_system) + turns, origin, prompt.meta), chosen, rejected


def _apart(said: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The system message, if there is one, and the turns."""
    return (said[:1], said[1:]) if said[0].role == "system" else ((), said)


def _question_pair(row: Row, origin: Origin) -> Pair:
    """{system?, question, chosen, rejected}."""
    prompt = fields.asked(row, fields.text(row, "question", origin), origin)
    return prompt, fields.text(row, "chosen", origin), fields.text(row, "rejected", origin)


def _format(name: str, publisher: str, keys: str, rows: dict[type, Builder], *, reads: str = "", **more: Any) -> Format:
    listed = frozenset(reads.split())
    return Format(name=name, publisher=publisher, keys=frozenset(keys.split()), rows=rows, reads=listed, **more)


def _chosen_demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """`messages` is the chosen dialogue over again; where it is another one, it may be the rejected one."""
    said, chosen = fields.messages(row, "messages", origin), fields.messages(row, "chosen", origin)
    if said[-1] != chosen[-1]:
        raise DataError(f"{origin}: contradictory: 'messages' does not end with the chosen reply. Drop the row.")
    yield from messages_demonstrations(row, origin, options)


FORMATS = [
    _format(
        "hh-rlhf",
        "Anthropic HH-RLHF, https://arxiv.org/abs/2204.05862",
        "chosen rejected",
        {Prompt: _prompts(_hh), Ranking: rankings(_hh)},
        looks=_is_hh,
    ),
    _format(
        "hh-rlhf-prompt",
        "HH-RLHF with the dialogue taken out (Dahoas/full-hh-rlhf)",
        "prompt chosen rejected",
        {Prompt: PROMPT, Ranking: rankings(_hh_with_prompt)},
        looks=_asks_as_dialogue,
    ),
    _format(
        "chosen-rejected",
        "TRL, implicit prompt",
        "chosen rejected",
        {Prompt: _prompts(_alone), Ranking: rankings(_alone)},
        looks=_is_not_hh,
    ),
    _format(
        "prompt-chosen-rejected",
        "ours; TRL, explicit prompt",
        "prompt chosen rejected",
        {Prompt: PROMPT, Ranking: rankings(_text_pair)},
        looks=_as_texts,
        reads="history",
    ),
    _format(
        "prompt-chosen-rejected-chat",
        "TRL, explicit prompt, chosen and rejected as messages",
        "prompt chosen rejected",
        {Prompt: _prompts(_with_prompt), Ranking: rankings(_with_prompt)},
        looks=_as_messages,
        reads="history",
    ),
    _format(
        "ultrafeedback-binarized",
        "HuggingFaceH4/ultrafeedback_binarized: a pair, and its chosen dialogue as messages",
        "prompt chosen rejected messages",
        {
            Prompt: _prompts(_with_prompt),
            Demonstration: _chosen_demonstrations,
            Ranking: rankings(_with_prompt),
        },
    ),
    _format(
        "question-chosen-rejected",
        "Intel/orca_dpo_pairs",
        "question chosen rejected",
        {Prompt: QUESTION, Ranking: rankings(_question_pair)},
        reads="history",
    ),
]
