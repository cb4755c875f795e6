"""Rows that say one thing twice and differently, and words that publishers have for nothing."""

import json
from typing import Any

import pytest

from data.formats.table import build
from data.records import Demonstration, Origin, Prompt, Ranking
from data.writing import row_of
from onebase.errors import DataError

ORIGIN = Origin("f", 1)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHOSEN, REJECTED = ([turn("user", "Hi"), turn("assistant", answer)] for answer in ("A", "B"))


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        (
            {"prompt": "Hi", "chosen": CHOSEN, "rejected": REJECTED, "messages": REJECTED},
            Demonstration,
            "contradictory: 'messages' does not end with the chosen reply",
        ),
        (
            {"prompt": "Hi", "chosen": "A", "rejected": "B", "chosen_rating": 1.0, "rejected_rating": 5.0},
            Ranking,
            "contradictory: 'chosen_rating' is not above 'rejected_rating'",
        ),
        (
            {
                "Definition": ["Name one."],
                "Positive Examples": [],
                "Negative Examples": [{"input": "a", "output": "z"}],
                "Instances": [{"input": "a", "output": ["y", "z"]}],
            },
            Ranking,
            "contradictory: a negative example is one of the right answers",
        ),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(row: dict[str, Any], kind: type, message: str):
    with pytest.raises(DataError, match=message):
        list(build(row, kind, ORIGIN))


@pytest.mark.parametrize("blank", ["", " \n ", "<noinput>"])
def test_a_blank_input_is_none(blank: str):
    seed = {"instruction": "Sort.", "instances": [{"input": blank, "output": "a"}]}
    for row in ({"instruction": "Sort.", "input": blank, "output": "a"}, seed):
        (prompt,) = build(row, Prompt, ORIGIN)
        assert prompt.user_text == "Sort."


@pytest.mark.parametrize("mark", ["[deleted by user]", "[ Removed by Reddit ]", "[removed]"])
def test_every_mark_of_a_deleted_text_is_known(mark: str):
    row = {"history": mark, "human_ref_A": "so", "human_ref_B": "hm", "labels": 1, "score_A": 9, "score_B": 2}
    with pytest.raises(DataError, match="'history' was deleted"):
        list(build(row, Ranking, ORIGIN))


def test_a_turn_is_read_by_the_keys_that_have_a_value():
    turns = [{"from": None, "value": None, **turn(role, role)} for role in ("user", "assistant")]
    (demonstration,) = build({"conversations": turns}, Demonstration, ORIGIN)
    assert isinstance(demonstration, Demonstration) and demonstration.response == "assistant"


def test_broken_text_in_meta_is_passed_over_with_it():
    (demonstration,) = build({"prompt": "p", "response": "r", "meta": '{"task": "\\ud800"}'}, Demonstration, ORIGIN)
    json.dumps(row_of(demonstration), ensure_ascii=False).encode()
    assert demonstration.prompt.meta == {}
