"""Labelers: those a reward model has learned from, those it has not, and how far they agree with one another."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from data.select.labelers import LabelersSection
from evaluation.reward_model.pairs import ScoredRanking, cell, no_data, pairs_of
from evaluation.statistics import bootstrap, grouped


def held_out_labelers(
    rankings: Sequence[ScoredRanking], section: LabelersSection, *, trained_prompts: Collection[str], seed: int
) -> Mapping[str, Any]:
    """Accuracy on rankings of labelers who were trained on, and of those who were not. Prompts that were trained on
    (with somebody else's ranking) do not count, for either side.

    rankings: the report's own, and those of held-out labelers from the data of which the other labelers' rankings were
    trained on. trained_prompts: by `ScoredRanking.key`.
    """
    if section.folds is None:
        return no_data("the recipe holds out no labelers (labelers.folds)")
    fresh = [ranking for ranking in rankings if ranking.key not in trained_prompts]
    theirs = [ranking for ranking in fresh if section.holds_out(ranking.labeler)]
    others = [ranking for ranking in fresh if ranking.labeler is not None and not section.holds_out(ranking.labeler)]
    pairs = pairs_of(theirs)
    return {
        "folds": section.folds,
        "held_out": section.held_out,
        "labelers": sorted(
            {ranking.labeler for ranking in rankings if ranking.labeler and section.holds_out(ranking.labeler)}
        ),
        "not_trained_on": cell(pairs, seed=seed)
        if pairs
        else no_data("no ranking of a held-out labeler has a prompt that was not trained on"),
        "trained_on": cell(pairs_of(others), seed=seed)
        if others
        else no_data("the held-out rankings are of no labeler who was trained on"),
        "rankings_of_trained_prompts": len(rankings) - len(fresh),
    }


def between_labelers(rankings: Sequence[ScoredRanking], *, seed: int) -> Mapping[str, Any]:
    """How often two labelers who both order a pair of responses order it alike: a model can hardly do better.

    The mean over prompts of the mean over a prompt's pairs of labelers (InstructGPT, section 3.4: 72.6 %). A prompt
    counts once, even if several sets of responses to it were ranked.
    """
    groups = grouped(
        ((ranking.key, frozenset(ranking.responses)), ranking) for ranking in rankings if ranking.labeler is not None
    )
    by_prompt = grouped(
        (prompt, statistics.fmean(shares)) for (prompt, _), group in groups.items() if (shares := _agreements(group))
    )
    if not by_prompt:
        return no_data("no two labelers ranked the same responses to a prompt")
    means = [statistics.fmean(shares) for shares in by_prompt.values()]
    return {**bootstrap(means, seed=seed).as_dict(), "prompts": len(means)}


def _agreements(group: Sequence[ScoredRanking]) -> list[float]:
    """Of each two labelers of the same responses."""
    pairs = ((first, second) for first, second in combinations(group, 2) if first.labeler != second.labeler)
    return [share for first, second in pairs if (share := _agreement(first, second)) is not None]


def _agreement(first: ScoredRanking, second: ScoredRanking) -> float | None:
    """Of the pairs that both order, the share that they order alike; None if both order none."""
    tiers = dict(zip(second.responses, second.tiers, strict=True))
    alike = []
    for i, j in combinations(range(len(first.tiers)), 2):
        gap, other_gap = first.tiers[i] - first.tiers[j], tiers[first.responses[i]] - tiers[first.responses[j]]
        if gap and other_gap:
            alike.append(float((gap > 0) == (other_gap > 0)))
    return statistics.fmean(alike) if alike else None
