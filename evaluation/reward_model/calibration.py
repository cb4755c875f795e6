"""Whether score differences are calibrated: sigmoid(s_w - s_l) is the probability that w is the better one.

The model guesses that the response with the higher score is the better one. Its confidence is sigmoid(|difference|),
from 0.5 (it does not know) to 1. Calibrated means: of the guesses made with confidence 0.8, eight in ten are right.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from evaluation.reward_model.pairs import Pair, by_prompt
from evaluation.statistics import bootstrap, grouped
from onebase.tracking.figures import BLUE, GREY

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
    guesses = [(confidence(pair), pair.right, 1.0 / (sizes[pair.prompt] * len(sizes))) for pair in pairs]
    # A confidence of 1 belongs to the last bin.
    inside = grouped((min(BINS - 1, int((guess[0] - 0.5) * 2 * BINS)), guess) for guess in guesses)
    bins = [_bin(number, inside.get(number, [])) for number in range(BINS)]
    filled = [interval for interval in bins if interval["pairs"]]
    error = math.fsum(known["share"] * abs(known["accuracy"] - known["confidence"]) for known in filled)
    over = math.fsum(known["share"] * (known["confidence"] - known["accuracy"]) for known in filled)
    return {
        "bins": [
            {name: round(value, 6) if isinstance(value, float) else value for name, value in interval.items()}
            for interval in bins
        ],
        "ece": round(error, 6),
        "overconfidence": round(over, 6),
        "log_loss": bootstrap(by_prompt(pairs, log_loss), seed=seed).as_dict(),
    }


def reliability(axes: Axes, report: Mapping[str, Any]) -> None:
    """The figure of a report: share right against confidence; the grey bars say how many of the pairs lie where."""
    bins = report["calibration"]["bins"]
    known = [interval for interval in bins if interval["pairs"]]
    width = bins[0]["high"] - bins[0]["low"]
    edges, shares = [interval["low"] for interval in bins], [interval["share"] for interval in bins]
    axes.bar(edges, shares, width, align="edge", color=GREY, alpha=0.3)
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    points = [interval["confidence"] for interval in known], [interval["accuracy"] for interval in known]
    axes.plot(*points, marker="o", color=BLUE, label=f"model, ECE {report['calibration']['ece']:.3f}")
    axes.set(xlim=(0.5, 1), ylim=(0, 1), xlabel="confidence (grey: share of the pairs)", ylabel="share right")
    axes.legend(loc="lower right", frameon=False)


def _bin(number: int, inside: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Guesses with a confidence in [low, high). inside: of each its confidence, whether it is right, its weight."""
    share = math.fsum(weight for _, _, weight in inside)
    return {
        "low": 0.5 + number / (2 * BINS),
        "high": 0.5 + (number + 1) / (2 * BINS),
        "pairs": len(inside),
        "share": share,
        "confidence": math.fsum(weight * sure for sure, _, weight in inside) / share if inside else None,
        "accuracy": math.fsum(weight * right for _, right, weight in inside) / share if inside else None,
    }
