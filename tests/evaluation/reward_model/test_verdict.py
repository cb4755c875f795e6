"""The verdict on a reward model, from made reports, and what follows from it."""

from dataclasses import replace
from typing import Any

import pytest

from evaluation.reward_model import baselines
from evaluation.reward_model.pairs import ScoredRanking
from evaluation.reward_model.report import build
from evaluation.reward_model.verdict import BETTER, LEAST, NOT_BETTER, UNTOLD, Verdict, recorded, verdict_of
from onebase.errors import RecordError

NOTHING = "there are no training rankings"


def ranking(number: int, *, score: float, longer: bool) -> ScoredRanking:
    """Two responses, the first one better. score: of the first; the second has 0. longer: whether the first is."""
    return ScoredRanking(
        prompt=f"question {number}",
        responses=("good", "bad"),
        tiers=(0, 1),
        scores=(score, 0.0),
        lengths=(9, 3) if longer else (3, 9),
    )


def verdict(rankings: list[ScoredRanking], words: Any = NOTHING) -> Verdict:
    simple = {
        "longer wins": baselines.longer_wins(rankings),
        "shorter wins": baselines.shorter_wins(rankings),
        "random": [[1.0, 0.0]] * len(rankings),  # lucky: right everywhere
        "bag of words": words,
    }
    return verdict_of(build(rankings, [], baselines=simple, seed=0))


def made(right: int, wrong: int, *, longer_of_right: int, longer_of_wrong: int) -> list[ScoredRanking]:
    """So many prompts that the model ranks right and wrong, of which so many have the longer response first."""
    good = [ranking(number, score=1.0, longer=number < longer_of_right) for number in range(right)]
    return good + [ranking(right + n, score=-1.0, longer=n < longer_of_wrong) for n in range(wrong)]


@pytest.mark.parametrize(
    ("rankings", "says", "baseline"),
    [
        (made(38, 2, longer_of_right=22, longer_of_wrong=1), BETTER, "longer wins"),
        (made(37, 3, longer_of_right=16, longer_of_wrong=1), BETTER, "shorter wins"),
        (made(22, 18, longer_of_right=12, longer_of_wrong=9), UNTOLD, "longer wins"),
        (made(12, 28, longer_of_right=8, longer_of_wrong=24), NOT_BETTER, "longer wins"),
        (made(30, 10, longer_of_right=30, longer_of_wrong=0), NOT_BETTER, "longer wins"),  # it is that very rule
    ],
)
def test_a_model_is_compared_with_its_best_baseline(rankings: list[ScoredRanking], says: str, baseline: str) -> None:
    outcome = verdict(rankings)
    assert (outcome.says, outcome.baseline) == (says, baseline)
    assert outcome.over == pytest.approx(
        sum(ranking.scores[0] > 0 for ranking in rankings) / len(rankings) - outcome.baseline_accuracy, abs=1e-6
    )


def test_a_bag_of_words_that_is_right_everywhere_is_the_one_to_beat() -> None:
    rankings = made(36, 4, longer_of_right=18, longer_of_wrong=2)
    assert verdict(rankings).says == BETTER
    outcome = verdict(rankings, [[1.0, 0.0]] * 40)
    assert (outcome.baseline, outcome.says) == ("bag of words", NOT_BETTER)


def test_a_few_prompts_tell_nothing() -> None:
    """All of them right, where length says nothing: the interval has no width, and five prompts may be chance."""
    right = [replace(ranking(number, score=1.0, longer=False), lengths=(5, 5)) for number in range(LEAST)]
    assert verdict(right[: LEAST - 1]).says == UNTOLD
    assert verdict(right).says == BETTER
    # Copies of a prompt are no further prompts.
    assert verdict(right[:2] * 10).says == UNTOLD


@pytest.mark.parametrize(("right", "wrong"), [(38, 2), (12, 28)])
def test_a_record_says_what_the_report_says(right: int, wrong: int) -> None:
    outcome = verdict(made(right, wrong, longer_of_right=right // 2, longer_of_wrong=wrong // 2))
    assert recorded({**outcome.metrics, "reward/eval_accuracy": 0.5}) == outcome
    assert recorded({"reward/eval_accuracy": 0.5}) is None
    assert f"'{outcome.baseline}'" in outcome.text and f"{outcome.over:+.2f}" in outcome.text


@pytest.mark.parametrize("place", [-1.0, 0.5, 3.0, 1e300])
def test_a_record_that_names_no_baseline_is_refused(place: float) -> None:
    edited = {**verdict(made(6, 2, longer_of_right=4, longer_of_wrong=1)).metrics, "reward/baseline": place}
    with pytest.raises(RecordError, match=r"reward/baseline is .*expected 0 to 2\. The record was edited"):
        recorded(edited)
