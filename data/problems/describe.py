"""The table of families for docs/verifiable.md: `python -m data.problems.describe`."""

from data.problems.generate import FAMILIES
from data.tasks.describe import table
from onebase.terminal import show


def problems() -> str:
    return table(FAMILIES.values(), "problem", "solution")


if __name__ == "__main__":
    show(problems().rstrip("\n"))
