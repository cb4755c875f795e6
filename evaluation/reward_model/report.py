"""Whether to trust a reward model: everything that its scores on held-out rankings can tell.

`build` takes rankings with scores and gives plain data for JSON. Accuracies are shares of pairs ranked right, a prompt
counting as one, with 95 % bootstrap intervals over prompts. A section without data says why under `no_data`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.stats

from evaluation.reward_model.calibration import calibration
from evaluation.reward_model.ensemble import ensemble
from evaluation.reward_model.labelers import LeftOut, between_labelers, held_out_labelers
from evaluation.reward_model.pairs import (
    Pair,
    ScoredRanking,
    accuracy,
    by_prompt,
    cell,
    cells_by,
    no_data,
    of_each_prompt,
    pairs_of,
)
from evaluation.statistics import bootstrap, clustered, paired_difference

SCHEMA = 2
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class ScoredDemonstration:
    score: float
    ranking: int | None = None
    """Index of the ranking that has the same prompt."""


def build(
    rankings: Sequence[ScoredRanking],
    demonstrations: Sequence[ScoredDemonstration],
    *,
    baselines: Mapping[str, Sequence[Sequence[float]] | str],
    seed: int,
    log_odds: float = 1.0,
    left_out: LeftOut | None = None,
) -> dict[str, Any]:
    """The whole report. baselines: scores of the same responses by name, or the reason why there are none.

    log_odds: of a unit of score, for calibration; 1 unless the head was divided by something after training. left_out:
    labelers whose rankings were not trained on.
    """
    pairs = pairs_of(rankings)
    return {
        "schema_version": SCHEMA,
        "prompts": len({one.asked for one in rankings}),
        "rankings": len(rankings),
        "responses": sum(len(one.tiers) for one in rankings),
        "pairs": len(pairs),
        "accuracy": cell(pairs, seed=seed),
        "by_gap": cells_by(pairs, lambda pair: pair.gap, seed=seed),
        "by_source": cells_by(pairs, lambda pair: rankings[pair.ranking].source or None, seed=seed)
        or no_data("the rankings name no source"),
        "by_task": cells_by(pairs, lambda pair: rankings[pair.ranking].task, seed=seed)
        or no_data("the prompts name no task"),
        "by_label": by_label(rankings, pairs, seed=seed),
        "length": length(rankings, pairs, seed=seed),
        "calibration": calibration([replace(pair, margin=log_odds * pair.margin) for pair in pairs], seed=seed),
        "agreement": agreement(rankings, pairs, seed=seed),
        "held_out_labelers": held_out_labelers(rankings, left_out or LeftOut(), seed=seed),
        "ensemble": ensemble(rankings, pairs, seed=seed),
        "best_of_n": best_of_n(rankings, seed=seed),
        "demonstrations": position_of(demonstrations, rankings, seed=seed),
        "baselines": against(rankings, pairs, baselines, seed=seed),
        "examples": examples(rankings, pairs),
    }


def by_label(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> Mapping[str, Any]:
    """For each label: how often a response that bears it is put below a better one, and its mean score."""

    def of_worse(pair: Pair) -> str | None:
        labels = rankings[pair.ranking].labels
        return labels[pair.worse] if labels else None

    if not any(one.labels for one in rankings):
        return no_data("the responses bear no labels")
    scores: dict[str, list[float]] = {}
    for one in rankings:
        for label, score in zip(one.labels, one.scores, strict=False):
            scores.setdefault(label, []).append(score)
    below = cells_by(pairs, of_worse, seed=seed)
    return {
        label: {
            "mean_score": round(statistics.fmean(scores[label]), 6),
            "responses": len(scores[label]),
            "put_below_a_better_one": below.get(label, no_data("it is nowhere the worse one")),
        }
        for label in sorted(scores)
    }


def length(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    """Whether the model likes length: correlation of score and tokens, and accuracy by who of a pair is longer."""
    edges = np.quantile([pair.longer for pair in pairs], [0.25, 0.5, 0.75])
    quartile_of = [int((pair.longer > edges).sum()) for pair in pairs]
    quartiles = []
    for number in range(4):
        inside = [pair for pair, own in zip(pairs, quartile_of, strict=True) if own == number]
        if inside:
            ends = {"least": min(pair.longer for pair in inside), "most": max(pair.longer for pair in inside)}
            quartiles.append({"quartile": number + 1, **ends, **cell(inside, seed=seed)})
    sides = {
        "better_is_shorter": [pair for pair in pairs if pair.longer < 0],
        "equally_long": [pair for pair in pairs if pair.longer == 0],
        "better_is_longer": [pair for pair in pairs if pair.longer > 0],
    }
    return {
        "correlation_with_score": correlation(rankings),
        "by_tokens_better_has_more": quartiles,
        **{name: cell(some, seed=seed) if some else no_data("no such pair") for name, some in sides.items()},
    }


def correlation(rankings: Sequence[ScoredRanking]) -> Mapping[str, Any]:
    """Pearson's, over all responses, and within prompts (scores and tokens each less their prompt's mean).

    The first also sees that some prompts have longer answers and higher scores; the second is the length bias.
    """

    def pearson(scores: Sequence[float], tokens: Sequence[float]) -> float | None:
        if np.ptp(scores) == 0 or np.ptp(tokens) == 0:
            return None
        return round(float(scipy.stats.pearsonr(scores, tokens).statistic), 6)

    scores, tokens, own_scores, own_tokens = [], [], [], []
    for one in rankings:
        scores += one.scores
        tokens += map(float, one.lengths)
        own_scores += [score - statistics.fmean(one.scores) for score in one.scores]
        own_tokens += [count - statistics.fmean(one.lengths) for count in one.lengths]
    found = {"all_responses": pearson(scores, tokens), "within_prompts": pearson(own_scores, own_tokens)}
    missing = no_data("scores or lengths are all equal")
    return {name: missing if value is None else value for name, value in found.items()}


def agreement(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    """How well whole orders agree with those given, and with each labeler's.

    kendall_tau_b: from -1 (upside down) to 1, ties on either side allowed for (Kendall 1945, The treatment of ties in
    ranking problems). top_1: how often the response with the highest score is in the best tier.
    """
    labelers = cells_by(pairs, lambda pair: rankings[pair.ranking].labeler, seed=seed)
    return {
        "kendall_tau_b": bootstrap(of_each_prompt(rankings, kendall_tau_b), seed=seed).as_dict(),
        "top_1": bootstrap(of_each_prompt(rankings, _top_1), seed=seed).as_dict(),
        "by_labeler": labelers or no_data("the prompts do not say who ranked them"),
        "between_labelers": between_labelers(rankings, seed=seed),
    }


def kendall_tau_b(one: ScoredRanking) -> float:
    """0 where all scores are equal."""
    if len(set(one.scores)) == 1:
        return 0.0
    return float(scipy.stats.kendalltau(one.scores, [-tier for tier in one.tiers], variant="b").statistic)


def _top_1(one: ScoredRanking) -> float:
    """Where several share the highest score: the share of them that is in the best tier."""
    first = [tier for tier, score in zip(one.tiers, one.scores, strict=True) if score == max(one.scores)]
    return first.count(min(one.tiers)) / len(first)


def best_of_n(rankings: Sequence[ScoredRanking], *, seed: int) -> list[dict[str, Any]]:
    """Quality of the response that scores highest among n drawn from a prompt's own, without replacement.

    Quality is the share of a prompt's other responses that are in worse tiers, one in the same tier counting half, so
    that a random response has 0.5. `best_possible` chooses by quality itself. kl: log n - (n - 1)/n nats, the most that
    best-of-n moves away from the policy that was sampled (Stiennon et al. 2020, https://arxiv.org/abs/2009.01325,
    appendix G.3; an upper bound by Beirami et al. 2024, https://arxiv.org/abs/2401.01879). Only prompts with n
    responses or more count, so that rows with another number of prompts do not compare.
    """
    rows = []
    for n in range(1, max(len(one.tiers) for one in rankings) + 1):
        enough = [one for one in rankings if len(one.tiers) >= n]
        chosen = of_each_prompt(enough, lambda one, n=n: _best_of(one.scores, quality(one), n))
        possible = of_each_prompt(enough, lambda one, n=n: _best_of(quality(one), quality(one), n))
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


def quality(one: ScoredRanking) -> list[float]:
    """Share of the other responses that each is better than; ties count half."""
    others = len(one.tiers) - 1
    return [
        (sum(tier < other for other in one.tiers) + 0.5 * (one.tiers.count(tier) - 1)) / others for tier in one.tiers
    ]


def _best_of(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of the highest score among n of K: the one with r scores below it is it in C(r, n-1) of C(K, n)
    draws. Among equal scores each is as likely, so they share their mean value."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    total = 0.0
    for below, index in enumerate(order):
        tied = [values[other] for other in order if scores[other] == scores[index]]
        total += math.comb(below, n - 1) * statistics.fmean(tied)
    return total / math.comb(len(scores), n)


def position_of(
    demonstrations: Sequence[ScoredDemonstration], rankings: Sequence[ScoredRanking], *, seed: int
) -> Mapping[str, Any]:
    """Where demonstrations stand: their scores, the share of each tier that scores below their mean, and, for prompts
    that have both, the share of the ranked responses that the demonstration beats."""
    if not demonstrations:
        return no_data("there are no demonstrations")
    scores = [one.score for one in demonstrations]
    mean = statistics.fmean(scores)
    tiers: dict[int, list[float]] = {}
    for one in rankings:
        for tier, score in zip(one.tiers, one.scores, strict=True):
            tiers.setdefault(tier, []).append(float(score < mean))
    both = [(one.score, rankings[one.ranking]) for one in demonstrations if one.ranking is not None]
    beaten = [
        statistics.fmean((score > other) + 0.5 * (score == other) for other in ranking.scores)
        for score, ranking in both
    ]
    prompts = [ranking.asked for _, ranking in both]
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


def against(
    rankings: Sequence[ScoredRanking],
    pairs: Sequence[Pair],
    baselines: Mapping[str, Sequence[Sequence[float]] | str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Accuracy of each baseline, and how much better the model is, paired by prompt."""
    model = list(by_prompt(pairs, lambda pair: pair.right).values())
    found: dict[str, Any] = {}
    for name, scores in baselines.items():
        if isinstance(scores, str):
            found[name] = no_data(scores)
            continue
        theirs = pairs_of(rankings, scores)
        values = list(by_prompt(theirs, lambda pair: pair.right).values())
        found[name] = {
            "accuracy": accuracy(theirs, seed=seed).as_dict(),
            "model_is_better_by": paired_difference(model, values, seed=seed).as_dict(),
        }
    return found


def examples(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair]) -> dict[str, list[dict[str, Any]]]:
    """Pairs to read: wrong with the largest difference, and right with the smallest; of a prompt one each at most."""

    def shown(pair: Pair) -> dict[str, Any]:
        one = rankings[pair.ranking]
        sides = {
            side: {
                "response": one.responses[index],
                "score": round(one.scores[index], 6),
                "tier": one.tiers[index],
                **({"label": one.labels[index]} if one.labels else {}),
            }
            for side, index in (("better", pair.better), ("worse", pair.worse))
        }
        return {"prompt": one.prompt, "margin": round(pair.margin, 6), **sides}

    def first(some: Sequence[Pair]) -> list[dict[str, Any]]:
        kept: dict[int, Pair] = {}
        for pair in sorted(some, key=lambda pair: (pair.margin, pair.ranking, pair.better, pair.worse)):
            kept.setdefault(pair.prompt, pair)
        return [shown(pair) for pair in list(kept.values())[:EXAMPLES]]

    return {
        "overconfident": first([pair for pair in pairs if pair.margin < 0]),
        "underconfident": first([pair for pair in pairs if pair.margin >= 0]),
    }
