"""Homes of figures: the files of docs/results/data, and the tables that are made from them."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

Cell = tuple[str, str]
"""What it shows, and the path that it is from, if any."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(Strict):
    seeds: list[int]
    commit: str | None
    """None: the document that the figures were transcribed from does not tell it."""
    machine: str

    def __str__(self) -> str:
        return f"seeds {shown(self.seeds) or 'none'}; commit {self.commit or 'not told'}; {self.machine}"


class Table(Strict):
    rows: list[str]
    """Paths into `values`; each that is found is a row."""
    columns: dict[str, str]
    """By heading (one that ends with a colon is aligned right) a path from the row on, or @N: key N of the row's path.

    Behind | the format of its numbers; a sign in it makes an interval without 0 bold.
    """


class Home(Strict):
    """A file of docs/results/data."""

    command: list[str]
    runs: list[Run]
    transcribed: str | None = None
    """From which document, where no run wrote this file."""
    values: dict[str, Any]
    tables: dict[str, Table] = {}

    @classmethod
    def parse(cls, text: str) -> "Home":
        # Decimals remember how many digits were written.
        return cls.model_validate(json.loads(text, parse_float=Decimal))

    def find(self, pattern: str) -> Iterator[tuple[tuple[str, ...], Any]]:
        """What a path stands for, in the order of the pattern and then of the file."""
        pieces = re.split(r"[{}]", pattern)
        for chosen in product(*(piece.split(",") if n % 2 else [piece] for n, piece in enumerate(pieces))):
            path = "".join(chosen)
            yield from _walk(self.values, path.split("/") if path else [], ())

    def render(self, name: str) -> list[list[Cell]]:
        """A table, head and rule first; columns without a value are left out."""
        if name not in self.tables:
            raise LookupError(f"it has no table {name!r}, only {sorted(self.tables)}")
        table = self.tables[name]
        columns, matches = table.columns, [row for pattern in table.rows for row in self.find(pattern)]
        rows = [[_cell(path, row, spec) for spec in columns.values()] for path, row in matches]
        shown_ones = [place for place in range(len(columns)) if any(row[place][0] for row in rows)]
        head = [(heading.removesuffix(":"), "") for heading in columns]
        rule = [("---:" if heading.endswith(":") else "---", "") for heading in columns]
        return [[row[place] for place in shown_ones] for row in (head, rule, *rows)]

    def render_runs(self) -> list[list[Cell]]:
        rows = [["seeds", "commit", "machine"], ["---"] * 3]
        rows += [[shown(run.seeds), run.commit or "not told", run.machine] for run in self.runs]
        return [[(cell, "") for cell in row] for row in rows]

    def dump(self) -> str:
        """Six decimals of every number, and one line for each row of estimates."""
        return _compact(_rounded(self.model_dump(exclude_defaults=True))) + "\n"


def _walk(value: Any, keys: list[str], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not keys:
        yield path, value
    elif isinstance(value, dict):
        for key, below in cast("dict[str, Any]", value).items():
            if fnmatchcase(key, keys[0]):
                yield from _walk(below, keys[1:], (*path, key))


def _cell(path: tuple[str, ...], row: Any, spec: str) -> tuple[str, str]:
    place, _, form = spec.partition("|")
    if place.startswith("@"):
        return path[int(place[1:])], ""
    values = [value for _, value in _walk(row, place.split("/"), ())]
    return (shown(values[0], form), "/".join((*path, place))) if values else ("", "")


def shown(value: Any, form: str = "") -> str:
    """A value as in a table: an estimate with its interval, of a ratio its range; lists and named values by commas."""
    if isinstance(value, dict):
        known = cast("dict[str, Any]", value)
        if "low" not in known:
            return ", ".join(f"{name} {shown(part, form)}" for name, part in known.items())
        low, high = shown(known["low"], form), shown(known["high"], form)
        if "median" in known:
            return f"{shown(known['median'], form)} ({low} to {high})"
        text = f"{shown(known['mean'], form)} [{low}, {high}]"
        # Where a document had it in bold, whose bound is 0 by rounding alone.
        excludes_0 = known.get("excludes_0", known["low"] > 0 or known["high"] < 0)
        return f"**{text}**" if "+" in form and excludes_0 else text
    if isinstance(value, list):
        return ", ".join(shown(part, form) for part in cast("list[Any]", value))
    return value if isinstance(value, str) else format(value, form)


def markdown(rows: list[list[Cell]]) -> list[str]:
    lines = [f"| {' | '.join(cell for cell, _ in row)} |" for row in rows]
    return [line.replace(" ", "") if place == 1 else line for place, line in enumerate(lines)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in cast("dict[str, Any]", value).items()}
    return round(float(value), 6) if isinstance(value, float | Decimal) else value


def _compact(value: Any, indent: str = "") -> str:
    """JSON with a line for each row of estimates."""
    if _depth(value) <= 2:
        return json.dumps(value, ensure_ascii=False)
    inside = [
        f"{indent}  {json.dumps(key, ensure_ascii=False)}: {_compact(part, indent + '  ')}"
        for key, part in value.items()
    ]
    return "{\n" + ",\n".join(inside) + f"\n{indent}}}"


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, cast("dict[str, Any]", value).values()), default=0) if isinstance(value, dict) else 0
