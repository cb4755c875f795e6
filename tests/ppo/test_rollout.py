"""What a rollout knows about its episodes, each number by the model's own forward; and its targets by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.chat.conversations import Chat, EncodedPrompt
from data.records import Message, Origin, Prompt
from onebase.inference.sampling import Engine, Sample, sample
from onebase.memory import Budget
from onebase.model.roles import Roles
from onebase.recipe.sections import ChatSection
from onebase.sequences.episodes import Episodes
from ppo.maths.rewards import ScoreMoments
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Experience, PpoState, collect, make_experience
from ppo.scores import EpisodeScores, PromptBatch

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


def experience_of(recipe: PpoRecipe, state: PpoState, *, gae: bool = True) -> Experience:
    """Of two responses, the second of one token and cut."""
    drawn = Sample(
        episodes=Episodes.of([[5], [6]], [[7, 8, 2], [9]], pad_id=0),
        logprobs=torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]]),
        stopped=torch.tensor([True, False]),
    )
    reference = torch.tensor([[-2.0, -2.0, -2.0], [-1.5, 0.0, 0.0]])
    values = torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.0, 0.0]]) if gae else None
    scores = EpisodeScores(total=torch.tensor([4.0, 3.0]), terms={}, members={})
    return make_experience(drawn, scores, method_of(recipe), state, reference=reference, values=values)


def test_rewards_advantages_and_returns_by_hand() -> None:
    """Half a point for a nat of KL, a point for being cut.

    With discount and lambda 1 a return is the sum of the rewards to come.
    """
    plain: dict[str, object] = {"discount": 1.0, "gae_lambda": 1.0}
    recipe = recipe_with(advantages={"standardise": False}, reward={"eos_penalty": 1.0}, train=plain)
    experience = experience_of(recipe, PpoState(kl_weight=0.5))
    assert experience.kl.tolist() == [[1.0, 0.0, -1.0], [0.5, 0.0, 0.0]]
    assert experience.rewards.tolist() == [[-0.5, 0.0, 4.5], [1.75, 0.0, 0.0]]
    assert experience.returns.tolist() == [[4.0, 4.5, 4.5], [1.75, 0.0, 0.0]]
    assert experience.advantages.tolist() == [[3.5, 3.5, 3.0], [-0.25, 0.0, 0.0]]
    assert experience_of(recipe, PpoState(kl_weight=0.25)).rewards.tolist() == [[-0.25, 0.0, 4.25], [1.875, 0.0, 0.0]]
    in_loss = experience_of(recipe_with(kl={"estimator": "k3"}), PpoState(kl_weight=0.5))
    assert in_loss.rewards.tolist() == [[0.0, 0.0, 4.0], [2.0, 0.0, 0.0]]
    sections = {"advantages": {"kind": "rloo"}, "sampling": {"responses_per_prompt": 2}}
    grouped = experience_of(recipe_with(**sections), PpoState(kl_weight=0.5), gae=False)
    assert grouped.advantages.tolist() == [[2.25, 2.25, 2.25], [-2.25, 0.0, 0.0]]
    assert not grouped.returns.any()


def test_advantages_are_standardised_over_the_whole_rollout_and_returns_are_not() -> None:
    plain: dict[str, object] = {"discount": 1.0, "gae_lambda": 1.0}
    experience = experience_of(recipe_with(reward={"eos_penalty": 1.0}, train=plain), PpoState(kl_weight=0.5))
    raw = torch.tensor([3.5, 3.5, 3.0, -0.25])  # mean 39 / 16
    expected = (raw - 39 / 16) / raw.std(correction=0)
    torch.testing.assert_close(experience.advantages[experience.episodes.mask], expected)
    assert experience.advantages[~experience.episodes.mask].eq(0).all()
    assert experience.returns.tolist() == [[4.0, 4.5, 4.5], [1.75, 0.0, 0.0]]


def test_whitened_scores_are_on_the_scale_of_the_run() -> None:
    moments = ScoreMoments(count=8.0, mean=2.0, variance=4.0)
    recipe = recipe_with(reward={"whiten": True, "eos_penalty": 0.0})
    experience = experience_of(recipe, PpoState(kl_weight=0.0, score_moments=moments))
    assert experience.rewards.sum(dim=1).tolist() == pytest.approx([1.0, 0.5])
    assert experience.scores.tolist() == [4.0, 3.0]


def test_a_selection_holds_the_rows_of_everything() -> None:
    whole = experience_of(recipe_with(train={"old_logprobs": "recomputed"}), PpoState(kl_weight=0.5))
    whole = replace(whole, terms={"a": torch.tensor([1.0, 2.0])}, members={"b": torch.tensor([3.0, 4.0])})
    part = whole.select([1])
    assert part.episodes.prompts == ((6,),)
    for name in ("stopped", "logprobs", "reference_logprobs", "kl", "scores", "rewards", "values", "returns"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1:]), name
    assert torch.equal(part.advantages, whole.advantages[1:])
    assert part.importance is None
    assert (part.terms["a"].tolist(), part.members["b"].tolist()) == ([2.0], [4.0])


def four_roles(make_roles: Callable[..., Roles]) -> Roles:
    """Four different ones: which of them spoke shows in the numbers."""
    roles = make_roles("policy", "reference", "reward", "value")
    draws = torch.Generator().manual_seed(9)
    for role in ("reward", "value"):
        head = roles.add_head(role)
        head.weight.data.copy_(torch.randn(head.weight.shape, generator=draws))
    return roles


def batch_of(roles: Roles) -> PromptBatch:
    prompts = [Prompt((Message("user", "?"),), Origin("test", row), {}) for row in range(len(PROMPTS))]
    encoded = [EncodedPrompt(prompt, tuple(ids)) for prompt, ids in zip(prompts, PROMPTS, strict=True)]
    return PromptBatch(chat=Chat.of(roles.base, ChatSection()), prompts=encoded)


def roll_out(roles: Roles, recipe: PpoRecipe, engine: Engine = sample) -> Experience:
    budget, state = Budget(tokens=24, episodes=3), PpoState(kl_weight=recipe.kl.weight)
    draw = torch.Generator().manual_seed(0)
    return collect(roles, batch_of(roles), replace(method_of(recipe), engine=engine), draw, budget, state)[0]


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
        sampling={"max_new_tokens": 6, "temperature": 0.8},
        reward={"terms": ({"weight": 2.0},)},
        train={"old_logprobs": old_logprobs},
    )
    experience = roll_out(roles, recipe)
    closed = batch_of(roles).chat.closed(experience.episodes.sequences)
    assert experience.episodes.prompts == tuple(tuple(prompt) for prompt in PROMPTS)
    for row, sequence in enumerate(experience.episodes.sequences):
        start, length = len(PROMPTS[row]), len(sequence) - len(PROMPTS[row])
        tokens = torch.tensor(sequence[start:])
        for role, logprobs in (("policy", experience.logprobs), ("reference", experience.reference_logprobs)):
            logits = roles.forwards.lm_head(states(roles, role, sequence)).double() / 0.8
            table = logits - logits.exp().sum(dim=-1, keepdim=True).log()
            expected = table[torch.arange(start - 1, start - 1 + length), tokens].float()
            # Other matrix shapes than the model's own forward, and a cache: 1e-4 nats per token, as in the design.
            torch.testing.assert_close(logprobs[row, :length], expected, atol=1e-4, rtol=0)
        values = states(roles, "value", sequence)[start - 1 : start - 1 + length] @ roles.heads["value"].weight
        torch.testing.assert_close(experience.values[row, :length], values.detach(), atol=1e-4, rtol=0)
        score = 2.0 * float(states(roles, "reward", closed[row])[-1] @ roles.heads["reward"].weight)
        assert experience.scores[row].item() == pytest.approx(score, abs=1e-4)
        for outside in (experience.logprobs, experience.reference_logprobs, experience.values):
            assert outside[row, length:].eq(0).all()


@pytest.mark.parametrize(("shift", "weight"), [(0.3, 0.7408182), (-0.3, 1.3498588), (-2.0, 2.0)])
def test_an_engine_with_other_logprobs_is_weighed_by_how_far_it_is_off(
    make_roles: Callable[..., Roles], shift: float, weight: float
) -> None:
    """exp(-0.3), exp(0.3), and exp(2) cut at the cap of 2."""
    roles = four_roles(make_roles)
    sizes = {"old_logprobs": "recomputed", "importance_cap": 2.0}
    recipe = recipe_with(sampling={"max_new_tokens": 6}, train=sizes)

    def engine(*arguments: Any, **named: Any) -> Sample:
        drawn = sample(*arguments, **named)
        return replace(drawn, logprobs=(drawn.logprobs + shift) * drawn.episodes.mask)

    experience, plain = (roll_out(roles, recipe, engine=decoder) for decoder in (engine, sample))
    assert torch.equal(experience.logprobs, plain.logprobs)
    mask = experience.episodes.mask
    assert experience.importance is not None
    torch.testing.assert_close(experience.importance[mask], torch.full((int(mask.sum()),), weight), atol=1e-3, rtol=0)
