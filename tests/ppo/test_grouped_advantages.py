"""Advantages within groups by their definitions, and RLOO's gradient by enumeration."""

import itertools
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.maths.advantages import GROUPED, compare_groups, dr_grpo, grpo, rloo
from ppo.maths.losses import policy_loss, token_weights
from ppo.recipe.recipe import PpoRecipe

groups = st.integers(2, 5).flatmap(
    lambda size: st.lists(st.lists(st.floats(-5, 5, width=32), min_size=size, max_size=size), min_size=1, max_size=4)
)


@settings(deadline=None, max_examples=200)
@given(groups)
def test_each_is_what_its_equation_says(returns: list[list[float]]) -> None:
    size = len(returns[0])
    flat = torch.tensor([value for group in returns for value in group], dtype=torch.float32)
    advantages = {kind: estimate(flat, group=size).view(-1, size).tolist() for kind, estimate in GROUPED.items()}
    for number, group in enumerate(returns):
        mean, spread = statistics.fmean(group), statistics.stdev(group)
        for index, value in enumerate(group):
            others = statistics.fmean(group[:index] + group[index + 1 :])
            assert advantages["rloo"][number][index] == pytest.approx(value - others, abs=1e-4)
            assert advantages["dr_grpo"][number][index] == pytest.approx(value - mean, abs=1e-4)
            if spread > 0.01:
                assert advantages["grpo"][number][index] == pytest.approx((value - mean) / (spread + 1e-4), abs=2e-3)


@settings(deadline=None, max_examples=200)
@given(groups, st.floats(-3, 3, width=32))
def test_what_a_whole_group_has_in_common_does_not_count(returns: list[list[float]], shift: float) -> None:
    size = len(returns[0])
    flat = torch.tensor([value for group in returns for value in group], dtype=torch.float32)
    for estimate in (rloo, dr_grpo):
        torch.testing.assert_close(estimate(flat + shift, group=size), estimate(flat, group=size), rtol=0, atol=1e-4)
    ratio = (size - 1) / size
    torch.testing.assert_close(dr_grpo(flat, group=size), ratio * rloo(flat, group=size), rtol=0, atol=1e-4)


def test_a_group_whose_returns_are_all_equal_teaches_nothing() -> None:
    returns = torch.tensor([2.0, 2.0, 2.0, 0.0, 1.0, 2.0])
    for estimate in GROUPED.values():
        assert estimate(returns, group=3)[:3].tolist() == [0.0, 0.0, 0.0]
    assert grpo(returns, group=3)[3:].tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-3)


def test_the_gradient_with_leave_one_out_baselines_is_unbiased() -> None:
    """Over all pairs of samples of a three-word policy, weighted by their probability: exactly the gradient of E[r]."""
    logits = torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (exact,) = torch.autograd.grad((torch.softmax(logits, 0) * rewards).sum(), logits)
    for kind, factor in (("rloo", 1.0), ("dr_grpo", 0.5)):
        expected = torch.zeros(3, dtype=torch.float64)
        for pair in itertools.product(range(3), repeat=2):
            logprobs = torch.log_softmax(logits, 0)[list(pair)]
            advantages = GROUPED[kind](rewards[list(pair)].float(), group=2).double()
            (gradient,) = torch.autograd.grad((advantages * logprobs).mean(), logits)
            expected += logprobs.detach().sum().exp() * gradient
        torch.testing.assert_close(expected, factor * exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["rloo", "dr_grpo"])
def test_the_gradient_is_unbiased_over_responses_of_unequal_lengths_with_the_loss_that_a_recipe_has(kind: str) -> None:
    """Over all pairs of responses ("a", "b c", "b d"): the expected gradient of the loss is a multiple of that of E[r].
    A mean over tokens is not: it has another direction."""
    logits = torch.tensor([[0.2, -0.4], [0.9, -0.3]], dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([1.0, -2.0, 0.5])
    mask = torch.tensor([[True, False], [True, True], [True, True]])

    def responses() -> torch.Tensor:
        """[3, 2] log-probabilities of each word."""
        first, second = torch.log_softmax(logits, dim=1)
        return torch.stack(
            [torch.stack([first[0], first[0] * 0]), *(torch.stack([first[1], later]) for later in second)]
        )

    def gradient(aggregation: str) -> torch.Tensor:
        expected = torch.zeros_like(logits)
        for pair in map(list, itertools.product(range(3), repeat=2)):
            logprobs = responses()[pair]
            rewards = torch.stack([scores[pair], torch.zeros(2)], dim=1)
            advantages = compare_groups(rewards, mask[pair], kind=kind, group=2)
            losses = policy_loss(logprobs, logprobs.detach(), advantages.double(), mask[pair], clip=0.2)
            weights = token_weights(mask[pair], aggregation=aggregation, limit=2)
            (whole,) = torch.autograd.grad((losses * weights).sum(), logits)
            expected -= logprobs.detach().sum().exp() * whole
        return expected

    (exact,) = torch.autograd.grad((responses().sum(dim=1).exp() * scores).sum(), logits)
    factor = {"rloo": 1.0, "dr_grpo": 0.5}[kind] / 2  # the limit
    recipe = PpoRecipe.model_validate(
        {
            "base": {"model": "tiny"},
            "parents": {"sft": "sft", "reward": "reward"},
            "data": [{"source": "builtin:tasks"}],
            "advantages": {"kind": kind},
            "sampling": {"responses_per_prompt": 2},
        }
    )
    torch.testing.assert_close(gradient(recipe.aggregation), factor * exact, rtol=0, atol=1e-7)
    for biased in ("token-mean", "sequence-mean"):
        ratios = gradient(biased) / exact
        assert ratios.max() > 1.05 * ratios.min()


def test_every_token_of_a_response_has_its_advantage_and_padding_none() -> None:
    rewards = torch.tensor([[0.5, 0.5, float("nan")], [-1.0, 0.0, 2.0], [0.0, float("nan"), 9.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    advantages = compare_groups(rewards, mask, kind="rloo", group=2)
    assert advantages.tolist() == [[0, 0, 0], [0, 0, 0], [-3, 0, 0], [3, 3, 3]]


@pytest.mark.parametrize("kind", list(GROUPED))
@pytest.mark.parametrize("value", [1000.1, -0.3, 0.1, 0.0])
@pytest.mark.parametrize("group", [2, 3, 7])
def test_a_group_of_equal_rewards_teaches_exactly_nothing(kind: str, value: float, group: int) -> None:
    """A mean that is a rounding off, divided by a deviation that is one too, would be a signal."""
    rewards, mask = torch.zeros(2 * group, 3), torch.ones(2 * group, 3, dtype=torch.bool)
    rewards[:, 2] = value
    rewards[0, 2] = value + 1.0
    advantages = compare_groups(rewards, mask, kind=kind, group=group)
    assert (advantages[group:] == 0).all()
    assert (advantages[:group] != 0).all()
