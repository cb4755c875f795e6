"""The losses a recipe may choose, against their definitions in plain floats and in the cases where they must agree."""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reward.losses import (
    LOSSES,
    RankingLoss,
    bradley_terry_loss,
    centering_penalty,
    davidson_loss,
    plackett_luce_loss,
    rao_kupper_loss,
)
from reward.recipe import LossSection

Ranked = list[tuple[float, int]]
"""For each response its score and its tier."""

RANKINGS = st.lists(st.tuples(st.floats(-6, 6), st.integers(0, 3)), min_size=2, max_size=7).filter(
    lambda ranking: len({tier for _, tier in ranking}) > 1
)
UNTIED = st.lists(st.floats(-6, 6), min_size=2, max_size=7).map(
    lambda scores: list(zip(scores, range(9), strict=False))
)


def loss_of(kind: str, **numbers: float) -> RankingLoss:
    """As a recipe chooses it. A kind takes of the numbers what it reads."""
    return partial(LOSSES[kind], **LossSection.model_construct(kind=kind, **numbers).numbers)  # type: ignore[arg-type]  # built by name


def tensors(ranking: Ranked) -> tuple[Tensor, Tensor]:
    scores, tiers = zip(*ranking, strict=True)
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(tiers)


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def check(seed: Callable[..., Tensor], ranking: Ranked, expected: float, **numbers: float) -> None:
    assert seed(*tensors(ranking), **numbers).item() == pytest.approx(expected, rel=1e-7, abs=1e-12)


# --- each against its definition


@settings(deadline=None, derandomize=True, max_examples=80)
@given(RANKINGS, st.floats(0, 2), st.floats(0, 0.45))
def test_bradley_terry_is_its_definition_with_margin_and_smoothing(
    ranking: Ranked, margin: float, smoothing: float
) -> None:
    z = [
        mine - theirs - margin * (other - tier)
        for (mine, tier), (theirs, other) in permutations(ranking, 2)
        if tier < other
    ]
    expected = mean([-(1 - smoothing) * math.log(sigmoid(x)) - smoothing * math.log(sigmoid(-x)) for x in z])
    check(bradley_terry_loss, ranking, expected, margin=margin, label_smoothing=smoothing)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(UNTIED)
def test_plackett_luce_without_ties_is_the_probability_of_drawing_the_whole_order(ranking: Ranked) -> None:
    strengths = [math.exp(score) for score, _ in ranking]
    order = math.prod(strengths[place] / sum(strengths[place:]) for place in range(len(ranking)))
    check(plackett_luce_loss, ranking, -math.log(order) / (len(ranking) - 1))


@settings(deadline=None, derandomize=True, max_examples=80)
@given(RANKINGS)
def test_plackett_luce_with_ties_chooses_each_among_those_below_it(ranking: Ranked) -> None:
    choices = []
    for score, tier in ranking:
        below = [math.exp(other) for other, lower in ranking if lower > tier]
        if below:
            choices.append(-math.log(math.exp(score) / (math.exp(score) + sum(below))))
    check(plackett_luce_loss, ranking, mean(choices))


def test_the_probabilities_of_all_orders_add_up_to_one() -> None:
    scores = [0.3, -1.2, 0.9, 2.0]
    total = 0.0
    for order in permutations(range(4)):
        tiers = [order.index(response) for response in range(4)]
        total += math.exp(
            -3 * plackett_luce_loss(torch.tensor(scores, dtype=torch.float64), torch.tensor(tiers)).item()
        )
    assert total == pytest.approx(1.0, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(RANKINGS, st.floats(1.01, 4))
def test_rao_kupper_is_its_definition_in_strengths(ranking: Ranked, theta: float) -> None:
    losses = []
    for (mine, tier), (theirs, other) in combinations(ranking, 2):
        a, b = math.exp(mine), math.exp(theirs)
        first, second = a / (a + theta * b), b / (theta * a + b)
        tie = (theta**2 - 1) * a * b / ((a + theta * b) * (theta * a + b))
        assert first + second + tie == pytest.approx(1.0)
        losses.append(-math.log(first if tier < other else second if tier > other else tie))
    check(rao_kupper_loss, ranking, mean(losses), theta=theta)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(RANKINGS, st.floats(0.01, 4))
def test_davidson_is_its_definition_in_strengths(ranking: Ranked, nu: float) -> None:
    losses = []
    for (mine, tier), (theirs, other) in combinations(ranking, 2):
        a, b = math.exp(mine), math.exp(theirs)
        total = a + b + nu * math.sqrt(a * b)
        outcome = a if tier < other else b if tier > other else nu * math.sqrt(a * b)
        losses.append(-math.log(outcome / total))
    check(davidson_loss, ranking, mean(losses), nu=nu)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(RANKINGS)
def test_the_centring_penalty_is_the_squared_sum_of_a_pair(ranking: Ranked) -> None:
    pairs = [(mine, theirs) for (mine, tier), (theirs, other) in permutations(ranking, 2) if tier < other]
    check(centering_penalty, ranking, mean([(a + b) ** 2 for a, b in pairs]))


# --- where they agree


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(-20, 20), st.floats(-20, 20))
def test_of_two_responses_every_loss_is_minus_log_sigmoid_of_the_difference(better: float, worse: float) -> None:
    ranking = [(worse, 1), (better, 0)]
    expected = math.log1p(math.exp(-(better - worse)))
    check(bradley_terry_loss, ranking, expected)
    check(plackett_luce_loss, ranking, expected)
    check(rao_kupper_loss, ranking, expected, theta=1.0)
    check(davidson_loss, ranking, expected, nu=0.0)


@pytest.mark.parametrize(
    "tie_model", [lambda s, t: rao_kupper_loss(s, t, theta=1.0), lambda s, t: davidson_loss(s, t, nu=0.0)]
)
def test_without_room_for_ties_a_tie_is_impossible_and_an_order_is_bradley_terry(tie_model: Callable) -> None:
    order = tensors([(0.2, 2), (1.0, 0), (-0.4, 1)])
    torch.testing.assert_close(tie_model(*order), bradley_terry_loss(*order))
    assert tie_model(*tensors([(0.2, 0), (1.0, 0), (-0.4, 1)])).item() == math.inf


@pytest.mark.parametrize(
    ("loss", "tied"),
    [
        (lambda s, t: rao_kupper_loss(s, t, theta=1.5), 0.2),  # (theta - 1) / (theta + 1)
        (lambda s, t: davidson_loss(s, t, nu=0.5), 0.2),  # nu / (2 + nu)
    ],
)
def test_equal_scores_are_tied_as_often_as_the_docstring_says(loss: Callable, tied: float) -> None:
    scores = torch.full((2,), 3.0, dtype=torch.float64)
    assert math.exp(-loss(scores, torch.tensor([0, 0])).item()) == pytest.approx(tied)
    assert math.exp(-loss(scores, torch.tensor([0, 1])).item()) == pytest.approx((1 - tied) / 2)


# --- laws of all of them


@pytest.mark.parametrize("kind", LOSSES)
@settings(deadline=None, derandomize=True, max_examples=30)
@given(RANKINGS, st.floats(-50, 50))
def test_a_shift_of_all_scores_changes_nothing_and_gradients_add_up_to_zero(
    kind: str, ranking: Ranked, shift: float
) -> None:
    loss = loss_of(kind, margin=0.3, label_smoothing=0.1)
    scores, tiers = tensors(ranking)
    scores.requires_grad_()
    value = loss(scores, tiers)
    value.backward()
    torch.testing.assert_close(loss(scores.detach() + shift, tiers), value.detach())
    assert scores.grad is not None
    assert scores.grad.sum().item() == pytest.approx(0.0, abs=1e-12)
    assert scores.grad.abs().max() > 0 or value.detach() == 0


@pytest.mark.parametrize("kind", LOSSES)
@settings(deadline=None, derandomize=True, max_examples=30)
@given(RANKINGS)
def test_the_order_of_the_responses_changes_nothing(kind: str, ranking: Ranked) -> None:
    loss = loss_of(kind, margin=0.3, label_smoothing=0.1)
    torch.testing.assert_close(loss(*tensors(ranking)), loss(*tensors(sorted(ranking))))


@pytest.mark.parametrize("kind", LOSSES)
def test_scores_in_the_given_order_have_less_loss_than_upside_down(kind: str) -> None:
    loss = loss_of(kind)
    tiers = torch.tensor([0, 1, 1, 2])
    right, wrong = loss(torch.tensor([2.0, 0.0, 0.0, -2.0]), tiers), loss(torch.tensor([-2.0, 0.0, 0.0, 2.0]), tiers)
    assert right < wrong


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("far", [1e3, -1e3])
def test_scores_of_any_size_keep_loss_and_gradient_finite(kind: str, far: float) -> None:
    scores = torch.tensor([far, 0.0, 0.0], requires_grad=True)
    value = loss_of(kind, label_smoothing=0.1)(scores, torch.tensor([0, 1, 1]))
    value.backward()
    assert value.isfinite()
    assert scores.grad is not None and scores.grad.isfinite().all()


# --- what each is for


def test_a_smoothed_pair_is_best_at_a_finite_difference() -> None:
    """log((1 - e) / e): there the gradient is zero, beyond it the scores are pulled together again."""
    best = math.log(0.9 / 0.1)
    pulls = []
    for difference in (best - 1, best, best + 1):
        scores = torch.tensor([difference, 0.0], dtype=torch.float64, requires_grad=True)
        bradley_terry_loss(scores, torch.tensor([0, 1]), margin=0.0, label_smoothing=0.1).backward()
        assert scores.grad is not None
        pulls.append(scores.grad[0].item())
    assert pulls[0] < 0 < pulls[2]
    assert pulls[1] == pytest.approx(0.0, abs=1e-12)


def test_a_margin_asks_for_more_the_further_two_tiers_are_apart() -> None:
    """A difference equal to what is asked for leaves log 2, whatever the gap."""
    for gap in (1, 2, 5):
        value = bradley_terry_loss(*tensors([(0.7 * gap, 0), (0.0, gap)]), margin=0.7, label_smoothing=0.0)
        assert value.item() == pytest.approx(math.log(2))


def test_plackett_luce_does_not_let_tied_responses_pull_on_each_other() -> None:
    scores = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64, requires_grad=True)
    plackett_luce_loss(scores, torch.tensor([0, 0, 1])).backward()
    assert scores.grad is not None
    wrong = [sigmoid(-1.0), sigmoid(1.0)]  # each tied response against the one below, by itself
    torch.testing.assert_close(scores.grad, torch.tensor([-wrong[0] / 2, -wrong[1] / 2, sum(wrong) / 2]).double())


@pytest.mark.parametrize("kind", ["rao-kupper", "davidson"])
def test_tie_models_pull_tied_scores_together(kind: str) -> None:
    scores = torch.tensor([1.0, -1.0, -9.0], dtype=torch.float64, requires_grad=True)
    loss_of(kind)(scores, torch.tensor([0, 0, 1])).backward()
    assert scores.grad is not None
    assert scores.grad[0] > 0 > scores.grad[1]


def test_the_centring_penalty_sees_the_constant_that_no_loss_sees() -> None:
    scores, tiers = tensors([(1.0, 0), (-1.0, 1)])
    assert centering_penalty(scores, tiers).item() == 0.0
    assert centering_penalty(scores + 2.0, tiers).item() == pytest.approx(16.0)
