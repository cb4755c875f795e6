"""Whether to trust a reward model: everything that its scores on held-out rankings can tell.

`build` takes rankings with scores and gives plain data for JSON. Accuracies are shares of pairs ranked right, a prompt
counting as one, with 95 % bootstrap intervals over prompts. A section without data says why under `no_data`.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluation.reward_model.calibration import calibration
from evaluation.reward_model.ensemble import ensemble
from evaluation.reward_model.length import length
from evaluation.reward_model.orders import ScoredDemonstration, agreement, best_of_n, position_of
from evaluation.reward_model.pairs import (
    Pair,
    ScoredRanking,
    accuracy,
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
    known = [pair for pair in pairs if rankings[pair.ranking].labels]
    below = cells_by(known, lambda pair: rankings[pair.ranking].labels[pair.worse], seed=seed)
    return {
        label: {
            "mean_score": round(statistics.fmean(scores[label]), 6),
            "responses": len(scores[label]),
            "put_below_a_better_one": below.get(label, no_data("it is nowhere the worse one")),
        }
        for label in sorted(scores)
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
        by_prompt = grouped((pair.prompt, pair) for pair in in_order)
        return [shown(pair) for pair, *_ in list(by_prompt.values())[:EXAMPLES]]

    return {
        "overconfident": first([pair for pair in pairs if pair.margin < 0]),
        "underconfident": first([pair for pair in pairs if pair.margin >= 0]),
    }
