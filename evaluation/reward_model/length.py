"""Whether a reward model likes length."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from evaluation.reward_model.pairs import Pair, ScoredRanking, by_quartile, cell, no_data


def length(rankings: Sequence[ScoredRanking], pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    """Correlation of score and tokens, and accuracy by which response of a pair is longer."""
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
    """Pearson's, over all responses, and within prompts (scores and tokens each less their prompt's mean).

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
