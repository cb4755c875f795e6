"""Packed rankings, each prompt once, give what a row for each response gives."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.inference.scoring import batches_of_rankings, candidate_scores, states_at
from onebase.model.forwards import Forwards
from onebase.model.roles import Roles
from onebase.sequences.episodes import TokenIds


def joined(prompt: TokenIds, responses: Sequence[TokenIds]) -> list[TokenIds]:
    return [prompt + response for response in responses]


GROUPS = [
    joined((5, 6, 7, 8, 9, 10, 11), ((20, 21, 2), (22, 2), (23, 24, 25, 26, 2), (27, 2))),
    joined((12,), ((30, 2), (31, 32, 33, 2))),
    joined((40, 41, 42), ((43, 2), (43, 44, 2), (45, 46, 47, 48, 49, 50, 2))),
]
MakeRoles = Callable[..., Roles]


def reward_roles(make_roles: MakeRoles, quantization: str) -> Roles:
    roles = make_roles("sft", "reward", quantization=quantization)
    head = roles.add_head("reward")
    head.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    return roles.train("reward")


def test_scores_and_gradients_of_packed_rankings_are_those_of_padded_rows(
    make_roles: MakeRoles, quantization: str
) -> None:
    roles = reward_roles(make_roles, quantization)
    outcomes = {}
    assert roles.forwards.can_pack
    for packed in (True, False):
        roles.forwards.can_pack = packed
        for parameter in roles.parameters("reward"):
            parameter.grad = None
        scores = torch.cat(candidate_scores(roles, "reward", GROUPS))
        scores.sin().sum().backward()
        gradients = [parameter.grad for parameter in roles.parameters("reward") if parameter.grad is not None]
        outcomes[packed] = scores.detach(), [gradient.clone() for gradient in gradients]
    assert torch.allclose(outcomes[True][0], outcomes[False][0], rtol=1e-4, atol=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in outcomes[False][1])
    assert largest > 0
    for packed_gradient, other in zip(outcomes[True][1], outcomes[False][1], strict=True):
        assert float((packed_gradient - other).abs().max()) <= 1e-4 * largest  # other matrix shapes, other rounding


@settings(deadline=None, max_examples=50)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.integers(1, 30), min_size=2, max_size=9)), min_size=1, max_size=12
    ),
    tokens=st.integers(1, 500),
    packed=st.booleans(),
)
def test_every_ranking_is_in_one_batch(shapes: list[tuple[int, list[int]]], tokens: int, packed: bool) -> None:
    roles = Roles.__new__(Roles)
    roles.forwards = Forwards.__new__(Forwards)
    roles.forwards.can_pack = packed
    groups = [
        joined((5,) * prompt, tuple((6 + number,) * length for number, length in enumerate(lengths)))
        for prompt, lengths in shapes
    ]
    batches = batches_of_rankings(roles, groups, tokens=tokens)
    assert sorted(index for rows in batches for index in rows) == list(range(len(groups)))
    for rows in batches:
        if packed:
            total = sum(shapes[i][0] + sum(shapes[i][1]) for i in rows)
        else:
            total = max(len(groups[i]) * max(map(len, groups[i])) for i in rows) * len(rows)
        assert len(rows) == 1 or total <= tokens


# --- every number of responses, against the model's own forward of separate rows, padded on either side


def ragged(count: int) -> list[TokenIds]:
    """A prompt of seven tokens and `count` responses of 1 to 9 tokens, no two alike."""
    draws = torch.Generator().manual_seed(count)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (length,), generator=draws).tolist())

    lengths = [1 + (4 * index + count) % 9 for index in range(count)]
    return joined(ids(7), [ids(length) for length in lengths])


def separate(roles: Roles, sequences: list[TokenIds], side: str) -> list[torch.Tensor]:
    """Hidden states of prompt and response, a row each with junk in the padding, by the model's own forward."""
    width = max(map(len, sequences)) + 2
    rows = torch.full((len(sequences), width), 77)
    attended = torch.zeros_like(rows)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
        rows[row, place] = torch.tensor(sequence)
        attended[row, place] = 1
    positions = (attended.cumsum(dim=1) - 1).clamp(min=0)
    with roles.active("reward"):
        output = roles.base.model(
            input_ids=rows, attention_mask=attended, position_ids=positions, output_hidden_states=True
        ).hidden_states
    assert output is not None
    return [output[-1][row][attended[row].bool()] for row in range(len(sequences))]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("count", range(2, 10))
def test_packed_equals_separate_for_every_number_of_responses(
    make_roles: MakeRoles, quantization: str, count: int, side: str
) -> None:
    """Hidden states, scores and gradients; beside it in the batch a longer ranking."""
    roles, group = reward_roles(make_roles, quantization), ragged(count)
    head = roles.heads["reward"]
    weights = torch.randn(count, generator=torch.Generator().manual_seed(1))

    def gradients(scores: torch.Tensor) -> list[torch.Tensor]:
        for parameter in roles.parameters("reward"):
            parameter.grad = None
        (scores * weights).sum().backward()
        return [p.grad.clone() for p in roles.parameters("reward") if p.grad is not None]

    longer = [ids[:7] * 2 + ids[7:] * 2 for ids in group]
    packed = candidate_scores(roles, "reward", [group, longer])[0]
    packed_gradients = gradients(packed)
    alone = separate(roles, group, side)
    expected_scores = torch.stack([states[-1] @ head.weight + head.bias for states in alone])
    assert torch.allclose(packed, expected_scores, rtol=1e-4, atol=1e-4)
    expected = gradients(expected_scores)
    largest = max(float(other.abs().max()) for other in expected)
    assert largest > 0
    for gradient, other in zip(packed_gradients, expected, strict=True):
        assert float((gradient - other).abs().max()) <= 1e-4 * largest
    with torch.no_grad():
        whole = [range(len(sequence)) for sequence in group]
        hidden = states_at(roles, "reward", group, whole)
    assert torch.allclose(hidden, torch.cat(alone).detach(), atol=1e-4)


@pytest.mark.parametrize("count", range(2, 10))
def test_k_responses_cost_one_sequence_of_prompt_and_responses(make_roles: MakeRoles, count: int) -> None:
    roles, group = reward_roles(make_roles, "fp32"), ragged(count)
    assert roles.forwards.can_pack
    seen = []

    def note(module: torch.nn.Module, arguments: tuple, keywords: dict) -> None:
        seen.append(tuple(keywords["input_ids"].shape))

    handle = roles.forwards.trunk.register_forward_pre_hook(note, with_kwargs=True)
    candidate_scores(roles, "reward", [group])
    handle.remove()
    assert seen == [(1, 7 + sum(len(ids) - 7 for ids in group))]
