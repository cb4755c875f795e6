"""Problems: rows by seed, split and index, no prompt in two splits, solutions that add up by another road."""

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from data.problems import generate
from data.problems.rewards import right_answer
from data.records import Demonstration, Message, Origin, Prompt, Ranking, normalised
from data.select.sources import Source, load
from data.tasks.checks import grade
from onebase.errors import DataError

FRESH = (*generate.SHARES, "heldout-templates", "heldout-families")
"""Splits with rows of their own."""

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

WORDED = {
    "gain": lambda a, b: a + b,
    "groups": lambda a, b: a * b,
    "two-gains": lambda a, b, c: a + b + c,
    "gain-and-loss": lambda a, b, c: a + b - c,
}
"""What a story's numbers come to, in the order that its first template names them."""


@pytest.mark.parametrize("split", generate.SPLITS)
def test_more_rows_begin_with_the_same_rows(split: str):
    assert generate.demonstrations(split, 40, seed=3)[:15] == generate.demonstrations(split, 15, seed=3)
    assert [demonstration.prompt for demonstration in generate.demonstrations(split, 15, seed=3)] == generate.prompts(
        split, 15, seed=3
    )
    assert generate.prompts(split, 15, seed=3) != generate.prompts(split, 15, seed=4)


def test_no_prompt_is_in_two_splits():
    owner: dict[str, str] = {}
    for split in FRESH:
        for prompt in generate.prompts(split, 500, seed=0):
            assert owner.setdefault(normalised(prompt), split) == split


@pytest.mark.parametrize("split", FRESH)
def test_prompts_hardly_ever_repeat(split: str):
    texts = [prompt.user_text for prompt in generate.prompts(split, 500, seed=0)]
    assert len(set(texts)) >= 480


def test_held_out_families_and_templates_are_never_trained_on():
    for split in generate.SHARES:
        for prompt in generate.prompts(split, 200, seed=0):
            family = generate.FAMILIES[prompt.meta["family"]]
            assert not family.held_out
            assert prompt.meta["template"] < len(family.templates) - 1
    for prompt in generate.prompts("heldout-templates", 60, seed=0):
        assert prompt.meta["template"] == len(generate.FAMILIES[prompt.meta["family"]].templates) - 1
    families = Counter(prompt.meta["family"] for prompt in generate.prompts("heldout-families", 30, seed=0))
    assert families == {"two-gains": 10, "groups-and-loss": 10, "words": 10}


def test_heldout_is_its_three_splits_by_turns():
    mixed = generate.prompts("heldout", 30, seed=5)
    for place, split in enumerate(("heldout-prompts", "heldout-templates", "heldout-families")):
        assert mixed[place::3] == generate.prompts(split, 10, seed=5)


@pytest.mark.parametrize("split", FRESH)
def test_solutions_add_up_and_end_with_what_is_paid(split: str):
    for row in generate.demonstrations(split, 300, seed=1):
        *steps, last = row.response.split("\n")
        numbers = {int(number) for number in re.findall(r"[0-9]+", row.prompt.user_text)}
        for step in steps:
            ((first, sign, second, result),) = re.findall(r"^(\d+) ([-+*]) (\d+) = (\d+)$", step)
            assert eval(f"{first} {sign} {second}") == int(result)
            assert {int(first), int(second)} & numbers or row.prompt.meta["family"] == "sequence"
            numbers.add(int(result))
        assert last == f"#### {row.prompt.meta['answer']['right']}"
        assert not steps or steps[-1].endswith(f" = {last.removeprefix('#### ')}")
        assert grade(row.prompt, row.response).mean == 1 == right_answer(row.prompt, row.response)


def by_another_road(prompt: Prompt) -> str | None:
    """The answer from the text of a prompt alone; None where this road does not lead to it."""
    family, text = prompt.meta["family"], prompt.user_text
    numbers = [int(number) for number in re.findall(r"[0-9]+", text)]
    if family == "sort":
        return ", ".join(map(str, sorted(numbers)))
    if family == "largest":
        return str(max(numbers))
    if family == "sequence":
        return str(2 * numbers[-1] - numbers[-2])
    if family == "letters":
        quoted = re.findall(r'"(.*?)"', text)[0]
        (letter,) = re.findall(r"\b[a-z]\b", re.sub(r'".*?"', "", text))
        return str(quoted.count(letter))
    if family == "day-after":
        today = next(day for day in DAYS if day in text)
        return DAYS[(DAYS.index(today) + numbers[0]) % 7]
    if family == "words":
        counts = Counter(re.findall("red|blue|green|yellow", text))
        colour = re.findall("red|blue|green|yellow", text)[0 if prompt.meta["template"] else -1]
        return str(counts[colour] - 1)
    return str(WORDED[family](*numbers)) if family in WORDED and prompt.meta["template"] == 0 else None


def test_answers_follow_from_the_text():
    seen = Counter[str]()
    for split in FRESH:
        for prompt in generate.prompts(split, 400, seed=2):
            expected = by_another_road(prompt)
            if expected is not None:
                assert prompt.meta["answer"]["right"] == expected, prompt.user_text
                seen[prompt.meta["family"]] += 1
    assert set(seen) == {*WORDED, "sort", "largest", "sequence", "letters", "day-after", "words"}


def test_a_recipe_gets_problems_as_prompts_and_demonstrations_and_no_rankings():
    source = Source(source="builtin:problems", split="rl", rows=7)
    assert load([source], Prompt, seed=4).records == generate.prompts("rl", 7, 4)
    assert load([source], Demonstration, seed=4).records == generate.demonstrations("rl", 7, 4)
    with pytest.raises(DataError, match="builtin:problems has no rankings"):
        load([source], Ranking, seed=4)
    with pytest.raises(DataError, match=r"builtin:problems has no split 'reward'\. Give one of: sft, rl"):
        load([source.model_copy(update={"split": "reward"})], Prompt, seed=4)
    with pytest.raises(DataError, match="`noise` has no effect for a source without rankings"):
        load([source.model_copy(update={"noise": 0.1})], Prompt, seed=4)


def test_a_problem_is_graded_alike_after_a_trip_through_json():
    for row in generate.demonstrations("heldout", 30, seed=0):
        read = json.loads(json.dumps(asdict(row.prompt)))
        prompt = Prompt(tuple(Message(**entry) for entry in read["messages"]), Origin(**read["origin"]), read["meta"])
        assert prompt == row.prompt
        assert right_answer(prompt, row.response) == 1


def test_a_prompt_without_an_answer_is_named():
    with pytest.raises(DataError, match=r"mine\.jsonl:3: the prompt has no answer to check"):
        right_answer(Prompt((Message("user", "2+2?"),), Origin("mine.jsonl", 3)), "#### 4")


def test_the_pages_rows_of_ones_own_are_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (Path(__file__).parents[3] / "docs" / "verifiable.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    row = {"question": "A mill has 2 wheels of 600 teeth. How many teeth?", "answer": "2 * 600 = 1200\n#### 1,200"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    exec(code, {})
    (prompt,) = load([Source(source="problems.jsonl")], Prompt, seed=0).records
    assert prompt.user_text == row["question"]
    assert [right_answer(prompt, response) for response in (row["answer"], "#### 1200", "#### 600")] == [1, 1, 0]
    assert grade(prompt, "2 * 600 = 1200\n#### 1200").mean == 1
