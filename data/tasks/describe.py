"""The table of families for docs/tasks.md: `python -m data.tasks.describe`."""

from random import Random

from data.tasks.families.catalogue import FAMILIES
from onebase.terminal import show


def table() -> str:
    """Markdown: every family with a prompt and its gold answer; held-out families are marked."""
    rows = ["| family | prompt | gold answer |", "|---|---|---|"]
    for family in FAMILIES.values():
        draw = family.draw(Random(1))
        name = f"{family.name} (held out)" if family.held_out else family.name
        rows.append(f"| {name} | {family.templates[0].format(**draw.fields)} | `{draw.gold}` |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    show(table().rstrip("\n"))
