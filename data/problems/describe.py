"""The table of families for docs/verifiable.md: `python -m data.problems.describe`."""

from random import Random

from data.problems.generate import FAMILIES
from onebase.terminal import show


def table() -> str:
    """Markdown: every family with a problem and its worked solution; held-out families are marked."""
    rows = ["| family | problem | solution |", "|---|---|---|"]
    for family in FAMILIES.values():
        draw = family.draw(Random(1))
        name = f"{family.name} (held out)" if family.held_out else family.name
        lines = " ".join(f"`{line}`" for line in draw.gold.split("\n"))
        rows.append(f"| {name} | {family.templates[0].format(**draw.fields)} | {lines} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    show(table().rstrip("\n"))
