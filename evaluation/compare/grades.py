"""Answers by the check that their task brings."""

from collections.abc import Sequence

from data.chat.conversations import EncodedPrompt
from data.tasks.checks import grade, has_check


def check(prompts: Sequence[EncodedPrompt], answers: Sequence[str]) -> dict[str, list[float]]:
    """Correctness and form by each task's own check, and the mean of the two; nothing where a prompt brings none."""
    if not all(has_check(one.prompt) for one in prompts):
        return {}
    grades = [grade(one.prompt, answer) for one, answer in zip(prompts, answers, strict=True)]
    return {
        "correctness": [one.correctness for one in grades],
        "form": [one.form for one in grades],
        "check": [one.mean for one in grades],
    }
