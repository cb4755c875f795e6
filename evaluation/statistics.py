"""Means with intervals. Every number of a comparison comes with one, and differences are paired by prompt.

Shapes: n = units that are drawn, such as prompts or pieces of text. All intervals are percentile bootstrap intervals
over them: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13. What belongs to one unit is drawn
together: a piece with its number of tokens, a prompt with all of its answers.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}

    def text(self, digits: int = 2) -> str:
        """Such as '0.52 [0.41, 0.63]'."""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(values: Sequence[float], *, seed: int = 0, level: float = 0.95) -> Estimate:
    """The mean of `values` (n >= 1 numbers, one a prompt) and its interval; a single value has an interval of none."""
    data = _finite(values)
    return _estimate(float(data.mean()), lambda drawn: data[drawn].mean(axis=1), data.size, seed=seed, level=level)


def ratio(sums: Sequence[float], counts: Sequence[int], *, seed: int = 0, level: float = 0.95) -> Estimate:
    """A mean over tokens, or over anything of which units hold different numbers, and its interval over the units.

        sum of sums_i / sum of counts_i        sums_i: of unit i's counts_i values; n >= 1 units, counts_i > 0

    Each resample draws units, sum and count together, and divides anew: where all values are equal, the interval has no
    width, however unequal the counts. Efron and Tibshirani 1993, section 10.3 (the patch data).
    """
    above, below = _finite(sums), _finite(counts)
    if above.size != below.size or not (below > 0).all():
        raise ValueError(f"expected a count above 0 for each of {above.size} sums, found {list(counts)[:5]} ...")

    def ratios(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        return above[drawn].sum(axis=1) / below[drawn].sum(axis=1)

    return _estimate(float(above.sum() / below.sum()), ratios, above.size, seed=seed, level=level)


def clustered(values: Sequence[float], units: Sequence[Hashable], *, seed: int = 0) -> Estimate:
    """The mean of all values, and its interval over the units that they belong to: two answers to one prompt are drawn
    together, for they are not independent. units: of each value."""
    together: dict[Hashable, list[float]] = {}
    for value, unit in zip(values, units, strict=True):
        together.setdefault(unit, []).append(value)
    if len(together) == len(values):
        return bootstrap(values, seed=seed)
    return ratio([sum(some) for some in together.values()], list(map(len, together.values())), seed=seed)


def paired_difference(after: Sequence[float], before: Sequence[float], *, seed: int = 0) -> Estimate:
    """Mean of after - before over the same prompts, with its interval: what prompts differ in does not widen it."""
    return bootstrap(differences(after, before), seed=seed)


def differences(after: Sequence[float], before: Sequence[float]) -> list[float]:
    """after - before, one a prompt; ValueError where the two are not of the same prompts."""
    if len(after) != len(before):
        raise ValueError(f"expected the same prompts on both sides, found {len(after)} and {len(before)}")
    return [a - b for a, b in zip(after, before, strict=True)]


def _finite(values: Sequence[float] | Sequence[int]) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"expected a list of finite numbers, one at least; found {data.size} of shape {data.shape}")
    return data


def _estimate(
    value: float,
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    size: int,
    *,
    seed: int,
    level: float,
) -> Estimate:
    """statistic: of resamples, a row of drawn units each."""
    rng = np.random.default_rng(seed)
    resampled = np.empty(RESAMPLES)
    # In blocks, so that many units do not make a huge table of indices.
    block = max(1, 2_000_000 // size)
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        resampled[start : start + rows] = statistic(rng.integers(0, size, size=(rows, size)))
    tail = (1.0 - level) / 2.0
    low, high = (float(edge) for edge in np.quantile(resampled, [tail, 1.0 - tail]))
    return Estimate(mean=value, low=low, high=high)
