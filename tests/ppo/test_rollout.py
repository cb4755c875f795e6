"""What a rollout knows about its episodes, each number by the model's own forward; and its targets by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.inference.sampling import Sample, sample
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from ppo.batch import to_batch
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Rollout, collect, compute_targets

PROMPTS = ([5, 9, 40], [7, 300, 22, 11, 8], [60], [5, 9, 41, 33])


def recipe_with(**sections: dict[str, object]) -> PpoRecipe:
    return PpoRecipe.model_validate(
        {
            "base": {"model": "tiny"},
            "parents": {"sft": Path("sft"), "reward": Path("reward")},
            "data": ({"source": "builtin:tasks"},),
            **sections,
        }
    )


def test_targets_by_hand() -> None:
    """Two responses, the second of one token and cut; half a point for a nat of KL, a point for being cut.

    With trace and discount 1 a return is the sum of the rewards to come.
    """
    rollout = Rollout(
        episodes=Episodes.of([[5], [6]], [[7, 8, 2], [9]], pad_id=0),
        stopped=torch.tensor([True, False]),
        logprobs=torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]]),
        reference=torch.tensor([[-2.0, -2.0, -2.0], [-1.5, 0.0, 0.0]]),
        values=torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.0, 0.0]]),
        scores=torch.tensor([4.0, 3.0]),
    )
    recipe = recipe_with(
        kl={"weight": 0.5}, reward={"eos_penalty": 1.0}, train={"discount": 1.0, "trace": 1.0, "minibatch": 1}
    )
    targets = compute_targets(rollout, recipe)
    assert targets.kl.tolist() == [[1.0, 0.0, -1.0], [0.5, 0.0, 0.0]]
    assert targets.rewards.tolist() == [[-0.5, 0.0, 4.5], [1.75, 0.0, 0.0]]
    assert targets.returns.tolist() == [[4.0, 4.5, 4.5], [1.75, 0.0, 0.0]]
    assert targets.advantages.tolist() == [[3.5, 3.5, 3.0], [-0.25, 0.0, 0.0]]
    assert targets.kl_weight == 0.0  # it is in the rewards
    adapted = compute_targets(rollout, recipe, kl_weight=0.25)
    assert adapted.rewards.tolist() == [[-0.25, 0.0, 4.25], [1.875, 0.0, 0.0]]
    in_loss = compute_targets(rollout, recipe_with(kl={"weight": 0.5, "estimator": "k3"}))
    assert in_loss.rewards.tolist() == [[0.0, 0.0, 4.0], [2.0, 0.0, 0.0]]
    assert in_loss.kl_weight == 0.5
    sections = {"advantages": {"kind": "rloo"}, "sampling": {"responses_per_prompt": 2}, "kl": {"weight": 0.5}}
    grouped = compute_targets(rollout, recipe_with(**sections))
    assert grouped.advantages.tolist() == [[2.25, 2.25, 2.25], [-2.25, 0.0, 0.0]]
    assert not grouped.returns.any()


def four_roles(make_roles: Callable[..., Roles]) -> Roles:
    """Four different ones: which of them spoke shows in the numbers."""
    roles = make_roles("policy", "reference", "reward", "value")
    draws = torch.Generator().manual_seed(9)
    for role in ("reward", "value"):
        head = roles.add_head(role)
        head.weight.data.copy_(torch.randn(head.weight.shape, generator=draws))
    return roles


def states(roles: Roles, role: str, sequence: tuple[int, ...]) -> Tensor:
    """Last hidden states of one sequence alone, by the model's own forward."""
    with torch.no_grad(), roles.active(role):
        hidden = roles.base.model(input_ids=torch.tensor([sequence]), output_hidden_states=True).hidden_states
    assert hidden is not None
    return hidden[-1][0]


@pytest.mark.parametrize("old_logprobs", ["sampled", "recomputed"])
def test_each_role_says_its_own_part_of_a_rollout(make_roles: Callable[..., Roles], old_logprobs: str) -> None:
    roles = four_roles(make_roles)
    recipe = recipe_with(
        sampling={"max_new_tokens": 6, "temperature": 0.8, "batch": 3},
        reward={"terms": ({"weight": 2.0},)},
        train={"tokens_per_microbatch": 24, "old_logprobs": old_logprobs},
    )
    found = collect(roles, PROMPTS, recipe, torch.Generator().manual_seed(0))
    assert found.values is not None
    assert found.episodes.prompts == tuple(tuple(prompt) for prompt in PROMPTS)
    for row, sequence in enumerate(found.episodes.sequences):
        start, length = len(PROMPTS[row]), len(sequence) - len(PROMPTS[row])
        tokens = torch.tensor(sequence[start:])
        for role, logprobs in (("policy", found.logprobs), ("reference", found.reference)):
            logits = roles.lm_head(states(roles, role, sequence)).double() / 0.8
            table = logits - logits.exp().sum(dim=-1, keepdim=True).log()
            expected = table[torch.arange(start - 1, start - 1 + length), tokens].float()
            # Other matrix shapes than the model's own forward, and a cache: 1e-4 nats a token, as in the design.
            torch.testing.assert_close(logprobs[row, :length], expected, atol=1e-4, rtol=0)
        values = states(roles, "value", sequence)[start - 1 : start - 1 + length] @ roles.heads["value"].weight
        torch.testing.assert_close(found.values[row, :length], values.detach(), atol=1e-4, rtol=0)
        score = 2.0 * float(states(roles, "reward", sequence)[-1] @ roles.heads["reward"].weight)
        assert found.scores[row].item() == pytest.approx(score, abs=1e-4)
        for outside in (found.logprobs, found.reference, found.values):
            assert outside[row, length:].eq(0).all()


@pytest.mark.parametrize(("shift", "weight"), [(0.3, 0.7408182), (-0.3, 1.3498588), (-2.0, 2.0)])
def test_an_engine_with_other_logprobs_is_weighed_by_how_far_it_is_off(
    make_roles: Callable[..., Roles], shift: float, weight: float
) -> None:
    """exp(-0.3), exp(0.3), and exp(2) cut at the cap of 2."""
    roles = four_roles(make_roles)
    sizes = {"tokens_per_microbatch": 24, "old_logprobs": "recomputed", "importance_cap": 2.0}
    recipe = recipe_with(sampling={"max_new_tokens": 6, "batch": 3}, train=sizes)

    def engine(*given: Any, **named: Any) -> Sample:
        drawn = sample(*given, **named)
        return replace(drawn, logprobs=(drawn.logprobs + shift) * drawn.episodes.mask)

    found, plain = (
        collect(roles, PROMPTS, recipe, torch.Generator().manual_seed(0), engine=one) for one in (engine, sample)
    )
    assert torch.equal(found.logprobs, plain.logprobs)
    mask = found.episodes.mask
    importance = to_batch(found, compute_targets(found, recipe), roles.base.device, recipe).importance
    assert importance is not None
    torch.testing.assert_close(importance[mask], torch.full((int(mask.sum()),), weight), atol=1e-3, rtol=0)
