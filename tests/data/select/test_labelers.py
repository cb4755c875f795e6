"""Labelers in folds: stable, whole, and nobody on both sides."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Demonstration, Message, Origin, Prompt, Ranking
from data.select.labelers import LabelersSection, divide, fold_of
from data.select.sources import Source, load
from data.writing import row_of
from onebase.errors import DataError, RecipeError
from onebase.recipe import reader
from reward.recipe import RewardRecipe


def by(labeler: object, line: int = 1) -> Ranking:
    meta = {} if labeler is None else {"labeler": labeler}
    return Ranking(Prompt((Message("user", f"q{line}"),), Origin("a.jsonl", line), meta), ("a", "b"), (0, 1))


@settings(max_examples=100)
@given(
    st.lists(st.one_of(st.none(), st.sampled_from("abcdefghij")), min_size=1, max_size=40), st.integers(2, 6), st.data()
)
def test_every_ranking_is_on_one_side_and_no_labeler_on_both(
    names: list[str | None], folds: int, data: st.DataObject
) -> None:
    section = LabelersSection(folds=folds, held_out=data.draw(st.integers(0, folds - 1)))
    rankings = [by(name, line) for line, name in enumerate(names, start=1)]
    try:
        division = divide(rankings, section)
    except DataError:
        sides = {section.holds_out(name) for name in names}
        assert len(sides) == 1
        return
    lines = [ranking.prompt.origin.line for ranking in [*division.training, *division.held_out]]
    assert sorted(lines) == list(range(1, len(names) + 1))
    out = {ranking.labeler for ranking in division.held_out}
    assert not out & {ranking.labeler for ranking in division.training} and None not in out


def test_over_all_folds_every_labeler_is_held_out_once() -> None:
    names = [f"labeler {number}" for number in range(40)]
    rankings = [by(name, line) for line, name in enumerate(names, start=1)]
    held_out = Counter(
        ranking.labeler
        for fold in range(5)
        for ranking in divide(rankings, LabelersSection(folds=5, held_out=fold)).held_out
    )
    assert held_out == Counter(names)


def test_a_fold_is_the_same_in_every_run() -> None:
    """Written out: what is held out today must be held out in a year, or nobody is."""
    assert [fold_of(name, 5) for name in ("ik", "qo", "7", "Anna")] == [4, 4, 0, 2]


@pytest.mark.parametrize(("labeler", "name"), [("ik", "ik"), (7, "7"), ("", None), (None, None), (True, None)])
def test_a_labeler_is_a_name_or_a_number(labeler: object, name: str | None) -> None:
    assert by(labeler).labeler == name


@pytest.mark.parametrize("key", ["labeler", "annotator_id", "worker", "worker_id"])
def test_rows_name_their_labeler_and_keep_the_name_when_written(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q", "responses": ["a", "b"], "tiers": [0, 1], key: 12}) + "\n")
    (ranking,) = load([Source(source=str(path))], Ranking, seed=0).records
    assert ranking.labeler == "12"
    path.write_text(json.dumps(row_of(ranking)) + "\n")
    assert load([Source(source=str(path))], Ranking, seed=0).records[0] == ranking


def test_two_labelers_who_agree_are_no_copies_of_each_other(tmp_path: Path) -> None:
    def kept(*labelers: str) -> int:
        rows = [{"prompt": "q", "responses": ["a", "b"], "tiers": [0, 1], "labeler": labeler} for labeler in labelers]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return len(load([Source(source=str(tmp_path / "a.jsonl"))], Ranking, seed=0).records)

    assert kept("ik", "qo") == 2
    assert kept("ik", "ik") == 1


def test_demonstrations_may_name_their_writer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "q", "response": "a", "labeler": "ik"}) + "\n")
    (demonstration,) = load([Source(source=str(tmp_path / "a.jsonl"))], Demonstration, seed=0).records
    assert demonstration.prompt.meta["labeler"] == "ik"


@pytest.mark.parametrize(
    ("names", "section", "message"),
    [
        ([None, None], {"folds": 5}, "no row has a 'labeler'"),
        (["ik"], {"folds": 5, "held_out": 0}, "it holds nobody out. The 1 labelers fall into groups of 0, 0, 0, 0, 1"),
        (["ik"], {"folds": 5, "held_out": 4}, "nobody is left to train on"),
    ],
)
def test_a_division_with_an_empty_side_is_refused(names: list[Any], section: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        divide([by(name, line) for line, name in enumerate(names, start=1)], LabelersSection(**section))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labelers.held_out=1", "has no effect without 'folds'"),
        ("labelers={folds: 5, held_out: 5}", "must be below folds=5"),
        ("labelers.folds=1", "greater than or equal to 2"),
    ],
)
def test_folds_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reader.read("recipes/smoke/reward.yaml", RewardRecipe, [override])
