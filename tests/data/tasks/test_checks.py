"""Prompts that bring a check of their own, and prompts whose meta only looks like one."""

import re
from dataclasses import replace
from typing import Any

import pytest

from data.records import Message, Origin, Prompt
from data.tasks import generate
from data.tasks.checks import grade, has_check
from onebase.errors import DataError


def with_meta(**meta: Any) -> Prompt:
    return Prompt((Message("user", "2+2?"),), Origin("mine.jsonl", 3), meta)


def test_every_built_in_prompt_brings_a_check():
    assert all(map(has_check, generate.prompts("heldout", 40, 0)))


@pytest.mark.parametrize(
    "meta",
    [{}, {"answer": "4"}, {"answer": {"kind": "essay"}, "form": {}}, {"answer": {"kind": "OneOf", "right": ["4"]}}],
)
def test_an_answer_of_somebody_elses_is_no_check(meta: dict[str, Any]):
    assert not has_check(with_meta(**meta))


@pytest.mark.parametrize(
    "damage", [{"answer": {"kind": "OneOf"}}, {"answer": {"kind": "OneOf", "right": 4}}, {"form": {"style": 1}}]
)
def test_a_damaged_check_is_named_with_its_row(damage: dict[str, Any]):
    (whole,) = generate.prompts("sft", 1, 0)
    origin = Origin("mine.jsonl", 3)
    broken = replace(whole, meta={**whole.meta, **damage}, origin=origin)
    with pytest.raises(DataError, match=re.escape("mine.jsonl:3: `meta.answer` and `meta.form` are not what")):
        grade(broken, "4")
