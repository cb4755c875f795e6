"""Order, mixes, caps and copies: seeded, stable when more is asked for, resumable to the row."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import Demonstration, Message, Origin, Prompt, Ranking
from data.select.dropped import OTHER, DroppedRows
from data.select.mixing import UNNAMED, capped, mixed, task_of, turns
from data.select.sources import Deduplicator, Source, load
from onebase.errors import DataError
from onebase.seeding import seeded_order

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=6)


def prompt(text: str, line: int = 1, **meta: Any) -> Prompt:
    return Prompt((Message("user", text),), Origin("a.jsonl", line), meta)


def put(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(path: Path, count: int, name: str = "row") -> str:
    return put(path, [{"prompt": f"{name} {number}", "response": "yes"} for number in range(count)])


def texts(loaded: Any) -> list[str]:
    return [record.prompt.user_text for record in loaded.records]


def test_asking_for_more_rows_never_reorders_the_first(tmp_path: Path):
    path = numbered(tmp_path / "a.jsonl", 50)
    whole = texts(load([Source(source=path)], Demonstration, seed=3))
    for rows in (1, 7, 49):
        assert texts(load([Source(source=path, rows=rows)], Demonstration, seed=3)) == whole[:rows]
    assert whole != texts(load([Source(source=path)], Demonstration, seed=4))
    assert sorted(whole) == sorted(f"row {number}" for number in range(50))


def test_rows_that_are_added_to_a_file_leave_the_others_in_their_order():
    assert [position for position in seeded_order(80, 5) if position < 50] == seeded_order(50, 5)


def test_the_mix_by_weights_as_written_out():
    # Shares 1/2, 1/4, 1/4. Behind after the first row: .5 .25 .25 -> a; then 0 .5 .5 -> b; .5 -.25 .75 -> c; then a.
    assert list(itertools.islice(turns([2.0, 1.0, 1.0]), 8)) == [0, 1, 2, 0, 0, 1, 2, 0]


@settings(deadline=None)
@given(weights=WEIGHTS, rows=st.integers(1, 300))
def test_no_source_is_behind_its_share_by_as_many_rows_as_there_are_sources(weights: list[float], rows: int):
    given_by = Counter(itertools.islice(turns(weights), rows))
    for index, weight in enumerate(weights):
        assert abs(given_by[index] - rows * weight / sum(weights)) < max(1.0 + 1e-6, len(weights))


@settings(deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 200))
def test_a_mix_that_resumes_at_a_row_is_the_mix_without_the_rows_before(weights: list[float], start: int):
    whole = list(itertools.islice(turns(weights), start + 20))
    assert list(itertools.islice(turns(weights, start), 20)) == whole[start:]


def test_a_mix_ends_with_the_source_whose_turn_it_is():
    sources = [[prompt(f"a{number}") for number in range(100)], [prompt(f"b{number}") for number in range(3)]]
    drawn = list(mixed(sources, [3.0, 1.0]))
    assert Counter(index for index, _ in drawn) == {0: 11, 1: 3}
    assert [record.user_text for index, record in drawn if index == 0] == [f"a{number}" for number in range(11)]


def test_weights_in_a_recipe_mix_files_and_say_what_each_gave(tmp_path: Path):
    sources = [
        Source(source=numbered(tmp_path / "a.jsonl", 40, "a"), weight=3.0),
        Source(source=numbered(tmp_path / "b.jsonl", 40, "b"), weight=1.0, rows=5),
    ]
    loaded = load(sources, Demonstration, seed=0)
    assert [identity.kept for identity in loaded.identities] == [17, 5]
    assert Counter(text[0] for text in texts(loaded)[:20]) == {"a": 15, "b": 5}
    alone = texts(load([Source(source=sources[0].source)], Demonstration, seed=0))
    assert [text for text in texts(loaded) if text[0] == "a"] == alone[:17]


def test_without_weights_sources_follow_each_other(tmp_path: Path):
    sources = [Source(source=numbered(tmp_path / f"{name}.jsonl", 4, name)) for name in "ba"]
    assert [text[0] for text in texts(load(sources, Demonstration, seed=0))] == list("bbbbaaaa")


@pytest.mark.parametrize(
    ("meta", "task"),
    [({"task": "t", "category": "c"}, "t"), ({"family": "f"}, "f"), ({"template": 7}, "7"), ({"task": ""}, UNNAMED)],
)
def test_the_task_of_a_record(meta: dict[str, Any], task: str):
    assert task_of(prompt("a", **meta)) == task


def test_caps_keep_the_first_of_each_task_and_count_the_rest():
    records = [prompt(f"{task}{number}", task=task) for number in range(4) for task in "xyx"]
    dropped = DroppedRows()
    kept = capped(records, 3, dropped)
    assert [record.user_text for record in kept] == ["x0", "y0", "x0", "x1", "y1", "y2"]
    assert dropped.counts == {"over per_task=3 of its task": 6}


ROWS = [
    {"prompt": "Name a fruit.", "response": "fig"},
    {"prompt": "  name  A\tfruit. ", "response": "fig"},
    {"prompt": "Name a fruit.", "response": "pear"},
    {"prompt": "Name a nut.", "response": "fig"},
]


@pytest.mark.parametrize(
    ("dedupe", "lines", "dropped"),
    [
        ("none", [1, 2, 3, 4], {}),
        ("rows", [1, 3, 4], {"copy of an earlier row": 1}),
        ("prompts", [1, 4], {"prompt of an earlier row": 2}),
    ],
)
def test_copies_are_left_out_and_counted(tmp_path: Path, dedupe: Any, lines: list[int], dropped: dict[str, int]):
    loaded = load([Source(source=put(tmp_path / "a.jsonl", ROWS), dedupe=dedupe)], Demonstration, seed=0)
    assert sorted(record.prompt.origin.line for record in loaded.records) == lines
    assert loaded.identities[0].dropped == dropped


def test_copies_are_found_across_files(tmp_path: Path):
    sources = [Source(source=put(tmp_path / name, ROWS[:1] + ROWS[3:])) for name in ("a.jsonl", "b.jsonl")]
    put(tmp_path / "b.jsonl", [*ROWS[3:], {"prompt": "Name a bird.", "response": "owl"}])
    loaded = load(sources, Demonstration, seed=0)
    assert [identity.kept for identity in loaded.identities] == [2, 1]
    assert loaded.identities[1].dropped == {"copy of an earlier row": 1}


def test_a_file_of_copies_only_says_why_it_gives_nothing(tmp_path: Path):
    source = Source(source=put(tmp_path / "a.jsonl", ROWS[:1]))
    with pytest.raises(DataError, match=r"no records \(1 rows dropped; 1: copy of an earlier row\)"):
        load([source, source], Demonstration, seed=0)


def test_rankings_are_copies_whatever_the_order_of_their_responses():
    ranking = Ranking(prompt("a"), ("x", "y", "z"), (0, 1, 1))
    passer = Deduplicator("rows")
    assert passer.is_new(ranking)
    assert not passer.is_new(Ranking(prompt("A"), ("z", "x", "y"), (1, 0, 1)))
    assert passer.is_new(Ranking(prompt("a"), ("x", "y", "z"), (1, 0, 1)))


def test_the_reasons_that_are_told_apart_have_an_end():
    dropped = DroppedRows()
    for number in range(200):
        dropped(DataError(f"a.jsonl:{number}: reason {number}"))
    assert len(dropped.counts) == 51
    assert dropped.counts[OTHER] == 150
    assert dropped.total == 200
    assert dropped.places["reason 7"] == ["a.jsonl:7"]
