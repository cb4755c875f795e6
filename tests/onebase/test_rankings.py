"""One row for a prompt with its responses gives what a row for each response gives."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebase.packing import pad_right
from onebase.rankings import Candidates, batches_of, candidate_scores, lay_out, saves, supports_shared_rows
from onebase.roles import Roles

GROUPS = [
    Candidates((5, 6, 7, 8, 9, 10, 11), ((20, 21, 2), (22, 2), (23, 24, 25, 26, 2), (27, 2))),
    Candidates((12,), ((30, 2), (31, 32, 33, 2))),
    Candidates((40, 41, 42), ((43, 2), (43, 44, 2), (45, 46, 47, 48, 49, 50, 2))),
]
MakeRoles = Callable[..., Roles]


def reward_roles(make_roles: MakeRoles, quantization: str) -> Roles:
    roles = make_roles("sft", "reward", quantization=quantization)
    head = roles.add_head("reward")
    head.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    return roles.train("reward")


def test_a_row_is_the_prompt_once_and_each_response_sees_the_prompt_and_itself() -> None:
    rows = lay_out([Candidates((1, 2), ((3, 4), (5,)))], pad_id=0, device=torch.device("cpu"))
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert rows.ends == [(0, 3), (0, 4)]
    seen = [[column for column in range(5) if rows.attends[0, 0, row, column]] for row in range(5)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]


def test_hidden_states_of_a_shared_row_are_those_of_separate_rows(make_roles: MakeRoles, quantization: str) -> None:
    roles = reward_roles(make_roles, quantization)
    rows = lay_out(GROUPS, pad_id=0, device=torch.device("cpu"))
    with torch.no_grad(), roles.active("reward"):
        shared = roles.hidden_states(rows.input_ids, positions=rows.positions, attends=rows.attends)
        for row, group in enumerate(GROUPS):
            start = len(group.prompt)
            for sequence, response in zip(group.sequences, group.responses, strict=True):
                alone = roles.hidden_states(torch.tensor([sequence]))[0]
                assert torch.allclose(shared[row, : len(group.prompt)], alone[: len(group.prompt)], atol=1e-4)
                stop = start + len(response)
                assert torch.allclose(shared[row, start:stop], alone[len(group.prompt) :], atol=1e-4)
                start = stop


def test_scores_and_gradients_of_shared_rows_are_those_of_separate_rows(
    make_roles: MakeRoles, quantization: str
) -> None:
    roles = reward_roles(make_roles, quantization)
    found = {}
    for shared in (True, False):
        for parameter in roles.parameters("reward"):
            parameter.grad = None
        scores = torch.cat(candidate_scores(roles, "reward", GROUPS, shared=shared))
        scores.sin().sum().backward()
        gradients = [parameter.grad for parameter in roles.parameters("reward") if parameter.grad is not None]
        found[shared] = scores.detach(), [gradient.clone() for gradient in gradients]
    assert torch.allclose(found[True][0], found[False][0], rtol=1e-4, atol=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in found[False][1])
    assert largest > 0
    for one, other in zip(found[True][1], found[False][1], strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * largest  # other matrix shapes, other rounding


def test_what_stands_in_the_padding_or_in_another_response_changes_no_score(make_roles: MakeRoles) -> None:
    roles = reward_roles(make_roles, "fp32")
    group = GROUPS[0]
    other = Candidates(group.prompt, (group.responses[0], (99, 98, 97, 2), *group.responses[2:]))
    with torch.no_grad():
        (alone,) = candidate_scores(roles, "reward", [group], shared=True)
        padded = candidate_scores(roles, "reward", [group, GROUPS[2], other], shared=True)
    assert torch.allclose(alone, padded[0], atol=1e-4)
    kept = torch.tensor([0, 2, 3])
    assert torch.allclose(padded[0][kept], padded[2][kept], atol=1e-4)
    assert abs(float(padded[0][1] - padded[2][1])) > 1e-3


def test_the_tiny_llama_takes_the_mask(make_roles: MakeRoles) -> None:
    assert supports_shared_rows(make_roles("reward"))


def test_a_model_that_ignores_the_mask_is_found_out(make_roles: MakeRoles, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = make_roles("reward")
    whole = roles.hidden_states
    monkeypatch.setattr(roles, "hidden_states", lambda ids, **ignored: whole(ids))
    assert not supports_shared_rows(roles)


def test_long_prompts_with_short_responses_save_and_the_reverse_does_not(make_roles: MakeRoles) -> None:
    roles = make_roles("reward")

    def group(prompt: int, response: int, responses: int) -> Candidates:
        return Candidates((5,) * prompt, ((6,) * response,) * responses)

    assert saves(roles, group(60, 5, 4))
    assert not saves(roles, group(2, 200, 9))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.integers(1, 30), min_size=2, max_size=9)), min_size=1, max_size=12
    ),
    st.integers(1, 500),
    st.booleans(),
)
def test_every_ranking_is_in_one_batch(shapes: list[tuple[int, list[int]]], tokens: int, allowed: bool) -> None:
    groups = [Candidates((5,) * prompt, tuple((6,) * length for length in lengths)) for prompt, lengths in shapes]
    batches = batches_of(RULER, groups, tokens=tokens, allowed=allowed)
    assert sorted(index for _, rows in batches for index in rows) == list(range(len(groups)))
    for shared, rows in batches:
        assert allowed or not shared
        lengths = [groups[i].shared_length if shared else groups[i].separate_length for i in rows]
        assert len(rows) == 1 or max(lengths) * len(rows) <= tokens


def ruler() -> Roles:
    """Enough of a model to estimate costs with."""
    from types import SimpleNamespace
    from typing import Any

    config = SimpleNamespace(vocab_size=100, hidden_size=64, num_hidden_layers=2)
    parameters = [torch.zeros(100, 64), torch.zeros(400, 300)]
    model: Any = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: config), parameters=lambda: iter(parameters)
    )
    roles = Roles.__new__(Roles)
    roles.base = SimpleNamespace(model=model)  # type: ignore[assignment]  # only its sizes are read
    return roles


RULER = ruler()


def test_padding_of_shared_rows_is_the_pad_token() -> None:
    rows = lay_out(GROUPS, pad_id=9, device=torch.device("cpu"))
    joined = [sum(group.responses, group.prompt) for group in GROUPS]
    assert torch.equal(rows.input_ids, pad_right(joined, pad_id=9, device=torch.device("cpu")))


# --- every number of responses, against the model's own forward of separate rows, padded on either side


def ragged(count: int) -> Candidates:
    """A prompt of seven tokens and `count` responses of 1 to 9 tokens, no two alike."""
    draws = torch.Generator().manual_seed(count)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (length,), generator=draws).tolist())

    lengths = [1 + (4 * index + count) % 9 for index in range(count)]
    return Candidates(ids(7), tuple(ids(length) for length in lengths))


def separate(roles: Roles, group: Candidates, side: str) -> list[torch.Tensor]:
    """Hidden states of prompt and response, a row each with junk in the padding, by the model's own forward."""
    sequences = group.sequences
    width = max(map(len, sequences)) + 2
    rows = torch.full((len(sequences), width), 77)
    attended = torch.zeros_like(rows)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
        rows[row, place] = torch.tensor(sequence)
        attended[row, place] = 1
    positions = (attended.cumsum(dim=1) - 1).clamp(min=0)
    with roles.active("reward"):
        found = roles.base.model(
            input_ids=rows, attention_mask=attended, position_ids=positions, output_hidden_states=True
        ).hidden_states
    assert found is not None
    return [found[-1][row][attended[row].bool()] for row in range(len(sequences))]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("count", range(2, 10))
def test_packed_equals_separate_for_every_number_of_responses(
    make_roles: MakeRoles, quantization: str, count: int, side: str
) -> None:
    """Hidden states, scores and gradients; beside it in the batch a longer ranking, so that it is padded as well."""
    roles, group = reward_roles(make_roles, quantization), ragged(count)
    head = roles.heads["reward"]
    weights = torch.randn(count, generator=torch.Generator().manual_seed(1))

    def gradients(scores: torch.Tensor) -> list[torch.Tensor]:
        for parameter in roles.parameters("reward"):
            parameter.grad = None
        (scores * weights).sum().backward()
        return [p.grad.clone() for p in roles.parameters("reward") if p.grad is not None]

    longer = Candidates(group.prompt * 2, tuple(response * 2 for response in group.responses))
    packed = candidate_scores(roles, "reward", [group, longer], shared=True)[0]
    found = gradients(packed)
    alone = separate(roles, group, side)
    expected_scores = torch.stack([states[-1] @ head.weight + head.bias for states in alone])
    assert torch.allclose(packed, expected_scores, rtol=1e-4, atol=1e-4)
    for one, other in zip(found, gradients(expected_scores), strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * max(1.0, float(other.abs().max()))
    rows = lay_out([group, longer], pad_id=0, device=torch.device("cpu"))
    with torch.no_grad(), roles.active("reward"):
        hidden = roles.hidden_states(rows.input_ids, positions=rows.positions, attends=rows.attends)[0]
    start = len(group.prompt)
    for states, response in zip(alone, group.responses, strict=True):
        together = torch.cat([hidden[: len(group.prompt)], hidden[start : start + len(response)]])
        assert torch.allclose(together, states.detach(), atol=1e-4)
        start += len(response)


@pytest.mark.parametrize("count", range(2, 10))
def test_k_responses_cost_one_sequence_of_prompt_and_responses(make_roles: MakeRoles, count: int) -> None:
    roles, group = reward_roles(make_roles, "fp32"), ragged(count)
    seen = []

    def note(module: torch.nn.Module, arguments: tuple, keywords: dict) -> None:
        seen.append(tuple(keywords["input_ids"].shape))

    handle = roles.trunk.register_forward_pre_hook(note, with_kwargs=True)
    candidate_scores(roles, "reward", [group], shared=True)
    handle.remove()
    assert seen == [(1, 7 + sum(map(len, group.responses)))]
