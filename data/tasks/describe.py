"""The table of families for docs/tasks.md: `python -m data.tasks.describe`."""

from collections.abc import Iterable
from random import Random

from data.tasks.families.catalogue import FAMILIES
from data.tasks.family import Family
from onebase.terminal import show


def table(families: Iterable[Family], prompt_title: str, answer_title: str) -> str:
    """Markdown: every family with a prompt and its gold answer, line by line; held-out families are marked."""
    rows = [f"| family | {prompt_title} | {answer_title} |", "|---|---|---|"]
    for family in families:
        draw = family.draw(Random(1))
        name = f"{family.name} (held out)" if family.held_out else family.name
        lines = " ".join(f"`{line}`" for line in draw.gold.split("\n"))
        rows.append(f"| {name} | {family.templates[0].format(**draw.fields)} | {lines} |")
    return "\n".join(rows) + "\n"


def tasks() -> str:
    return table(FAMILIES.values(), "prompt", "gold answer")


if __name__ == "__main__":
    show(tasks().rstrip("\n"))
