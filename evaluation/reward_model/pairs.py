"""Rankings with a score for each response, and the pairs they are made of.

A pair is two responses of one prompt in different tiers. Numbers are means over prompts of the mean over a prompt's
pairs: each prompt counts once, however many responses it has and however many people ranked it. Intervals are over
prompts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, TypeVar

import numpy as np

from evaluation.statistics import Estimate, bootstrap, grouped

G = TypeVar("G", int, str)


@dataclass(frozen=True, kw_only=True)
class ScoredRanking:
    """One prompt's responses with their scores; all tuples have an entry per response."""

    prompt: str
    """Its last message, to show a person."""
    responses: tuple[str, ...]
    tiers: tuple[int, ...]
    """0 is the best; equal is tied."""
    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    """Tokens."""
    labels: tuple[str, ...] = ()
    """The flaw of each response, if the data names it; else empty."""
    source: str = ""
    task: str | None = None
    labeler: str | None = None
    """Who ranked it."""
    members: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Each reward model's own scores, by role, where several were combined."""
    conversation: str = ""
    """Everything that the responses answer, if that is more than `prompt`."""

    @property
    def key(self) -> str:
        """The same for all rankings of one prompt."""
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
    if scores is None:
        scores = [ranking.scores for ranking in rankings]
    return [
        Pair(
            ranking=index,
            prompt=first.setdefault(ranking.key, index),
            better=i,
            worse=j,
            gap=ranking.tiers[j] - ranking.tiers[i],
            margin=values[i] - values[j],
            longer=ranking.lengths[i] - ranking.lengths[j],
        )
        for index, (ranking, values) in enumerate(zip(rankings, scores, strict=True))
        for i, j in permutations(range(len(ranking.tiers)), 2)
        if ranking.tiers[i] < ranking.tiers[j]
    ]


def by_prompt(pairs: Iterable[Pair], value: Callable[[Pair], float]) -> list[float]:
    """The mean of `value` over the pairs of each prompt that has any, in the order of their first rankings."""
    groups = grouped((pair.prompt, value(pair)) for pair in pairs)
    return [math.fsum(values) / len(values) for _, values in sorted(groups.items())]


def shares_right(pairs: Iterable[Pair]) -> list[float]:
    """Of each prompt the share of pairs in which the better response scores higher."""
    return by_prompt(pairs, lambda pair: pair.right)


def of_each_prompt(rankings: Iterable[ScoredRanking], value: Callable[[ScoredRanking], float]) -> list[float]:
    """The mean of `value` over the rankings of each prompt."""
    groups = grouped((ranking.key, value(ranking)) for ranking in rankings)
    return [math.fsum(values) / len(values) for values in groups.values()]


def accuracy(pairs: Sequence[Pair], *, seed: int) -> Estimate:
    """Share of pairs in which the better response scores higher. There must be a pair."""
    return bootstrap(shares_right(pairs), seed=seed)


def cell(pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    """Accuracy of these pairs, and how many prompts and pairs it rests on."""
    prompts = len({pair.prompt for pair in pairs})
    return {**accuracy(pairs, seed=seed).as_dict(), "prompts": prompts, "pairs": len(pairs)}


def cells_by(pairs: Iterable[Pair], group: Callable[[Pair], G | None], *, seed: int) -> dict[str, dict[str, Any]]:
    """Accuracy of each group of pairs, in the groups' order. Pairs with the group None are left out."""
    groups = grouped((key, pair) for pair in pairs if (key := group(pair)) is not None)
    return {str(key): cell(groups[key], seed=seed) for key in sorted(groups)}


def by_quartile(pairs: Sequence[Pair], values: Sequence[float] | Sequence[int], *, seed: int) -> list[dict[str, Any]]:
    """Accuracy by quartiles of `values`, one a pair; each quartile with its least and greatest value."""
    quartiles = np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values).tolist()
    return [
        {
            "quartile": quartile + 1,
            "least": round(min(values[place] for place in places), 6),
            "most": round(max(values[place] for place in places), 6),
            **cell([pairs[place] for place in places], seed=seed),
        }
        for quartile, places in sorted(grouped(zip(quartiles, range(len(pairs)), strict=True)).items())
    ]


def no_data(why: str) -> Mapping[str, str]:
    """In place of a section of the report that has no data."""
    return {"no_data": why}
