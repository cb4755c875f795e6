"""Rows with one response and its score each: the rows of one prompt, which stand together, become a ranking.

HelpSteer's attributes, thumbs up and down, P3's answer choices. One group is held at a time, so a file of any size
takes the same memory; rows of one prompt that are apart must be sorted first.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data.formats import fields
from data.formats.conversations import split_turns
from data.formats.format import Builder, Format, Numbered, Options, Outcome, Row, Skipped
from data.formats.instructions import PROMPT, given_prompt
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from onebase.errors import DataError


@dataclass(frozen=True)
class Scored:
    prompt: Prompt
    response: str
    score: float
    """Higher is better; equal scores tie."""


@dataclass
class _Group:
    prompt: Prompt
    scores: dict[str, float] = field(default_factory=dict)
    """By response, in the order of the rows."""


def grouped(rows: Numbered, source: str, read: Callable[[Row, Origin], Scored]) -> Iterator[Outcome]:
    """A ranking of each run of rows with the same prompt. A bad row is refused alone."""
    group: _Group | None = None
    for line, row in rows:
        origin = Origin(source, line)
        try:
            one = read(require_object(row, origin), origin)
            Demonstration(one.prompt, one.response)  # refuses an empty response where it stands
        except DataError as error:
            yield error
            continue
        if group is not None and group.prompt.messages != one.prompt.messages:
            yield from _ranking(group)
            group = None
        group = group or _Group(one.prompt)
        if one.response not in group.scores:
            group.scores[one.response] = one.score
        elif group.scores[one.response] == one.score:
            yield Skipped("copy of a response to the same prompt", origin)
        else:
            yield DataError(f"{origin}: the same response has another score further up: contradictory. Remove both.")
    if group is not None:
        yield from _ranking(group)


def require_object(row: Any, origin: Origin) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{origin}: expected an object with keys, found {type(row).__name__}.")
    return row


def _ranking(group: _Group) -> Iterator[Outcome]:
    levels = sorted(set(group.scores.values()), reverse=True)
    origin = group.prompt.origin
    if len(group.scores) < 2:
        yield Skipped("the only response of its prompt here; rows of one prompt must stand together", origin)
    elif len(levels) < 2:
        yield Skipped("all responses to its prompt have the same score", origin)
    else:
        tiers = tuple(levels.index(score) for score in group.scores.values())
        yield Ranking(group.prompt, tuple(group.scores), tiers)


# --- HelpSteer ---

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
NEMO = {"user": "<extra_id_1>User\n", "assistant": "<extra_id_1>Assistant\n"}


def _helpsteer_prompt(row: Row, origin: Origin) -> Prompt:
    """`prompt` is text; HelpSteer2 writes a conversation into it with NeMo's marks, the first of them left out."""
    said = fields.text(row, "prompt", origin)
    if "<extra_id_1>" not in said:
        return fields.asked(row, said, origin)
    turns = split_turns(NEMO["user"] + said, NEMO, "prompt", origin)
    if turns[-1] == Message("assistant", ""):
        turns.pop()
    fields.no_earlier_turns(row, "prompt", origin)
    return Prompt(fields.under_system(row, tuple(turns), origin), origin, fields.facts(row))


def _helpsteer(row: Row, origin: Origin, weights: Options) -> Scored:
    """{prompt, response, helpfulness, correctness, coherence, complexity, verbosity}: attributes from 0 to 4."""
    score = 0.0
    for attribute, weight in weights.items():
        value = fields.number(row, attribute, origin)
        if not 0 <= value <= 4:
            raise DataError(f"{origin}: '{attribute}' must be from 0 to 4, found {value:g}. Mend the row, or drop it.")
        score += weight * value
    # The rounding keeps sums of floats from deciding a tie.
    return Scored(_helpsteer_prompt(row, origin), fields.text(row, "response", origin), round(score, 9))


def _helpsteer_rankings(rows: Numbered, source: str, options: Options) -> Iterator[Outcome]:
    if not any(options.values()):
        raise DataError("data: helpsteer: all weights are 0, so every response ties. Give one that is not.")
    return grouped(rows, source, lambda row, origin: _helpsteer(row, origin, options))


def _helpsteer_prompts(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    yield _helpsteer_prompt(row, origin)


def _helpsteer_demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    yield Demonstration(_helpsteer_prompt(row, origin), fields.text(row, "response", origin))


# --- thumbs ---


def _thumbs(answer: str) -> dict[str, Any]:
    """{prompt, completion or response, label}: true is thumbs up. KTO, https://arxiv.org/abs/2402.01306."""

    def read(row: Row, origin: Origin) -> Scored:
        up = fields.truth(row, "label", origin)
        return Scored(given_prompt(row, origin), fields.text(row, answer, origin), float(up))

    def rankings(rows: Numbered, source: str, options: Options) -> Iterator[Outcome]:
        return grouped(rows, source, read)

    def demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        one = read(row, origin)
        record = Demonstration(one.prompt, one.response)
        yield record if one.score else Skipped("thumbs down, so not to be imitated", origin)

    rows: dict[type, Builder] = {Prompt: PROMPT, Demonstration: demonstrations}
    return {"rows": rows, "files": {Ranking: rankings}, "reads": frozenset({"history"})}


FORMATS = [
    Format(
        name="helpsteer",
        publisher="NVIDIA HelpSteer and HelpSteer2, https://arxiv.org/abs/2406.08673",
        keys=frozenset({"prompt", "response", *ATTRIBUTES}),
        rows={Prompt: _helpsteer_prompts, Demonstration: _helpsteer_demonstrations},
        files={Ranking: _helpsteer_rankings},
        reads=frozenset({"history"}),
        options={"helpfulness": 1.0, **dict.fromkeys(ATTRIBUTES[1:], 0.0)},
    ),
    Format(
        name="thumbs",
        publisher="TRL's unpaired preferences (KTO)",
        keys=frozenset({"prompt", "completion", "label"}),
        **_thumbs("completion"),
    ),
    Format(
        name="thumbs-response",
        publisher="thumbs up and down on our own rows",
        keys=frozenset({"prompt", "response", "label"}),
        **_thumbs("response"),
    ),
]
