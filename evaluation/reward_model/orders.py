"""How well a reward model orders the responses of a prompt as a whole: agreement, best of n, demonstrations."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.stats

from evaluation.reward_model.labelers import between_labelers
from evaluation.reward_model.pairs import Pair, ScoredRanking, cells_by, no_data, of_each_prompt
from evaluation.statistics import bootstrap, clustered, grouped


@dataclass(frozen=True, kw_only=True)
class ScoredDemonstration:
    score: float
    ranking: int | None = None
    """Index of the ranking that has the same prompt."""


def agreement(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    """How well whole orders agree with the given ones, and with each labeler's.

    kendall_tau_b: from -1 (reversed) to 1, adjusted for ties on either side (Kendall 1945, The treatment of ties in
    ranking problems). top_1: how often the response with the highest score is in the best tier.
    """
    labelers = cells_by(pairs, lambda pair: rankings[pair.ranking].labeler, seed=seed)
    return {
        "kendall_tau_b": bootstrap(of_each_prompt(rankings, kendall_tau_b), seed=seed).as_dict(),
        "top_1": bootstrap(of_each_prompt(rankings, _top_1), seed=seed).as_dict(),
        "by_labeler": labelers or no_data("the prompts do not say who ranked them"),
        "between_labelers": between_labelers(rankings, seed=seed),
    }


def kendall_tau_b(ranking: ScoredRanking) -> float:
    """0 if all scores are equal."""
    if len(set(ranking.scores)) == 1:
        return 0.0
    result: Any = scipy.stats.kendalltau(ranking.scores, [-tier for tier in ranking.tiers], variant="b")
    return float(result.statistic)


def _top_1(ranking: ScoredRanking) -> float:
    """If several share the highest score: the share of them that is in the best tier."""
    highest = max(ranking.scores)
    first = [tier for tier, score in zip(ranking.tiers, ranking.scores, strict=True) if score == highest]
    return first.count(min(ranking.tiers)) / len(first)


def best_of_n(rankings: Sequence[ScoredRanking], *, seed: int) -> list[dict[str, Any]]:
    """Quality of the response with the highest score among n that are drawn from a prompt's own, without replacement.

    Quality is the share of a prompt's other responses that are in worse tiers; a tie counts half, so a random response
    has 0.5. `best_possible` chooses by quality. kl: log n - (n - 1)/n nats, the most that best-of-n moves away
    from the sampled policy: Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, appendix G.3. It is an upper bound
    (Beirami et al. 2024, https://arxiv.org/abs/2401.01879). Only prompts with at least n responses count. Rows with
    different numbers of prompts cannot be compared.
    """
    rows = []
    for n in range(1, max(len(ranking.tiers) for ranking in rankings) + 1):
        enough = [ranking for ranking in rankings if len(ranking.tiers) >= n]
        chosen = of_each_prompt(enough, lambda ranking, n=n: _best_of(ranking.scores, quality(ranking), n))
        possible = of_each_prompt(enough, lambda ranking, n=n: _best_of(quality(ranking), quality(ranking), n))
        rows.append(
            {
                "n": n,
                **bootstrap(chosen, seed=seed).as_dict(),
                "best_possible": round(statistics.fmean(possible), 6),
                "kl": round(math.log(n) - (n - 1) / n, 6),
                "prompts": len(chosen),
            }
        )
    return rows


def quality(ranking: ScoredRanking) -> list[float]:
    """For each response the share of the others that it is better than; ties count half."""
    tiers = ranking.tiers
    return [(sum(tier < other for other in tiers) + 0.5 * (tiers.count(tier) - 1)) / (len(tiers) - 1) for tier in tiers]


def _best_of(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of the highest score among n of K: the one with r scores below it is it in C(r, n-1) of C(K, n)
    draws. Equal scores are equally likely, so they share their mean value."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    total = 0.0
    for below, index in enumerate(order):
        tied = [values[other] for other in order if scores[other] == scores[index]]
        total += math.comb(below, n - 1) * statistics.fmean(tied)
    return total / math.comb(len(scores), n)


def position_of(
    demonstrations: Sequence[ScoredDemonstration], rankings: Sequence[ScoredRanking], *, seed: int
) -> Mapping[str, Any]:
    """How demonstrations score: the share of each tier below their mean score, and the share of the ranked responses
    to the same prompt that a demonstration beats, for prompts that have both."""
    if not demonstrations:
        return no_data("there are no demonstrations")
    scores = [shown.score for shown in demonstrations]
    mean = statistics.fmean(scores)
    tiers = grouped(
        (tier, float(score < mean))
        for ranking in rankings
        for tier, score in zip(ranking.tiers, ranking.scores, strict=True)
    )
    both = [(shown.score, rankings[shown.ranking]) for shown in demonstrations if shown.ranking is not None]
    beaten = [
        statistics.fmean((score > other) + 0.5 * (score == other) for other in ranking.scores)
        for score, ranking in both
    ]
    prompts = [ranking.key for _, ranking in both]
    return {
        "count": len(scores),
        "mean_score": round(mean, 6),
        "standard_deviation": round(statistics.pstdev(scores), 6),
        "share_of_tier_below_their_mean": {
            str(tier): round(statistics.fmean(tiers[tier]), 6) for tier in sorted(tiers)
        },
        "beats_ranked_responses_of_its_prompt": {
            **clustered(beaten, prompts, seed=seed).as_dict(),
            "prompts": len(set(prompts)),
        }
        if beaten
        else no_data("no prompt has both a demonstration and a ranking"),
    }
