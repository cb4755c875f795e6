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
from evaluation.reward_model.labelers import HeldOutLabelers, held_out_labelers
from evaluation.reward_model.length import length
from evaluation.reward_model.orders import ScoredDemonstration, agreement, best_of_n, position_of
from evaluation.reward_model.pairs import Pair, ScoredRanking, accuracy, by_prompt, cell, cells_by, no_data, pairs_of
from evaluation.statistics import paired_difference

SCHEMA = 3
EXAMPLES = 5


def build(
    rankings: Sequence[ScoredRanking],
    demonstrations: Sequence[ScoredDemonstration],
    *,
    baselines: Mapping[str, Sequence[Sequence[float]] | str],
    seed: int,
    log_odds: float = 1.0,
    labelers: HeldOutLabelers | None = None,
) -> dict[str, Any]:
    """The whole report. baselines: scores of the same responses by name, or the reason why a baseline has no scores.

    log_odds: of a unit of score, for calibration; 1 unless the head was divided by a number after training.
    labelers: the rankings of held-out labelers.
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
        "held_out_labelers": held_out_labelers(rankings, labelers or HeldOutLabelers(), seed=seed),
        "ensemble": ensemble(rankings, pairs, seed=seed),
        "best_of_n": best_of_n(rankings, seed=seed),
        "demonstrations": position_of(demonstrations, rankings, seed=seed),
        "baselines": against(rankings, pairs, baselines, seed=seed),
        "examples": examples(rankings, pairs),
    }


def by_label(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> Mapping[str, Any]:
    """For each label: how often a response with it is ranked below a better one, and its mean score."""

    def of_worse(pair: Pair) -> str | None:
        labels = rankings[pair.ranking].labels
        return labels[pair.worse] if labels else None

    if not any(ranking.labels for ranking in rankings):
        return no_data("the responses have no labels")
    scores: dict[str, list[float]] = {}
    for ranking in rankings:
        for label, score in zip(ranking.labels, ranking.scores, strict=False):
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


def against(
    rankings: Sequence[ScoredRanking],
    pairs: Sequence[Pair],
    baselines: Mapping[str, Sequence[Sequence[float]] | str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Accuracy of each baseline, and how much better the model is, paired by prompt."""
    model = list(by_prompt(pairs, lambda pair: pair.right).values())
    rows: dict[str, Any] = {}
    for name, scores in baselines.items():
        if isinstance(scores, str):
            rows[name] = no_data(scores)
            continue
        theirs = pairs_of(rankings, scores)
        values = list(by_prompt(theirs, lambda pair: pair.right).values())
        rows[name] = {
            "accuracy": accuracy(theirs, seed=seed).as_dict(),
            "model_is_better_by": paired_difference(model, values, seed=seed).as_dict(),
        }
    return rows


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
        kept: dict[int, Pair] = {}
        for pair in sorted(chosen, key=lambda pair: (pair.margin, pair.ranking, pair.better, pair.worse)):
            kept.setdefault(pair.prompt, pair)
        return [shown(pair) for pair in list(kept.values())[:EXAMPLES]]

    return {
        "overconfident": first([pair for pair in pairs if pair.margin < 0]),
        "underconfident": first([pair for pair in pairs if pair.margin >= 0]),
    }
