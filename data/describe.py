"""The tables of families for docs/tasks.md and docs/verifiable.md: `python -m data.describe tasks` (or `problems`)."""

import sys
from random import Random

from data.problems import generate as problems
from data.tasks.families import catalogue as tasks
from onebase.terminal import show

TABLES = {
    "tasks": (tasks.FAMILIES, "prompt", "gold answer"),
    "problems": (problems.FAMILIES, "problem", "solution"),
}
"""Families, and the titles of what they show."""


def table(name: str) -> str:
    """Markdown: every family with a prompt and its gold answer, line by line; held-out families are marked."""
    families, *titles = TABLES[name]
    rows = [f"| family | {' | '.join(titles)} |", "|---|---|---|"]
    for family in families.values():
        draw = family.draw(Random(1))
        kind = f"{family.name} (held out)" if family.held_out else family.name
        lines = " ".join(f"`{line}`" for line in draw.gold.split("\n"))
        rows.append(f"| {kind} | {family.templates[0].format(**draw.fields)} | {lines} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    show(table(sys.argv[1]).rstrip("\n"))
