"""One prompt and one answer a row, under each publisher's names; and our own rows of that shape."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from data.formats import fields
from data.formats.conversations import DIALOGUE, dialogue_prompt
from data.formats.format import Builder, Format, Options, Outcome, Row, Skipped
from data.records import Demonstration, Origin, Prompt
from onebase.errors import DataError

Asked = Callable[[Row, Origin], Prompt]
Answer = Callable[[Row, str, Origin], str]


def given_prompt(row: Row, origin: Origin) -> Prompt:
    """`prompt` as text or as messages; or as a dialogue with Anthropic's marks, which is no single message."""
    if isinstance(row["prompt"], str) and row["prompt"].startswith(DIALOGUE["user"]):
        return dialogue_prompt(row, origin)
    if isinstance(row["prompt"], list):
        fields.no_earlier_turns(row, "prompt", origin)
        said = fields.under_system(row, fields.messages(row, "prompt", origin), origin)
        return Prompt(said, origin, fields.facts(row))
    return fields.asked(row, fields.text(row, "prompt", origin), origin)


def instruction_prompt(row: Row, origin: Origin) -> Prompt:
    """{instruction, input?}."""
    given = fields.optional_text(row, "input", origin)
    instruction = fields.text(row, "instruction", origin)
    return fields.asked(row, fields.joined(instruction, given), origin)


def _in_context(row: Row, origin: Origin) -> Prompt:
    """Dolly: {instruction, context, response, category}."""
    given = fields.optional_text(row, "context", origin)
    return fields.asked(row, fields.joined(fields.text(row, "instruction", origin), given), origin)


def _question(row: Row, origin: Origin) -> Prompt:
    """{question, context?}."""
    given = fields.optional_text(row, "context", origin)
    return fields.asked(row, fields.joined(fields.text(row, "question", origin), given), origin)


def _longform(row: Row, origin: Origin) -> Prompt:
    """{input, output, source, subset}: the input is an instruction written for a text that was there before."""
    subset = fields.optional_text(row, "subset", origin)
    return fields.asked(row, fields.text(row, "input", origin), origin, task=subset)


TEMPLATE_WORDS = re.compile(
    r"#\s?(?:The\s)?(?:Given|Rewritten|Created|New|Original)\sPrompt\s?#|\brewritten prompt\b", re.IGNORECASE
)
"""Words of the prompt that asks for an evolved instruction: where they are left, the evolution failed (WizardLM,
https://arxiv.org/abs/2304.12244, elimination evolving)."""


def _evolved(row: Row, origin: Origin) -> Prompt:
    if found := TEMPLATE_WORDS.search(fields.text(row, "instruction", origin)):
        raise DataError(
            f"{origin}: the instruction holds {found[0]!r}, words of the prompt that made it: a failed evolution. "
            "Drop the row."
        )
    return instruction_prompt(row, origin)


def _alpaca_output(row: Row, key: str, origin: Origin) -> str:
    output = fields.text(row, key, origin)
    if output.strip().lower() in ("<nooutput>", "nooutput", "<no output>", "n/a"):
        raise DataError(f"{origin}: '{key}' is {output.strip()!r}, which stands for no answer. Drop the row.")
    return output


def _evolved_output(row: Row, key: str, origin: Origin) -> str:
    output = fields.text(row, key, origin)
    if output.strip() and not any(letter.isalnum() for letter in output):
        raise DataError(f"{origin}: '{key}' is nothing but punctuation, a failed evolution. Drop the row.")
    return output


def prompts(asked: Asked) -> Builder:
    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        yield asked(row, origin)

    return build


def answers(asked: Asked, key: str, answer: Answer = fields.text) -> Builder:
    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        yield Demonstration(asked(row, origin), answer(row, key, origin))

    return build


def _back_translated(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """An instruction written for a text that was there before, with the curating model's score (1 to 5) if it has one.

    Li et al. 2023, https://arxiv.org/abs/2308.06259.
    """
    record = Demonstration(instruction_prompt(row, origin), fields.text(row, "response", origin))
    if row.get("score") is not None and fields.number(row, "score", origin) < options["min_score"]:
        yield Skipped("its score is under min_score", origin)
    else:
        yield record


# Shared, so that rows which fit several formats with the same prompt are no uncertain case.
PROMPT = prompts(given_prompt)
INSTRUCTION = prompts(instruction_prompt)
QUESTION = prompts(_question)


def _format(
    name: str,
    publisher: str,
    keys: str,
    prompt: Builder,
    demonstration: Builder | None,
    *,
    reads: str = "history",
    **more: Any,
) -> Format:
    rows = {Prompt: prompt} if demonstration is None else {Prompt: prompt, Demonstration: demonstration}
    listed = frozenset(reads.split())
    return Format(name=name, publisher=publisher, keys=frozenset(keys.split()), rows=rows, reads=listed, **more)


FORMATS = [
    _format("prompt", "ours", "prompt", PROMPT, None),
    _format("prompt-response", "ours", "prompt response", PROMPT, answers(given_prompt, "response")),
    _format(
        "prompt-completion",
        "TRL; T0 rows with a `template`",
        "prompt completion",
        PROMPT,
        answers(given_prompt, "completion"),
    ),
    _format("instruction", "ours", "instruction", INSTRUCTION, None, reads="input history"),
    _format(
        "alpaca",
        "Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca",
        "instruction input output",
        INSTRUCTION,
        answers(instruction_prompt, "output", _alpaca_output),
    ),
    _format(
        "evol-instruct",
        "WizardLM, https://arxiv.org/abs/2304.12244",
        "instruction output",
        prompts(_evolved),
        answers(_evolved, "output", _evolved_output),
        reads="input history",
    ),
    _format(
        "dolly",
        "Databricks Dolly 15k, https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        "instruction response category",
        prompts(_in_context),
        answers(_in_context, "response"),
        reads="context history",
    ),
    _format(
        "back-translation",
        "Instruction back-translation (Humpback), https://arxiv.org/abs/2308.06259",
        "instruction response",
        INSTRUCTION,
        _back_translated,
        reads="input score history",
        options={"min_score": 0.0},
    ),
    _format(
        "longform",
        "LongForm, reverse instructions, https://arxiv.org/abs/2304.08460",
        "input output source subset",
        prompts(_longform),
        answers(_longform, "output"),
    ),
    _format("question", "ours", "question", QUESTION, None, reads="context history"),
    _format(
        "question-answer",
        "GSM8K (https://github.com/openai/grade-school-math) and others",
        "question answer",
        QUESTION,
        answers(_question, "answer"),
        reads="context history",
    ),
    _format(
        "question-response",
        "OpenOrca: system_prompt, question, response",
        "question response",
        QUESTION,
        answers(_question, "response"),
        reads="context history",
    ),
]
