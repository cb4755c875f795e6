"""Rankings with a score for each response, and the pairs they are made of.

A pair is two responses of one prompt in different tiers. Numbers are means over prompts of the mean over a prompt's
pairs: a prompt with nine responses counts as much as one with two, and so does one that several people ranked.
Intervals are over prompts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from evaluation.statistics import Estimate, bootstrap

G = TypeVar("G", int, str)


@dataclass(frozen=True, kw_only=True)
class ScoredRanking:
    """One prompt's responses with their scores; all tuples have an entry a response."""

    prompt: str
    """Its last message, to show a person."""
    responses: tuple[str, ...]
    tiers: tuple[int, ...]
    """0 is the best; equal is tied."""
    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    """Tokens."""
    labels: tuple[str, ...] = ()
    """What is wrong with each response, where the data says so; else empty."""
    source: str = ""
    task: str | None = None
    labeler: str | None = None
    """Who ranked it."""
    members: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Each reward model's own scores, by role, where several were combined."""
    conversation: str = ""
    """Everything that the responses answer, where that is more than `prompt`."""

    @property
    def asked(self) -> str:
        """What makes two rankings those of one prompt."""
        return self.conversation or self.prompt

    def __post_init__(self) -> None:
        sizes = {len(self.responses), len(self.tiers), len(self.scores), len(self.lengths)}
        assert len(sizes) == 1, f"one tier, score and length a response: {sizes}"
        assert all(map(math.isfinite, self.scores)), f"scores are finite: {self.scores}"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two responses of a ranking in different tiers."""

    ranking: int
    """Index of the ranking it comes from."""
    prompt: int
    """Index of the first ranking of the same prompt."""
    better: int
    worse: int
    gap: int
    """Tiers between the two; at least 1."""
    margin: float
    """Score of the better minus score of the worse."""
    longer: int
    """Tokens that the better has more than the worse."""

    @property
    def right(self) -> float:
        """Whether the better scores higher; equal scores count half."""
        return 1.0 if self.margin > 0 else 0.5 if self.margin == 0 else 0.0


def pairs_of(rankings: Sequence[ScoredRanking], scores: Sequence[Sequence[float]] | None = None) -> list[Pair]:
    """All pairs of all rankings. scores: in place of the rankings' own, such as those of a baseline."""
    first: dict[str, int] = {}
    return [
        Pair(
            ranking=index,
            prompt=first.setdefault(one.asked, index),
            better=i,
            worse=j,
            gap=one.tiers[j] - one.tiers[i],
            margin=own[i] - own[j],
            longer=one.lengths[i] - one.lengths[j],
        )
        for index, (one, own) in enumerate(
            zip(rankings, [one.scores for one in rankings] if scores is None else scores, strict=True)
        )
        for i in range(len(one.tiers))
        for j in range(len(one.tiers))
        if one.tiers[i] < one.tiers[j]
    ]


def by_prompt(pairs: Iterable[Pair], value: Callable[[Pair], float]) -> dict[int, float]:
    """The mean of `value` over the pairs of each prompt that has any, by the index of its first ranking."""
    found: dict[int, list[float]] = {}
    for pair in pairs:
        found.setdefault(pair.prompt, []).append(value(pair))
    return {index: math.fsum(values) / len(values) for index, values in sorted(found.items())}


def of_each_prompt(rankings: Iterable[ScoredRanking], value: Callable[[ScoredRanking], float]) -> list[float]:
    """The mean of `value` over the rankings of each prompt."""
    found: dict[str, list[float]] = {}
    for one in rankings:
        found.setdefault(one.asked, []).append(value(one))
    return [math.fsum(values) / len(values) for values in found.values()]


def accuracy(pairs: Sequence[Pair], *, seed: int) -> Estimate:
    """Share of pairs whose better response scores higher (there must be one pair at least)."""
    return bootstrap(list(by_prompt(pairs, lambda pair: pair.right).values()), seed=seed)


def cell(pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    """Accuracy of some of the pairs with what it rests on."""
    prompts = len({pair.prompt for pair in pairs})
    return {**accuracy(pairs, seed=seed).as_dict(), "prompts": prompts, "pairs": len(pairs)}


def cells_by(pairs: Iterable[Pair], group: Callable[[Pair], G | None], *, seed: int) -> dict[str, dict[str, Any]]:
    """Accuracy of each group of pairs, in the groups' order; pairs whose group is None are left out."""
    groups: dict[G, list[Pair]] = {}
    for pair in pairs:
        key = group(pair)
        if key is not None:
            groups.setdefault(key, []).append(pair)
    return {str(key): cell(groups[key], seed=seed) for key in sorted(groups)}


def no_data(why: str) -> Mapping[str, str]:
    """What stands in the place of a section that nothing is known for."""
    return {"no_data": why}
