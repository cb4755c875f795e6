"""Grades of any response to a built-in task: is the right answer there, and in the requested form."""

from collections.abc import Mapping
from dataclasses import dataclass

from data.records import Prompt
from data.tasks import answers
from data.tasks.forms import Form
from onebase.errors import DataError


@dataclass(frozen=True)
class Grade:
    """Both in [0, 1]. A wrong answer may have perfect form, and a right one form 0."""

    correctness: float
    form: float

    @property
    def mean(self) -> float:
        return (self.correctness + self.form) / 2


def has_check(prompt: Prompt) -> bool:
    """Whether a prompt has a right answer in our form: a user's file may have anything under `meta.answer`."""
    answer, form = prompt.meta.get("answer"), prompt.meta.get("form")
    return isinstance(answer, Mapping) and answer.get("kind") in answers.KINDS and isinstance(form, Mapping)


def grade(prompt: Prompt, response: str) -> Grade:
    """Needs nothing but the prompt's meta, so it works on prompts that were written to a file and read back.

    DataError when the meta is not what a built-in task writes.
    """
    try:
        answer, form = answers.from_json(prompt.meta["answer"]), Form(**prompt.meta["form"])
        return Grade(answer.correctness(response), form.grade(response))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{prompt.origin}: `meta.answer` and `meta.form` are not what a built-in task writes "
            f"({type(error).__name__}: {error}). Restore the row, or remove its meta."
        ) from error
