"""Worked solutions: steps of arithmetic, one per line, and the answer behind the mark as the last line."""

from collections.abc import Callable, Mapping

from data.tasks.answers import MARK, Final
from data.tasks.family import Draw
from data.tasks.forms import Form

Step = tuple[int, str, int]
"""A number, a sign and a number."""

SIGNS: Mapping[str, Callable[[int, int], int]] = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

FORM = Form(
    pattern=rf"(?:[0-9]+ [-+*] [0-9]+ = [0-9]+\n){{0,3}}{MARK} [A-Za-z0-9]+(?:, [A-Za-z0-9]+)*",
    words=12,
    repeats=True,  # "4 + 4 = 8" does
)
"""Up to three steps, then the answer: a number, a word, or several with commas."""


def value_of(step: Step) -> int:
    first, sign, second = step
    return SIGNS[sign](first, second)


def worked(*steps: Step, **fields: str) -> Draw:
    """A problem with the result of the last step as its answer."""
    lines = [f"{first} {sign} {second} = {value_of((first, sign, second))}" for first, sign, second in steps]
    return known(str(value_of(steps[-1])), *lines, **fields)


def known(answer: str, *lines: str, **fields: str) -> Draw:
    """A problem with that answer, and the lines that lead to it."""
    gold = "\n".join([*lines, f"{MARK} {answer}"])
    return Draw(fields=fields, gold=gold, wrong=(), answer=Final(answer), form=FORM)
