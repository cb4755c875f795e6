"""Masked statistics against the statistics module."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebase.masked import last_token, masked_mean, masked_sum, masked_variance, standardise

JUNK = st.sampled_from([0.0, 1e9, math.nan, math.inf])
ROWS = st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=4)


def padded(rows: list[list[float]], junk: float) -> Tensor:
    """Rows of different lengths in float64, at least one column of junk behind each."""
    width = max(map(len, rows)) + 1
    return torch.tensor([row + [junk] * (width - len(row)) for row in rows], dtype=torch.float64)


def mask_of(rows: list[list[float]]) -> Tensor:
    return torch.tensor([[True] * len(row) + [False] * (max(map(len, rows)) + 1 - len(row)) for row in rows])


def flat(rows: list[list[float]]) -> list[float]:
    return [number for row in rows for number in row]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(ROWS, JUNK)
def test_masked_statistics_are_those_of_the_unmasked_numbers(rows: list[list[float]], junk: float) -> None:
    x, mask, numbers = padded(rows, junk), mask_of(rows), flat(rows)
    torch.testing.assert_close(masked_sum(x, mask).item(), math.fsum(numbers))
    torch.testing.assert_close(masked_mean(x, mask).item(), statistics.fmean(numbers))
    torch.testing.assert_close(masked_variance(x, mask).item(), statistics.pvariance(numbers))


def test_the_mean_of_nothing_is_zero() -> None:
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert masked_mean(torch.full((2, 2), math.nan), nothing).item() == 0.0
    assert masked_sum(torch.full((2, 2), math.nan), nothing).item() == 0.0


@settings(deadline=None, derandomize=True, max_examples=200)
@given(ROWS, JUNK)
def test_gradients_of_a_masked_mean_are_one_over_n_and_zero_in_the_padding(
    rows: list[list[float]], junk: float
) -> None:
    x, n = padded(rows, junk).requires_grad_(), len(flat(rows))
    masked_mean(x, mask_of(rows)).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, padded([[1 / n] * len(row) for row in rows], 0.0))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(ROWS, JUNK)
def test_standardised_numbers_are_distances_from_the_mean_in_standard_deviations(
    rows: list[list[float]], junk: float
) -> None:
    mean, variance = statistics.fmean(flat(rows)), statistics.pvariance(flat(rows))
    expected = [[(number - mean) / math.sqrt(variance + 1e-8) for number in row] for row in rows]
    torch.testing.assert_close(standardise(padded(rows, junk), mask_of(rows)), padded(expected, 0.0))


def test_standardising_two_numbers_gives_minus_one_and_one() -> None:
    standardised = standardise(torch.tensor([[1.0, 3.0, math.nan]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(standardised, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_standardising_a_constant_gives_zeros() -> None:
    assert standardise(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)).eq(0).all()


# --- the last token --------------------------------------------------------------------------------------------------


def test_the_last_token_is_the_last_true_of_each_row() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [False, True, False]])
    assert last_token(mask).tolist() == [1, 2, 0, 1]


def test_an_empty_response_has_no_last_token() -> None:
    with pytest.raises(AssertionError, match="a response without a token"):
        last_token(torch.tensor([[True, False], [False, False]]))
