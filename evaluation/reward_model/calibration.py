"""Whether score differences are calibrated: sigmoid(s_w - s_l) is the probability that w is the better one.

The model guesses that the response with the higher score is the better one. Its confidence is sigmoid(|difference|),
from 0.5 (it does not know) to 1. Calibrated means: of the guesses made with confidence 0.8, eight in ten are right.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from evaluation.reward_model.pairs import Pair, by_prompt
from evaluation.statistics import bootstrap

BINS = 10
"""Of equal width, from 0.5 to 1."""


def confidence(pair: Pair) -> float:
    return 1.0 / (1.0 + math.exp(-abs(pair.margin)))


def log_loss(pair: Pair) -> float:
    """- log sigmoid(margin), without overflow: log(1 + e^-m) for m >= 0, -m + log(1 + e^m) below."""
    return max(-pair.margin, 0.0) + math.log1p(math.exp(-abs(pair.margin)))


def calibration(pairs: Sequence[Pair], *, seed: int) -> dict[str, Any]:
    """Reliability bins, expected calibration error and log loss. Each prompt counts once, shared by its pairs.

        ECE = sum over bins of share * |accuracy - mean confidence|

    Guo et al. 2017, On calibration of modern neural networks, https://arxiv.org/abs/1706.04599, eq. 3. A model that
    knows nothing (all scores equal) has a log loss of log 2 = 0.693.
    """
    sizes = Counter(pair.prompt for pair in pairs)
    weights = [1.0 / (sizes[pair.prompt] * len(sizes)) for pair in pairs]
    bins = [_bin(pairs, weights, number) for number in range(BINS)]
    filled = [interval for interval in bins if interval["pairs"]]
    error = math.fsum(known["share"] * abs(known["accuracy"] - known["confidence"]) for known in filled)
    over = math.fsum(known["share"] * (known["confidence"] - known["accuracy"]) for known in filled)
    return {
        "bins": [{name: _rounded(value) for name, value in interval.items()} for interval in bins],
        "ece": round(error, 6),
        "overconfidence": round(over, 6),
        "log_loss": bootstrap(list(by_prompt(pairs, log_loss).values()), seed=seed).as_dict(),
    }


def _bin(pairs: Sequence[Pair], weights: Sequence[float], number: int) -> dict[str, Any]:
    """The pairs with a confidence in [low, high); 1 belongs to the last bin."""
    low, high = 0.5 + number / (2 * BINS), 0.5 + (number + 1) / (2 * BINS)
    inside = [
        (pair, weight)
        for pair, weight in zip(pairs, weights, strict=True)
        if min(BINS - 1, int((confidence(pair) - 0.5) * 2 * BINS)) == number
    ]
    share = math.fsum(weight for _, weight in inside)
    known = (
        {
            "confidence": math.fsum(weight * confidence(pair) for pair, weight in inside) / share,
            "accuracy": math.fsum(weight * pair.right for pair, weight in inside) / share,
        }
        if inside
        else {"confidence": None, "accuracy": None}
    )
    return {"low": low, "high": high, "pairs": len(inside), "share": share, **known}


def _rounded(value: float | int | None) -> float | int | None:
    return round(value, 6) if isinstance(value, float) else value
