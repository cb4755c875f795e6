"""Where the score goes, what the KL costs, and which sign it has."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppo.maths.rewards import kl_to_reference, penalise_unfinished, token_rewards

JUNK = st.sampled_from([0.0, 1e9, math.nan, math.inf])
NUMBERS = st.floats(-5, 5)
EPISODES = st.lists(st.tuples(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=6)), min_size=1, max_size=4)
"""A batch: for each response its score and one number for each token."""


def padded(rows: list[list[float]], junk: float) -> Tensor:
    """Rows of different lengths in float64, at least one column of junk behind each."""
    width = max(map(len, rows)) + 1
    return torch.tensor([row + [junk] * (width - len(row)) for row in rows], dtype=torch.float64)


def mask_of(rows: list[list[float]]) -> Tensor:
    return torch.tensor([[True] * len(row) + [False] * (max(map(len, rows)) + 1 - len(row)) for row in rows])


def test_kl_is_positive_where_the_policy_likes_its_token_more_than_the_reference() -> None:
    policy, reference = torch.tensor([[math.log(0.8), math.log(0.1)]]), torch.tensor([[math.log(0.4), math.log(0.2)]])
    kl = kl_to_reference(policy, reference, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(kl, torch.tensor([[math.log(2), -math.log(2)]]))


def test_kl_is_on_average_the_kl_of_the_policy_to_the_reference() -> None:
    """Every token of a vocabulary of three, weighted by how often the policy draws it."""
    policy, reference = [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]
    log_policy, log_reference = (torch.tensor([p], dtype=torch.float64).log() for p in (policy, reference))
    kl = kl_to_reference(log_policy, log_reference, torch.ones(1, 3, dtype=torch.bool))[0].tolist()
    exact = sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    assert sum(p * k for p, k in zip(policy, kl, strict=True)) == pytest.approx(exact, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES, JUNK)
def test_a_policy_equal_to_its_reference_pays_nothing(episodes: list[tuple[float, list[float]]], junk: float) -> None:
    rows = [tokens for _, tokens in episodes]
    logprobs = padded(rows, junk)
    assert kl_to_reference(logprobs, logprobs, mask_of(rows)).eq(0).all()


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES, JUNK, st.floats(0, 2))
def test_token_rewards_match_their_definition_whatever_the_padding_holds(
    episodes: list[tuple[float, list[float]]], junk: float, weight: float
) -> None:
    scores, rows = [score for score, _ in episodes], [tokens for _, tokens in episodes]
    rewards = token_rewards(
        torch.tensor(scores, dtype=torch.float64), padded(rows, junk), mask_of(rows), kl_weight=weight
    )
    expected = [[-weight * kl for kl in tokens] for tokens in rows]
    for score, row in zip(scores, expected, strict=True):
        row[-1] += score
    torch.testing.assert_close(rewards, padded(expected, 0.0))


def test_the_score_stands_at_the_last_generated_token() -> None:
    mask = torch.tensor([[True, True, False, False], [True, True, True, True], [True, False, False, False]])
    rewards = token_rewards(torch.tensor([3.0, 5.0, 7.0]), torch.zeros(3, 4), mask, kl_weight=0.1)
    assert rewards.tolist() == [[0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0], [7.0, 0.0, 0.0, 0.0]]


def test_only_a_response_that_was_cut_is_penalised() -> None:
    penalised = penalise_unfinished(torch.tensor([2.0, 2.0, -1.0]), torch.tensor([True, False, False]), penalty=1.5)
    assert penalised.tolist() == [2.0, 0.5, -2.5]
