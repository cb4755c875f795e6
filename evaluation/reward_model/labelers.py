"""Labelers: those a reward model has learned from, those it has not, and how far they agree with one another."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from data.select.labelers import LabelersSection
from evaluation.reward_model.pairs import ScoredRanking, cell, no_data, pairs_of
from evaluation.statistics import bootstrap


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What the held-out labelers are judged on besides the report's own rankings."""

    section: LabelersSection = field(default_factory=LabelersSection)
    rankings: Sequence[ScoredRanking] = ()
    """Of held-out labelers, out of the data that the others' rankings were trained on."""
    trained_prompts: Collection[str] = frozenset()
    """Prompts that were trained on, as `ScoredRanking.asked` has them."""


def held_out_labelers(rankings: Sequence[ScoredRanking], left_out: LeftOut, *, seed: int) -> Mapping[str, Any]:
    """Accuracy on rankings of labelers who were trained on, and of those who were not. Prompts that were trained on
    (with somebody else's ranking) do not count, for either side."""
    section = left_out.section
    if section.folds is None:
        return no_data("the recipe holds no labelers out (labelers.folds)")
    everything = [*rankings, *left_out.rankings]
    fresh = [one for one in everything if one.asked not in left_out.trained_prompts]
    theirs = [one for one in fresh if section.holds_out(one.labeler)]
    others = [one for one in fresh if one.labeler is not None and not section.holds_out(one.labeler)]
    pairs = pairs_of(theirs)
    return {
        "folds": section.folds,
        "held_out": section.held_out,
        "labelers": sorted({one.labeler for one in everything if one.labeler and section.holds_out(one.labeler)}),
        "not_trained_on": cell(pairs, seed=seed)
        if pairs
        else no_data("no ranking of a held-out labeler has a prompt that was not trained on"),
        "trained_on": cell(pairs_of(others), seed=seed)
        if others
        else no_data("the held-out rankings are of no labeler who was trained on"),
        "rankings_of_trained_prompts": len(everything) - len(fresh),
    }


def between_labelers(rankings: Sequence[ScoredRanking], *, seed: int) -> Mapping[str, Any]:
    """How often two labelers order a pair of responses alike, where both order it: what no model can much exceed.

    Over prompts of the mean over their pairs of labelers (InstructGPT, section 3.4: 72.6 %); a prompt of which several
    sets of responses were ranked is one.
    """
    groups: dict[tuple[str, frozenset[str]], list[ScoredRanking]] = {}
    for one in rankings:
        if one.labeler is not None:
            groups.setdefault((one.asked, frozenset(one.responses)), []).append(one)
    by_prompt: dict[str, list[float]] = {}
    for (prompt, _), group in groups.items():
        found = [
            share
            for one, other in combinations(group, 2)
            if one.labeler != other.labeler and (share := _agreement(one, other)) is not None
        ]
        if found:
            by_prompt.setdefault(prompt, []).append(statistics.fmean(found))
    if not by_prompt:
        return no_data("no two labelers ranked the same responses to a prompt")
    shares = [statistics.fmean(some) for some in by_prompt.values()]
    return {**bootstrap(shares, seed=seed).as_dict(), "prompts": len(shares)}


def _agreement(one: ScoredRanking, other: ScoredRanking) -> float | None:
    """Share of the pairs that both order, and order alike; None where there is no such pair."""
    theirs = dict(zip(other.responses, other.tiers, strict=True))
    alike = []
    for i, j in combinations(range(len(one.tiers)), 2):
        mine, yours = one.tiers[i] - one.tiers[j], theirs[one.responses[i]] - theirs[one.responses[j]]
        if mine and yours:
            alike.append(float((mine > 0) == (yours > 0)))
    return statistics.fmean(alike) if alike else None
