"""`builtin:problems` at any size: prompts and demonstrations. data/tasks/rows.py describes the splits."""

from data.problems.families import puzzles, stories
from data.records import Demonstration, Prompt
from data.tasks.rows import Rows

FAMILIES = {family.name: family for module in (stories, puzzles) for family in module.FAMILIES}
"""In a fixed order: rows of a split depend on it."""

SHARES = {"sft": 0.3, "rl": 0.6, "heldout-prompts": 0.1}
"""Of all prompts with trained families and templates, by hash."""

_ROWS = Rows(
    name="problems",
    trained=tuple(family for family in FAMILIES.values() if not family.held_out),
    held_out=tuple(family for family in FAMILIES.values() if family.held_out),
    shares=SHARES,
    heldout=("heldout-prompts", "heldout-templates", "heldout-families"),
    prompt_tokens=50,
    gold_tokens=40,
)
SPLITS, task = _ROWS.splits, _ROWS.task


def prompts(split: str, rows: int, seed: int) -> list[Prompt]:
    return [task(split, index, seed).prompt for index in range(rows)]


def demonstrations(split: str, rows: int, seed: int) -> list[Demonstration]:
    """Problems with their worked solutions."""
    drawn = (task(split, index, seed) for index in range(rows))
    return [Demonstration(problem.prompt, problem.draw.gold) for problem in drawn]
