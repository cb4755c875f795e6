"""What an ensemble of reward models is worth: each member alone, and whether their disagreement says where they err."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.reward_model.pairs import Pair, ScoredRanking, by_prompt, cell, no_data, pairs_of
from evaluation.statistics import paired_difference


def ensemble(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> Mapping[str, Any]:
    """pairs: of the combined scores.

    members: each one's accuracy, and by how much the ensemble is better, paired by prompt. spread: standard deviation
    over the members of a response's score, the mean over responses. of_one_mind: share of pairs that all members order
    alike, a prompt counting as one. by_spread_of_margin: accuracy by quartiles of the standard deviation over the
    members of a pair's difference of scores; where disagreement says anything, the last ones are the worst.
    """
    names = list(rankings[0].members)
    if len(names) < 2:
        return no_data("there is one reward model")
    combined = list(by_prompt(pairs, lambda pair: pair.right).values())
    members = {}
    margins: list[list[float]] = []
    for name in names:
        own = pairs_of(rankings, [one.members[name] for one in rankings])
        margins.append([pair.margin for pair in own])
        values = list(by_prompt(own, lambda pair: pair.right).values())
        members[name] = {
            "accuracy": cell(own, seed=seed),
            "ensemble_is_better_by": paired_difference(combined, values, seed=seed).as_dict(),
        }
    spreads = [statistics.pstdev(said) for one in rankings for said in zip(*one.members.values(), strict=True)]
    apart = np.std(np.asarray(margins), axis=0)
    alike = [len({(own > 0) - (own < 0) for own in said}) == 1 for said in zip(*margins, strict=True)]
    same = {id(pair): float(value) for pair, value in zip(pairs, alike, strict=True)}
    return {
        "members": members,
        "spread": round(statistics.fmean(spreads), 6),
        "of_one_mind": round(statistics.fmean(by_prompt(pairs, lambda pair: same[id(pair)]).values()), 6),
        "by_spread_of_margin": _by_quartile(pairs, apart.tolist(), seed=seed),
    }


def _by_quartile(pairs: Sequence[Pair], values: Sequence[float], *, seed: int) -> list[dict[str, Any]]:
    edges = np.quantile(values, [0.25, 0.5, 0.75])
    quartile_of = [int((value > edges).sum()) for value in values]
    rows = []
    for number in range(4):
        inside = [place for place, own in enumerate(quartile_of) if own == number]
        if inside:
            some = [values[place] for place in inside]
            ends = {"least": round(min(some), 6), "most": round(max(some), 6)}
            rows.append({"quartile": number + 1, **ends, **cell([pairs[place] for place in inside], seed=seed)})
    return rows
