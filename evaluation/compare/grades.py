"""Grades of answers, by the check that comes with each built-in task."""

from collections.abc import Sequence

from data.chat.conversations import EncodedPrompt
from data.tasks.checks import grade, has_check


def task_grades(prompts: Sequence[EncodedPrompt], answers: Sequence[str]) -> dict[str, list[float]]:
    """Correctness, form and their mean (the task score) of each answer, in [0, 1]; empty if a prompt has no check."""
    if not all(has_check(one.prompt) for one in prompts):
        return {}
    grades = [grade(one.prompt, answer) for one, answer in zip(prompts, answers, strict=True)]
    return {
        "correctness": [one.correctness for one in grades],
        "form": [one.form for one in grades],
        "task_score": [one.mean for one in grades],
    }
