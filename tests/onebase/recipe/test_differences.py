"""What two recipes, or two texts, differ in."""

from typing import Any

import pytest

from onebase.recipe.differences import WIDTH, both_shown, differences, summary


@pytest.mark.parametrize(
    ("had", "now", "message"),
    [
        (
            {"train": {"episodes": 32, "clip": 0.2}},
            {"train": {"episodes": 64, "clip": 0.2}},
            "train.episodes: it had 32, this one says 64",
        ),
        ({"data": [{"rows": 4}, 1]}, {"data": [{"rows": 5}, 1]}, "data.0.rows: it had 4, this one says 5"),
        ({"data": [1]}, {"data": [1, 2]}, "data: it had [1], this one says [1, 2]"),
        ({}, {"ema": {"decay": 0.9}}, "ema: it had nothing, this one says {'decay': 0.9}"),
        ({"ema": None}, {}, "ema: it had None, this one says nothing"),
        ({"seed": 1}, {"seed": "1"}, "seed: it had 1, this one says '1'"),
    ],
)
def test_every_key_that_differs_is_named_with_both_values(had: Any, now: Any, message: str) -> None:
    assert summary(differences(had, now)) == message


def test_of_many_keys_the_first_are_named_and_the_others_counted() -> None:
    had, now = ({name: value for name in "abcde"} for value in (1, 2))
    assert summary(differences(had, now)).endswith("c: it had 1, this one says 2; and 2 more")


@pytest.mark.parametrize(("head", "tail"), [(500, 0), (0, 500), (300, 300)])
def test_long_texts_are_cut_around_what_differs(head: int, tail: int) -> None:
    had, now = (f"{'a' * head}{word}{'z' * tail}" for word in ("\x1b[31mred", "blue"))
    left, right = both_shown(had, now)
    assert left != right and "red" in left and "blue" in right
    assert "\x1b" not in left, "what a terminal obeys is shown and not sent"
    assert max(len(left), len(right)) <= WIDTH + 6


def test_a_text_that_only_goes_on_is_told_apart() -> None:
    left, right = both_shown("b" * 300, "b" * 300 + " and more")
    assert left != right and "and more" in right
