"""What `builtin:problems` pays: a reward function for PPO recipes, `data.problems.rewards:right_answer`."""

from data.records import Prompt
from data.tasks.checks import grade, has_check
from onebase.errors import DataError


def right_answer(prompt: Prompt, response: str) -> float:
    """1 where the response ends with the right answer behind its only mark, else 0.

    Form and steps are not rewarded: a policy first learns the parts of a reward that it can get without being right.
    DataError where the prompt has no answer.
    """
    if not has_check(prompt):
        raise DataError(f"{prompt.origin}: the prompt has no answer to check. Use builtin:problems as `data`.")
    return grade(prompt, response).correctness
