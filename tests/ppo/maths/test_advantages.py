"""Advantages and returns against the definition of GAE, term by term, and against closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from ppo.maths.advantages import gae

JUNK = st.sampled_from([0.0, 1e9, math.nan, math.inf])
NUMBERS = st.floats(-5, 5)
EPISODES = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6), min_size=1, max_size=4)
"""A batch: for each response its (reward, value) of each token."""


def padded(rows: list[list[float]], junk: float) -> Tensor:
    """Rows of different lengths in float64, at least one column of junk behind each."""
    width = max(map(len, rows)) + 1
    return torch.tensor([row + [junk] * (width - len(row)) for row in rows], dtype=torch.float64)


def mask_of(rows: list[list[float]]) -> Tensor:
    return torch.tensor([[True] * len(row) + [False] * (max(map(len, rows)) + 1 - len(row)) for row in rows])


def gae_by_definition(rewards: list[float], values: list[float], discount: float, trace: float) -> list[float]:
    """Eq. 16 of Schulman et al. 2016 term by term, without recursion; the value past the end is 0."""
    n, after = len(rewards), [*values, 0.0]
    delta = [rewards[t] + discount * after[t + 1] - values[t] for t in range(n)]
    return [sum((discount * trace) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES, JUNK, st.floats(0.1, 1), st.floats(0, 1))
def test_gae_matches_its_definition_whatever_the_padding_holds(
    episodes: list[list[tuple[float, float]]], junk: float, discount: float, trace: float
) -> None:
    rewards, values = ([[token[part] for token in row] for row in episodes] for part in (0, 1))
    advantages, returns = gae(
        padded(rewards, junk), padded(values, junk), mask_of(rewards), discount=discount, gae_lambda=trace
    )
    expected = [gae_by_definition(r, v, discount, trace) for r, v in zip(rewards, values, strict=True)]
    sums = [[a + x for a, x in zip(sum_of_row, v, strict=True)] for sum_of_row, v in zip(expected, values, strict=True)]
    torch.testing.assert_close(advantages, padded(expected, 0.0))
    torch.testing.assert_close(returns, padded(sums, 0.0))


def test_three_tokens_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), discount=0.9, gae_lambda=0.8)
    # delta: 0.9 x 0.6 - 0.5 = 0.04, 0.9 x 0.7 - 0.6 = 0.03, 1 - 0.7 = 0.3; each later one counts 0.72 as much.
    torch.testing.assert_close(advantages, torch.tensor([[0.21712, 0.246, 0.3]]))
    torch.testing.assert_close(returns, torch.tensor([[0.71712, 0.846, 1.0]]))


def test_nothing_is_bootstrapped_past_the_end() -> None:
    """One token, then padding that holds a large value: the episode was over."""
    rewards, values = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.25, 100.0]])
    advantages, returns = gae(rewards, values, torch.tensor([[True, False]]), discount=1.0, gae_lambda=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.75, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.0, 0.0]]))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES, st.floats(0.1, 1))
def test_with_trace_one_a_return_is_the_discounted_sum_of_rewards_whatever_the_values(
    episodes: list[list[tuple[float, float]]], discount: float
) -> None:
    rewards, values = ([[token[part] for token in row] for row in episodes] for part in (0, 1))
    _, returns = gae(padded(rewards, 0.0), padded(values, 0.0), mask_of(rewards), discount=discount, gae_lambda=1.0)
    expected = [[sum(discount**k * r for k, r in enumerate(row[t:])) for t in range(len(row))] for row in rewards]
    torch.testing.assert_close(returns, padded(expected, 0.0))


@pytest.mark.parametrize("trace", [0.0, 0.5, 1.0])
def test_a_perfect_value_function_leaves_no_advantage(trace: float) -> None:
    rewards = torch.tensor([[0.3, -0.2, 2.0]])
    to_go = torch.tensor([[0.3 - 0.2 * 0.5 + 2.0 * 0.25, -0.2 + 2.0 * 0.5, 2.0]])
    advantages, returns = gae(rewards, to_go, torch.ones(1, 3, dtype=torch.bool), discount=0.5, gae_lambda=trace)
    torch.testing.assert_close(advantages, torch.zeros(1, 3))
    torch.testing.assert_close(returns, to_go)


def test_a_score_at_the_end_reaches_back_by_the_trace() -> None:
    """A_t = trace^(tokens still to come) x score where every value is 0 and nothing is discounted."""
    rewards = torch.tensor([[0.0, 0.0, 0.0, 4.0]])
    advantages, _ = gae(rewards, torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), discount=1.0, gae_lambda=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.5, 1.0, 2.0, 4.0]]))


def test_tensors_of_other_shapes_are_refused() -> None:
    with pytest.raises(TypeCheckError):
        gae(torch.zeros(2, 3), torch.zeros(2, 4), torch.ones(2, 3, dtype=torch.bool), discount=1.0, gae_lambda=1.0)
