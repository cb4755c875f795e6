"""Grades of answers, by the check that comes with each built-in task."""

from collections.abc import Sequence

from data.chat.conversations import EncodedPrompt
from data.tasks.checks import grade, has_check


def task_grades(prompts: Sequence[EncodedPrompt], answers: Sequence[str]) -> dict[str, list[float]]:
    """Correctness, form and their mean (the task score) of each answer, in [0, 1]; empty if a prompt has no check."""
    if not all(has_check(encoded.prompt) for encoded in prompts):
        return {}
    grades = [grade(encoded.prompt, answer) for encoded, answer in zip(prompts, answers, strict=True)]
    return {
        "correctness": [each.correctness for each in grades],
        "form": [each.form for each in grades],
        "task_score": [each.mean for each in grades],
    }
