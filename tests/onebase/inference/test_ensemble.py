"""Scores of several reward models as one: each rule by plain floats, and the laws between them."""

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from onebase.inference.scoring import RULES, CombineSection, Rule, member_names, member_scores, score, spread_of
from onebase.model.roles import Roles

NUMBERS = st.floats(-50, 50, width=32)
TABLES = st.integers(1, 5).flatmap(
    lambda members: st.lists(
        st.lists(NUMBERS, min_size=members, max_size=members), min_size=1, max_size=6
    )  # a row per response, here
)


def combined(rule: Rule, scores: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """The weight only where the rule reads it."""
    section = CombineSection(rule=rule, spread_weight=weight) if "minus" in rule else CombineSection(rule=rule)
    return section.combination(scores)


def by_definition(rule: Rule, scores: list[float], weight: float) -> float:
    mean = math.fsum(scores) / len(scores)
    variance = math.fsum((score - mean) ** 2 for score in scores) / len(scores)
    return {
        "mean": mean,
        "min": sorted(scores)[0],
        "mean-minus-variance": mean - weight * variance,
        "mean-minus-deviation": mean - weight * math.sqrt(variance),
    }[rule]


@settings(deadline=None, max_examples=200)
@given(TABLES, st.floats(0, 3), st.sampled_from(RULES))
def test_every_rule_is_its_equation_at_each_response(table: list[list[float]], weight: float, rule: Rule) -> None:
    scores = torch.tensor(table).T.contiguous()
    combination = combined(rule, scores, weight)
    expected = [by_definition(rule, scores_of_response, weight) for scores_of_response in table]
    assert combination.tolist() == pytest.approx(expected, rel=1e-4, abs=2e-2)  # squares of 50 in fp32


def test_coste_et_al_by_hand() -> None:
    """Members say 1 and 3 of one response, 2 and 2 of another: means 2 and 2, variances 1 and 0."""
    scores = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    by_rule = {rule: combined(rule, scores, 0.5).tolist() for rule in RULES}
    assert by_rule == {
        "mean": [2.0, 2.0],
        "min": [1.0, 2.0],
        "mean-minus-variance": [1.5, 2.0],
        "mean-minus-deviation": [1.5, 2.0],
    }
    wider = 2 * scores  # the deviation grows with the scale of the scores, the variance with its square
    assert combined("mean-minus-deviation", wider, 0.5).tolist() == [3.0, 4.0]
    assert combined("mean-minus-variance", wider, 0.5).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6), st.floats(0, 100))
def test_an_ensemble_of_one_is_that_one_bit_for_bit(rule: Rule, members: list[float], weight: float) -> None:
    scores = torch.tensor([members])
    assert torch.equal(combined(rule, scores, weight), scores[0])


@settings(deadline=None, max_examples=100)
@given(TABLES, st.randoms(use_true_random=False))
def test_no_rule_asks_who_is_first(table: list[list[float]], random: "object") -> None:
    scores = torch.tensor(table).T.contiguous()
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]  # hypothesis hands out a random.Random
    for rule in RULES:
        assert torch.allclose(combined(rule, scores), combined(rule, scores[order]), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("rule", ["min", "mean-minus-variance", "mean-minus-deviation"])
def test_where_members_disagree_a_careful_rule_says_less_than_the_mean(rule: Rule) -> None:
    agreed, torn = torch.full((4, 1), 1.0), torch.tensor([[0.0], [0.0], [2.0], [2.0]])
    assert combined(rule, agreed) == 1.0
    assert combined(rule, torn) < combined("mean", torn)


def test_the_spread_is_the_populations_standard_deviation() -> None:
    scores = [[0.5, -1.0, 2.0], [1.5, -1.0, -3.0]]
    expected = [statistics.pstdev(scores_of_response) for scores_of_response in zip(*scores, strict=True)]
    assert spread_of(torch.tensor(scores)).tolist() == pytest.approx(expected)


def test_members_say_what_each_says_alone(make_roles: Callable[..., Roles]) -> None:
    roles = make_roles("reward", "reward_2", "reward_3")
    for index, name in enumerate(member_names(3)):
        roles.add_head(name).weight.data.normal_(generator=torch.Generator().manual_seed(index))
    sequences = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16], [17]]
    scores = member_scores(roles, member_names(3), sequences, tokens_per_microbatch=8)
    for row, name in enumerate(member_names(3)):
        assert torch.equal(scores[row], score(roles, name, sequences, tokens_per_microbatch=8))
        with torch.no_grad(), roles.active(name):
            for column, sequence in enumerate(sequences):
                hidden = roles.base.model(input_ids=torch.tensor([sequence]), output_hidden_states=True).hidden_states
                alone = float(hidden[-1][0, -1] @ roles.heads[name].weight)
                assert float(scores[row, column]) == pytest.approx(alone, abs=1e-4)
    assert len({tuple(row.tolist()) for row in scores}) == 3


def test_a_weight_that_its_rule_does_not_read_is_refused() -> None:
    with pytest.raises(ValidationError, match="'spread_weight' is read by rules mean-minus-variance"):
        CombineSection(rule="min", spread_weight=2.0)
    assert CombineSection(rule="mean-minus-deviation", spread_weight=2.0).spread_weight == 2.0
