"""One prompt and one answer a row, under each publisher's names; and our own rows of that shape."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data.formats import fields
from data.formats.format import Options, Outcome, Refusal, Row, Skipped, format_of
from data.records import Demonstration, Origin, Prompt


@dataclass(frozen=True)
class Question:
    """Reads a prompt of one message, which is the text under a key."""

    key: str
    below: str = ""
    """The key of a text that goes under it, where the row has one."""
    task: str = ""
    """The key of the task's name, where it is another than the usual ones."""
    refused: Refusal | None = None

    def __call__(self, row: Row, origin: Origin) -> Prompt:
        task = fields.optional_text(row, self.task, origin) if self.task else ""
        below = fields.optional_text(row, self.below, origin) if self.below else ""
        content = fields.text(row, self.key, origin)
        if self.refused:
            fields.refuse(self.refused, content, origin)
        return fields.prompt_of(row, fields.joined(content, below), origin, task=task)


INSTRUCTION = Question("instruction", "input")
QUESTION = Question("question", "context")

EVOLVED = Question(
    "instruction",
    "input",
    refused=(
        re.compile(
            r"#\s?(?:The\s)?(?:Given|Rewritten|Created|New|Original)\sPrompt\s?#|\brewritten prompt\b", re.IGNORECASE
        ).search,
        "the instruction holds {0!r}, words of the prompt that made it: a failed evolution. Remove the row.",
    ),
)
"""WizardLM's elimination evolving: where words of the prompt that asks for an evolved instruction are left, the
evolution failed (https://arxiv.org/abs/2304.12244)."""

NO_OUTPUT: Refusal = (
    re.compile(r"\s*(?:<nooutput>|nooutput|<no output>|n/a)\s*", re.IGNORECASE).fullmatch,
    "'output' is {0!r}, which means that there is no answer. Remove the row.",
)
PUNCTUATION: Refusal = (
    re.compile(r"(?=\s*\S)[\W_]+").fullmatch,
    "'output' is nothing but punctuation, a failed evolution. Remove the row.",
)


def _back_translated(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """An instruction written for a text that was there before, with the curating model's score (1 to 5) if it has one.

    Li et al. 2023, https://arxiv.org/abs/2308.06259.
    """
    record = Demonstration(INSTRUCTION(row, origin), fields.text(row, "response", origin))
    bad = row.get("score") is not None and fields.number(row, "score", origin) < options["min_score"]
    yield Skipped("its score is under min_score", origin) if bad else record


FORMATS = [
    format_of("prompt", "ours", "prompt", prompt=fields.given_prompt, reads="history"),
    format_of(
        "prompt-response", "ours", "prompt response", prompt=fields.given_prompt, answer="response", reads="history"
    ),
    format_of(
        "prompt-completion",
        "TRL; T0 rows with a `template`",
        "prompt completion",
        prompt=fields.given_prompt,
        answer="completion",
        reads="history",
    ),
    format_of("instruction", "ours", "instruction", prompt=INSTRUCTION, reads="input history"),
    format_of(
        "alpaca",
        "Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca",
        "instruction input output",
        prompt=INSTRUCTION,
        answer="output",
        refused=NO_OUTPUT,
        reads="history",
    ),
    format_of(
        "evol-instruct",
        "WizardLM, https://arxiv.org/abs/2304.12244",
        "instruction output",
        prompt=EVOLVED,
        answer="output",
        refused=PUNCTUATION,
        reads="input history",
    ),
    format_of(
        "dolly",
        "Databricks Dolly 15k, https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        "instruction response category",
        prompt=Question("instruction", "context"),
        answer="response",
        reads="context history",
    ),
    format_of(
        "back-translation",
        "Instruction back-translation (Humpback), https://arxiv.org/abs/2308.06259",
        "instruction response",
        prompt=INSTRUCTION,
        rows={Demonstration: _back_translated},
        reads="input score history",
        options={"min_score": 0.0},
    ),
    format_of(
        "longform",  # the input is an instruction that was written for a text that was there before
        "LongForm, reverse instructions, https://arxiv.org/abs/2304.08460",
        "input output source subset",
        prompt=Question("input", task="subset"),
        answer="output",
        reads="history",
    ),
    format_of("question", "ours", "question", prompt=QUESTION, reads="context history"),
    format_of(
        "question-answer",
        "GSM8K (https://github.com/openai/grade-school-math) and others",
        "question answer",
        prompt=QUESTION,
        answer="answer",
        reads="context history",
    ),
    format_of(
        "question-response",
        "OpenOrca: system_prompt, question, response",
        "question response",
        prompt=QUESTION,
        answer="response",
        reads="context history",
    ),
]
