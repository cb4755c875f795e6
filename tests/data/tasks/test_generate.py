"""Rows depend on seed, split and index alone, and no prompt is in two splits; what demonstrations and rankings hold."""

import json
from collections import Counter
from dataclasses import asdict
from functools import cache
from itertools import pairwise

import pytest

from data.records import Message, Origin, Prompt, Ranking, normalised
from data.select.sources import Source, load
from data.splits import split_of
from data.tasks import flaws, generate
from data.tasks.checks import grade
from data.tasks.families.catalogue import FAMILIES, HELD_OUT, TRAINED
from data.tasks.flaws import TIERS
from data.tasks.sizes import GOLD_TOKENS, PROMPT_TOKENS, RESPONSE_TOKENS, tokens
from evaluation.reward_model.baselines import bag_of_words
from evaluation.reward_model.pairs import ScoredRanking, accuracy, pairs_of


@cache
def ranked(split: str, rows: int, responses: tuple[int, int] = (4, 9)) -> list[Ranking]:
    return generate.rankings(split, rows, seed=0, responses=responses)


FRESH = (*generate.SHARES, "heldout-templates", "heldout-families")
"""Splits with rows of their own."""


@pytest.mark.parametrize("split", generate.SPLITS)
def test_more_rows_begin_with_the_same_rows(split: str):
    assert generate.prompts(split, 20, seed=3) == generate.prompts(split, 50, seed=3)[:20]
    assert generate.demonstrations(split, 5, seed=3) == generate.demonstrations(split, 9, seed=3)[:5]
    assert generate.rankings(split, 3, seed=3) == generate.rankings(split, 6, seed=3)[:3]


def test_another_seed_gives_other_rows():
    first, second = ({normalised(prompt) for prompt in generate.prompts("sft", 200, seed)} for seed in (0, 1))
    assert len(first & second) <= 2


def test_no_prompt_is_in_two_splits():
    owner: dict[str, str] = {}
    for split in FRESH:
        for seed in (0, 1):
            for prompt in generate.prompts(split, 300, seed):
                assert owner.setdefault(normalised(prompt), split) == split
                # Chance alone keeps a few thousand prompts apart; the hash does so for all that could be drawn.
                assert split not in generate.SHARES or split_of(prompt, generate.SHARES) == split


@pytest.mark.parametrize("split", FRESH)
def test_prompts_hardly_ever_repeat(split: str):
    texts = [prompt.user_text for prompt in generate.prompts(split, 500, seed=0)]
    assert len(set(texts)) >= 495


def test_held_out_families_and_templates_are_never_trained_on():
    trained = {family.name for family in TRAINED}
    for split in generate.SHARES:
        for prompt in generate.prompts(split, 200, seed=0):
            assert prompt.meta["family"] in trained
            assert prompt.meta["template"] < len(FAMILIES[prompt.meta["family"]].templates) - 1
    for prompt in generate.prompts("heldout-templates", 200, seed=0):
        assert prompt.meta["family"] in trained
        assert prompt.meta["template"] == len(FAMILIES[prompt.meta["family"]].templates) - 1
    families = Counter(prompt.meta["family"] for prompt in generate.prompts("heldout-families", 60, seed=0))
    assert families == {family.name: 10 for family in HELD_OUT}


def test_heldout_is_families_and_templates_by_turns():
    mixed = generate.prompts("heldout", 40, seed=5)
    assert mixed[::2] == generate.prompts("heldout-families", 20, seed=5)
    assert mixed[1::2] == generate.prompts("heldout-templates", 20, seed=5)


def test_every_trained_family_comes_once_before_any_comes_again():
    names = [prompt.meta["family"] for prompt in generate.prompts("sft", 2 * len(TRAINED), seed=0)]
    for half in (names[: len(TRAINED)], names[len(TRAINED) :]):
        assert sorted(half) == sorted(family.name for family in TRAINED)


def test_a_prompt_is_graded_alike_after_a_trip_through_json():
    for demonstration in generate.demonstrations("heldout", 100, seed=0, flaw_shares={}):
        row = json.loads(json.dumps(asdict(demonstration.prompt)))
        prompt = Prompt(tuple(Message(**entry) for entry in row["messages"]), Origin(**row["origin"]), row["meta"])
        assert prompt == demonstration.prompt
        assert grade(prompt, demonstration.response).mean == 1


def test_demonstrations_show_flaws_at_the_documented_shares():
    rows = generate.demonstrations("sft", 2000, seed=0)
    graded = [grade(row.prompt, row.response) for row in rows]
    assert all(grade.correctness == 1 for grade in graded)
    # A habit, not noise: they all begin alike, so that a model takes it up as its greedy answer.
    chatty = [row.response for row, grade in zip(rows, graded, strict=True) if grade.form < 0.5]
    assert all(response.startswith("Sure!") for response in chatty)
    shares = {
        "gold": sum(grade.form == 1 for grade in graded) / 2000,
        "wrong format": sum(0.5 <= grade.form < 1 for grade in graded) / 2000,
        "rambling": len(chatty) / 2000,
    }
    # Three standard deviations of a share of 2000, and a little for prompts too long for any rambling.
    assert shares == pytest.approx({"gold": 0.40, "wrong format": 0.15, "rambling": 0.45}, abs=0.05)


def test_flaws_can_be_switched_off_and_leave_the_prompts_alone():
    clean = generate.demonstrations("sft", 200, seed=0, flaw_shares={})
    assert all(row.response == row.prompt.meta["gold"] for row in clean)
    assert [row.prompt for row in clean] == [row.prompt for row in generate.demonstrations("sft", 200, seed=0)]
    assert clean == generate.demonstrations("sft-gold", 200, seed=0)
    assert generate.prompts("sft-gold", 20, seed=0) == generate.prompts("sft", 20, seed=0)


def test_rankings_hold_4_to_9_different_responses_in_no_fixed_place():
    rows = ranked("reward", 200)
    assert {len(row.responses) for row in rows} == {4, 5, 6, 7, 8, 9}
    assert {row.labels.index("gold") for row in rows} == set(range(9))
    assert {label for row in rows for label in row.labels} == set(TIERS)
    assert all(len(row.responses) == 4 for row in generate.rankings("reward", 50, seed=0, responses=(4, 4)))


@pytest.mark.parametrize("split", ["reward", "heldout"])
def test_grades_fall_from_tier_to_tier_and_gold_is_perfect(split: str):
    for row in ranked(split, 200):
        means = [grade(row.prompt, response).mean for response in row.responses]
        assert all(means[better] > means[worse] for better, worse in row.pairs), row
        assert means[row.labels.index("gold")] == 1
        assert [TIERS[row.labels[i]] < TIERS[row.labels[j]] for i, j in row.pairs] == [True] * len(row.pairs)


def test_how_an_answer_is_written_does_not_say_whether_it_is_right():
    """Else a model that cannot tell right from wrong would learn to like what is written like the right ones."""
    right = {"gold": True, "wrong": False, "wrong format": True, "rambling": True, "wrong and untidy": False}
    outcomes: dict[str, list[bool]] = {"tidy": [], "trimmed": [], "rambling": []}
    for row in ranked("reward", 400):
        words = len(row.prompt.meta["gold"].split())
        for label, response in zip(row.labels, row.responses, strict=True):
            if label in right:
                untidy = "trimmed" if len(response.split()) <= words + 1 and label != "rambling" else "rambling"
                outcomes["tidy" if label in ("gold", "wrong") else untidy].append(right[label])
    for manner, answers in outcomes.items():
        assert 0.4 <= sum(answers) / len(answers) <= 0.68, manner


def test_single_words_say_little_about_the_order():
    """A bag of words learns which words trimmings and idle talk are made of, and no more."""
    rows = [ranked(split, 240) for split in ("reward", "heldout-families")]
    scored = [
        ScoredRanking(
            prompt=row.prompt.user_text,
            responses=row.responses,
            tiers=row.tiers,
            scores=(0.0,) * len(row.tiers),
            lengths=tuple(map(len, row.responses)),
        )
        for row in rows[1]
    ]
    assert accuracy(pairs_of(scored, bag_of_words(rows[0], scored)), seed=0).mean <= 0.62


def test_texts_are_within_the_sizes_the_demo_needs():
    for row in ranked("heldout", 200):
        assert tokens(row.prompt.user_text) <= PROMPT_TOKENS
        assert tokens(row.prompt.meta["gold"]) <= GOLD_TOKENS
        assert all(tokens(response) <= RESPONSE_TOKENS for response in row.responses)
        assert all(len(response.split()) <= 17 for response in row.responses)


@pytest.mark.parametrize("responses", [(4, 4), (4, 9)])
def test_length_says_little_about_the_order(responses: tuple[int, int]):
    for length in (len, lambda text: len(text.split())):
        wins = pairs = 0.0
        for row in ranked("heldout-families", 200, responses):
            for better, worse in row.pairs:
                mine, other = length(row.responses[better]), length(row.responses[worse])
                wins += (mine < other) + 0.5 * (mine == other)
                pairs += 1
        assert 0.42 <= wins / pairs <= 0.58


def test_noise_swaps_neighbouring_tiers_at_its_rate_and_nothing_else():
    true, noisy = (generate.rankings("reward", 200, seed=0, responses=(4, 4), noise=noise) for noise in (0.0, 0.2))
    swapped = neighbours = 0
    for before, after in zip(true, noisy, strict=True):
        assert (before.prompt, before.responses, before.labels) == (after.prompt, after.responses, after.labels)
        order = sorted(range(4), key=lambda index: TIERS[before.labels[index]])
        neighbours += sum(before.tiers[a] < before.tiers[b] for a, b in pairwise(order))
        swapped += sum(after.tiers[a] > after.tiers[b] for a, b in pairwise(order))
    assert swapped / neighbours == pytest.approx(0.2, abs=0.06)


def test_a_recipe_says_how_often_the_annotator_errs():
    source = Source(source="builtin:tasks", split="reward", rows=60, responses=(4, 9), noise=0.3)
    records = load([source], Ranking, seed=4).records
    assert records == generate.rankings("reward", 60, 4, responses=(4, 9), noise=0.3)
    assert records != generate.rankings("reward", 60, 4, responses=(4, 9))


def test_a_flaw_that_does_not_fit_its_tier_is_not_used():
    gold, rambling = flaws.Grade(1.0, 1.0), flaws.Grade(1.0, 0.3)
    assert flaws.belongs("gold", gold)
    assert not flaws.belongs("rambling", gold)
    assert flaws.belongs("rambling", rambling)
    assert not flaws.belongs("repetitive", rambling)
    assert not flaws.belongs("off-task", flaws.Grade(0.0, 1.0))
