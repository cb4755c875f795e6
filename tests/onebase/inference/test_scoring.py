"""Scores, log-probabilities and values of given episodes, and sampling against them."""

from collections.abc import Callable

import pytest
import torch

from onebase.inference.logprobs import draw
from onebase.inference.sampling import sample
from onebase.inference.scoring import logprobs, score, token_scores, token_values
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from onebase.sequences.tree import fill

PROMPTS = ([5, 9, 40], [7, 300, 22, 11, 8], [60], [5, 9, 41, 33])
RESPONSES = ([100, 2], [17, 18, 19, 20, 2], [44, 45, 46], [9])


@pytest.fixture
def episodes() -> Episodes:
    return Episodes.of(PROMPTS, RESPONSES, pad_id=0)


def one_by_one(roles: Roles, role: str | None, temperature: float) -> list[list[float]]:
    """Log-probabilities by the model's own forward, one sequence at a time, softmax over the whole vocabulary."""
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with torch.no_grad(), roles.active(role):
            logits = roles.base.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double() / temperature
        log_softmax = logits - logits.exp().sum(-1, keepdim=True).log()
        expected.append([log_softmax[len(prompt) - 1 + t, token].item() for t, token in enumerate(response)])
    return expected


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_each_sequence_alone(
    make_roles: Callable[..., Roles], episodes: Episodes, temperature: float, quantization: str
) -> None:
    roles = make_roles("policy", quantization=quantization)
    together = logprobs(roles, "policy", episodes, temperature=temperature, tokens_per_microbatch=16)
    for row, expected in enumerate(one_by_one(roles, "policy", temperature)):
        torch.testing.assert_close(together[row, : len(expected)].tolist(), expected, atol=1e-4, rtol=1e-4)
        assert together[row, len(expected) :].eq(0).all()


def test_junk_in_the_padding_and_other_batch_mates_change_nothing(
    make_roles: Callable[..., Roles], episodes: Episodes
) -> None:
    roles = make_roles("policy")
    first = logprobs(roles, "policy", episodes, temperature=1.0, tokens_per_microbatch=1000)
    junk = Episodes(
        prompts=episodes.prompts, responses=episodes.responses.masked_fill(~episodes.mask, 77), mask=episodes.mask
    )
    torch.testing.assert_close(
        logprobs(roles, "policy", junk, temperature=1.0, tokens_per_microbatch=1000), first, atol=1e-4, rtol=0
    )
    order = [2, 0, 3, 1]
    shuffled = logprobs(roles, "policy", episodes.select(order), temperature=1.0, tokens_per_microbatch=1)
    torch.testing.assert_close(shuffled, first[order], atol=1e-4, rtol=0)


def test_a_score_is_the_head_at_the_last_token(make_roles: Callable[..., Roles], episodes: Episodes) -> None:
    roles = make_roles("reward")
    head = roles.add_head("reward")
    head.weight.data.normal_()
    head.bias.data.fill_(0.25)
    scores = score(roles, "reward", episodes.sequences, tokens_per_microbatch=20)
    for row, sequence in enumerate(episodes.sequences):
        with torch.no_grad(), roles.active("reward"):
            states = roles.base.model(input_ids=torch.tensor([sequence]), output_hidden_states=True).hidden_states
        assert states is not None
        expected = float(states[-1][0, -1] @ head.weight + head.bias)
        assert scores[row].item() == pytest.approx(expected, abs=1e-4)


def test_values_look_at_the_token_before(make_roles: Callable[..., Roles], episodes: Episodes) -> None:
    """The value of the first response token does not depend on any response token."""
    roles = make_roles("value")
    roles.add_head("value").weight.data.normal_()
    changed = Episodes.of(PROMPTS, [[99, *rest[1:]] for rest in RESPONSES], pad_id=0)
    with torch.no_grad():
        first, second = token_values(roles, "value", episodes), token_values(roles, "value", changed)
    torch.testing.assert_close(first[:, 0], second[:, 0])
    assert not torch.allclose(first[1, 1], second[1, 1])


def test_entropy_is_that_of_the_whole_distribution(make_roles: Callable[..., Roles], episodes: Episodes) -> None:
    roles = make_roles("policy")
    with torch.no_grad():
        entropies = token_scores(roles, "policy", episodes, temperature=1.0).entropies
        with roles.active("policy"):
            logits = roles.base.model(input_ids=torch.tensor([[*PROMPTS[0], *RESPONSES[0]]])).logits[0, 2:4]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropies[0, :2], expected, atol=1e-4, rtol=1e-4)


def test_decoding_keeps_the_logprobs_of_a_training_forward(make_roles: Callable[..., Roles], quantization: str) -> None:
    roles = make_roles("policy", quantization=quantization)
    sampled = sample(
        roles,
        "policy",
        PROMPTS,
        max_new_tokens=12,
        temperature=0.8,
        generator=torch.Generator().manual_seed(3),
        batch=3,
    )
    again = logprobs(roles, "policy", sampled.episodes, temperature=0.8, tokens_per_microbatch=1000)
    torch.testing.assert_close(sampled.logprobs, again, atol=1e-4, rtol=0)


def test_a_response_ends_at_its_first_stop_token(make_roles: Callable[..., Roles]) -> None:
    roles = make_roles("policy")
    sampled = sample(
        roles,
        "policy",
        [[5, 9, 40]] * 64,
        max_new_tokens=24,
        temperature=3.0,
        generator=torch.Generator().manual_seed(0),
        batch=64,
    )
    stops = sampled.episodes.responses.eq(2) & sampled.episodes.mask
    assert 0 < sampled.stopped.sum() < 64, "the test needs both kinds"
    assert torch.equal(stops.any(dim=1), sampled.stopped)
    lengths = sampled.episodes.mask.sum(dim=1)
    for row in range(64):
        if sampled.stopped[row]:
            assert stops[row].nonzero().tolist() == [[lengths[row].item() - 1]]


def test_tokens_are_drawn_at_their_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20_000, 1)
    uniform = torch.rand(len(logits), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logprob = draw(logits, temperature=1.0, uniform=uniform)
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    # Three standard errors of a share of 1/2 in 20,000 draws are 0.011.
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.011, rtol=0)
    torch.testing.assert_close(logprob, logits[0][tokens])


@pytest.mark.parametrize("lengths", [[3, 9, 1, 4, 4], [10], [2] * 7])
def test_microbatches_hold_every_row_once_within_the_budget(lengths: list[int]) -> None:
    groups = fill(lengths, tokens=8, padded=True)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or max(lengths[i] for i in group) * len(group) <= 8 for group in groups)
