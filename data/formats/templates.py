"""P3 and what follows it: prompts made by templates. In the hub's P3 the texts lie beside their token ids.

P3's `score_eval` templates have a row for each answer choice: right ones are demonstrations, and the choices of one
question are a ranking. Sanh et al. 2021, https://arxiv.org/abs/2110.08207.
"""

from collections.abc import Iterator

from data.formats import fields
from data.formats.format import Format, Numbered, Options, Outcome, Row, Skipped
from data.formats.grouped import Scored, grouped
from data.formats.instructions import answers, prompts
from data.records import Demonstration, Origin, Prompt, Ranking


def _as_text(row: Row, origin: Origin) -> Prompt:
    """{inputs, targets}."""
    return fields.asked(row, fields.text(row, "inputs", origin), origin)


def _is_text(row: Row) -> bool:
    return not isinstance(row["inputs"], list)


def _pretokenized(row: Row, origin: Origin) -> Prompt:
    """{inputs_pretokenized, targets_pretokenized}; `inputs` and `targets` are token ids."""
    return fields.asked(row, fields.text(row, "inputs_pretokenized", origin), origin)


def _choice(row: Row, origin: Origin) -> Scored:
    answer = fields.text(row, "targets_pretokenized", origin)
    return Scored(_pretokenized(row, origin), answer, float(fields.truth(row, "is_correct", origin)))


def _right_choices(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    one = _choice(row, origin)
    record = Demonstration(one.prompt, one.response)
    yield record if one.score else Skipped("a wrong answer choice", origin)


def _choices(rows: Numbered, source: str, options: Options) -> Iterator[Outcome]:
    return grouped(rows, source, _choice)


_IN_THE_TEXT = frozenset({"answer_choices", "weight", "history"})
"""The template has written the choices into the text; `weight` makes the choices of a question count as one row."""

FORMATS = [
    Format(
        name="inputs-targets",
        publisher="P3, xP3 and FLAN as text",
        keys=frozenset({"inputs", "targets"}),
        looks=_is_text,
        rows={Prompt: prompts(_as_text), Demonstration: answers(_as_text, "targets")},
        reads=frozenset({"history"}),
    ),
    Format(
        name="p3",
        publisher="P3 as on the hub (bigscience/P3), https://arxiv.org/abs/2110.08207",
        keys=frozenset({"inputs_pretokenized", "targets_pretokenized"}),
        rows={Prompt: prompts(_pretokenized), Demonstration: answers(_pretokenized, "targets_pretokenized")},
        reads=_IN_THE_TEXT,
    ),
    Format(
        name="p3-choices",
        publisher="P3's score_eval templates: a row for each answer choice",
        keys=frozenset({"inputs_pretokenized", "targets_pretokenized", "is_correct"}),
        rows={Prompt: prompts(_pretokenized), Demonstration: _right_choices},
        files={Ranking: _choices},
        reads=_IN_THE_TEXT,
    ),
]
