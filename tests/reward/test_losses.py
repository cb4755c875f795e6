"""The ranking loss against its definition in plain floats, and the laws of comparing by pairs."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reward.losses import bradley_terry_loss, ranked_right

RANKINGS = st.lists(st.tuples(st.floats(-8, 8), st.integers(0, 3)), min_size=2, max_size=7).filter(
    lambda ranking: len({tier for _, tier in ranking}) > 1
)
"""For each response its score and its tier; not all tied."""


def scores_of(*scores: float) -> Tensor:
    return torch.tensor(scores, dtype=torch.float64)


def margins(ranking: list[tuple[float, int]]) -> list[float]:
    """Score of the better minus score of the worse, for all pairs of different tiers."""
    return [mine - theirs for (mine, tier), (theirs, other) in permutations(ranking, 2) if tier < other]


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(RANKINGS)
def test_bradley_terry_matches_its_definition_ties_left_out(ranking: list[tuple[float, int]]) -> None:
    scores, tiers = zip(*ranking, strict=True)
    loss = bradley_terry_loss(scores_of(*scores), torch.tensor(tiers)).item()
    assert loss == pytest.approx(mean([-math.log(1 / (1 + math.exp(-m))) for m in margins(ranking)]), rel=1e-7)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(RANKINGS)
def test_ranked_right_is_the_share_of_pairs_an_equal_score_counting_half(ranking: list[tuple[float, int]]) -> None:
    scores, tiers = zip(*ranking, strict=True)
    share = ranked_right(scores_of(*scores), torch.tensor(tiers)).item()
    expected = mean([1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins(ranking)])
    assert share == pytest.approx(expected, rel=1e-6)  # a float32 whatever the scores are


@pytest.mark.parametrize("tiers", [[0, 1], [3, 1, 2, 0], [0, 0, 1], [1, 0, 1, 0, 2]])
def test_equal_scores_have_loss_log_two_and_half_the_pairs_right(tiers: list[int]) -> None:
    scores = torch.full((len(tiers),), 1.7, dtype=torch.float64)
    assert bradley_terry_loss(scores, torch.tensor(tiers)).item() == pytest.approx(math.log(2), rel=1e-12)
    assert ranked_right(scores, torch.tensor(tiers)).item() == 0.5


@pytest.mark.parametrize("margin", [-3.0, -0.5, 0.0, 0.5, 3.0])
def test_the_loss_of_a_pair_is_softplus_of_minus_its_margin(margin: float) -> None:
    loss = bradley_terry_loss(scores_of(1.0, 1.0 + margin), torch.tensor([1, 0])).item()
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-12)


@pytest.mark.parametrize("responses", [2, 3, 4, 9])
def test_k_responses_are_compared_in_k_times_k_minus_one_over_two_pairs(responses: int) -> None:
    """At equal scores each pair pulls its two scores apart by 1 / (2 |P|): the place i has K - 1 - i wins, i losses."""
    scores = torch.zeros(responses, dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(scores, torch.arange(responses)).backward()
    pairs = responses * (responses - 1) / 2
    assert scores.grad is not None
    torch.testing.assert_close(
        scores.grad, scores_of(*[-(responses - 1 - 2 * i) / (2 * pairs) for i in range(responses)])
    )


def test_tied_responses_do_not_pull_on_each_other() -> None:
    """Two best and one worst: two pairs, each best moved as if it were alone with the worst."""
    scores = scores_of(0.0, 1.0, 0.5).requires_grad_()
    bradley_terry_loss(scores, torch.tensor([0, 0, 1])).backward()
    wrong = [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))]  # sigmoid of minus the margins -0.5 and 0.5
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, scores_of(-wrong[0] / 2, -wrong[1] / 2, sum(wrong) / 2))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(RANKINGS, st.floats(-100, 100))
def test_a_shift_of_all_scores_changes_neither_loss_nor_accuracy(
    ranking: list[tuple[float, int]], shift: float
) -> None:
    # Quarters, so that adding the shift does not round scores that differ into equal ones.
    scores = scores_of(*[round(4 * score) / 4 for score, _ in ranking])
    tiers = torch.tensor([tier for _, tier in ranking])
    moved = scores + round(4 * shift) / 4
    torch.testing.assert_close(bradley_terry_loss(moved, tiers), bradley_terry_loss(scores, tiers))
    assert ranked_right(moved, tiers) == ranked_right(scores, tiers)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(RANKINGS)
def test_the_order_of_the_responses_and_the_names_of_the_tiers_change_nothing(
    ranking: list[tuple[float, int]],
) -> None:
    shuffled = sorted(ranking)
    losses = [
        bradley_terry_loss(
            scores_of(*[score for score, _ in rows]), torch.tensor([factor * tier - 1 for _, tier in rows])
        )
        for rows, factor in ((ranking, 1), (shuffled, 10))
    ]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    ("scores", "tiers", "share"),
    [
        ([2.0, 1.0], [0, 1], 1.0),
        ([1.0, 2.0], [0, 1], 0.0),
        ([1.0, 1.0], [0, 1], 0.5),
        ([3.0, 2.0, 1.0], [0, 1, 2], 1.0),
        ([3.0, 1.0, 2.0], [0, 1, 2], 2 / 3),
        ([1.0, 5.0, 0.0], [0, 0, 1], 1.0),  # the tied two are no pair, whichever scores higher
        ([1.0, 5.0, 1.0], [0, 0, 1], 0.75),
    ],
)
def test_ranked_right_by_hand(scores: list[float], tiers: list[int], share: float) -> None:
    shares = ranked_right(torch.tensor(scores), torch.tensor(tiers))
    torch.testing.assert_close(shares, torch.tensor(share))


@pytest.mark.parametrize(("margin", "loss"), [(1e4, 0.0), (-1e4, 1e4)])
def test_margins_of_any_size_keep_loss_and_gradient_finite(margin: float, loss: float) -> None:
    scores = torch.tensor([margin, 0.0], requires_grad=True)
    value = bradley_terry_loss(scores, torch.tensor([0, 1]))
    value.backward()
    torch.testing.assert_close(value.detach(), torch.tensor(loss))
    assert scores.grad is not None and scores.grad.isfinite().all()
