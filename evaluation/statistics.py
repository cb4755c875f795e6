"""Means with intervals. Every number of a comparison comes with one, and differences are paired by prompt.

Shapes: n = units that are drawn, such as prompts or pieces of text. All intervals are SciPy's percentile bootstrap
intervals over them (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13). What belongs to one unit
is drawn together: a piece with its number of tokens, a prompt with all of its answers. SciPy draws no clusters, so
each cluster is a pair of a sum and a count (`ratio`).
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import scipy.stats  # pyright: ignore[reportMissingTypeStubs]  # SciPy has none
from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Numbers = NDArray[np.float64]

RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of `values` (n >= 1 numbers, one a prompt) and its interval; that of a single value has no width."""
    return _estimate([_finite(values)], np.mean, seed=seed)


def ratio(sums: Sequence[float], counts: Sequence[int], *, seed: int = 0) -> Estimate:
    """A mean over tokens, or over other parts of units of unequal size, and its interval over the units.

        sum of sums_i / sum of counts_i        sums_i: of unit i's counts_i values; n >= 1 units, counts_i > 0

    Each resample draws units, sum and count together. Where all values are equal, the interval has no
    width, however unequal the counts. Efron and Tibshirani 1993, section 10.3 (the patch data).
    """
    above, below = _finite(sums), _finite(counts)
    if above.size != below.size or not (below > 0).all():
        raise ValueError(f"expected a count above 0 for each of {above.size} sums, found {list(counts)[:5]} ...")

    def ratios(sums: Numbers, counts: Numbers, axis: int) -> Any:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    return _estimate([above, below], ratios, seed=seed)


def clustered(values: Sequence[float], units: Sequence[Hashable], *, seed: int = 0) -> Estimate:
    """The mean of all values, and its interval over their units. Two answers to one prompt are not independent, so
    they are drawn together. units: of each value."""
    groups = grouped(zip(units, values, strict=True))
    if len(groups) == len(values):
        return bootstrap(values, seed=seed)
    return ratio([sum(group) for group in groups.values()], list(map(len, groups.values())), seed=seed)


def paired_difference(after: Sequence[float], before: Sequence[float], *, seed: int = 0) -> Estimate:
    """Mean of after - before over the same prompts, with its interval. Differences between prompts do not widen it."""
    return bootstrap(differences(after, before), seed=seed)


def differences(after: Sequence[float], before: Sequence[float]) -> list[float]:
    """after - before, one a prompt; ValueError unless both have as many prompts."""
    if len(after) != len(before):
        raise ValueError(f"expected the same prompts on both sides, found {len(after)} and {len(before)}")
    return [a - b for a, b in zip(after, before, strict=True)]


def grouped(items: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """The values of each key, in their order. Keys are in the order in which they first occur."""
    groups: dict[K, list[V]] = {}
    for key, value in items:
        groups.setdefault(key, []).append(value)
    return groups


def interval_text(estimate: Mapping[str, Any], form: str = ".2f") -> str:
    """Such as '0.52 [0.41, 0.63]'."""
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def error_bars(estimates: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far error bars reach below and above the means. By rounding, a mean may lie just outside its interval."""
    return [
        [max(0.0, estimate["mean"] - estimate["low"]) for estimate in estimates],
        [max(0.0, estimate["high"] - estimate["mean"]) for estimate in estimates],
    ]


def _finite(values: Sequence[float] | Sequence[int]) -> Numbers:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"expected a list of finite numbers, one at least; found {data.size} of shape {data.shape}")
    return data


def _estimate(data: list[Numbers], statistic: Callable[..., Any], *, seed: int) -> Estimate:
    """data: arrays of n numbers, resampled together. statistic: of such arrays, along an axis."""
    value, size = float(statistic(*data, axis=-1)), data[0].size
    if size == 1:  # which SciPy refuses
        return Estimate(mean=value, low=value, high=value)
    interval: Any = scipy.stats.bootstrap(  # pyright: ignore[reportUnknownMemberType]  # SciPy has no types
        data,
        statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=0.95,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // size),  # many units must not make a huge table of indices
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean=value, low=float(interval.low), high=float(interval.high))
