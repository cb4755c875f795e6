"""PPO's losses against tables worked by hand, their definitions in plain floats, and the laws they must obey."""

import math
import statistics
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppo.maths.losses import explained_variance, importance_ratio, kl_by_k3, outside_clip, policy_loss, value_loss

JUNK = st.sampled_from([0.0, 1e9, math.nan, math.inf])
NUMBERS = st.floats(-3, 3)
EPISODES = st.lists(
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5).map(tuple), min_size=1, max_size=4
)
"""A batch: for each response three numbers of each token."""

OLD = [0.2, 0.5, 0.3]
NEW = [0.3, 0.3, 0.4]
"""Two distributions over a vocabulary of three."""


def padded(rows: Sequence[Sequence[float]], junk: float) -> Tensor:
    """Rows of different lengths in float64, at least one column of junk behind each."""
    width = max(map(len, rows)) + 1
    return torch.tensor([[*row, *([junk] * (width - len(row)))] for row in rows], dtype=torch.float64)


def mask_of(rows: Sequence[Sequence[object]]) -> Tensor:
    width = max(map(len, rows)) + 1
    return torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])


def columns(episodes: Sequence[Sequence[tuple[float, ...]]]) -> list[list[list[float]]]:
    return [[[token[part] for token in row] for row in episodes] for part in range(3)]


def everywhere(*values: float) -> Tensor:
    return torch.ones(1, len(values), dtype=torch.bool)


def single(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


HERE = torch.ones(1, 1, dtype=torch.bool)


# --- the policy's loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.1, 1.0, -1.1, -1.1),  # inside the clip range
        (0.9, -1.0, 0.9, 0.9),
        (2.0, 1.0, -1.2, 0.0),  # already too likely: gain capped
        (0.5, 1.0, -0.5, -0.5),  # less likely: the pessimistic side is not clipped
        (2.0, -1.0, 2.0, 2.0),
        (0.5, -1.0, 0.8, 0.0),  # already too unlikely
        (2.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_takes_gains_and_never_losses(ratio: float, advantage: float, loss: float, slope: float) -> None:
    """slope: the derivative by the log-probability, which is ratio x d loss / d ratio."""
    old = single(-1.5)
    logprob = (old + math.log(ratio)).requires_grad_()
    value = policy_loss(logprob, old, single(advantage), HERE, clip=0.2)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), single(loss))
    assert logprob.grad is not None
    torch.testing.assert_close(logprob.grad, single(slope))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES, JUNK, st.floats(0.05, 0.9))
def test_policy_loss_matches_its_definition_whatever_the_padding_holds(
    episodes: list[tuple[tuple[float, float, float], ...]], junk: float, clip: float
) -> None:
    def definition(now: float, old: float, advantage: float) -> float:
        ratio = math.exp(now - old)
        return -min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)

    now, old, advantages = columns(episodes)
    logprobs = padded(now, junk).requires_grad_()
    loss = policy_loss(logprobs, padded(old, junk), padded(advantages, junk), mask_of(now), clip=clip)
    torch.testing.assert_close(loss.detach(), padded([[definition(*token) for token in row] for row in episodes], 0.0))
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[~mask_of(now)].eq(0).all()


def test_first_step_gradient_is_the_policy_gradient() -> None:
    """With ratio 1 the surrogate's gradient is that of -sum A log pi / n: -A / n at every token, 0 in the padding."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[0.5, -2.0, 1.0], [3.0, math.nan, 7.0]])
    logprobs = torch.tensor([[-1.0, -0.1, -3.0], [-2.0, math.inf, -1.0]], requires_grad=True)
    (policy_loss(logprobs, logprobs.detach(), advantages, mask, clip=0.2).sum() / 4).backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.125, 0.5, -0.25], [-0.75, 0.0, 0.0]]))


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [3, 1], [2, 2]])
def test_micro_batches_of_any_size_add_up_to_the_whole(sizes: list[int]) -> None:
    draws = torch.Generator().manual_seed(0)
    now, old, advantages, values = (torch.randn(4, 5, generator=draws, dtype=torch.float64) for _ in range(4))
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [2]])

    def gradients(sizes: list[int]) -> tuple[Tensor, Tensor]:
        leaves = now.clone().requires_grad_(), values.clone().requires_grad_()
        for rows in torch.arange(4).split(sizes):
            moved = policy_loss(leaves[0][rows], old[rows], advantages[rows], mask[rows], clip=0.2)
            missed = value_loss(leaves[1][rows], old[rows], advantages[rows], mask[rows], clip=0.2)
            ((moved.sum() + missed.sum()) / 11).backward()
        assert leaves[0].grad is not None and leaves[1].grad is not None
        return leaves[0].grad, leaves[1].grad

    torch.testing.assert_close(gradients(sizes), gradients([4]))


# --- the value function's loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        (0.1, 1.0, 0.405, -0.9),  # inside the range: half the squared error
        (0.5, 1.0, 0.32, 0.0),  # moved enough for this rollout: its error is that of the held value 0.2
        (0.5, 0.0, 0.125, 0.5),  # moved away from the target: the worse error counts
        (-0.5, 1.0, 1.125, -1.5),
        (-0.5, -1.0, 0.32, 0.0),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_a_value_stops_following_once_it_has_moved_by_the_clip(
    value: float, target: float, loss: float, slope: float
) -> None:
    """From an old value of 0, with a clip of 0.2."""
    moved = single(value).requires_grad_()
    clipped_loss = value_loss(moved, single(0.0), single(target), HERE, clip=0.2)
    clipped_loss.sum().backward()
    torch.testing.assert_close(clipped_loss.detach(), single(loss))
    assert moved.grad is not None
    torch.testing.assert_close(moved.grad, single(slope))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES, JUNK, st.floats(0.05, 2))
def test_value_loss_matches_its_definition_whatever_the_padding_holds(
    episodes: list[tuple[tuple[float, float, float], ...]], junk: float, clip: float
) -> None:
    def definition(value: float, old: float, target: float) -> float:
        held = min(max(value, old - clip), old + clip)
        return max((value - target) ** 2, (held - target) ** 2) / 2

    now, old, returns = columns(episodes)
    values = padded(now, junk).requires_grad_()
    loss = value_loss(values, padded(old, junk), padded(returns, junk), mask_of(now), clip=clip)
    torch.testing.assert_close(loss.detach(), padded([[definition(*token) for token in row] for row in episodes], 0.0))
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert values.grad[~mask_of(now)].eq(0).all()


# --- metrics that show whether an update was healthy -----------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES, JUNK)
def test_ratios_are_quotients_of_probabilities_and_one_outside_the_mask(
    episodes: list[tuple[tuple[float, float, float], ...]], junk: float
) -> None:
    now, old, _ = columns(episodes)
    ratios = importance_ratio(padded(now, junk), padded(old, junk), mask_of(now))
    quotients = [[math.exp(a) / math.exp(b) for a, b, _ in row] for row in episodes]
    torch.testing.assert_close(ratios, padded(quotients, 1.0))


@pytest.mark.parametrize(
    ("ratio", "inside", "counted"),
    [(1.0, True, 0.0), (1.19, True, 0.0), (1.21, True, 1.0), (0.81, True, 0.0), (0.79, True, 1.0), (5.0, False, 0.0)],
)
def test_tokens_that_left_the_clip_range_are_counted_on_both_sides(ratio: float, inside: bool, counted: float) -> None:
    outside = outside_clip(torch.tensor([[ratio]]), torch.tensor([[inside]]), clip=0.2)
    torch.testing.assert_close(outside, torch.tensor([[counted]]))


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e9])
def test_padding_never_counts_as_outside_the_clip_range(junk: float) -> None:
    outside = outside_clip(torch.tensor([[1.0, junk]]), torch.tensor([[True, False]]), clip=0.2)
    assert outside.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0, 2.0, 50.0])
def test_kl_of_one_token_is_ratio_minus_one_minus_log_ratio(ratio: float) -> None:
    kl = kl_by_k3(single(0.0), single(math.log(ratio)), HERE).item()
    assert kl == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-12, abs=1e-15)


def test_k3_is_on_average_the_kl_of_the_old_policy_to_the_new() -> None:
    """Every token of a vocabulary of three, weighted by how often the old policy draws it."""
    new, old = (torch.tensor([p], dtype=torch.float64).log() for p in (NEW, OLD))
    kl = kl_by_k3(old, new, everywhere(*OLD))
    exact = sum(p * math.log(p / q) for p, q in zip(OLD, NEW, strict=True))
    assert sum(p * k for p, k in zip(OLD, kl[0].tolist(), strict=True)) == pytest.approx(exact, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES, JUNK)
def test_k3_is_never_negative_and_zero_in_the_padding(
    episodes: list[tuple[tuple[float, float, float], ...]], junk: float
) -> None:
    now, old, _ = columns(episodes)
    kl = kl_by_k3(padded(old, junk), padded(now, junk), mask_of(now))
    assert kl[~mask_of(now)].eq(0).all()
    # exp(x) - 1 - x cancels for small x: the last bit of exp(x), 2e-16, is what may be missing.
    assert kl.ge(-4e-16).all()


@pytest.mark.parametrize(
    ("values", "explained"),
    [
        ([1.0, 2.0, 6.0], 1.0),
        ([4.0, 5.0, 9.0], 1.0),  # off by a constant: the variance is explained
        ([7.0, 7.0, 7.0], 0.0),
        ([-1.0, -2.0, -6.0], -3.0),  # R - V = 2R, with four times the variance
        ([0.5, 1.0, 3.0], 0.75),
    ],
)
def test_explained_variance_in_closed_form(values: list[float], explained: float) -> None:
    variance = explained_variance(torch.tensor([values]), torch.tensor([[1.0, 2.0, 6.0]]), everywhere(*values))
    torch.testing.assert_close(variance, torch.tensor(explained))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(EPISODES.filter(lambda rows: sum(map(len, rows)) > 1), JUNK)
def test_explained_variance_matches_its_definition_whatever_the_padding_holds(
    episodes: list[tuple[tuple[float, float, float], ...]], junk: float
) -> None:
    values, returns, _ = columns(episodes)
    flat = [(r, r - v) for row in episodes for v, r, _ in row]
    spread = statistics.pvariance([r for r, _ in flat])
    variance = explained_variance(padded(values, junk), padded(returns, junk), mask_of(values)).item()
    if spread > 1.01e-8:
        expected = 1 - statistics.pvariance([d for _, d in flat]) / spread
        # A quotient of two variances: the spread's rounding, 1e-15, counts as much as it is small.
        assert variance == pytest.approx(expected, rel=1e-7, abs=1e-13 / spread)
    elif spread < 0.99e-8:  # there is nothing to explain
        assert math.isnan(variance)
