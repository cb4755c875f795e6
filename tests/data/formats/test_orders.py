"""Labels, scores and votes become tiers: compared with what they say pair by pair."""

from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats.rankings import tiers_of, tiers_of_pairs
from data.formats.table import build, build_all
from data.records import Origin, Ranking
from onebase.errors import DataError

ORIGIN = Origin("f", 1)
PAIRS = list(combinations(range(4), 2))


def labels_of(tiers: tuple[int, ...]) -> tuple[int, ...]:
    """What somebody who ranks like this says of each pair: 0 a tie, 1 the first, 2 the second."""
    return tuple(0 if tiers[i] == tiers[j] else 1 if tiers[i] < tiers[j] else 2 for i, j in PAIRS)


def test_of_all_729_verdicts_the_75_orders_are_kept_and_the_rest_refused():
    orders = {
        labels_of(tiers): tiers for tiers in product(range(4), repeat=4) if set(tiers) == set(range(len(set(tiers))))
    }
    assert len(orders) == 75  # weak orders of four things
    for labels in product((0, 1, 2), repeat=6):
        if labels in orders:
            assert tiers_of_pairs(labels, ORIGIN) == orders[labels]
        else:
            with pytest.raises(DataError, match="f:1: contradictory: the pair labels fit no order"):
                tiers_of_pairs(labels, ORIGIN)


def test_a_refused_verdict_says_whether_ties_or_wins_are_the_reason():
    with pytest.raises(DataError, match="ties are not transitive"):
        tiers_of_pairs([0, 1, 1, 0, 1, 1], ORIGIN)  # 1 = 2 and 2 = 3, but 1 over 3
    with pytest.raises(DataError, match="wins form a circle"):
        tiers_of_pairs([1, 2, 1, 1, 1, 1], ORIGIN)  # 1 over 2, 2 over 3, 3 over 1


@given(scores=st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_tiers_compare_as_scores_do(scores: list[int]):
    high, low = tiers_of(scores), tiers_of(scores, best="lowest")
    for first, other in combinations(range(len(scores)), 2):
        assert (scores[first] > scores[other]) == (high[first] < high[other]) == (low[first] > low[other])
    assert set(high) == set(range(max(high) + 1))  # no tier is empty


def completion(response: str, ratings: tuple[int, ...]) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    annotations = {aspect: {"Rating": str(rating)} for aspect, rating in zip(aspects, ratings, strict=True)}
    return {"response": response, "annotations": annotations, "model": response, "overall_score": 10.0}


@settings(max_examples=50)
@given(ratings=st.lists(st.tuples(*[st.integers(1, 5)] * 4), min_size=2, max_size=4))
def test_ultrafeedback_ranks_by_the_mean_of_its_aspects(ratings: list[tuple[int, ...]]):
    row = {
        "instruction": "Do.",
        "completions": [completion(f"r{index}", rating) for index, rating in enumerate(ratings)],
    }
    means = [sum(rating) / 4 for rating in ratings]
    if len(set(means)) == 1:
        with pytest.raises(DataError, match="all responses are tied"):
            list(build(row, Ranking, ORIGIN))
        return
    (ranking,) = build(row, Ranking, ORIGIN)
    by_means = {(i, j) for i in range(len(means)) for j in range(len(means)) if means[i] > means[j]}
    assert set(ranking.pairs) == by_means


def helpsteer(response: str, *attributes: int) -> dict[str, Any]:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": "Do.", "response": response, **dict(zip(names, attributes, strict=True))}


def test_helpsteers_weights_decide_the_order():
    rows = [helpsteer("short", 3, 3, 4, 1, 0), helpsteer("long", 3, 4, 4, 2, 4)]
    (ranking,) = build_all(enumerate(rows), Ranking, "f", format="helpsteer correctness=1")
    assert ranking.tiers == (1, 0)
    (ranking,) = build_all(enumerate(rows), Ranking, "f", format="helpsteer correctness=1 verbosity=-0.5")
    assert ranking.tiers == (0, 1)  # 6 against 7 - 2
    notes: list[str] = []
    tied = build_all(enumerate(rows), Ranking, "f", format="helpsteer", note=lambda reason, place: notes.append(reason))
    assert list(tied) == []
    assert notes == ["all responses to its prompt have the same score"]


def test_equal_sums_tie_whatever_the_order_of_their_floats():
    rows = [helpsteer("a", 1, 2, 0, 0, 0), helpsteer("b", 3, 0, 0, 0, 0), helpsteer("c", 0, 0, 0, 0, 0)]
    # 0.1 + 0.2 and 0.3 differ as floats
    (ranking,) = build_all(enumerate(rows), Ranking, "f", format="helpsteer helpfulness=0.1 correctness=0.1")
    assert ranking.tiers == (0, 0, 1)


def votes(*shares: int) -> dict[str, Any]:
    row: dict[str, Any] = {"instruction": "Do.", "input": "", "response1": "a", "response2": "b", "annotator_note": "x"}
    return row | {f"annotator{index + 1}": vote for index, vote in enumerate(shares)}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_more_than_half_of_the_annotators_decide(count: int):
    for given_votes in product((0, 1, 2), repeat=count):
        for tiers, verdict in (((0, 1), 1), ((1, 0), 2)):
            if given_votes.count(verdict) > count / 2:
                (ranking,) = build(votes(*given_votes), Ranking, ORIGIN)
                assert ranking.tiers == tiers
                break
        else:
            with pytest.raises(DataError, match=r"all responses are tied|the annotators do not agree"):
                list(build(votes(*given_votes), Ranking, ORIGIN))


def test_an_input_that_is_no_number_is_pandalms_empty_input():
    (ranking,) = build({**votes(1), "input": float("nan")}, Ranking, ORIGIN)
    assert ranking.prompt.user_text == "Do."
