"""Rows with one response and its score each: successive rows of one prompt become a ranking.

HelpSteer's attributes, thumbs up and down, P3's answer choices. One group is held at a time, so a file of any size
takes the same memory; rows of one prompt that are apart must be sorted first. And the other rows of P3.
"""

from collections.abc import Callable, Iterator
from typing import Any

from data.formats import fields
from data.formats.demonstrations import Question
from data.formats.format import FileBuilder, Options, Outcome, PromptReader, Row, Skipped, format_of
from data.formats.rankings import scored_ranking
from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError

ScoreReader = Callable[[Row, Origin, Options], float]
"""Higher is better; equal scores tie."""


def _ranked(prompt_of: PromptReader, answer: str, score_of: ScoreReader) -> FileBuilder:
    """Makes a ranking of each run of rows with the same prompt. A bad row is refused alone."""

    def rankings(rows: Iterator[tuple[Row, Origin]], options: Options) -> Iterator[Outcome]:
        prompt: Prompt | None = None
        scores: dict[str, float] = {}
        for row, origin in rows:
            try:
                score = score_of(row, origin, options)
                scored = Demonstration(prompt_of(row, origin), fields.text(row, answer, origin))
            except DataError as error:
                yield error
                continue
            if prompt is not None and prompt.messages != scored.prompt.messages:
                yield _ranking(prompt, scores)
                prompt, scores = None, {}
            prompt = prompt or scored.prompt
            if scored.response not in scores:
                scores[scored.response] = score
            elif scores[scored.response] == score:
                yield Skipped("copy of a response to the same prompt", origin)
            else:
                yield DataError(
                    f"{origin}: the same response has another score further up: contradictory. Remove both."
                )
        if prompt is not None:
            yield _ranking(prompt, scores)

    return rankings


def _ranking(prompt: Prompt, scores: dict[str, float]) -> Outcome:
    """scores: by response, in the order of the rows."""
    return scored_ranking(
        prompt,
        scores,
        alone="the only response of its prompt here; rows of one prompt must stand together",
        tied="all responses to its prompt have the same score",
    )


def right_or_wrong(prompt: PromptReader, answer: str, key: str, *, left_out: str) -> dict[str, Any]:
    """Builders of a format with a truth for each response: a right one is imitated, and the responses to a prompt are
    ranked. key: of the truth. left_out: what a wrong response is."""

    def score_of(row: Row, origin: Origin, options: Options) -> float:
        return float(fields.number(row, key, origin, "true or false"))

    def demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        score = score_of(row, origin, options)
        record = Demonstration(prompt(row, origin), fields.text(row, answer, origin))
        yield record if score else Skipped(left_out, origin)

    return {
        "prompt": prompt,
        "rows": {Demonstration: demonstrations},
        "files": {Ranking: _ranked(prompt, answer, score_of)},
    }


# --- HelpSteer ---

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
NEMO = {"user": "<extra_id_1>User\n", "assistant": "<extra_id_1>Assistant\n"}


def _helpsteer_prompt(row: Row, origin: Origin) -> Prompt:
    """`prompt` is text; HelpSteer2 writes a conversation into it with NeMo's marks, the first of them left out."""
    content = fields.text(row, "prompt", origin)
    if "<extra_id_1>" in content:
        content = fields.split_turns(NEMO["user"] + content, NEMO, "prompt", origin, waiting="assistant")
    return fields.prompt_of(row, content, origin)


def _helpsteer_score(row: Row, origin: Origin, weights: Options) -> float:
    """{prompt, response, helpfulness, correctness, coherence, complexity, verbosity}: attributes from 0 to 4."""
    score = 0.0
    for attribute, weight in weights.items():
        value = fields.number(row, attribute, origin)
        if not 0 <= value <= 4:
            raise DataError(f"{origin}: '{attribute}' must be from 0 to 4, found {value:g}. Fix or remove the row.")
        score += weight * value
    return round(score, 9)  # so that sums of floats do not decide a tie


_by_attributes = _ranked(_helpsteer_prompt, "response", _helpsteer_score)


def _helpsteer_rankings(rows: Iterator[tuple[Row, Origin]], options: Options) -> Iterator[Outcome]:
    fields.require(
        any(options.values()),
        "data: helpsteer",
        "all weights are 0, so every response ties. Give one that is not.",
    )
    return _by_attributes(rows, options)


# true is thumbs up. KTO, https://arxiv.org/abs/2402.01306.
THUMBS_DOWN = "thumbs down, so not to be imitated"


# --- P3: Sanh et al. 2021, https://arxiv.org/abs/2110.08207 ---

PRETOKENIZED = Question("inputs_pretokenized")
"""`inputs` and `targets` beside it are token ids."""

_IN_THE_TEXT = "answer_choices weight history"
"""The template has written the choices into the text; `weight` makes the choices of a question count as one row."""

FORMATS = [
    format_of(
        "inputs-targets",
        "P3, xP3 and FLAN as text",
        "inputs targets",
        looks=lambda row: not isinstance(row["inputs"], list),
        prompt=Question("inputs"),
        answer="targets",
        reads="history",
    ),
    format_of(
        "p3",
        "P3 as on the hub (bigscience/P3), https://arxiv.org/abs/2110.08207",
        "inputs_pretokenized targets_pretokenized",
        prompt=PRETOKENIZED,
        answer="targets_pretokenized",
        reads=_IN_THE_TEXT,
    ),
    format_of(
        "p3-choices",
        "P3's score_eval templates: a row for each answer choice",
        "inputs_pretokenized targets_pretokenized is_correct",
        **right_or_wrong(PRETOKENIZED, "targets_pretokenized", "is_correct", left_out="a wrong answer choice"),
        reads=_IN_THE_TEXT,
    ),
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
        **right_or_wrong(fields.given_prompt, "completion", "label", left_out=THUMBS_DOWN),
        reads="history",
    ),
    format_of(
        "thumbs-response",
        "thumbs up and down on our own rows",
        "prompt response label",
        **right_or_wrong(fields.given_prompt, "response", "label", left_out=THUMBS_DOWN),
        reads="history",
    ),
]
