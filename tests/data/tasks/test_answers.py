"""Each kind of answer on its own: what is right, what is nearly right, and what must earn nothing."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks.answers import (
    Answer,
    Fields,
    Final,
    Literal,
    Members,
    Number,
    OneOf,
    Order,
    Pick,
    Repeat,
    Rewrite,
    from_json,
    to_json,
)

CASES: list[tuple[Answer, str, float]] = [
    (OneOf(["Anna"], ["Tom"]), "It was ANNA!", 1),
    (OneOf(["Anna"], ["Tom"]), "Anna or Tom", 0),
    (OneOf(["Anna"], ["Tom"]), "Annabel", 0),
    (OneOf(["Anna"], ["Tom"]), "not Anna", 0),
    (OneOf(["no, Tom does not"], ["Tom"]), "No, Tom does not.", 1),
    (OneOf(["Anna"], near=["Ann"]), "Ann", 0.5),
    (Literal("1 km", ["2 km"]), "It is 1 km.", 1),
    (Literal("1 km"), "11 km", 0),
    (Literal("AB"), "ab", 0),
    (Literal("1 km", ["2 km"]), "1 km or 2 km", 0),
    (Literal("A.B.", near=["AB"]), "AB", 0.5),
    (Number(17, [12, 5]), "12 + 5 = 17", 1),
    (Number(17, [12, 5]), "16, 17, 18", 0),
    (Number(1200), "1,200", 1),
    (Number(17), "017", 1),
    (Number(17), "17.0", 1),
    (Number(17), "17.5", 0),
    (Number(17), "9" * 5000, 0),
    (Order(["a1", "b1", "c1"], ["c1", "a1", "b1"]), "a1 then b1 then c1", 1),
    (Order(["a1", "b1", "c1"], ["c1", "a1", "b1"]), "a1, b1, c1, a1, b1, c1", 1),
    (Order(["a1", "b1", "c1"], ["c1", "a1", "b1"]), "c1, a1, b1", 0),
    (Order(["a1", "b1", "c1"], ["b1", "a1", "c1"]), "b1, a1, c1", 0),
    (Order(["a1", "b1", "c1"], ["b1", "c1", "a1"]), "a1, c1, b1", 1 / 6),
    (Order(["a1", "b1", "c1"], ["c1", "a1", "b1"]), "a1, b1, c1, b1", 0),
    (Pick(["fox", "owl"], ["cup"]), "owl and fox", 1),
    (Pick(["fox", "owl"], ["cup"]), "fox", 0.5),
    (Pick(["fox", "owl"], ["cup", "pen"]), "fox, owl, cup, pen", 0),
    (Rewrite("Anna walked home.", ["walked"], ["walks"]), "Anna walked home", 1),
    (Rewrite("Anna walked home.", ["walked"], ["walks"]), "Anna walks, walked home", 0),
    (Rewrite("Anna walked home.", ["walked"], ["walks"]), "home walked Anna", 1 / 3),
    (Rewrite("Anna walked home.", ["walked"], ["walks"]), "Anna goes home", 0),
    (Fields({"name": "Anna", "age": "32"}), '{"name": "Anna", "age": 32}', 1),
    (Fields({"name": "Anna", "age": "32"}), "name: Anna", 0.5),
    (Fields({"name": "Anna", "age": "32"}), "name and age: Anna is 32", 0),
    (Fields({"name": "Anna", "age": "32"}), "name: Anna, name: Tom", 0),
    (Repeat("red box", 3), "red box red box red box", 1),
    (Repeat("red box", 3), "red box", 0),
    (Members(["fox", "owl", "cat"], ["dog"], 2), "owls and cats", 1),
    (Members(["fox", "owl", "cat"], ["dog"], 2), "fox, owl, cat", 0),
    (Members(["fox", "owl", "cat"], ["dog"], 2), "fox, dogs", 0),
    (Members(["fox", "owl", "cat"], ["dog"], 2), "fox", 0.5),
    (Final("21"), "7 * 3 = 21\n#### 21", 1),
    (Final("21"), "####021.\n", 1),
    (Final("21"), "7 * 3 = 22\n#### 21", 1),
    (Final("21"), "7 * 3 = 21", 0),
    (Final("21"), "#### 22", 0),
    (Final("21"), "#### 121", 0),
    (Final("21"), "#### 2 1", 0),
    (Final("21"), "#### -21", 0),
    (Final("21"), "#### 21 or 22", 0),
    (Final("21"), "#### 20 21 22", 0),
    (Final("21"), "#### 20\n#### 21", 0),
    (Final("21"), "#### 21\n#### 21", 0),
    (Final("21"), "#### 21 hats", 0),
    (Final("21"), "#### 21\nThe next problem", 0),
    (Final("21"), "#####21", 0),
    (Final("21"), "####", 0),
    (Final("Monday"), "#### monday", 1),
    (Final("Monday"), "#### Monday, Tuesday", 0),
    (Final("9, 10, 34"), "#### 9,  10, 34", 1),
    (Final("9, 10, 34"), "#### 9, 34, 10", 0),
    (Final("9, 10, 34"), "#### 9, 10, 34, 34", 0),
]


@pytest.mark.parametrize(("answer", "response", "expected"), CASES)
def test_answers_are_graded_by_what_the_response_commits_to(answer: Answer, response: str, expected: float):
    assert answer.correctness(response) == pytest.approx(expected)


@pytest.mark.parametrize("answer", {type(answer): answer for answer, _, _ in CASES}.values())
@given(text=st.text())
@settings(deadline=None, max_examples=40)
def test_any_text_gets_a_grade_between_0_and_1_also_after_json(answer: Answer, text: str):
    copy = from_json(json.loads(json.dumps(to_json(answer))))
    assert 0 <= answer.correctness(text) <= 1
    assert copy.correctness(text) == answer.correctness(text)
    assert answer.correctness("") == 0
