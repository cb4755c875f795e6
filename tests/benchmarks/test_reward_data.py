"""What the reward benchmark makes of QA-feedback's rows: both sides train on it, so it must be what people said."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def reward_data() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "reward_data.py"
    spec = importlib.util.spec_from_file_location("reward_data", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(preference: list[int], answers: tuple[str, ...] = ("a", "b", "c", "d")) -> dict[str, Any]:
    passages = [["Title", "First sentence.", "Second."], ["Other", "Third."]]
    predictions = {f"prediction {number}": answer for number, answer in enumerate(answers, start=1)}
    return {"question": "Which?", "passages": passages, "preference": preference, **predictions}


@pytest.mark.parametrize(
    ("preference", "tiers"),
    [
        ([1, 1, 1, 1, 1, 1], (0, 1, 2, 3)),  # every earlier one is better
        ([2, 2, 2, 2, 2, 2], (3, 2, 1, 0)),
        ([0, 1, 2, 1, 2, 2], (1, 1, 2, 0)),  # 1 tied with 2, both over 3; 4 over all
        ([0, 0, 1, 0, 1, 1], (0, 0, 0, 1)),
    ],
)
def test_preferences_of_pairs_become_tiers(
    reward_data: ModuleType, tmp_path: Path, preference: list[int], tiers: tuple[int, ...]
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row(preference)]))
    (ranking,) = reward_data.qa_feedback(path)
    assert ranking.tiers == tiers
    assert ranking.responses == ("a", "b", "c", "d")
    assert ranking.prompt.user_text == "First sentence. Second.\n\nThird.\n\nWhich?"


@pytest.mark.parametrize(
    "bad",
    [
        row([0, 0, 0, 0, 0, 0]),  # all tied
        row([0, 1, 1, 0, 1, 1]),  # 1 and 2 tied, 2 and 3 tied, 1 over 3
        row([1, 2, 1, 1, 1, 1]),  # 1 over 2 over 3 over 1
        row([1, 1, 1, 1, 1, 1], answers=("a", "a", "c", "d")),
    ],
)
def test_rows_that_make_no_ranking_are_left_out(reward_data: ModuleType, tmp_path: Path, bad: dict[str, Any]) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([bad]))
    assert reward_data.qa_feedback(path) == []
