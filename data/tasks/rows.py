"""Rows of a generated source: row i of a split depends on the seed, the split and i alone.

Splits that are trained on share families and templates with `heldout-prompts`. A hash of the prompt's text decides
its split, so no prompt is in two. `heldout-templates` has the same tasks in words that are never trained on,
`heldout-families` has other tasks. `heldout` has rows of several of these in turn.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random

from data.records import Message, Origin, Prompt
from data.splits import split_of
from data.tasks import answers
from data.tasks.family import Draw, Family
from data.tasks.sizes import tokens
from onebase.seeding import stream

_TRIES = 1000
"""Inputs drawn before the search for a split ends in an error; one in ten fits the rarest split."""


@dataclass(frozen=True)
class Task:
    """A prompt with what is known about it beyond its record."""

    prompt: Prompt
    draw: Draw


@dataclass(frozen=True, kw_only=True)
class Rows:
    """All rows of one source."""

    name: str
    """Behind `builtin:`."""
    trained: Sequence[Family]
    held_out: Sequence[Family]
    shares: Mapping[str, float]
    """Of all prompts with trained families and templates, by hash: one share for each split of them."""
    heldout: Sequence[str]
    """Splits that `heldout` takes its rows from, in turn."""
    prompt_tokens: int
    """Most tokens of a user message, by estimate."""
    gold_tokens: int
    """Most tokens of a gold answer."""

    @property
    def splits(self) -> tuple[str, ...]:
        return (*self.shares, "heldout-templates", "heldout-families", "heldout")

    def task(self, split: str, index: int, seed: int) -> Task:
        """Row `index` of a split."""
        if split == "heldout":
            count = len(self.heldout)
            return self.task(self.heldout[index % count], index // count, seed)
        assert split in self.splits, f"no split {split}"
        random = Random(stream(seed, self.name, split, index))
        family = self._family(split, index, seed)
        for _ in range(_TRIES):
            draw = family.draw(random)
            drawn = Task(self._prompt(family, _template(family, split, random), draw, split, index), draw)
            if tokens(drawn.prompt.user_text) > self.prompt_tokens or tokens(draw.gold) > self.gold_tokens:
                continue
            if split not in self.shares or split_of(drawn.prompt, self.shares) == split:
                return drawn
        raise AssertionError(f"family {family.name} yields no prompt for split {split}")

    def _family(self, split: str, index: int, seed: int) -> Family:
        """Every family once before any comes again, in a new order each time."""
        families = self.held_out if split == "heldout-families" else self.trained
        turn, place = divmod(index, len(families))
        return Random(stream(seed, "families", split, turn)).sample(families, len(families))[place]

    def _prompt(self, family: Family, template: int, draw: Draw, split: str, index: int) -> Prompt:
        message = Message("user", family.templates[template].format(**draw.fields))
        checks = {"answer": answers.to_json(draw.answer), "form": asdict(draw.form)}
        # As JSON stores it, with lists for tuples: a row that is written and read back is the same.
        meta = json.loads(json.dumps({"family": family.name, "template": template, "gold": draw.gold, **checks}))
        return Prompt((message,), Origin(f"builtin:{self.name}/{split}", index + 1), meta)


def _template(family: Family, split: str, random: Random) -> int:
    last = len(family.templates) - 1
    if split == "heldout-templates":
        return last
    return random.randrange(last + 1 if family.held_out else last)
