"""What an ensemble of reward models is worth: each member alone, and whether disagreement shows errors."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.reward_model.pairs import (
    Pair,
    ScoredRanking,
    by_prompt,
    by_quartile,
    cell,
    no_data,
    pairs_of,
    shares_right,
)
from evaluation.statistics import paired_difference


def ensemble(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> Mapping[str, Any]:
    """pairs: of the combined scores.

    - members: accuracy of each, and by how much the ensemble is better, paired by prompt.
    - spread: standard deviation of a response's scores over the members, the mean over responses.
    - unanimous: share of pairs that all members order alike. Each prompt counts once.
    - by_spread_of_margin: accuracy by quartiles of a pair's spread, the standard deviation over the members of its
      difference of scores.

    If disagreement tells anything, the last quartiles are the worst.
    """
    names = list(rankings[0].members)
    if len(names) < 2:
        return no_data("there is one reward model")
    combined = shares_right(pairs)
    pairs_by = {name: pairs_of(rankings, [ranking.members[name] for ranking in rankings]) for name in names}
    members = {
        name: {
            "accuracy": cell(alone, seed=seed),
            "ensemble_is_better_by": paired_difference(combined, shares_right(alone), seed=seed).as_dict(),
        }
        for name, alone in pairs_by.items()
    }
    margins = [[pair.margin for pair in alone] for alone in pairs_by.values()]
    spreads = [
        statistics.pstdev(scores) for ranking in rankings for scores in zip(*ranking.members.values(), strict=True)
    ]
    apart = np.std(np.asarray(margins), axis=0)
    signs = np.sign(margins)
    unanimous = dict(zip(pairs, (signs == signs[0]).all(axis=0).astype(float).tolist(), strict=True))
    return {
        "members": members,
        "spread": round(statistics.fmean(spreads), 6),
        "unanimous": round(statistics.fmean(by_prompt(pairs, unanimous.__getitem__)), 6),
        "by_spread_of_margin": by_quartile(pairs, apart.tolist(), seed=seed),
    }
