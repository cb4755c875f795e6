"""Answers to imitate: one prompt and one answer a row, under each publisher's names; and conversations of several
turns, in which each reply of the assistant is one.

Chats come as lists of messages (OpenAI), as `from` and `value` (ShareGPT), or as one text with marks (Baize).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.formats import fields
from data.formats.format import Options, Outcome, Refusal, Row, Skipped, format_of
from data.formats.meaning import is_learned
from data.formats.serialised import SPEAKERS
from data.records import Demonstration, Message, Origin, Prompt
from onebase.errors import DataError

# --- one prompt and one answer a row ---


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


# --- conversations ---

TurnsReader = Callable[[Row, Origin], Sequence[Message]]


def _chat(read: TurnsReader, entries_key: str = "") -> dict[str, Any]:
    """What makes prompts and demonstrations of a conversation. entries_key: the list that may mark its turns."""

    def prompt(row: Row, origin: Origin) -> Prompt:
        """Everything before the assistant's last reply; or everything, when it is the assistant's turn."""
        turns = read(row, origin)
        return fields.prompt_of(row, turns[:-1] if turns[-1].role == "assistant" else turns, origin)

    def demonstrations(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        """Each reply of the assistant with everything before it. One with a mark not to imitate it, such as OpenAI's
        `weight: 0`, is only shown to the model.

        A conversation is valid or refused as a whole: what comes after a broken turn answers it.
        """
        turns = read(row, origin)
        fields.require(
            turns[-1].role == "assistant",
            origin,
            f"a demonstration must end with the assistant's message, found '{turns[-1].role}'. "
            "The conversation is cut off: complete it, or remove the row.",
        )
        whole = fields.prompt_of(row, turns[:-1], origin)
        turns = (*whole.messages, turns[-1])
        entries = row[entries_key] if entries_key else ()
        # A system prompt beside the entries comes first; an empty one among them is gone.
        shift = len(turns) - len(entries)
        not_learned = {
            index + shift
            for index, entry in enumerate(entries)
            if not is_learned(entry, f"{origin}: message {index + 1}")
        }
        replies = [
            (index not in not_learned, Demonstration(Prompt(turns[:index], origin, whole.meta), message.content))
            for index, message in enumerate(turns)
            if message.role == "assistant"
        ]
        learned = [demonstration for is_kept, demonstration in replies if is_kept]
        fields.require(
            learned,
            origin,
            "every reply has the weight 0, or another mark not to learn it, so there is nothing to "
            "imitate. Remove the row.",
        )
        yield from learned

    return {"prompt": prompt, "rows": {Demonstration: demonstrations}}


PAGE = re.compile(r'<div class="(?:markdown|flex|min-h)|<button class=')
"""The web page's own markup, in crawls that were not cleaned."""


def _sharegpt(row: Row, origin: Origin) -> Sequence[Message]:
    """ShareGPT's `conversations`: [{from: human | gpt | system, value}]; some write role and content for them."""
    turns = []
    for index, entry in enumerate(fields.objects(row, "conversations", origin)):
        speaker, key = ("from", "value") if entry.get("from") is not None else ("role", "content")
        role = SPEAKERS.get(fields.text(entry, speaker, origin).lower())
        if role is None:
            known = ", ".join(SPEAKERS)
            raise DataError(
                f"{origin}: turn {index + 1} is from {entry[speaker]!r}, which is not read. Known: {known}."
            )
        content = fields.text(entry, key, origin)
        if PAGE.search(content):
            raise DataError(
                f"{origin}: turn {index + 1} holds the web page's HTML. Use a cleaned copy, or remove the row."
            )
        turns.append(Message(role, content))  # pyright: ignore[reportArgumentType]  # a value of SPEAKERS
    return fields.without_blank_system(turns)


BAIZE = {"user": "[|Human|]", "assistant": "[|AI|]"}


def _baize(row: Row, origin: Origin) -> Sequence[Message]:
    """Baize's self-chat: {topic, input}, the transcript in `input`. It ends with the mark of a turn that never came."""
    transcript = fields.text(row, "input", origin)
    turns = fields.split_turns(transcript, BAIZE, "input", origin, preamble=True, waiting="user")
    fields.require(turns, origin, "the transcript has no turns. Remove the row.")
    return turns


def _is_baize(row: Row) -> bool:
    return isinstance(row["input"], str) and any(mark in row["input"] for mark in BAIZE.values())


MESSAGES = format_of(
    "messages",
    "OpenAI fine-tuning, TRL",
    "messages",
    **_chat(lambda row, origin: fields.messages(row, "messages", origin), "messages"),
)

FORMATS = [
    MESSAGES,
    format_of(
        "sharegpt",
        "ShareGPT, FastChat (Vicuna), WizardLM Evol-Instruct V2",
        "conversations",
        **_chat(_sharegpt, "conversations"),
    ),
    format_of("baize", "Baize self-chat, https://arxiv.org/abs/2304.01196", "input", **_chat(_baize), looks=_is_baize),
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
