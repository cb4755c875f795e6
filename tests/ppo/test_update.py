"""Gradients of an update against those of the written-out objective, by the model's own forward."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.memory import Budget
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Experience
from ppo.start import start_learner
from ppo.update import Tally, backward

PROMPTS = ([5, 9, 40], [7, 300, 22, 11, 8], [60], [5, 9, 41, 33])
RESPONSES = ([100, 2], [17, 18, 19, 20, 2], [44, 45, 46], [9])
TOKENS = 11
CLIP, VALUE_CLIP, VALUE_WEIGHT, TEMPERATURE = 0.2, 0.3, 0.7, 0.9


def recipe_of(kind: str, **train: Any) -> PpoRecipe:
    return PpoRecipe.model_validate(
        {
            "base": {"model": "tiny"},
            "parents": {"sft": Path("sft"), "reward": Path("reward")},
            "data": ({"source": "builtin:tasks"},),
            "sampling": {"temperature": TEMPERATURE},
            "value": {"kind": kind, "clip": VALUE_CLIP, "weight": VALUE_WEIGHT},
            "train": {"clip": CLIP, **train},
        }
    )


def start(make_roles: Callable[..., Roles], kind: str) -> Roles:
    roles = make_roles("policy", "value")
    head = roles.add_head("policy" if kind == "shared" else "value")
    head.weight.data.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(9)) / 8)
    return roles.train("policy") if kind == "shared" else roles.train("policy", "value")


def batch_near(roles: Roles, kind: str) -> Experience:
    """Old log-probs and values around the present ones, so that some ratios and values are clipped and some not."""
    episodes = Episodes.of(PROMPTS, RESPONSES, pad_id=0)
    draws = torch.Generator().manual_seed(2)
    noise = [torch.randn(episodes.mask.shape, generator=draws) * scale for scale in (0.3, 0.4, 1.0, 1.0)]
    with torch.no_grad():
        logprobs, values = zip(*(present(roles, kind, row) for row in range(len(episodes))), strict=True)
    pad = [torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in (logprobs, values)]
    rows, zeros = torch.zeros(len(episodes)), torch.zeros(episodes.mask.shape)
    return Experience(
        episodes=episodes,
        stopped=rows.bool(),
        logprobs=pad[0] + noise[0],
        decoding_logprobs=None,
        importance=None,
        reference_logprobs=zeros,
        kl=zeros,
        scores=rows,
        terms={},
        members={},
        rewards=zeros,
        values=pad[1] + noise[1],
        returns=pad[1] + noise[2],
        advantages=noise[3],
    )


def learn(roles: Roles, batch: Experience, kind: str, tokens: int = 16, **options: Any) -> Tally:
    train = options.pop("train", {})
    recipe = recipe_of(kind, **train)
    return backward(roles, batch, start_learner(roles, recipe), method_of(recipe), Budget(tokens=tokens), **options)


def present(roles: Roles, kind: str, row: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values of one episode alone, by the model's own forward."""
    sequence, start = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]]), len(PROMPTS[row])

    def states(role: str) -> Tensor:
        with roles.active(role):
            hidden = roles.base.model(input_ids=sequence, output_hidden_states=True).hidden_states
        assert hidden is not None
        return hidden[-1][0, start - 1 : -1]

    owner = "policy" if kind == "shared" else "value"
    with roles.active("policy"):
        logits = roles.base.model(input_ids=sequence).logits[0, start - 1 : -1] / TEMPERATURE
    logprobs = torch.log_softmax(logits, dim=-1)[torch.arange(len(RESPONSES[row])), torch.tensor(RESPONSES[row])]
    return logprobs, states(owner) @ roles.heads[owner].weight + roles.heads[owner].bias


def objective(roles: Roles, kind: str, batch: Experience) -> Tensor:
    """Token by token, as the papers write it, divided by the tokens of the mini-batch."""
    total = torch.zeros(())
    for row, response in enumerate(RESPONSES):
        logprobs, values = present(roles, kind, row)
        for t in range(len(response)):
            ratio, advantage = torch.exp(logprobs[t] - batch.logprobs[row, t]), batch.advantages[row, t]
            cut = min(max(ratio, torch.tensor(1 - CLIP)), torch.tensor(1 + CLIP))
            old, target = batch.values[row, t], batch.returns[row, t]
            held = min(max(values[t], old - VALUE_CLIP), old + VALUE_CLIP)
            miss = max((values[t] - target) ** 2, (held - target) ** 2) / 2
            total = total - min(ratio * advantage, cut * advantage) + VALUE_WEIGHT * miss
    return total / TOKENS


def gradients(roles: Roles) -> dict[str, list[Tensor | None]]:
    by_role = {role: [parameter.grad for parameter in roles.parameters(role)] for role in roles.names}
    for role in roles.names:
        for parameter in roles.parameters(role):
            parameter.grad = None
    return by_role


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_an_attempt_begins_without_the_gradients_of_an_earlier_one(make_roles: Callable[..., Roles], kind: str) -> None:
    """One of a mini-batch before, or one that ran out of memory half-way."""
    roles = start(make_roles, kind)
    batch = batch_near(roles, kind)
    learn(roles, batch, kind)
    once = gradients(roles)
    learn(roles, batch, kind)
    learn(roles, batch, kind)
    again = gradients(roles)
    for role in once:
        for first, second in zip(once[role], again[role], strict=True):
            assert (first is None) == (second is None)
            assert first is None or second is None or torch.equal(first, second)
    assert any(first is not None and bool(first.any()) for first in once["policy"])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tokens_per_microbatch", [1, 16, 1000])
@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_gradients_are_those_of_the_objective_whatever_the_micro_batches(
    make_roles: Callable[..., Roles], kind: str, tokens_per_microbatch: int, checkpointing: bool
) -> None:
    roles = start(make_roles, kind)
    batch = batch_near(roles, kind)
    objective(roles, kind, batch).backward()
    expected = gradients(roles)
    if checkpointing:
        roles.forwards.enable_checkpointing()
    learn(roles, batch, kind, tokens_per_microbatch)
    require_equal(gradients(roles), expected, kind)


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_gradients_do_not_depend_on_the_order_of_the_episodes(make_roles: Callable[..., Roles], kind: str) -> None:
    roles = start(make_roles, kind)
    batch = batch_near(roles, kind)
    learn(roles, batch, kind)
    expected = gradients(roles)
    learn(roles, batch.select([2, 0, 3, 1]), kind)
    require_equal(gradients(roles), expected, kind)


def require_equal(by_role: dict[str, list[Tensor | None]], expected: dict[str, list[Tensor | None]], kind: str) -> None:
    for role, wanted_of in expected.items():
        largest = max((float(wanted.abs().max()) for wanted in wanted_of if wanted is not None), default=0.0)
        assert largest > 0 or (role == "value" and kind == "shared")
        for mine, wanted in zip(by_role[role], wanted_of, strict=True):
            assert (mine is None) == (wanted is None)
            if mine is not None and wanted is not None:
                # Sums in another order: relative to the largest gradient, as in the design.
                torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5 * largest)


KL_WEIGHT, ENTROPY_WEIGHT = 0.7, 0.3


def full_objective(roles: Roles, batch: Experience, aggregation: str) -> Tensor:
    """The policy's with everything that a recipe can add to it, token by token; the value's as it is."""
    assert batch.importance is not None
    total = torch.zeros(())
    for row, response in enumerate(RESPONSES):
        logprobs, values = present(roles, "adapter", row)
        divisor = {"token-mean": TOKENS, "sequence-mean": len(RESPONSES) * len(response)}
        for t in range(len(response)):
            advantage = batch.advantages[row, t]
            ratio = torch.exp(logprobs[t] - batch.logprobs[row, t])
            cut = min(max(ratio, torch.tensor(1 - CLIP)), torch.tensor(1 + CLIP))
            gain = min(ratio * advantage, cut * advantage)
            away = batch.reference_logprobs[row, t] - logprobs[t]
            old, target = batch.values[row, t], batch.returns[row, t]
            held = min(max(values[t], old - VALUE_CLIP), old + VALUE_CLIP)
            loss = VALUE_WEIGHT * max((values[t] - target) ** 2, (held - target) ** 2) / 2
            loss = loss - gain * batch.importance[row, t] + KL_WEIGHT * (torch.exp(away) - 1 - away)
            total = total + loss / divisor.get(aggregation, len(RESPONSES) * 64)  # 64: max_new_tokens
            total = total - ENTROPY_WEIGHT * entropy(roles, row, t) / divisor.get(aggregation, len(RESPONSES) * 64)
    return total


def entropy(roles: Roles, row: int, t: int) -> Tensor:
    sequence = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]])
    with roles.active("policy"):
        logits = roles.base.model(input_ids=sequence).logits[0, len(PROMPTS[row]) - 1 + t] / TEMPERATURE
    return torch.distributions.Categorical(logits=logits).entropy()


@pytest.mark.parametrize("tokens_per_microbatch", [1, 1000])
@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "constant"])
def test_everything_a_recipe_adds_is_in_the_gradient_whatever_the_micro_batches(
    make_roles: Callable[..., Roles], aggregation: str, tokens_per_microbatch: int
) -> None:
    roles = start(make_roles, "adapter")
    plain = batch_near(roles, "adapter")
    draws = torch.Generator().manual_seed(5)
    more = [torch.randn(plain.logprobs.shape, generator=draws) for _ in range(2)]
    batch = replace(plain, reference_logprobs=plain.logprobs + more[0] / 2, importance=more[1].exp())
    full_objective(roles, batch, aggregation).backward()
    expected = gradients(roles)
    added = {"aggregation": aggregation, "entropy_weight": ENTROPY_WEIGHT}
    learn(roles, batch, "adapter", tokens_per_microbatch, train=added, kl_weight=KL_WEIGHT)
    by_role = gradients(roles)
    for role in roles.names:
        largest = max(float(wanted.abs().max()) for wanted in expected[role] if wanted is not None)
        for mine, wanted in zip(by_role[role], expected[role], strict=True):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=2e-5 * largest)


def test_a_policy_that_waits_has_no_gradient_and_the_value_function_its_own(make_roles: Callable[..., Roles]) -> None:
    roles = start(make_roles, "adapter")
    batch = batch_near(roles, "adapter")
    learn(roles, batch, "adapter")
    both = gradients(roles)
    tally = learn(roles, batch, "adapter", learn_policy=False)
    alone = gradients(roles)
    assert all(gradient is None for gradient in alone["policy"])
    for alone_gradient, other in zip(alone["value"], both["value"], strict=True):
        assert (alone_gradient is None) == (other is None)
        assert alone_gradient is None or (other is not None and torch.equal(alone_gradient, other))
    assert set(tally.means()) == {"value_loss"}


def test_what_is_logged_is_a_mean_over_tokens_and_not_over_micro_batches(make_roles: Callable[..., Roles]) -> None:
    roles = start(make_roles, "adapter")
    batch = batch_near(roles, "adapter")
    tally = learn(roles, batch, "adapter")
    with torch.no_grad():
        ratios = [
            (present(roles, "adapter", row)[0] - batch.logprobs[row, : len(response)]).exp()
            for row, response in enumerate(RESPONSES)
        ]
    flat = torch.cat(ratios).tolist()
    means = tally.means()
    assert tally.tokens == TOKENS
    assert means["clip_fraction"] == pytest.approx(sum(abs(ratio - 1) > CLIP for ratio in flat) / TOKENS)
    assert 0 < means["clip_fraction"] < 1, "the test needs both kinds"
    assert tally.ratio_max == pytest.approx(max(flat), rel=1e-4)
