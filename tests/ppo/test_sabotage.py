"""Deliberate sabotages of a run, each caught by the guard that is meant for it, and a clean twin on which every guard
is silent. Real runs: a policy that has learned to stop, 20 steps of PPO, held-out prompts and a judge, all stages
trained here."""

import contextlib
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ppo.train as stage
from onebase.errors import DivergedError
from onebase.model.roles import WEIGHTS
from onebase.recipe import reader
from ppo import rollout
from ppo.recipe.recipe import PpoRecipe
from ppo.scores import EpisodeScores, RewardError
from ppo.steering.alarms import AlarmError
from tests.factories import rows_of

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"
WORDS = ("pear", "apple", "fig", "cold", "Paris", "red", "seven", "Anna")
REWARDS = """
import math
import pathlib

calls = []

def longer(prompt, response):
    return len(response) / 16

def broken(prompt, response):
    calls.append(response)
    mended = pathlib.Path("mended").exists()
    return math.nan if len(calls) >= 60 and not mended else brief(prompt, response)

def brief(prompt, response):
    return 16 / (len(response) + 16)
"""
"""Functions as a person might write them, in a file beside the command."""


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Path:
    """SFT on answers of one word, so that there is a length to grow from, and a reward model on top of it."""
    import reward.train
    import sft.train
    from reward.recipe import RewardRecipe
    from sft.recipe import SftRecipe

    home = tmp_path_factory.mktemp("short")
    for name, form in (("texts", "Say {} to {}."), ("heldout", "{}, say it to {}.")):
        rows = [{"prompt": form.format(a, b), "response": a} for a, b in itertools.product(WORDS, WORDS)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, held_out = home / "texts.jsonl", home / "heldout.jsonl"
    common = [f"base.model={tiny_base_folder}", "base.quantization=fp32", "track.wandb=off"]
    demonstrations = [f"data=[{{source: {texts}}}]", f"evaluation.demonstrations=[{{source: {held_out}, rows: 4}}]"]
    sizes = ["trl.learning_rate=5e-3", "trl.max_steps=20", f"out={home / 'sft'}"]
    sft.train.run(reader.read(SMOKE / "sft.yaml", SftRecipe, [*common, *demonstrations, *sizes]))
    settings = [f"parents.sft={home / 'sft'}", f"out={home / 'reward'}"]
    reward.train.run(reader.read(SMOKE / "reward.yaml", RewardRecipe, [*common, *settings]))
    return home


@pytest.fixture
def train(
    parents: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A run with a judge that likes short responses. reward: the function that is paid for beside the model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.delitem(sys.modules, "rewards", raising=False)

    def run(*overrides: str, reward: str = "brief", out: str = "ppo") -> Path:
        judged = [
            f"evaluation.prompts=[{{source: {parents / 'heldout.jsonl'}, rows: 16}}]",
            "evaluation.judge=rewards:brief",
        ]
        settings = [
            *(f"base.model={tiny_base_folder}", "base.quantization=fp32", f"out={tmp_path / out}", "track.wandb=off"),
            *(f"parents.{name}={parents / name}" for name in ("sft", "reward")),
            f"reward.terms=[{{kind: adapter, weight: 1}}, {{kind: function, function: 'rewards:{reward}', weight: 4}}]",
            *(f"data=[{{source: {parents / 'texts.jsonl'}}}]", "sampling.max_new_tokens=40"),
            # Sixteen prompts are few: from one evaluation to the next their judge falls by up to 0.1 with any seed.
            *("alarms.window=5", "alarms.check_fall=0.2"),
            *("train.batch=32", "train.minibatch=16", "train.epochs=1", "train.episodes=640"),
            *("train.learning_rate=3e-4", "value.learning_rate=1e-2", "value.clip=10", "evaluation.every=5", *judged),
        ]
        stage.run(reader.read(SMOKE / "ppo.yaml", PpoRecipe, [*settings, *overrides]))
        return tmp_path / out

    return run


def alarms(folder: Path) -> dict[str, int]:
    """The first step of each alarm that rang."""
    path = folder / "alarms.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {row["title"]: row["step"] for row in reversed(rows)}


def test_every_guard_is_silent_on_the_clean_twin(train: Callable[..., Path]) -> None:
    folder = train()
    assert alarms(folder) == {}
    assert not (folder / "nonfinite").exists()
    judged = [row["ppo/eval/judge"] for row in rows_of(folder) if "ppo/eval/judge" in row]
    assert len(judged) == 5
    assert judged[-1] > judged[0] - 0.1  # with a saboteur it falls by 0.16 at least; see `train` for the noise


def test_a_function_that_returns_nan_ends_the_run_by_name_and_mended_it_ends_as_the_clean_twin(
    train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls: 32 of step 1, 16 held out, then those of step 2, of which the twelfth is the first that is NaN."""
    with pytest.raises(RewardError, match=r"'rewards:broken' returned nan .* for the prompt .*texts\.jsonl:\d+ "):
        train("checkpoint.every_steps=1", "train.episodes=128", reward="broken", out="broken")
    assert rows_of(tmp_path / "broken")[-1]["step"] == 1
    (tmp_path / "mended").touch()
    broken = train("checkpoint.every_steps=1", "train.episodes=128", reward="broken", out="broken")
    assert "ppo: resuming after step 1" in capsys.readouterr().err
    clean = train("train.episodes=128")
    resumed, other = (load_file(folder / "adapter" / WEIGHTS) for folder in (broken, clean))
    assert resumed.keys() == other.keys()
    assert all(torch.equal(resumed[name], other[name]) for name in resumed)


def test_scores_that_are_not_numbers_once_are_skipped_and_kept_and_the_run_goes_on(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the scores' own guard: what a loss makes of them is refused before it reaches a weight."""
    score, calls = rollout.score_episodes, itertools.count(1)

    def once(*arguments: Any, **options: Any) -> EpisodeScores:
        scores = score(*arguments, **options)
        return dataclasses.replace(scores, total=scores.total * float("nan")) if next(calls) == 2 else scores

    monkeypatch.setattr(rollout, "score_episodes", once)
    folder = train("train.episodes=128")
    kept = sorted(path.name for path in (folder / "nonfinite").iterdir())
    assert kept == ["step-00000002-1.json", "step-00000002-2.json"]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "adapter" / WEIGHTS).values())
    assert [row["step"] for row in rows_of(folder) if row.get("ppo/policy_loss") is not None] == [1, 3, 4]
    assert alarms(folder) == {}


def test_a_learning_rate_a_thousand_times_too_high_is_told_at_once(train: Callable[..., Path], tmp_path: Path) -> None:
    """A run that diverges is chaos: which guard comes first differs between processors. One comes at once on any."""
    with contextlib.suppress(DivergedError, RewardError):
        train("train.learning_rate=0.3", "train.episodes=64")
    ended = not (tmp_path / "ppo" / "stage.json").exists()
    assert ended or min(alarms(tmp_path / "ppo").values(), default=math.inf) <= 1


def test_a_reward_that_pays_for_length_is_told(train: Callable[..., Path]) -> None:
    """The judge falls by 0.16 to 0.29 with seeds 2 to 7, so half of that is told on any processor."""
    rung = alarms(train("alarms.check_fall=0.08", reward="longer"))
    assert rung.keys() >= {"length drift", "reward up, task score down"}
    assert rung.keys() <= {"length drift", "reward up, task score down", "stop rate falling"}


def test_an_alarm_may_end_the_run(train: Callable[..., Path], tmp_path: Path) -> None:
    """An ordinary run under a limit that its first update is sure to pass."""
    with pytest.raises(AlarmError, match=r"step 1: ratio too large: .*alarms\.stop=false resumes"):
        train("alarms.ratio=1.00001", "alarms.stop=true")
    assert alarms(tmp_path / "ppo").keys() == {"ratio too large"}
    assert [path.name for path in (tmp_path / "ppo" / "checkpoints").iterdir()] == ["step-00000001"]
    assert not (tmp_path / "ppo" / "stage.json").exists()
