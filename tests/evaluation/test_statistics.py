"""Intervals against closed forms, and against what they must never do."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.statistics import bootstrap, clustered, differences, paired_difference, ratio


def test_the_mean_is_the_mean_and_the_interval_holds_it() -> None:
    estimate = bootstrap([0.0, 1.0, 1.0, 0.0, 1.0])
    assert estimate.mean == pytest.approx(0.6)
    assert estimate.low < 0.6 < estimate.high


def test_an_interval_of_many_coin_flips_is_the_normal_one() -> None:
    """For n = 400 flips, 260 heads: p +- 1.96 sqrt(p (1 - p) / n)."""
    p, n = 0.65, 400
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    estimate = bootstrap([1.0] * 260 + [0.0] * 140)
    assert estimate.low == pytest.approx(p - half, abs=0.005)
    assert estimate.high == pytest.approx(p + half, abs=0.005)


def test_constant_values_have_an_interval_of_no_width() -> None:
    estimate = bootstrap([0.25] * 7)
    assert (estimate.mean, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(0, 3))
def test_an_interval_stays_within_the_values_and_moves_with_them(values: list[float], seed: int) -> None:
    estimate = bootstrap(values, seed=seed)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= estimate.low <= estimate.high <= max(values) + slack
    moved = bootstrap([value + 10 for value in values], seed=seed)
    assert moved.low == pytest.approx(estimate.low + 10, abs=1e-6)
    assert moved.high == pytest.approx(estimate.high + 10, abs=1e-6)


def test_pairing_removes_what_prompts_differ_in() -> None:
    """Every prompt gains 0.1, whatever it started from: the difference is certain though both means are not."""
    before = [index / 50 for index in range(50)]
    after = [value + 0.1 for value in before]
    difference = paired_difference(after, before)
    assert difference.mean == pytest.approx(0.1)
    assert difference.high - difference.low < 1e-9
    assert bootstrap(after).low < bootstrap(before).high


def test_a_difference_has_the_sign_of_after_minus_before() -> None:
    assert paired_difference([1.0, 1.0], [0.0, 0.5]).mean == pytest.approx(0.75)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        bootstrap(values)


def test_different_prompts_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="found 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])


# --- means over what units hold different numbers of


@settings(deadline=None, max_examples=20)
@given(st.floats(-9, 9), st.lists(st.integers(1, 2000), min_size=1, max_size=30), st.integers(0, 3))
def test_where_all_values_are_equal_their_ratio_has_an_interval_of_no_width(
    value: float, counts: list[int], seed: int
) -> None:
    estimate = ratio([value * count for count in counts], counts, seed=seed)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((value, value, value), abs=1e-11)


def made(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """300 pieces of 1 to 99 tokens whose losses go with their length."""
    draws = np.random.default_rng(seed)
    counts = draws.integers(1, 100, size=300)
    return counts * (2.0 + 0.01 * counts) + draws.normal(0, 5, size=300), counts


@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_of_a_ratio_is_that_of_the_delta_method(seed: int) -> None:
    """var(S/C) = sum of (s_i - R c_i)^2 / (n - 1) / (n mean(c)^2), Cochran 1977, Sampling techniques, eq. 6.13."""
    sums, counts = made(seed)
    estimate = ratio(sums.tolist(), counts.tolist())
    rest = sums - estimate.mean * counts
    half = 1.96 * math.sqrt((rest**2).sum() / (len(counts) - 1) / len(counts)) / counts.mean()
    assert estimate.mean == pytest.approx(sums.sum() / counts.sum())
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.05)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(estimate.mean, abs=0.1 * half)


def test_the_interval_of_a_ratio_is_that_of_drawing_units_by_hand() -> None:
    sums, counts = made(2)
    units, draw = list(zip(sums.tolist(), counts.tolist(), strict=True)), random.Random(5)
    ratios = []
    for _ in range(4000):
        drawn = draw.choices(units, k=len(units))
        ratios.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    low, high = sorted(ratios)[99], sorted(ratios)[3899]
    ours = ratio(sums.tolist(), counts.tolist())
    # Two resamplings of a few thousand: their edges differ by some hundredths of the width.
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_units_of_one_size_have_the_ratio_of_a_plain_mean() -> None:
    values = [0.5, 2.0, -1.0, 3.0, 0.25]
    plain, of_sevens = bootstrap(values), ratio([7 * value for value in values], [7] * 5)
    assert (of_sevens.mean, of_sevens.low, of_sevens.high) == pytest.approx((plain.mean, plain.low, plain.high))


def test_a_paired_difference_of_a_thing_with_itself_is_nothing() -> None:
    sums, counts = made(3)
    for estimate in (
        ratio(differences(sums.tolist(), sums.tolist()), counts.tolist()),
        paired_difference(sums.tolist(), sums.tolist()),
    ):
        assert (estimate.mean, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_values_of_one_unit_are_drawn_together() -> None:
    values, units = [0.0, 0.0, 1.0, 1.0, 1.0, 0.5], ["a", "a", "b", "b", "b", "c"]
    estimate, expected = clustered(values, units), ratio([0.0, 3.0, 0.5], [2, 3, 1])
    assert estimate == expected
    assert estimate.mean == pytest.approx(3.5 / 6)
    assert clustered(values, range(6)) == bootstrap(values)
    assert clustered(values, ["a"] * 6).low == pytest.approx(3.5 / 6)


@pytest.mark.parametrize("counts", [[1], [1, 0], [2, -1], []])
def test_sums_without_a_count_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"count above 0|finite numbers"):
        ratio([1.0, 2.0], counts)
