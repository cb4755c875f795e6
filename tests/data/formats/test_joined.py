"""Formats whose rows are joined: what is held, and that the order of a file's parts says nothing."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.files.readers import read_jsonl
from data.formats.table import build_all
from data.records import Demonstration, Prompt, Ranking

FIXTURES = Path(__file__).parents[1] / "fixtures"


def thumbs(prompts: int) -> Iterator[tuple[int, Any]]:
    for number in range(prompts):
        for up in (True, False):
            yield 2 * number + up, {"prompt": f"p{number}", "completion": f"{up} {'word ' * 200}", "label": up}


def test_groups_are_let_go_when_the_prompt_changes():
    import tracemalloc

    def peak(prompts: int) -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in build_all(thumbs(prompts), Ranking, "f")) == prompts
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    # 2,500 more prompts with 2 KB of responses each; what else is allocated meanwhile is small.
    assert peak(3000) < peak(500) + 500_000


def test_a_group_comes_out_before_the_file_is_read_to_its_end():
    read: list[int] = []

    def rows() -> Iterator[tuple[int, Any]]:
        for line, row in thumbs(1000):
            read.append(line)
            yield line, row

    next(build_all(rows(), Ranking, "f"))
    assert len(read) == 3


def threads(rows: list[tuple[int, Any]], kind: Any) -> list[Any]:
    return list(build_all(iter(rows), kind, "f", format="reddit", report=lambda error: None))


def test_comments_may_come_before_their_submissions():
    rows = list(read_jsonl(FIXTURES / "reddit.jsonl"))
    for kind in (Prompt, Demonstration, Ranking):
        early = {repr(thread) for thread in threads(rows, kind)}
        assert early
        # Not of rows that are there twice: the first of them counts, and equal scores are in file order.
        once = [(line, row) for line, row in rows if line not in (10, 11, 12, 25)]
        kept = {repr(thread) for thread in threads(once, kind)}
        for seed in range(5):
            shuffled = list(once)
            random.Random(seed).shuffle(shuffled)
            assert {repr(thread) for thread in threads(shuffled, kind)} == kept


def test_the_best_answers_are_taken_in_the_order_of_their_scores():
    rows: list[tuple[int, Any]] = [(1, {"id": "s", "title": "Why?", "subreddit": "r", "created_utc": 1})]
    for number in range(20):
        comment = {"id": f"c{number}", "link_id": "t3_s", "parent_id": "t3_s", "body": f"b{number}", "score": number}
        rows.append((number + 2, comment))
    (ranking,) = build_all(iter(rows), Ranking, "f")
    assert ranking.responses == tuple(f"b{number}" for number in range(19, 10, -1))  # nine at most
    assert ranking.tiers == tuple(range(9))
    (demonstration,) = build_all(iter(rows), Demonstration, "f")
    assert demonstration.response == "b19"
    assert list(build_all(iter(rows), Demonstration, "f", format="reddit min_score=20")) == []
