"""P3 and what follows it: prompts made by templates. In the hub's P3 the texts lie beside their token ids.

P3's `score_eval` templates have a row for each answer choice: right ones are demonstrations, and the choices of one
question are a ranking. Sanh et al. 2021, https://arxiv.org/abs/2110.08207.
"""

from data.formats import fields
from data.formats.format import Row, format_of
from data.formats.grouped import ScoredResponse, grouped
from data.records import Origin, Prompt


def _text_prompt(row: Row, origin: Origin) -> Prompt:
    """{inputs, targets}."""
    return fields.user_prompt(row, fields.text(row, "inputs", origin), origin)


def _is_text(row: Row) -> bool:
    return not isinstance(row["inputs"], list)


def _pretokenized_prompt(row: Row, origin: Origin) -> Prompt:
    """{inputs_pretokenized, targets_pretokenized}; `inputs` and `targets` are token ids."""
    return fields.user_prompt(row, fields.text(row, "inputs_pretokenized", origin), origin)


def _choice(row: Row, origin: Origin) -> ScoredResponse:
    answer = fields.text(row, "targets_pretokenized", origin)
    return ScoredResponse(_pretokenized_prompt(row, origin), answer, float(fields.truth(row, "is_correct", origin)))


_IN_THE_TEXT = "answer_choices weight history"
"""The template has written the choices into the text; `weight` makes the choices of a question count as one row."""

FORMATS = [
    format_of(
        "inputs-targets",
        "P3, xP3 and FLAN as text",
        "inputs targets",
        looks=_is_text,
        prompt=_text_prompt,
        answer="targets",
        reads="history",
    ),
    format_of(
        "p3",
        "P3 as on the hub (bigscience/P3), https://arxiv.org/abs/2110.08207",
        "inputs_pretokenized targets_pretokenized",
        prompt=_pretokenized_prompt,
        answer="targets_pretokenized",
        reads=_IN_THE_TEXT,
    ),
    format_of(
        "p3-choices",
        "P3's score_eval templates: a row for each answer choice",
        "inputs_pretokenized targets_pretokenized is_correct",
        prompt=_pretokenized_prompt,
        **grouped(_choice, left_out="a wrong answer choice"),
        reads=_IN_THE_TEXT,
    ),
]
