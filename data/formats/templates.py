"""P3 and what follows it: prompts made by templates. In the hub's P3 the texts lie beside their token ids.

P3's `score_eval` templates have a row for each answer choice: right ones are demonstrations, and the choices of one
question are a ranking. Sanh et al. 2021, https://arxiv.org/abs/2110.08207.
"""

from data.formats.format import format_of
from data.formats.grouped import right_or_wrong
from data.formats.instructions import Question

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
]
