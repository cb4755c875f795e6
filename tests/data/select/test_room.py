"""Lengths that a model cannot take are refused with the key and the reason, before a weight is loaded."""

import pytest

from data.chat.conversations import EncodedPrompt
from data.records import Message, Origin, Prompt
from data.select.room import require_limits, require_pieces, require_room
from onebase.errors import DataError, RecipeError
from onebase.model.architecture import Reach
from onebase.recipe.sections import LimitsSection

REACH = Reach(100, "the model has 100 positions")


@pytest.mark.parametrize(
    ("prompt", "response", "multiple", "fits"),
    [(60, 40, 1, True), (60, 41, 1, False), (60, 37, 64, False), (30, 30, 64, True)],
)
def test_limits_hold_what_the_model_takes(prompt: int, response: int, multiple: int, fits: bool) -> None:
    limits = LimitsSection(prompt_tokens=prompt, response_tokens=response)
    require_limits(limits, None, multiple=multiple)
    if fits:
        require_limits(limits, REACH, multiple=multiple)
        return
    with pytest.raises(
        RecipeError, match=rf"limits\.prompt_tokens.*= {prompt + response}.*the model has 100 positions"
    ):
        require_limits(limits, REACH, multiple=multiple)


def test_a_prompt_leaves_room_for_its_answer() -> None:
    prompt = Prompt(messages=(Message(role="user", content="Hi"),), origin=Origin("rows.jsonl", 3))
    long = EncodedPrompt(prompt, tuple(range(61)))
    require_room([long], REACH, new_tokens=39)
    require_room([long], None, new_tokens=1000)
    with pytest.raises(DataError, match=r"rows\.jsonl:3.*61 tokens.*it may be 60: the model has 100 positions"):
        require_room([long], REACH, new_tokens=40)
    with pytest.raises(DataError, match=r"--max-new-tokens 100 leaves no room.*the model has 100 positions"):
        require_room([], REACH, new_tokens=100, key="--max-new-tokens")


def test_pieces_of_text_fit() -> None:
    require_pieces([((1,) * 50, (2,) * 50), ((1,), (2,))], REACH, key="text_tokens")
    with pytest.raises(DataError, match=r"text_tokens: a piece of text is 101 tokens, and the model has 100"):
        require_pieces([((1,) * 51, (2,) * 50)], REACH, key="text_tokens")
