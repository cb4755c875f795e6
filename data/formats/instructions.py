"""One prompt and one answer a row, under each publisher's names; and our own rows of that shape."""

import re
from collections.abc import Iterator

from data.formats import fields
from data.formats.fields import given_prompt
from data.formats.format import Options, Outcome, Row, Skipped, format_of
from data.records import Demonstration, Origin, Prompt
from onebase.errors import DataError


def instruction_prompt(row: Row, origin: Origin) -> Prompt:
    """{instruction, input?}."""
    return _with_input(row, "instruction", "input", origin)


def context_prompt(row: Row, origin: Origin) -> Prompt:
    """Dolly: {instruction, context, response, category}."""
    return _with_input(row, "instruction", "context", origin)


def question_prompt(row: Row, origin: Origin) -> Prompt:
    """{question, context?}."""
    return _with_input(row, "question", "context", origin)


def _with_input(row: Row, key: str, input_key: str, origin: Origin) -> Prompt:
    task_input = fields.optional_text(row, input_key, origin)
    return fields.user_prompt(row, fields.joined(fields.text(row, key, origin), task_input), origin)


def _longform_prompt(row: Row, origin: Origin) -> Prompt:
    """{input, output, source, subset}: the input is an instruction written for a text that was there before."""
    subset = fields.optional_text(row, "subset", origin)
    return fields.user_prompt(row, fields.text(row, "input", origin), origin, task=subset)


TEMPLATE_WORDS = re.compile(
    r"#\s?(?:The\s)?(?:Given|Rewritten|Created|New|Original)\sPrompt\s?#|\brewritten prompt\b", re.IGNORECASE
)
"""Words of the prompt that asks for an evolved instruction: where they are left, the evolution failed (WizardLM,
https://arxiv.org/abs/2304.12244, elimination evolving)."""


def _evolved_prompt(row: Row, origin: Origin) -> Prompt:
    if words := TEMPLATE_WORDS.search(fields.text(row, "instruction", origin)):
        raise DataError(
            f"{origin}: the instruction holds {words[0]!r}, words of the prompt that made it: a failed evolution. "
            "Remove the row."
        )
    return instruction_prompt(row, origin)


def _refuse_no_output(output: str, origin: Origin) -> None:
    if output.strip().lower() in ("<nooutput>", "nooutput", "<no output>", "n/a"):
        raise DataError(
            f"{origin}: 'output' is {output.strip()!r}, which means that there is no answer. Remove the row."
        )


def _refuse_punctuation(output: str, origin: Origin) -> None:
    if output.strip() and not any(letter.isalnum() for letter in output):
        raise DataError(f"{origin}: 'output' is nothing but punctuation, a failed evolution. Remove the row.")


def _back_translated(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """An instruction written for a text that was there before, with the curating model's score (1 to 5) if it has one.

    Li et al. 2023, https://arxiv.org/abs/2308.06259.
    """
    record = Demonstration(instruction_prompt(row, origin), fields.text(row, "response", origin))
    if row.get("score") is not None and fields.number(row, "score", origin) < options["min_score"]:
        yield Skipped("its score is under min_score", origin)
    else:
        yield record


FORMATS = [
    format_of("prompt", "ours", "prompt", prompt=given_prompt, reads="history"),
    format_of("prompt-response", "ours", "prompt response", prompt=given_prompt, answer="response", reads="history"),
    format_of(
        "prompt-completion",
        "TRL; T0 rows with a `template`",
        "prompt completion",
        prompt=given_prompt,
        answer="completion",
        reads="history",
    ),
    format_of("instruction", "ours", "instruction", prompt=instruction_prompt, reads="input history"),
    format_of(
        "alpaca",
        "Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca",
        "instruction input output",
        prompt=instruction_prompt,
        answer="output",
        check_answer=_refuse_no_output,
        reads="history",
    ),
    format_of(
        "evol-instruct",
        "WizardLM, https://arxiv.org/abs/2304.12244",
        "instruction output",
        prompt=_evolved_prompt,
        answer="output",
        check_answer=_refuse_punctuation,
        reads="input history",
    ),
    format_of(
        "dolly",
        "Databricks Dolly 15k, https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        "instruction response category",
        prompt=context_prompt,
        answer="response",
        reads="context history",
    ),
    format_of(
        "back-translation",
        "Instruction back-translation (Humpback), https://arxiv.org/abs/2308.06259",
        "instruction response",
        prompt=instruction_prompt,
        rows={Demonstration: _back_translated},
        reads="input score history",
        options={"min_score": 0.0},
    ),
    format_of(
        "longform",
        "LongForm, reverse instructions, https://arxiv.org/abs/2304.08460",
        "input output source subset",
        prompt=_longform_prompt,
        answer="output",
        reads="history",
    ),
    format_of("question", "ours", "question", prompt=question_prompt, reads="context history"),
    format_of(
        "question-answer",
        "GSM8K (https://github.com/openai/grade-school-math) and others",
        "question answer",
        prompt=question_prompt,
        answer="answer",
        reads="context history",
    ),
    format_of(
        "question-response",
        "OpenOrca: system_prompt, question, response",
        "question response",
        prompt=question_prompt,
        answer="response",
        reads="context history",
    ),
]
