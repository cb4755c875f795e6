"""Whether to trust a reward model: everything that its scores on held-out rankings can tell.

`build` takes rankings with scores and gives plain data for JSON. Accuracies are shares of pairs ranked right, a prompt
counting as one, with 95 % bootstrap intervals over prompts. A section without data says why under `no_data`.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.stats

from evaluation.reward_model.calibration import calibration
from evaluation.reward_model.orders import ScoredDemonstration, agreement, best_of_n, position_of
from evaluation.reward_model.pairs import (
    Pair,
    ScoredRanking,
    accuracy,
    by_prompt,
    by_quartile,
    cell,
    cells_by,
    no_data,
    pairs_of,
    shares_right,
)
from evaluation.statistics import grouped, paired_difference

SCHEMA = 3
EXAMPLES = 5


def build(
    rankings: Sequence[ScoredRanking],
    demonstrations: Sequence[ScoredDemonstration],
    *,
    baselines: Mapping[str, Sequence[Sequence[float]] | str],
    seed: int,
    log_odds: float = 1.0,
) -> dict[str, Any]:
    """The whole report. baselines: scores of the same responses by name, or the reason why a baseline has no scores.

    log_odds: of a unit of score, for calibration; 1 unless the head was divided by a number after training.
    """
    pairs = pairs_of(rankings)
    return {
        "schema_version": SCHEMA,
        "prompts": len({ranking.key for ranking in rankings}),
        "rankings": len(rankings),
        "responses": sum(len(ranking.tiers) for ranking in rankings),
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
        "ensemble": ensemble(rankings, pairs, seed=seed),
        "best_of_n": best_of_n(rankings, seed=seed),
        "demonstrations": position_of(demonstrations, rankings, seed=seed),
        "baselines": against(rankings, pairs, baselines, seed=seed),
        "examples": examples(rankings, pairs),
    }


def by_label(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> Mapping[str, Any]:
    """For each label: how often a response with it is ranked below a better one, and its mean score."""
    labelled = [ranking for ranking in rankings if ranking.labels]
    if not labelled:
        return no_data("the responses have no labels")
    scores = grouped(item for ranking in labelled for item in zip(ranking.labels, ranking.scores, strict=True))
    below = cells_by(
        (pair for pair in pairs if rankings[pair.ranking].labels),
        lambda pair: rankings[pair.ranking].labels[pair.worse],
        seed=seed,
    )
    return {
        label: {
            "mean_score": round(statistics.fmean(scores[label]), 6),
            "responses": len(scores[label]),
            "put_below_a_better_one": below.get(label, no_data("it is nowhere the worse one")),
        }
        for label in sorted(scores)
    }


def length(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    """Whether the model likes length: correlation of score and tokens, and accuracy by which of a pair is longer."""
    sides = {
        "better_is_shorter": [pair for pair in pairs if pair.longer < 0],
        "equally_long": [pair for pair in pairs if pair.longer == 0],
        "better_is_longer": [pair for pair in pairs if pair.longer > 0],
    }
    return {
        "correlation_with_score": correlation(rankings),
        "by_tokens_better_has_more": by_quartile(pairs, [pair.longer for pair in pairs], seed=seed),
        **{name: cell(side, seed=seed) if side else no_data("no such pair") for name, side in sides.items()},
    }


def correlation(rankings: Sequence[ScoredRanking]) -> Mapping[str, Any]:
    """Pearson's, over all responses, and within prompts (scores and tokens each minus their prompt's mean).

    The first also sees that some prompts have longer answers and higher scores; the second is the length bias.
    """

    def pearson(scores: Sequence[float], tokens: Sequence[float]) -> Any:
        if np.ptp(scores) == 0 or np.ptp(tokens) == 0:
            return no_data("scores or lengths are all equal")
        result: Any = scipy.stats.pearsonr(scores, tokens)
        return round(float(result.statistic), 6)

    scores = [score for ranking in rankings for score in ranking.scores]
    tokens = [float(count) for ranking in rankings for count in ranking.lengths]
    within_scores = [score - statistics.fmean(ranking.scores) for ranking in rankings for score in ranking.scores]
    within_tokens = [count - statistics.fmean(ranking.lengths) for ranking in rankings for count in ranking.lengths]
    return {"all_responses": pearson(scores, tokens), "within_prompts": pearson(within_scores, within_tokens)}


def ensemble(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> Mapping[str, Any]:
    """What several reward models are worth together: each alone, and whether disagreement shows errors.

    pairs: of the combined scores.

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


def against(
    rankings: Sequence[ScoredRanking],
    pairs: Sequence[Pair],
    baselines: Mapping[str, Sequence[Sequence[float]] | str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Accuracy of each baseline, and how much better the model is, paired by prompt."""
    model = shares_right(pairs)

    def row(scores: Sequence[Sequence[float]] | str) -> Mapping[str, Any]:
        if isinstance(scores, str):
            return no_data(scores)
        theirs = pairs_of(rankings, scores)
        return {
            "accuracy": accuracy(theirs, seed=seed).as_dict(),
            "model_is_better_by": paired_difference(model, shares_right(theirs), seed=seed).as_dict(),
        }

    return {name: row(scores) for name, scores in baselines.items()}


def examples(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair]) -> dict[str, list[dict[str, Any]]]:
    """Pairs to read: wrong with the largest difference, right with the smallest; at most one of each a prompt."""

    def shown(pair: Pair) -> dict[str, Any]:
        ranking = rankings[pair.ranking]
        sides = {
            side: {
                "response": ranking.responses[index],
                "score": round(ranking.scores[index], 6),
                "tier": ranking.tiers[index],
                **({"label": ranking.labels[index]} if ranking.labels else {}),
            }
            for side, index in (("better", pair.better), ("worse", pair.worse))
        }
        return {"prompt": ranking.prompt, "margin": round(pair.margin, 6), **sides}

    def first(chosen: Sequence[Pair]) -> list[dict[str, Any]]:
        in_order = sorted(chosen, key=lambda pair: (pair.margin, pair.ranking, pair.better, pair.worse))
        prompts = grouped((pair.prompt, pair) for pair in in_order)
        return [shown(pair) for pair, *_ in list(prompts.values())[:EXAMPLES]]

    return {
        "overconfident": first([pair for pair in pairs if pair.margin < 0]),
        "underconfident": first([pair for pair in pairs if pair.margin >= 0]),
    }
