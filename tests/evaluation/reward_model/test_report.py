"""The reward report on rankings small enough to reckon by hand, and the laws its numbers must keep."""

import itertools
import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from data.records import Message, Origin, Prompt, Ranking
from evaluation.reward_model import baselines
from evaluation.reward_model.calibration import calibration, reliability
from evaluation.reward_model.orders import ScoredDemonstration, best_of_n, kendall_tau_b, quality
from evaluation.reward_model.pairs import ScoredRanking, accuracy, cells_by, pairs_of
from evaluation.reward_model.report import build
from evaluation.statistics import bootstrap
from onebase.files.writing import canonical
from onebase.tracking.figures import save

NUMBERS = itertools.count()


def scored(
    scores: Sequence[float], tiers: Sequence[int], lengths: Sequence[int] | None = None, **known: Any
) -> ScoredRanking:
    return ScoredRanking(
        prompt=known.pop("prompt", None) or f"question {next(NUMBERS)}",
        responses=tuple(f"answer {index}" for index in range(len(scores))),
        scores=tuple(scores),
        tiers=tuple(tiers),
        lengths=tuple(lengths or [5] * len(scores)),
        **known,
    )


TWO = [
    # Pairs: 0 over 1 right by 1, 0 over 2 right by 3, 1 over 2 right by 2.
    scored([3.0, 2.0, 0.0], [0, 1, 2], [4, 6, 9], source="a", task="sums", labels=("gold", "wrong", "refusal")),
    # Pairs: 0 over 2 wrong by 1, 1 over 2 equal; 0 and 1 are tied.
    scored([1.0, 2.0, 2.0], [0, 0, 1], [7, 3, 3], source="b", labels=("gold", "gold", "wrong"), prompt="r"),
]


def report(rankings: Sequence[ScoredRanking] = TWO, **changed: Any) -> dict[str, Any]:
    simple = {"random": baselines.random_scores(rankings, seed=0)}
    return build(rankings, changed.pop("demonstrations", []), baselines=changed.pop("baselines", simple), seed=0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- accuracy and its groups


def test_two_people_who_rank_one_prompt_are_one_prompt() -> None:
    twice = [
        scored([1.0, 0.0], [0, 1], prompt="q", labeler="a"),
        scored([1.0, 0.0], [1, 0], prompt="q", labeler="b"),
        scored([1.0, 0.0], [0, 1], prompt="r", labeler="a"),
    ]
    content = report(twice)
    assert (content["prompts"], content["rankings"]) == (2, 3)
    assert content["accuracy"]["mean"] == pytest.approx((0.5 + 1.0) / 2)
    assert content["accuracy"]["prompts"] == 2
    # Over two prompts, of 0.5 and 1.0: whichever are drawn, no mean is below 0.5.
    assert content["accuracy"]["low"] >= 0.5
    assert sum(bucket["pairs"] for bucket in content["calibration"]["bins"]) == 3
    assert content["agreement"]["kendall_tau_b"]["mean"] == pytest.approx((0.0 + 1.0) / 2)
    assert content["best_of_n"][1]["prompts"] == 2
    assert [example["prompt"] for example in content["examples"]["underconfident"]] == ["q", "r"]


def test_conversations_that_end_alike_are_two_prompts() -> None:
    apart = [scored([1.0, 0.0], [0, 1], prompt="q", conversation=text) for text in ("hi q", "ho q")]
    assert report(apart)["prompts"] == 2 == report(apart)["accuracy"]["prompts"]


def test_a_prompt_counts_as_one_however_many_pairs_it_has() -> None:
    content = report()
    assert content["pairs"] == 5 and content["responses"] == 6 and content["prompts"] == 2
    assert content["accuracy"]["mean"] == pytest.approx((1.0 + 0.25) / 2)  # 3 of 3; (0 + 1/2) of 2
    expected = bootstrap([1.0, 0.25], seed=0)
    assert (content["accuracy"]["low"], content["accuracy"]["high"]) == (expected.low, expected.high)


def test_accuracy_by_gap_source_and_task() -> None:
    content = report()
    assert content["by_gap"]["1"]["mean"] == pytest.approx(
        (1.0 + 0.25) / 2
    )  # two pairs of the first, two of the second
    assert (content["by_gap"]["1"]["pairs"], content["by_gap"]["1"]["prompts"]) == (4, 2)
    assert content["by_gap"]["2"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "prompts": 1, "pairs": 1}
    assert {source: cell["mean"] for source, cell in content["by_source"].items()} == {"a": 1.0, "b": 0.25}
    assert list(content["by_task"]) == ["sums"]


def test_accuracy_by_the_label_of_the_worse_response() -> None:
    labels = report()["by_label"]
    assert labels["wrong"]["put_below_a_better_one"]["mean"] == pytest.approx((1.0 + 0.25) / 2)
    assert labels["refusal"]["put_below_a_better_one"]["pairs"] == 2
    assert labels["gold"]["put_below_a_better_one"] == {"no_data": "it is nowhere the worse one"}
    assert labels["gold"]["mean_score"] == pytest.approx(2.0)  # 3, 1 and 2
    assert labels["gold"]["responses"] == 3


def test_gaps_are_in_the_order_of_numbers_not_of_words() -> None:
    long = scored([float(-i) for i in range(12)], range(12))
    assert list(report([long])["by_gap"]) == [str(gap) for gap in range(1, 12)]


def test_tied_responses_are_no_pair() -> None:
    assert {(pair.better, pair.worse) for pair in pairs_of([TWO[1]])} == {(0, 2), (1, 2)}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.lists(st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 3)), min_size=2, max_size=6), min_size=1, max_size=4)
)
def test_the_share_right_is_that_of_counting_pairs(rows: list[list[tuple[float, int]]]) -> None:
    rows = [row for row in rows if len({tier for _, tier in row}) > 1]
    if not rows:
        return
    shares = []
    for row in rows:
        pairs = [(a, b) if ta < tb else (b, a) for (a, ta), (b, tb) in combinations(row, 2) if ta != tb]
        shares.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs))
    rankings = [scored(*zip(*row, strict=True)) for row in rows]
    assert accuracy(pairs_of(rankings), seed=0).mean == pytest.approx(sum(shares) / len(shares))


# --- length


def test_length_sides_and_quartiles() -> None:
    content = report()["length"]
    # First: the better is shorter by 2, 5, 3. Second: longer by 4 (wrong), equally long (scores equal).
    assert content["better_is_shorter"]["mean"] == 1.0 and content["better_is_shorter"]["pairs"] == 3
    assert content["better_is_longer"]["mean"] == 0.0
    assert content["equally_long"]["mean"] == 0.5
    quartiles = content["by_tokens_better_has_more"]
    assert [(quartile["least"], quartile["most"], quartile["pairs"]) for quartile in quartiles] == [
        (-5, -3, 2),
        (-2, -2, 1),
        (0, 0, 1),
        (4, 4, 1),
    ]


def test_correlation_within_prompts_leaves_the_prompts_own_level_out() -> None:
    """Longer prompts' answers score higher, but within a prompt the longer answer scores lower."""
    rankings = [scored([2.0, 1.0], [0, 1], [1, 2]), scored([12.0, 11.0], [0, 1], [11, 12])]
    correlation = report(rankings)["length"]["correlation_with_score"]
    assert correlation["within_prompts"] == -1.0
    assert correlation["all_responses"] == pytest.approx(np.corrcoef([2, 1, 12, 11], [1, 2, 11, 12])[0, 1], abs=1e-6)
    assert correlation["all_responses"] > 0.9


def test_correlation_with_lengths_all_equal_says_so() -> None:
    correlation = report([scored([1.0, 0.0], [0, 1])])["length"]["correlation_with_score"]
    assert correlation["within_prompts"] == {"no_data": "scores or lengths are all equal"}


# --- calibration


def test_calibration_by_hand() -> None:
    """One prompt with margins 0 (half right) and 2 (right), one with -2 (wrong): the latter weighs as much as both."""
    rankings = [scored([0.0, 0.0, -2.0], [0, 1, 2]), scored([0.0, 2.0], [0, 1])]
    pairs = [pair for pair in pairs_of(rankings) if (pair.ranking, pair.better, pair.worse) != (0, 0, 2)]
    reliability = calibration(pairs, seed=0)
    confident = sigmoid(2.0)  # 0.88: bin 0.85 to 0.9, weights 1/4 (right) and 1/2 (wrong)
    bins = {bucket["low"]: bucket for bucket in reliability["bins"] if bucket["pairs"]}
    assert set(bins) == {0.5, 0.85}
    assert bins[0.5] == {"low": 0.5, "high": 0.55, "pairs": 1, "share": 0.25, "confidence": 0.5, "accuracy": 0.5}
    assert bins[0.85]["share"] == 0.75
    assert bins[0.85]["accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    assert bins[0.85]["confidence"] == pytest.approx(confident, abs=1e-6)
    assert reliability["ece"] == pytest.approx(0.75 * (confident - 1 / 3), abs=1e-6)
    assert reliability["overconfidence"] == reliability["ece"]
    first, second = (math.log(2) - math.log(confident)) / 2, -math.log(1 - confident)
    assert reliability["log_loss"]["mean"] == pytest.approx((first + second) / 2, abs=1e-6)


def test_a_model_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    margin = math.log(3)  # confidence 3/4
    rankings = [*(scored([margin, 0.0], [0, 1]) for _ in range(3)), scored([0.0, margin], [0, 1])]
    reliability = calibration(pairs_of(rankings), seed=0)
    assert reliability["ece"] == pytest.approx(0.0, abs=1e-6)


def test_shares_of_the_bins_add_up_and_certainty_has_a_bin() -> None:
    reliability = calibration(pairs_of([scored([1e6, 0.0], [0, 1]), scored([0.0, 0.3, -1.0], [0, 1, 2])]), seed=0)
    assert sum(bucket["share"] for bucket in reliability["bins"]) == pytest.approx(
        1.0, abs=1e-5
    )  # each rounded to six digits
    assert reliability["bins"][-1]["pairs"] == 1
    assert reliability["log_loss"]["mean"] < 10


# --- whole orders, best of n, demonstrations


@pytest.mark.parametrize(
    ("scores", "tiers", "tau"),
    [
        ([3.0, 2.0, 1.0], [0, 1, 2], 1.0),
        ([1.0, 2.0, 3.0], [0, 1, 2], -1.0),
        ([3.0, 1.0, 2.0], [0, 1, 2], 1 / 3),
        ([2.0, 2.0], [0, 1], 0.0),
        ([3.0, 2.0, 1.0], [0, 0, 1], 2 / math.sqrt(3 * 2)),  # the model orders two that are tied
    ],
)
def test_kendall_tau_b_by_hand(scores: list[float], tiers: list[int], tau: float) -> None:
    assert kendall_tau_b(scored(scores, tiers)) == pytest.approx(tau)


def test_best_of_n_by_drawing_all_subsets() -> None:
    ranking = scored([0.5, 2.0, -1.0, 1.0], [2, 1, 0, 1])
    assert quality(ranking) == [0.0, 0.5, 1.0, 0.5]  # of three others: none; one and half of one; three; the same
    for n, row in enumerate(best_of_n([ranking], seed=0), start=1):
        draws = [max(subset, key=lambda i: ranking.scores[i]) for subset in combinations(range(4), n)]
        assert row["mean"] == pytest.approx(sum(quality(ranking)[i] for i in draws) / len(draws), abs=1e-6)
        possible = [max(quality(ranking)[i] for i in subset) for subset in combinations(range(4), n)]
        assert row["best_possible"] == pytest.approx(sum(possible) / len(possible), abs=1e-6)
        assert row["kl"] == pytest.approx(math.log(n) - 1 + 1 / n, abs=1e-6)


def test_best_of_n_of_equal_scores_is_a_random_response() -> None:
    rows = best_of_n([scored([1.0, 1.0, 1.0], [0, 1, 2])], seed=0)
    assert [row["mean"] for row in rows] == [0.5, 0.5, 0.5]


def test_best_of_n_counts_only_prompts_with_enough_responses() -> None:
    rows = best_of_n([scored([1.0, 0.0], [0, 1]), scored([2.0, 1.0, 0.0], [0, 1, 2])], seed=0)
    assert [row["prompts"] for row in rows] == [2, 2, 1]


def test_the_best_response_first_shares_a_tie_at_the_top() -> None:
    agreement = report([scored([2.0, 2.0, 0.0], [0, 1, 1])])["agreement"]
    assert agreement["top_1"]["mean"] == 0.5


def test_agreement_by_labeler() -> None:
    rankings = [scored([1.0, 0.0], [0, 1], labeler="ann"), scored([0.0, 1.0], [0, 1], labeler="bo"), TWO[0]]
    by_labeler = report(rankings)["agreement"]["by_labeler"]
    assert {name: cell["mean"] for name, cell in by_labeler.items()} == {"ann": 1.0, "bo": 0.0}


def test_position_of_demonstrations() -> None:
    demonstrations = [ScoredDemonstration(score=2.0, ranking=0), ScoredDemonstration(score=1.0)]
    content = report(demonstrations=demonstrations)["demonstrations"]
    assert (content["count"], content["mean_score"], content["standard_deviation"]) == (2, 1.5, 0.5)
    # Scores by tier: 0: 3, 1, 2; 1: 2, 2; 2: 0.
    assert content["share_of_tier_below_their_mean"] == {"0": round(1 / 3, 6), "1": 0.0, "2": 1.0}
    beats = content["beats_ranked_responses_of_its_prompt"]
    assert (beats["mean"], beats["prompts"]) == (0.5, 1)  # of 3, 2, 0: one below and one equal


def test_demonstrations_of_one_prompt_are_drawn_together() -> None:
    beats = [ScoredDemonstration(score=9.0, ranking=0)] * 3 + [ScoredDemonstration(score=-9.0, ranking=1)]
    beaten = report(demonstrations=beats)["demonstrations"]["beats_ranked_responses_of_its_prompt"]
    assert (beaten["mean"], beaten["prompts"]) == (0.75, 2)
    assert (beaten["low"], beaten["high"]) == (0.0, 1.0)  # of two prompts one is drawn twice every other time
    alone = report(demonstrations=beats[:3])["demonstrations"]["beats_ranked_responses_of_its_prompt"]
    assert (alone["low"], alone["high"], alone["prompts"]) == (1.0, 1.0, 1)


# --- baselines and examples


def test_a_baseline_is_compared_prompt_by_prompt() -> None:
    compared = report(baselines={"upside down": [[0.0, 1.0, 2.0], [0.0, 0.0, 1.0]], "missing": "no such thing"})[
        "baselines"
    ]
    assert compared["upside down"]["accuracy"]["mean"] == 0.0
    assert compared["upside down"]["model_is_better_by"]["mean"] == pytest.approx(0.625)
    assert compared["missing"] == {"no_data": "no such thing"}


def test_longer_and_shorter_wins_are_each_others_mirror() -> None:
    longer, shorter = (
        accuracy(pairs_of(TWO, rule(TWO)), seed=0).mean for rule in (baselines.longer_wins, baselines.shorter_wins)
    )
    assert longer == pytest.approx((0.0 + 0.75) / 2)  # never; once and half of an equal one
    assert longer + shorter == pytest.approx(1.0)


def test_random_scores_are_right_half_of_the_time_and_the_same_for_a_seed() -> None:
    many = [scored([0.0, 0.0], [0, 1]) for _ in range(2000)]
    measured = accuracy(pairs_of(many, baselines.random_scores(many, seed=1)), seed=0)
    assert measured.low < 0.5 < measured.high
    assert baselines.random_scores(TWO, seed=1) == baselines.random_scores(TWO, seed=1)


def ranking(*responses: str) -> Ranking:
    prompt = Prompt(messages=(Message("user", "q"),), origin=Origin("here", 1))
    return Ranking(prompt, responses, tuple(range(len(responses))))


def test_the_bag_of_words_finds_the_words_of_better_responses() -> None:
    training = [
        ranking("the good one", "the bad one"),
        ranking("good indeed", "so bad indeed"),
        ranking("Good.", "Bad."),
    ]
    told = ScoredRanking(
        prompt="q", responses=("bad", "good", "unheard of"), tiers=(1, 0, 2), scores=(0.0,) * 3, lengths=(1, 1, 2)
    )
    (bad, good, unknown) = baselines.bag_of_words(training, [told])[0]
    assert good > 0 > bad
    assert good == pytest.approx(-bad, rel=0.05)
    assert unknown == 0.0


def test_the_bag_of_words_learns_from_all_sources() -> None:
    """More rankings than it reads, of which the last third alone tells good from bad."""
    telling = [ranking("good", "bad")] * (baselines.TRAINING - 1)
    training = [*([ranking("yes", "no")] * (2 * baselines.TRAINING)), *telling]
    told = ScoredRanking(prompt="q", responses=("bad", "good"), tiers=(1, 0), scores=(0.0,) * 2, lengths=(1, 1))
    (bad, good) = baselines.bag_of_words(training, [told])[0]
    assert good > 0 > bad


def test_the_fitted_weight_is_where_the_slope_is_zero() -> None:
    """One pair, one word with a difference of x: sigmoid(-x w) x = RIDGE w."""
    x = 1.5
    (w,) = baselines.fit(csr_array([[x]]), np.array([1.0]))
    assert sigmoid(-x * w) * x == pytest.approx(baselines.RIDGE * w, rel=1e-6)


def test_examples_are_the_widest_wrong_and_the_narrowest_right_of_different_prompts() -> None:
    rankings = [
        scored([0.0, 5.0, 4.0], [0, 1, 2], prompt="far"),  # wrong by 5, wrong by 4, right by 1
        scored([0.0, 1.0], [0, 1], prompt="near"),  # wrong by 1
        scored([0.1, 0.0], [0, 1], prompt="barely"),
    ]
    examples = report(rankings)["examples"]
    assert [(example["prompt"], example["margin"]) for example in examples["overconfident"]] == [
        ("far", -5.0),
        ("near", -1.0),
    ]
    assert [(example["prompt"], example["margin"]) for example in examples["underconfident"]] == [
        ("barely", 0.1),
        ("far", 1.0),
    ]
    assert examples["overconfident"][0]["better"] == {"response": "answer 0", "score": 0.0, "tier": 0}


# --- the report as a whole


def test_a_section_without_data_says_so() -> None:
    content = report([scored([1.0, 0.0], [0, 1])])
    for section in (content["by_source"], content["by_task"], content["by_label"], content["demonstrations"]):
        assert list(section) == ["no_data"]
    assert "no_data" in content["agreement"]["by_labeler"]
    assert "no_data" in content["length"]["better_is_shorter"]


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.floats(-5, 5))
def test_a_shift_of_the_scores_changes_only_what_shows_scores(shift: float) -> None:
    shift = round(4 * shift) / 4
    moved = [
        ScoredRanking(**{**vars(ranking), "scores": tuple(score + shift for score in ranking.scores)})
        for ranking in TWO
    ]
    kept = ("accuracy", "by_gap", "length", "calibration", "agreement", "best_of_n", "baselines")
    before, after = report(), report(moved)
    assert {name: before[name] for name in kept} == {name: after[name] for name in kept}


def test_the_report_is_json_without_nan_and_the_same_each_time() -> None:
    demonstrations = [ScoredDemonstration(score=0.0)]
    text = canonical(report(demonstrations=demonstrations))
    assert json.loads(text) == report(demonstrations=demonstrations)


def test_the_figure_is_svg_with_the_reports_numbers_in_it_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, again, other = (
        save(partial(reliability, report=content), tmp_path / "reliability.svg").read_bytes()
        for content in (report(), report(), report([TWO[0]]))
    )
    assert first.startswith(b"<?xml") and b"<script" not in first
    assert first == again != other


def test_groups_leave_out_what_belongs_to_none() -> None:
    cells = cells_by(pairs_of(TWO), lambda pair: "first" if pair.ranking == 0 else None, seed=0)
    assert list(cells) == ["first"]
