"""A packed row holds every sequence once, shared prefixes once, and gives what rows of their own give."""

import dataclasses
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from onebase.inference.scoring import last_token_scores, states_at
from onebase.model.roles import Roles
from onebase.sequences.tree import WORTH_SHARING, Packed, fill, install, pack, pack_by_tokens, pack_size, tree_attention

CPU = torch.device("cpu")
MakeRoles = Callable[..., Roles]

sequences = st.integers(1, 4).flatmap(
    lambda letters: st.lists(st.lists(st.integers(0, letters), min_size=1, max_size=24), min_size=1, max_size=9)
)  # few letters: many prefixes in common, sequences that are prefixes of others, and equal ones


def test_a_prompt_with_two_responses_stands_there_once() -> None:
    packed = pack([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7]], device=CPU)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 5, 4]]
    assert [segment.ancestors for segment in packed.segments] == [(), (0,), (0,)]
    assert [segment.seen for segment in packed.segments] == [0, 4, 4]
    assert packed.columns[1][3:] == [3, 6]


def test_a_prefix_that_saves_little_is_not_shared() -> None:
    short = [7] * (WORTH_SHARING - 1)
    assert pack([[*short, 1], [*short, 2]], device=CPU).input_ids.shape == (1, 2 * WORTH_SHARING)
    assert pack([[*short, 7, 1], [*short, 7, 2]], device=CPU).input_ids.shape == (1, WORTH_SHARING + 2)


@settings(deadline=None, max_examples=200)
@given(sequences)
def test_every_token_is_in_the_row_after_its_own_ancestors(rows: list[list[int]]) -> None:
    packed = pack(rows, device=CPU)
    ids, positions, segments = packed.input_ids[0].tolist(), packed.positions[0].tolist(), packed.segments
    starts = [0, *accumulate(segment.length for segment in segments)]
    assert starts[-1] == len(ids)
    for row, sequence in enumerate(rows):
        columns = packed.columns[row]
        assert [ids[column] for column in columns] == sequence
        assert [positions[column] for column in columns] == list(range(len(sequence)))
        path = list(dict.fromkeys(max(i for i, start in enumerate(starts[:-1]) if start <= c) for c in columns))
        assert (*segments[path[-1]].ancestors, path[-1]) == tuple(path)
        assert segments[path[-1]].seen == sum(segments[step].length for step in path[:-1])
    assert pack_size(rows) <= len(ids) <= sum(map(len, rows))


@settings(deadline=None, max_examples=200)
@given(sequences, st.integers(1, 100))
def test_micro_batches_hold_every_sequence_once_and_about_the_budget(rows: list[list[int]], tokens: int) -> None:
    for groups, size in (
        (pack_by_tokens(rows, tokens=tokens), pack_size),
        (fill([len(row) for row in rows], tokens=tokens), None),
    ):
        assert sorted(index for group in groups for index in group) == list(range(len(rows)))
        for group in groups:
            chosen = [rows[index] for index in group]
            total = size(chosen) if size else sum(map(len, chosen))
            assert len(group) == 1 or total <= tokens


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_states_and_gradients_are_those_of_rows_of_their_own(heads: tuple[int, int]) -> None:
    """Of a whole model, for every number of query heads on one head of keys, three levels deep."""
    torch.manual_seed(0)
    queries, keys = heads
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=8 * queries,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=queries,
        num_key_value_heads=keys,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    install(model)
    system, first, second = [3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15]
    rows = [system + first + [20, 21], system + first + [22, 23, 24, 25], system + second, system + first, [30], system]
    packed = pack(rows, device=CPU)
    assert len(packed.segments) == 6
    assert max(len(segment.ancestors) for segment in packed.segments) == 2
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    together = model.model(
        input_ids=packed.input_ids, position_ids=packed.positions, attention_mask=mask, tree=packed
    ).last_hidden_state[0]
    places = packed.columns
    weights = [torch.randn(len(ids), together.shape[1]) for ids in rows]

    def gradients(states: list[torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        torch.stack([(state * weight).sum() for state, weight in zip(states, weights, strict=True)]).sum().backward()
        return [parameter.grad.clone() for parameter in model.model.parameters() if parameter.grad is not None]

    alone = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in rows]
    for alone_states, columns in zip(alone, places, strict=True):
        assert torch.allclose(together[columns], alone_states, atol=1e-5)
    packed_gradients = gradients([together[columns] for columns in places])
    expected = gradients(alone)
    assert len(packed_gradients) == len(expected) > 10
    largest = max(float(other.abs().max()) for other in expected)
    assert largest > 0
    for alone_states, other in zip(packed_gradients, expected, strict=True):
        assert float((alone_states - other).abs().max()) <= 1e-4 * largest


def test_no_token_sees_another_branch(make_roles: MakeRoles) -> None:
    roles = make_roles("reward")
    roles.add_head("reward").weight.data.normal_(generator=torch.Generator().manual_seed(1))
    prompt = (5, 6, 7, 8, 9, 10)
    with torch.no_grad():
        before = last_token_scores(roles, "reward", [(*prompt, 20, 2), (*prompt, 30, 31, 2)])
        after = last_token_scores(roles, "reward", [(*prompt, 20, 2), (*prompt, 40, 41, 2)])
    assert torch.allclose(before[0], after[0], atol=1e-5)
    assert abs(float(before[1] - after[1])) > 1e-3


def test_padded_and_packed_rows_give_the_same_states(make_roles: MakeRoles, quantization: str) -> None:
    roles = make_roles("sft", quantization=quantization)
    rows = [(5, 6, 7, 8, 9, 20), (5, 6, 7, 8, 9, 30, 31, 32), (40, 41)]
    wanted = [range(4, 6), range(3, 8), range(1)]
    outcomes = {}
    assert roles.forwards.can_pack
    for packed in (True, False):
        roles.forwards.can_pack = packed
        with torch.no_grad():
            outcomes[packed] = states_at(roles, "sft", rows, wanted)
    assert len(outcomes[True]) == 8
    assert torch.allclose(outcomes[True], outcomes[False], atol=1e-4)


def test_the_tiny_llama_takes_packed_rows(make_roles: MakeRoles) -> None:
    roles = make_roles("reward")
    assert roles.forwards.can_pack
    assert roles.base.model.config._attn_implementation == "onebase_tree"


def test_a_model_that_ignores_the_tree_is_found_out(make_roles: MakeRoles, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose attention is not looked up in transformers' table."""

    def blind(module: Any, q: Any, k: Any, v: Any, mask: Any, tree: Packed | None = None, **settings: Any) -> Any:
        return tree_attention(module, q, k, v, None, **settings)

    with monkeypatch.context() as patched:
        patched.setattr("onebase.sequences.tree.tree_attention", blind)
        assert not make_roles("reward").forwards.can_pack
    assert make_roles("reward").forwards.can_pack


def test_a_model_with_a_sliding_window_is_padded(make_roles: MakeRoles) -> None:
    """A window that the few tokens of the trial do not fill would be ignored in longer rows."""

    def roles(window: int | None) -> Roles:
        config = MistralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=window,
        )
        return Roles(dataclasses.replace(make_roles("reward").base, model=MistralForCausalLM(config).eval()))

    windowed = roles(100)
    assert not windowed.forwards.can_pack
    assert windowed.base.model.config._attn_implementation == "sdpa"
    assert roles(None).forwards.can_pack
