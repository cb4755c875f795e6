"""Decoding in slots against padded batches, and what goes through the model."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.inference.logprobs import draw, invert
from onebase.inference.sampling import Decoder, Sample, Slots, sample
from onebase.inference.scoring import token_values
from onebase.model.roles import Roles
from onebase.sequences.tree import pack_size

MakeRoles = Callable[..., Roles]
SYSTEM = [5, 9, 40, 41, 42]
PROMPTS = [[*SYSTEM, 7, 8], [*SYSTEM, 60], [33], [*SYSTEM, 7, 8, 9, 10, 11], [*SYSTEM, 60, 61], [12, 13, 14]] * 3


def drawn(roles: Roles, *, batch: int, prompts: list[list[int]] = PROMPTS, **options: Any) -> Sample:
    # Temperature 3 makes the end token likely: some responses end early, some are cut.
    settings = {"max_new_tokens": 16, "temperature": 3.0, "batch": batch, **options}
    return sample(roles, "policy", prompts, generator=torch.Generator().manual_seed(1), **settings)


def assert_alike(sample: Sample, other: Sample) -> None:
    assert torch.equal(sample.episodes.mask, other.episodes.mask)
    assert torch.equal(sample.episodes.responses, other.episodes.responses)
    assert torch.equal(sample.stopped, other.stopped)
    torch.testing.assert_close(sample.logprobs, other.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", [1, 4, 7, 18])
def test_slots_give_what_padded_batches_give(make_roles: MakeRoles, quantization: str, batch: int) -> None:
    roles = make_roles("policy", quantization=quantization)
    assert roles.forwards.can_pack
    in_slots = drawn(roles, batch=batch)
    assert 0 < in_slots.stopped.sum() < len(PROMPTS), "the test needs responses that end and some that are cut"
    roles.forwards.can_pack = False
    assert_alike(in_slots, drawn(roles, batch=batch))


def test_what_is_drawn_does_not_depend_on_the_batch(make_roles: MakeRoles) -> None:
    roles = make_roles("policy")
    whole = drawn(roles, batch=len(PROMPTS))
    for batch in (1, 3, 5):
        assert_alike(whole, drawn(roles, batch=batch))


@pytest.mark.parametrize("packs", [True, False])
def test_values_read_in_passing_are_those_of_a_forward(make_roles: MakeRoles, packs: bool) -> None:
    roles = make_roles("policy")
    head = roles.add_head("policy")
    head.weight.data.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(2)))
    assert roles.forwards.can_pack
    if not packs:
        roles.forwards.can_pack = False
    sample = drawn(roles, batch=4, value_head="policy")
    assert drawn(roles, batch=4).values is None
    with torch.no_grad():
        expected = token_values(roles, "policy", sample.episodes)
    assert sample.values is not None
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(sample.values, expected, atol=1e-4, rtol=0)


def forwards(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward from here on."""
    sizes: list[int] = []
    trunk = type(roles.forwards.trunk)
    original = trunk.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        sizes.append(named["input_ids"].numel())
        return original(self, *arguments, **named)

    monkeypatch.setattr(trunk, "forward", forward)
    return sizes


def test_no_token_goes_through_the_model_for_nothing(make_roles: MakeRoles, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prefill of the prompts without what they share, then every token but the last of each response, once."""
    roles = make_roles("policy")
    assert roles.forwards.can_pack
    sizes = forwards(roles, monkeypatch)
    sample = drawn(roles, batch=len(PROMPTS))
    lengths = sample.episodes.mask.sum(dim=1)
    # The short prefixes that are not worth sharing are the rest of the first.
    assert pack_size(PROMPTS) <= sizes[0] <= pack_size(PROMPTS) + 8 < sum(map(len, PROMPTS))
    assert sum(sizes[1:]) == int((lengths - 1).sum())
    assert sizes[1:] == sorted(sizes[1:], reverse=True)


def test_responses_to_one_prompt_share_its_prefill(make_roles: MakeRoles, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = make_roles("policy")
    assert roles.forwards.can_pack
    sizes = forwards(roles, monkeypatch)
    sample = drawn(roles, batch=8, prompts=[[*range(5, 25)]] * 8)
    assert sizes[0] == 20
    assert len({tuple(row.tolist()) for row in sample.episodes.responses}) > 1


def test_freed_slots_are_taken_by_waiting_prompts_a_quarter_at_a_time(
    make_roles: MakeRoles, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = make_roles("policy")
    assert roles.forwards.can_pack
    filled: list[int] = []

    def fill(self: Any, original: Callable[[Any], None] = Decoder._fill) -> None:
        waiting = len(self._waiting)
        original(self)
        filled.append(waiting - len(self._waiting))

    monkeypatch.setattr(Decoder, "_fill", fill)
    drawn(roles, batch=8)
    assert filled[0] == 8
    assert all(count >= 2 for count in filled[1:-1])
    assert sum(filled) == len(PROMPTS)
    assert len(filled) > 2, "the test needs prompts that wait"


def test_a_slot_that_moves_keeps_its_own_keys() -> None:
    slots = Slots(3, 4)
    states = torch.arange(3.0).reshape(1, 1, 3, 1)
    slots.filling = [(0, torch.tensor([0])), (2, torch.tensor([1, 2]))]
    assert torch.equal(slots.update(states, states + 10, 0)[0], states)
    slots.move(2, 1, 2)
    slots.places, slots.reach = (torch.arange(2), torch.tensor([1, 2])), 3
    new = torch.tensor([7.0, 8.0]).reshape(2, 1, 1, 1)
    keys, values = slots.update(new, new + 10, 0)
    expected: Tensor = torch.tensor([[0.0, 7.0, 0.0], [1.0, 2.0, 8.0]])
    assert torch.equal(keys[:, 0, :, 0], expected)
    assert torch.equal(values[1, 0, :, 0], expected[1] + 10)


@pytest.mark.parametrize("vocabulary", [1, 3, 255, 256, 257, 1000])
def test_a_token_is_the_first_whose_cumulated_probability_exceeds_the_number_drawn(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 4 * torch.randn(300, vocabulary, generator=generator)
    uniform = torch.rand(300, generator=generator, dtype=torch.float64)
    tokens, logprobs = draw(logits, temperature=0.7, uniform=uniform)
    exact = torch.log_softmax(logits.double() / 0.7, dim=-1)
    expected = [
        next(token for token, total in enumerate(itertools.accumulate(row)) if total > number * math.fsum(row))
        for row, number in zip(exact.exp().tolist(), uniform.tolist(), strict=True)
    ]
    assert tokens.tolist() == expected
    torch.testing.assert_close(logprobs.double(), exact.gather(1, tokens.unsqueeze(1)).squeeze(1), atol=2e-5, rtol=0)


@pytest.mark.parametrize("allowed", [[700], [256, 511], [255, 999], [0]])
def test_no_number_draws_a_token_that_cannot_come(allowed: list[int]) -> None:
    logits = torch.full((4, 1000), -math.inf)
    logits[:, allowed] = torch.linspace(0, 3, len(allowed))
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53, math.nextafter(0, 1)], dtype=torch.float64)
    tokens, _ = draw(logits, temperature=1.0, uniform=uniform)
    assert set(tokens.tolist()) <= set(allowed)
    assert (tokens[0], tokens[2]) == (allowed[0], allowed[-1])


def test_rounding_between_blocks_draws_no_token_that_cannot_come() -> None:
    """The number falls between the end of a block's sum and the same sum taken from its start."""
    probabilities = torch.zeros(1, 768)
    for token, probability in ((255, 0.5 - 2**-25), (300, 2**-25), (301, 1.25 * 2**-54), (600, 0.5)):
        probabilities[0, token] = probability
    token = invert(probabilities, torch.tensor([0.5 - 2**-25], dtype=torch.float64))
    assert probabilities[0, int(token)] > 0


def test_logits_that_are_no_numbers_give_a_token_and_leave_the_rest_to_the_guards() -> None:
    tokens, logprobs = draw(torch.full((1, 300), math.nan), temperature=1.0, uniform=torch.tensor([0.5]).double())
    assert 0 <= int(tokens) < 300
    assert logprobs.isnan().all()
