"""Every way a ranking may be bad: refused by name and line, or left out with its reason, before anything is trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.chat.conversations import Chat, Limiter, encode_rankings
from data.records import Ranking
from data.select.sources import Source, load
from onebase.cli.parser import main
from onebase.errors import DataError
from onebase.model import base as bases
from onebase.recipe.sections import BaseSection, ChatSection, LimitsSection
from pipeline import stages

GOOD = {"prompt": "Name a city.", "responses": ["Paris", "blue"], "tiers": [0, 1]}

# name, what is bad of the row, what is said of it
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("one response", {"responses": ["Paris"], "tiers": [0]}, "a ranking needs at least 2 responses, found 1"),
    ("no response", {"responses": [], "tiers": []}, "a ranking needs at least 2 responses, found 0"),
    ("all tied", {"tiers": [3, 3]}, "all responses are tied, so the ranking has no information"),
    ("contradictory", {"ranks": [2, 1]}, "contradictory: 'tiers' and 'ranks' give different orders"),
    ("duplicated responses", {"responses": ["Paris", "Paris"]}, "response 2 is the same as an earlier one"),
    ("empty response", {"responses": ["Paris", ""]}, "response 2 is empty"),
    ("blank response", {"responses": [" \n", "Paris"]}, "response 1 is empty"),
    ("a tier too few", {"tiers": [0]}, "2 responses but 1 tiers"),
]
OVER_LONG = {**GOOD, "responses": ["Paris", "blue " * 200]}

Run = Callable[..., tuple[int, str]]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reward(
    tiny_base_folder: Path, finish_run: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the reward stage on a file; exit code and what it said."""

    def run(path: Path, *overrides: str) -> tuple[int, str]:
        settings = [
            *(f"base.model={tiny_base_folder}", f"parents.sft={finish_run('fp32') / 'sft'}", "track.wandb=off"),
            *(f"out={tmp_path / 'out'}", f"data=[{{source: {path}}}]"),
        ]
        arguments = ["recipes/smoke/reward.yaml", *settings, *overrides]
        return main("reward", stages.loader("reward"), "", "", arguments), capsys.readouterr().err

    return run


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_ranking_ends_the_stage_with_its_line_before_anything_is_written(
    reward: Run, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "rankings.jsonl", GOOD, {**GOOD, **change})
    code, err = reward(path)
    assert code == 2 and f"{path}:2: {message}" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_ranking_is_left_out_and_counted_by_its_reason_where_the_recipe_says_so(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "rankings.jsonl", {**GOOD, **change}, GOOD)
    loaded = load([Source(source=str(path), on_bad_row="drop")], Ranking, seed=0)
    assert [record.responses for record in loaded.records] == [("Paris", "blue")]
    ((reason, count),) = loaded.identities[0].dropped.items()
    assert reason.startswith(message) and count == 1


def test_an_over_long_response_ends_the_stage_or_is_left_out_and_counted(
    reward: Run, tiny_base_folder: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "rankings.jsonl", GOOD, OVER_LONG)
    code, err = reward(path)
    assert code == 2 and f"{path}:2: the response is" in err and "over limits.response_tokens=160" in err
    assert not (tmp_path / "out").exists()
    base = BaseSection.model_validate({"model": str(tiny_base_folder), "quantization": "fp32"})
    chat = Chat(*bases.load_tokenizer(base, ChatSection()), ChatSection())
    limiter = Limiter(LimitsSection(response_tokens=160, over="drop"))
    rankings = load([Source(source=str(path))], Ranking, seed=0).records
    assert [ranking.ranking.responses for ranking in encode_rankings(chat, rankings, limiter)] == [("Paris", "blue")]
    assert dict(limiter.dropped) == {"response over 160 tokens": 1}
    (counted,) = limiter.settle("reward")
    assert (counted.source, counted.kept, counted.dropped) == ("limits", 1, {"response over 160 tokens": 1})
    with pytest.raises(DataError, match="no row is within the limits"):
        encode_rankings(chat, [ranking for ranking in rankings if ranking.responses != ("Paris", "blue")], limiter)


def test_a_run_goes_on_without_bad_rankings_and_says_what_it_left_out(reward: Run, tmp_path: Path) -> None:
    others = [
        {**GOOD, "prompt": f"Name city {number}.", "responses": [f"Paris {number}", "blue"]} for number in range(3)
    ]
    path = write(tmp_path / "rankings.jsonl", *others, *({**GOOD, **change} for _, change, _ in BAD), OVER_LONG)
    code, err = reward(path, f"data=[{{source: {path}, on_bad_row: drop}}]", "limits.over=drop")
    assert code == 0, err
    assert "reward: rows left out: 1 with a response over 160 tokens" in err
    content = json.loads((tmp_path / "out" / "stage.json").read_text())
    assert sum(content["data"][0]["dropped"].values()) == len(BAD)
    assert content["data"][-1]["source"] == "limits"
    assert content["data"][-1]["dropped"] == {"response over 160 tokens": 1}
    assert content["data"][0]["kept"] == 4, "the over-long one is read, and left out by its tokens"
