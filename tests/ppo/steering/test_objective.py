"""What a recipe can add to PPO's loss: by hand, by enumeration, and in the same gradient for any micro-batch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.maths.losses import kl_by_k3, token_weights, truncated_importance
from ppo.maths.rewards import next_kl_weight
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import PpoState
from ppo.train import next_state

ONE = torch.ones(1, 1, dtype=torch.bool)


def single(value: float) -> torch.Tensor:
    return torch.tensor([[value]])


def recipe(**sections: Any) -> PpoRecipe:
    required = {
        "base": {"model": "tiny"},
        "parents": {"sft": Path("sft"), "reward": Path("reward")},
        "data": ({"source": "builtin:tasks"},),
        "sampling": {"responses_per_prompt": 4},
    }
    return PpoRecipe.model_validate(required | sections)


@settings(deadline=None, max_examples=200)
@given(st.floats(-8, 0), st.floats(-8, 0))
def test_the_kl_term_is_never_negative_and_zero_where_both_agree(logprob: float, reference: float) -> None:
    term = kl_by_k3(single(logprob), single(reference), ONE).item()
    ratio = math.exp(reference - logprob)
    assert term >= 0
    assert term == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-3, abs=1e-5)
    assert kl_by_k3(single(logprob), single(logprob), ONE).item() == 0


def test_the_kl_term_has_the_value_of_one_kl_and_the_gradient_of_the_other() -> None:
    logits = torch.tensor([[0.3, -0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([[0.0, 0.6, -0.5]], dtype=torch.float64), 1)
    logprobs = torch.log_softmax(logits, 1)
    mask, policy = torch.ones(1, 3, dtype=torch.bool), logprobs.exp().detach()
    expected = (policy * kl_by_k3(logprobs.float(), reference.float(), mask)).sum()
    kl = (policy * (logprobs.detach() - reference)).sum()
    assert expected.item() == pytest.approx(kl.item(), abs=1e-6)
    (gradient,) = torch.autograd.grad(expected, logits)
    backward_kl = (reference.exp() * (reference - torch.log_softmax(logits, 1))).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(backward_kl, logits)[0], rtol=0, atol=1e-6)


def test_what_a_loss_is_a_mean_of() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    kinds = ("token-mean", "sequence-mean", "constant")
    rows = {kind: token_weights(mask, aggregation=kind, limit=10) for kind in kinds}
    torch.testing.assert_close(rows["token-mean"], torch.tensor([[0.2] * 4, [0.2, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(rows["sequence-mean"], torch.tensor([[0.125] * 4, [0.5, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(rows["constant"], torch.tensor([[0.05] * 4, [0.05, 0.0, 0.0, 0.0]]))


def test_each_estimator_brings_the_mean_of_its_paper_and_the_recipe_may_say_another() -> None:
    kinds = {kind: recipe(advantages={"kind": kind}).aggregation for kind in ("gae", "rloo", "grpo", "dr_grpo")}
    assert kinds == {"gae": "token-mean", "rloo": "constant", "grpo": "sequence-mean", "dr_grpo": "constant"}
    assert recipe(advantages={"kind": "grpo"}, train={"aggregation": "constant"}).aggregation == "constant"
    assert [recipe(advantages={"kind": kind}).standardises_advantages for kind in ("gae", "rloo")] == [True, False]
    assert recipe(advantages={"kind": "rloo", "standardise": True}).standardises_advantages


def test_importance_weights_are_truncated_from_above_only() -> None:
    trained, sampled = torch.tensor([[0.0, -2.0, -1.0]]), torch.tensor([[-2.0, 0.0, -1.0]])
    mask = torch.tensor([[True, True, False]])
    weights = truncated_importance(trained, sampled, mask, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[2.0, math.exp(-2), 1.0]]))


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (100.0, 1.02), (5.4, 0.99), (0.0, 0.98)])
def test_the_kl_weight_follows_the_error_up_to_a_fifth(kl: float, factor: float) -> None:
    weight = next_kl_weight(0.5, kl, target=6.0, horizon=1000, episodes=100)
    assert weight == pytest.approx(0.5 * factor)


def test_a_weight_that_does_not_adapt_stays() -> None:
    state = PpoState(kl_weight=0.3)
    assert next_state(state, recipe(), 1, kl=99.0) == state
    adaptive = recipe(kl={"adaptive": {"target": 2.0, "horizon": 640}}, train={"batch": 64})
    assert next_state(state, adaptive, 1, kl=99.0).kl_weight == pytest.approx(0.3 * 1.02)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"advantages": {"kind": "rloo"}, "sampling": {}}, "responses_per_prompt of 2 or more, found 1"),
        ({"advantages": {"kind": "grpo"}, "value": {"warmup_steps": 3}}, "there is no value function"),
        ({"value": {"kind": "shared", "warmup_steps": 3}}, "shares the policy's adapter"),
        ({"train": {"importance_cap": 2.0}}, "train.old_logprobs=recomputed"),
        ({"kl": {"weight": 0.0, "adaptive": {"target": 1.0}}}, "which is 0 and stays 0"),
        (
            {"advantages": {"kind": "rloo"}, "value": {"clip": 0.1, "weight": 1}},
            "value.clip, value.weight: .*=rloo has no",
        ),
        ({"kl": {"weight": math.inf}}, "finite number"),
        ({"reward": {"terms": [{"weight": math.nan}]}}, "finite number"),
        ({"advantages": {"kind": "rloo"}, "train": {"discount": 0.99}}, "read by advantages.kind=gae only, found rloo"),
        ({"kl": {"adaptive": {"target": 5.0, "horizon": 10}}}, "the weight could turn negative. Choose more than 12.8"),
        ({"reward": {"overlong": {"buffer": 65}}}, "max_new_tokens=64 tokens at most, so every one would pay"),
        ({"value": {"warmup_steps": 8}}, "the run has 8 steps .* the policy would learn in none"),
        ({"value": {"kind": "shared", "learning_rate": 1e-5}}, "has no effect with value.kind=shared"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**sections)
