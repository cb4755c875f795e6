"""What a path that is no finished stage may have meant."""

import json
from pathlib import Path

import pytest

from onebase.run.nearby import MARK, describe, question


def finished(folder: Path, stage: str) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "stage.json").write_text(json.dumps({"stage": stage}))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for stage in ("sft", "reward", "ppo"):
        finished(tmp_path / "x" / stage, stage)
    finished(tmp_path / "x" / "ppo" / "best", "ppo")
    finished(tmp_path / "x" / "ppo-rloo", "ppo")
    return tmp_path / "x"


@pytest.mark.parametrize(
    ("path", "stage", "meant"),
    [
        ("sft/adapter", "sft", "sft"),
        ("sft/adapter/", None, "sft"),
        ("ppo/best/adapter/adapter_model.safetensors", "ppo", "ppo/best"),
        ("ppo/ema", None, "ppo"),
        ("", "reward", "reward"),
        ("", "ppo", "ppo or ppo-rloo"),
        ("sft/adapter", "reward", "reward"),
        ("sft", "reward", "reward"),
        ("reward/stage.json", "reward", "reward"),
    ],
)
def test_the_stage_that_was_meant_is_named(home: Path, path: str, stage: str | None, meant: str) -> None:
    folders = " or ".join(str(home / stage_named) for stage_named in meant.split(" or "))
    assert question(home / path, stage) == f" Did you mean {folders}?"


def test_a_path_keeps_the_spelling_that_it_was_given(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.parent)
    assert question(Path("x/sft/adapter"), "sft") == " Did you mean x/sft?"
    monkeypatch.chdir(home / "sft" / "adapter")
    assert question(Path("."), "sft") == f" Did you mean {home / 'sft'}?"


def test_what_is_nothing_of_ours_is_said_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    assert "an adapter without the record of a stage" in describe(tmp_path / "theirs", "sft")
    assert "there is no such stage folder. Run that stage first" in describe(tmp_path / "none", "sft")
    (tmp_path / "empty").mkdir()
    assert "no folder of a stage" in describe(tmp_path / "empty", None)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / MARK).write_text("{}")
    (tmp_path / "older" / "checkpoints").mkdir(parents=True)
    for name in ("begun", "older"):
        assert "has not finished" in describe(tmp_path / name, None)
    (tmp_path / "notes.txt").write_text("")
    assert "this is a file" in describe(tmp_path / "notes.txt", "sft")


@pytest.mark.parametrize("content", ["", "[1]", '{"stage": 7}', "\xff"])
def test_a_record_that_cannot_be_read_is_no_stage(tmp_path: Path, content: str) -> None:
    (tmp_path / "stage.json").write_text(content)
    assert question(tmp_path / "adapter", None) == ""
