"""Where each measured number of the documents comes from, and whether they still say what was measured.

    python benchmarks/claims.py            lists every measured number with its home; exit code 1 where one has none
    python benchmarks/claims.py --write    makes the tables and pictures anew before that

A home is a file in docs/results/data: values, and the command, commits, machine and seeds that gave them. A comment
right under a paragraph, table or picture names it:

    <!-- claims demo/models/all/*/{sft,ppo}/form; demo/costs/0 -->    the paragraph's measured numbers, in their order
    <!-- claims table demo/greedy -->      a table, made from `tables` of demo.json
    <!-- claims runs demo -->                 a table of the runs: seeds, commits, machine
    <!-- claims picture frontier -->          a picture, drawn from values of frontier.json

In a path `*` is any key; a path that ends above numbers stands for all below it. A number is measured if it has a
decimal point, or stands before a unit (%, s, minutes, GiB, times ...), alone or in a list. `Code`, links, versions and
the 95 % of an interval are not: a setting is written as code.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from homes import Home, markdown, shown
from pydantic import ValidationError

DATA = Path("docs/results/data")
DOCUMENTS = ("README.md", "docs/performance.md", "docs/reliability.md", "docs/results*.md", "docs/results/**/*.md")
VERSIONED = "trl|Python|torch|transformers|peft|accelerate|datasets|bitsandbytes|CUDA|vLLM|version"
PLAIN = re.compile(
    rf"`[^`]*`|\]\([^)]*\)|https?://\S+|<!--.*?-->|95\s%|(?i:\b(?:{VERSIONED})(?:'s)?)\s\d+(?:\.\d+)+", re.DOTALL
)
"""What holds no measured number."""

UNIT = r"(?:\s?(?:%|(?:s|seconds?|ms|milliseconds|minutes?|h|hours?|[GMK]iB|MB|times|nats?)\b)|x\b)"
ONE = rf"(?<![\w.+-])[-+]?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?(?:(?={UNIT})|(?!\.?\w))"
NUMBER = re.compile(rf"(?P<mean>{ONE})(?:\s\[(?P<low>{ONE}),\s(?P<high>{ONE})\])?(?P<unit>(?=\]?{UNIT}))?")
LIST = re.compile(r",?\s(?:and\s|to\s|or\s)?")
"""Between the numbers of a list."""


@dataclass(frozen=True)
class Block:
    """A paragraph, table or picture: lines [start, end) of a document, and what the comment under it says."""

    start: int
    end: int
    marker: str | None


def blocks(lines: list[str]) -> Iterator[Block]:
    """What stands between empty lines, comments of ours and code."""
    start, place, fenced = 0, 0, False
    while place < len(lines):
        text = lines[place].strip()
        fenced ^= text.startswith("```")
        code = fenced or text.startswith("```") or (start == place and lines[place].startswith("    "))
        if text.startswith("<!-- claims ") and not code:
            end = place
            while "-->" not in lines[place] and place + 1 < len(lines):
                place += 1
            comment = " ".join(line.strip() for line in lines[end : place + 1])
            yield Block(start, end, comment.removeprefix("<!-- claims ").removesuffix("-->").strip())
            start = place + 1
        elif code or not text:
            yield Block(start, place, None)
            start = place + 1
        place += 1
    yield Block(start, len(lines), None)


@dataclass(frozen=True)
class Place:
    document: Path
    line: int

    def below(self, lines: int) -> "Place":
        return Place(self.document, self.line + lines)

    def __str__(self) -> str:
        return f"{self.document}:{self.line + 1}"


def measured(text: str) -> list[re.Match[str]]:
    """The measured numbers of a text, an interval together with its mean."""
    plain = PLAIN.sub(lambda match: re.sub(r"[^\n]", "~", match[0]), text)
    numbers, after, united = list[re.Match[str]](), len(plain), False
    for match in reversed(list(NUMBER.finditer(plain))):
        listed = LIST.fullmatch(plain, match.end(), after) is not None
        united = match["unit"] is not None or (listed and united)
        if united or "." in match[0] or match["low"] is not None:
            numbers.append(match)
        after = match.start()
    return numbers[::-1]


class Documents:
    """The documents of a tree with their homes; a line in `problems` for whatever is wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems = list[str]()
        self.homes = dict[str, Home]()
        self.listed = dict[str, list[str]]()
        """By home its figures: where each stands, what is said there, and its path."""

    def home(self, name: str) -> Home:
        if name not in self.homes:
            path = DATA / f"{name}.json"
            try:
                self.homes[name] = Home.parse((self.root / path).read_text("utf-8"))
            except FileNotFoundError:
                raise LookupError(f"its home is missing: {path}") from None
            except (json.JSONDecodeError, ValidationError) as error:
                raise LookupError(f"its home {path} cannot be read: {error}") from error
            self.listed[name] = []
        return self.homes[name]

    def check(self, *, write: bool) -> None:
        for path in sorted({path for pattern in DOCUMENTS for path in self.root.glob(pattern)}):
            lines = path.read_text("utf-8").splitlines()
            for block in reversed(list(blocks(lines))):  # from the end: --write moves what is below
                place = Place(path.relative_to(self.root), block.start)
                try:
                    self._block(lines, block, place, write=write)
                except LookupError as error:
                    self.problems.append(f"{place}: {error.args[0]}")
            if write:
                path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _block(self, lines: list[str], block: Block, place: Place, *, write: bool) -> None:
        kind, _, rest = (block.marker or "").partition(" ")
        if kind in ("table", "runs"):
            start = block.end
            while start > block.start and lines[start - 1].startswith("|"):
                start -= 1
            self._prose(lines[block.start : start], None, place)
            lines[start : block.end] = self._table(
                lines[start : block.end], rest, place.below(start - block.start), write=write
            )
            return
        text = lines[block.start : block.end]
        if kind == "picture":
            self._prose(text, None, place)
            self._picture("\n".join(text), rest, place, write=write)
        else:
            self._prose(text, block.marker, place)

    def _table(self, old: list[str], rest: str, place: Place, *, write: bool) -> list[str]:
        """The lines of a table as they should be."""
        name, _, table = rest.partition("/")
        rows = self.home(name).render(table) if table else self.home(name).render_runs()
        new = markdown(rows)
        for number, (here, there) in enumerate(zip_longest(old, new, fillvalue="nothing")):
            if here != there and not write:
                self.problems.append(f"{place.below(number)}: {here}\n    but {name}.json has: {there}")
                break
        for number, row in enumerate(rows):
            self.listed[name] += [f"{place.below(number)}: {cell}  {origin}" for cell, origin in row if origin]
        return new if write else old

    def _picture(self, text: str, name: str, place: Place, *, write: bool) -> None:
        target = re.search(r"\]\(([^)]+\.svg)\)", text)
        if target is None:
            raise LookupError("there is no SVG picture over this comment")
        picture, home = self.root / place.document.parent / target[1], self.home(name)
        if write:
            draw(name, home, picture)
        if digest(home) not in picture.read_text("utf-8"):
            raise LookupError(f"{target[1]} was not drawn from what {name}.json has now")
        self.listed[name].append(f"{place}: {target[1]}")

    def _prose(self, lines: list[str], marker: str | None, place: Place) -> None:
        text, held = "\n".join(lines), list(self._held(marker or ""))
        for match, known in zip_longest(measured(text), held):
            if match is None:
                raise LookupError(f"the comment under it names {known[1]} of {known[0]}.json, which is not in the text")
            here, words = place.below(text.count("\n", 0, match.start())), " ".join(match[0].split())
            if known is None:
                self.problems.append(f"{here}: {words} is a measured number without a home")
                return
            name, origin, value = known
            if not agrees(match, value):
                self.problems.append(f"{here}: {words}, but {name}.json has {shown(value)} at {origin}")
                return
            self.listed[name].append(f"{here}: {words}  {origin}")

    def _held(self, marker: str) -> Iterator[tuple[str, str, Any]]:
        """Home, path and value of each number that a comment names."""
        for pattern in filter(None, (part.strip() for part in marker.split(";"))):
            name, _, inside = pattern.partition("/")
            matches = list(self.home(name).find(inside))
            if not matches:
                raise LookupError(f"there is nothing at {inside} of {name}.json")
            for path, value in matches:
                yield from ((name, origin, number) for origin, number in _numbers("/".join(path), value))


def _numbers(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value, or all below it; words are left out."""
    if isinstance(value, dict) and "low" not in value:
        for key, below in cast("dict[str, Any]", value).items():
            yield from _numbers(f"{path}/{key}".removeprefix("/"), below)
    elif isinstance(value, list):
        for place, below in enumerate(cast("list[Any]", value)):
            yield from _numbers(f"{path}/{place}", below)
    elif not isinstance(value, str):
        yield path, value


def agrees(match: re.Match[str], held: Any) -> bool:
    """Whether the text has the value of a home, rounded or to the last digit; an interval needs all three numbers."""
    if isinstance(held, dict):
        known = cast("dict[str, Any]", held)
        pairs = [(match["mean"], known.get("mean", known.get("median")))]
        if match["low"] is not None:
            pairs += [(match["low"], known["low"]), (match["high"], known["high"])]
        return all(_same(text, value) for text, value in pairs)
    return match["low"] is None and _same(match["mean"], held)


def _same(text: str, held: Any) -> bool:
    number, known = Decimal(text.replace(",", "")), Decimal(str(held))
    digits, had = number.as_tuple().exponent, known.as_tuple().exponent
    assert isinstance(digits, int) and isinstance(had, int)  # neither is a NaN
    # Both are rounded: half a unit of the last digit of each. Equal digits therefore mean equal numbers.
    return digits >= had and abs(number - known) < (Decimal(10) ** digits + Decimal(10) ** had) / 2


def digest(home: Home) -> str:
    return hashlib.sha256(json.dumps(home.values, default=float).encode()).hexdigest()


def draw(name: str, home: Home, target: Path) -> None:
    """The digest of its values goes into the picture."""
    import pictures

    pictures.draw(name, home, target)
    target.write_text(f"{target.read_text('utf-8')}<!-- values {digest(home)} -->\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the tree that is checked")
    parser.add_argument("--write", action="store_true", help="make tables and pictures from their homes")
    parser.add_argument("--quiet", action="store_true", help="list nothing")
    options = parser.parse_args(words)
    documents = Documents(options.root)
    documents.check(write=options.write)
    for name, home in sorted(documents.homes.items()) if not options.quiet else ():
        origin = f", transcribed from {home.transcribed}" if home.transcribed else ""
        print(
            f"{DATA / name}.json{origin}", *home.command, *home.runs, *documents.listed[name], sep="\n    ", end="\n\n"
        )
    print(*documents.problems, sep="\n", end="\n" if documents.problems else "", file=sys.stderr)
    count = sum(map(len, documents.listed.values()))
    print(f"{count} measured numbers and intervals with a home, {len(documents.problems)} problems")
    return bool(documents.problems)


if __name__ == "__main__":
    sys.exit(main())
