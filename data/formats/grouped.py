"""Rows with one response and its score each: successive rows of one prompt become a ranking.

HelpSteer's attributes, thumbs up and down, P3's answer choices. One group is held at a time, so a file of any size
takes the same memory; rows of one prompt that are apart must be sorted first.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data.formats import fields
from data.formats.format import Options, Outcome, Row, Skipped, format_of
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from onebase.errors import DataError


@dataclass(frozen=True)
class ScoredResponse:
    prompt: Prompt
    response: str
    score: float
    """Higher is better; equal scores tie."""


@dataclass
class _Group:
    prompt: Prompt
    scores: dict[str, float] = field(default_factory=dict)
    """By response, in the order of the rows."""


ScoreReader = Callable[[Row, Origin], ScoredResponse]


def grouped(read: ScoreReader, *, left_out: str) -> dict[str, Any]:
    """Builders of a format with scores of 1 and 0: what scores 1 is imitated, and the responses to a prompt are ranked.
    left_out: what a response with the score 0 is."""

    def demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        scored = read(row, origin)
        record = Demonstration(scored.prompt, scored.response)
        yield record if scored.score else Skipped(left_out, origin)

    def rankings(rows: Iterator[tuple[Row, Origin]], options: Options) -> Iterator[Outcome]:
        return ranked(rows, read)

    return {"rows": {Demonstration: demonstrations}, "files": {Ranking: rankings}}


def ranked(rows: Iterator[tuple[Row, Origin]], read: ScoreReader) -> Iterator[Outcome]:
    """A ranking of each run of rows with the same prompt. A bad row is refused alone."""
    group: _Group | None = None
    for row, origin in rows:
        try:
            scored = read(row, origin)
            Demonstration(scored.prompt, scored.response)  # refuses an empty response with its own place
        except DataError as error:
            yield error
            continue
        if group is not None and group.prompt.messages != scored.prompt.messages:
            yield from _ranking(group)
            group = None
        group = group or _Group(scored.prompt)
        if scored.response not in group.scores:
            group.scores[scored.response] = scored.score
        elif group.scores[scored.response] == scored.score:
            yield Skipped("copy of a response to the same prompt", origin)
        else:
            yield DataError(f"{origin}: the same response has another score further up: contradictory. Remove both.")
    if group is not None:
        yield from _ranking(group)


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
    text = fields.text(row, "prompt", origin)
    if "<extra_id_1>" not in text:
        return fields.user_prompt(row, text, origin)
    turns = fields.split_turns(NEMO["user"] + text, NEMO, "prompt", origin)
    if turns[-1] == Message("assistant", ""):
        turns.pop()
    fields.no_earlier_turns(row, "prompt", origin)
    return Prompt(fields.under_system(row, tuple(turns), origin), origin, fields.facts(row))


def _helpsteer(row: Row, origin: Origin, weights: Options) -> ScoredResponse:
    """{prompt, response, helpfulness, correctness, coherence, complexity, verbosity}: attributes from 0 to 4."""
    score = 0.0
    for attribute, weight in weights.items():
        value = fields.number(row, attribute, origin)
        if not 0 <= value <= 4:
            raise DataError(f"{origin}: '{attribute}' must be from 0 to 4, found {value:g}. Fix or remove the row.")
        score += weight * value
    # The rounding keeps sums of floats from deciding a tie.
    return ScoredResponse(_helpsteer_prompt(row, origin), fields.text(row, "response", origin), round(score, 9))


def _helpsteer_rankings(rows: Iterator[tuple[Row, Origin]], options: Options) -> Iterator[Outcome]:
    if not any(options.values()):
        raise DataError("data: helpsteer: all weights are 0, so every response ties. Give one that is not.")
    return ranked(rows, lambda row, origin: _helpsteer(row, origin, options))


# --- thumbs ---


def _thumbs(answer: str) -> ScoreReader:
    """{prompt, completion or response, label}: true is thumbs up. KTO, https://arxiv.org/abs/2402.01306."""

    def read(row: Row, origin: Origin) -> ScoredResponse:
        up = fields.truth(row, "label", origin)
        return ScoredResponse(fields.given_prompt(row, origin), fields.text(row, answer, origin), float(up))

    return read


THUMBS_DOWN = "thumbs down, so not to be imitated"

FORMATS = [
    format_of(
        "helpsteer",
        "NVIDIA HelpSteer and HelpSteer2, https://arxiv.org/abs/2406.08673",
        " ".join(("prompt", "response", *ATTRIBUTES)),
        prompt=_helpsteer_prompt,
        answer="response",
        files={Ranking: _helpsteer_rankings},
        reads="history",
        options={"helpfulness": 1.0, **dict.fromkeys(ATTRIBUTES[1:], 0.0)},
    ),
    format_of(
        "thumbs",
        "TRL's unpaired preferences (KTO)",
        "prompt completion label",
        prompt=fields.given_prompt,
        **grouped(_thumbs("completion"), left_out=THUMBS_DOWN),
        reads="history",
    ),
    format_of(
        "thumbs-response",
        "thumbs up and down on our own rows",
        "prompt response label",
        prompt=fields.given_prompt,
        **grouped(_thumbs("response"), left_out=THUMBS_DOWN),
        reads="history",
    ),
]
