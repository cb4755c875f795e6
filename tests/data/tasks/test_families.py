"""Every family: gold answers are perfect, wrong ones wrong, prompts short, near misses graded as by hand."""

import json
import string
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Message, Origin, Prompt
from data.tasks import flaws, generate
from data.tasks.checks import grade
from data.tasks.families.catalogue import FAMILIES, HELD_OUT, TRAINED
from data.tasks.family import Family
from data.tasks.sizes import GOLD_TOKENS, PROMPT_TOKENS, tokens

NEAR_MISSES = [
    json.loads(line) for line in Path(__file__).with_name("near_misses.jsonl").read_text("utf-8").splitlines()
]
DRAWS = 100

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


def draws(family: Family):
    for seed in range(DRAWS):
        draw = family.draw(Random(seed))
        yield draw, family.templates[seed % len(family.templates)].format(**draw.fields)


def test_there_are_enough_families_and_templates():
    assert len(TRAINED) >= 30
    assert len(HELD_OUT) == 6
    assert all(len(family.templates) >= 4 for family in FAMILIES.values())


@every_family
def test_every_field_of_a_template_is_drawn_and_every_input_is_asked_about(family: Family):
    for template in family.templates:
        used = {field for _, field, _, _ in string.Formatter().parse(template) if field}
        assert "text" in used
        assert used <= set(family.draw(Random(0)).fields)


@every_family
def test_gold_is_perfect_and_wrong_is_wrong_in_good_form(family: Family):
    for draw, text in draws(family):
        assert flaws.grade(draw, draw.gold) == flaws.Grade(1.0, 1.0), (text, draw.gold)
        assert draw.wrong, text
        for wrong in draw.wrong:
            assert flaws.grade(draw, wrong) == flaws.Grade(0.0, 1.0), (text, wrong)


@every_family
def test_copies_lists_of_all_options_and_nothing_are_never_correct(family: Family):
    for draw, text in draws(family):
        options = [draw.gold, *draw.wrong]
        for response in (text, draw.fields["text"], ", ".join(options), " ".join(reversed(options)), "", "?", "\n"):
            assert draw.answer.correctness(response) == 0, (text, response)


@every_family
def test_prompts_and_answers_are_short_and_start_with_a_capital(family: Family):
    for draw, text in draws(family):
        assert text[0].isupper()
        assert len(text) <= 120
        assert len(text.split()) <= 24
        assert tokens(text) <= PROMPT_TOKENS + 4, text
        assert len(draw.gold) <= 45, draw.gold
        assert tokens(draw.gold) <= GOLD_TOKENS + 3, draw.gold


@every_family
def test_inputs_practically_never_repeat(family: Family):
    seen = {family.templates[0].format(**draw.fields) for draw, _ in draws(family)}
    assert len(seen) >= 0.95 * DRAWS


@pytest.mark.parametrize("row", NEAR_MISSES, ids=[row["meta"]["family"] for row in NEAR_MISSES])
def test_near_misses_get_the_grades_a_person_gave_them(row: dict):
    prompt = Prompt((Message("user", row["prompt"]),), Origin("near_misses.jsonl", 1), row["meta"])
    for response, correctness, form in row["responses"]:
        graded = grade(prompt, response)
        assert graded.correctness == pytest.approx(correctness, abs=0.006), response
        assert graded.form == pytest.approx(form, abs=0.006), response


def test_every_family_has_near_misses():
    assert {row["meta"]["family"] for row in NEAR_MISSES} == set(FAMILIES)


@given(text=st.text(), index=st.integers(0, len(TRAINED) - 1), cut=st.integers(0, 40))
@settings(deadline=None, max_examples=150)
def test_no_text_breaks_a_check(text: str, index: int, cut: int):
    prompt = generate.task("rl", index, seed=0).prompt
    gold = prompt.meta["gold"]
    for response in (text, gold[:cut] + text + gold[cut:]):
        graded = grade(prompt, response)
        assert 0 <= graded.correctness <= 1
        assert 0 <= graded.form <= 1
