"""What the report says of an ensemble and of labelers, on rankings small enough to reckon by hand."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from data.select.labelers import LabelersSection, fold_of
from evaluation.reward_model.calibration import calibration
from evaluation.reward_model.labelers import between_labelers, held_out_labelers
from evaluation.reward_model.pairs import ScoredRanking, pairs_of
from evaluation.reward_model.report import build, ensemble

NUMBERS = itertools.count()


def scored(scores: Sequence[float], tiers: Sequence[int], **known: Any) -> ScoredRanking:
    responses = known.pop("responses", tuple(f"answer {index}" for index in range(len(scores))))
    return ScoredRanking(
        prompt=known.pop("prompt", None) or f"question {next(NUMBERS)}",
        responses=tuple(responses),
        scores=tuple(scores),
        tiers=tuple(tiers),
        lengths=(3,) * len(scores),
        **known,
    )


def by_two(reward: Sequence[float], other: Sequence[float], tiers: Sequence[int], **known: Any) -> ScoredRanking:
    mean = [(first + second) / 2 for first, second in zip(reward, other, strict=True)]
    return scored(mean, tiers, members={"reward": tuple(reward), "reward_2": tuple(other)}, **known)


# --- ensembles

TWO = [
    by_two([2.0, 0.0], [1.0, 0.0], [0, 1]),  # both right; margins 2 and 1
    by_two([0.0, 1.0], [3.0, 0.0], [0, 1]),  # the first wrong, the second right, together right; margins -1 and 3
]


def test_each_member_is_measured_alone_and_against_the_ensemble() -> None:
    content = ensemble(TWO, pairs_of(TWO), seed=0)
    means = {name: member["accuracy"]["mean"] for name, member in content["members"].items()}
    assert means == {"reward": 0.5, "reward_2": 1.0}
    better = {name: member["ensemble_is_better_by"]["mean"] for name, member in content["members"].items()}
    assert better == {"reward": 0.5, "reward_2": 0.0}


def test_spread_is_over_members_at_a_response_and_at_a_pair() -> None:
    content = ensemble(TWO, pairs_of(TWO), seed=0)
    # Members differ by 1, 0, 3 and 1 at the four responses: two numbers' deviation is half their difference.
    assert content["spread"] == pytest.approx((0.5 + 0.0 + 1.5 + 0.5) / 4)
    assert content["unanimous"] == 0.5
    rows = content["by_spread_of_margin"]
    assert [(row["least"], row["most"]) for row in rows] == [(0.5, 0.5), (2.0, 2.0)]
    assert sum(row["pairs"] for row in rows) == 2


def test_one_reward_model_is_no_ensemble() -> None:
    alone = [scored([1.0, 0.0], [0, 1], members={"reward": (1.0, 0.0)})]
    assert ensemble(alone, pairs_of(alone), seed=0) == {"no_data": "there is one reward model"}


# --- labelers


def names_in(fold: int, count: int, folds: int = 5) -> list[str]:
    return [name for name in (f"labeler {n}" for n in range(200)) if fold_of(name, folds) == fold][:count]


OUT, (IN, ALSO_IN) = names_in(2, 1)[0], names_in(0, 2)
FIVE = LabelersSection(folds=5, held_out=2)


def test_held_out_labelers_and_trained_ones_are_measured_apart() -> None:
    rankings = [
        scored([1.0, 0.0], [0, 1], labeler=IN, prompt="a"),
        scored([0.0, 1.0], [0, 1], labeler=ALSO_IN, prompt="b"),
        scored([1.0, 0.0], [0, 1], prompt="c"),  # of nobody: on neither side
    ]
    out_of_training = [
        scored([0.0, 1.0], [0, 1], labeler=OUT, prompt="d"),
        scored([1.0, 0.0], [0, 1], labeler=OUT, prompt="trained on"),
    ]
    content = held_out_labelers([*rankings, *out_of_training], FIVE, trained_prompts={"trained on"}, seed=0)
    assert (content["trained_on"]["mean"], content["trained_on"]["prompts"]) == (0.5, 2)
    assert (content["not_trained_on"]["mean"], content["not_trained_on"]["prompts"]) == (0.0, 1)
    assert content["labelers"] == [OUT] and content["rankings_of_trained_prompts"] == 1
    assert (content["folds"], content["held_out"]) == (5, 2)


def test_a_section_of_labelers_without_data_says_so() -> None:
    rankings = [scored([1.0, 0.0], [0, 1])]
    assert "labelers.folds" in held_out_labelers(rankings, LabelersSection(), trained_prompts=(), seed=0)["no_data"]
    content = held_out_labelers(rankings, FIVE, trained_prompts=(), seed=0)
    assert "no ranking of a held-out labeler" in content["not_trained_on"]["no_data"]
    assert "of no labeler who was trained on" in content["trained_on"]["no_data"]
    assert between_labelers(rankings, seed=0) == {"no_data": "no two labelers ranked the same responses to a prompt"}


def test_two_labelers_agree_on_the_share_of_pairs_that_both_order_alike() -> None:
    def ranked(labeler: str, tiers: Sequence[int], order: Sequence[str] = "abc") -> ScoredRanking:
        return scored([0.0] * len(tiers), tiers, labeler=labeler, responses=tuple(order), prompt="q")

    # a > b > c against a > c > b, its responses in another order: a over b and a over c alike, b and c not.
    assert between_labelers([ranked(IN, [0, 1, 2]), ranked(OUT, [0, 1, 2], "acb")], seed=0)["mean"] == pytest.approx(
        2 / 3
    )
    # The other ties b and c: only two pairs are ordered by both.
    for tiers in ([0, 1, 2], [0, 2, 1]):
        assert between_labelers([ranked(IN, tiers), ranked(OUT, [0, 1, 1])], seed=0)["mean"] == 1.0
    twice = [ranked(who, tiers, order) for order in ("ab", "cd") for who, tiers in ((IN, [0, 1]), (OUT, [0, 1]))]
    assert between_labelers(twice, seed=0)["prompts"] == 1, "two sets of responses to one prompt are no two prompts"
    assert "no_data" in between_labelers([ranked(IN, [0, 1, 2]), ranked(IN, [0, 1, 2])], seed=0), "one and the same"
    assert "no_data" in between_labelers([ranked(IN, [0, 1, 2]), ranked(OUT, [0, 1, 2], "abd")], seed=0), (
        "other responses"
    )


# --- a head that was divided


def test_calibration_of_divided_scores_is_that_of_the_scores_before() -> None:
    before = [scored([2.0, -1.0, 0.5], [0, 1, 2]), scored([0.25, 0.75], [0, 1])]
    divided = [scored([score / 3 for score in ranking.scores], ranking.tiers) for ranking in before]
    baselines = {"random": "not wanted here"}
    reliability = build(divided, [], baselines=baselines, seed=0, log_odds=3.0)["calibration"]
    expected = calibration(pairs_of(before), seed=0)
    assert reliability["log_loss"] == expected["log_loss"] and reliability["ece"] == pytest.approx(
        expected["ece"], abs=1e-6
    )
    wrong = build(divided, [], baselines=baselines, seed=0)["calibration"]
    assert wrong["log_loss"] != expected["log_loss"]
    assert sum(bucket["pairs"] for bucket in reliability["bins"]) == 3 + 1
