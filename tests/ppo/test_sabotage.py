"""Three deliberate sabotages of a run, each caught by the guard that is meant for it, and a clean twin on which every
guard is silent. Real runs: a policy that has learned to stop, 20 steps of PPO, all stages trained here."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ppo.train as stage
from onebase import recipes
from onebase.roles import WEIGHTS, Roles
from ppo.alarms import AlarmError
from ppo.recipe import PpoRecipe
from ppo.rollout import Rollout

Sabotage = Callable[[Rollout, int], Rollout]
WORDS = ("pear", "apple", "fig", "cold", "Paris", "red", "seven", "Anna")


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Path:
    """SFT on answers of one word, so that there is a length to grow from, and a reward model on top of it."""
    import reward.train
    import sft.train
    from reward.recipe import RewardRecipe
    from sft.recipe import SftRecipe

    home = tmp_path_factory.mktemp("short")
    texts = home / "texts.jsonl"
    pairs = itertools.product(WORDS, WORDS)
    texts.write_text("".join(json.dumps({"prompt": f"Say {a} to {b}.", "response": a}) + "\n" for a, b in pairs))
    common = [f"base.model={tiny_base_folder}", "base.quantization=fp32", "track.wandb=off"]
    demonstrations = [f"data=[{{source: {texts}}}]", f"evaluation.demonstrations=[{{source: {texts}, rows: 4}}]"]
    sizes = ["trl.learning_rate=5e-3", "trl.max_steps=20", f"out={home / 'sft'}"]
    sft.train.run(recipes.read("recipes/smoke/sft.yaml", SftRecipe, [*common, *demonstrations, *sizes]))
    given = [f"parents.sft={home / 'sft'}", f"out={home / 'reward'}"]
    reward.train.run(recipes.read("recipes/smoke/reward.yaml", RewardRecipe, [*common, *given]))
    return home


@pytest.fixture
def train(
    parents: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    def run(*overrides: str, sabotage: Sabotage = lambda rollout, step: rollout) -> Path:
        roll_out = stage.roll_out

        def sabotaged(roles: Roles, prompts: Any, recipe: PpoRecipe, step: int, *rest: Any) -> Rollout:
            return sabotage(roll_out(roles, prompts, recipe, step, *rest), step)

        given = [
            *(f"base.model={tiny_base_folder}", "base.quantization=fp32", f"out={tmp_path}/ppo", "track.wandb=off"),
            *(f"parents.{name}={parents / name}" for name in ("sft", "reward")),
            *(f"data=[{{source: {parents / 'texts.jsonl'}}}]", "sampling.max_new_tokens=40", "alarms.window=5"),
            *("train.batch=32", "train.minibatch=16", "train.inner_epochs=1", "train.episodes=640"),
            *("train.learning_rate=3e-4", "value.learning_rate=1e-2", "value.clip=10"),
        ]
        with monkeypatch.context() as patch:
            patch.setattr(stage, "roll_out", sabotaged)
            stage.run(recipes.read("recipes/smoke/ppo.yaml", PpoRecipe, [*given, *overrides]))
        return tmp_path / "ppo"

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


def test_a_reward_that_is_not_a_number_once_is_skipped_and_kept_and_the_run_goes_on(
    train: Callable[..., Path],
) -> None:
    def once(rollout: Rollout, step: int) -> Rollout:
        return dataclasses.replace(rollout, scores=rollout.scores * float("nan")) if step == 2 else rollout

    folder = train(sabotage=once)
    kept = sorted(path.name for path in (folder / "nonfinite").iterdir())
    assert kept == ["step-00000002-1.json", "step-00000002-2.json"]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "adapter" / WEIGHTS).values())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("ppo/policy_loss") is not None] == [1, *range(3, 21)]
    assert alarms(folder) == {}


def test_a_learning_rate_a_thousand_times_too_high_is_told_at_once(train: Callable[..., Path]) -> None:
    found = alarms(train("train.learning_rate=0.3"))
    assert found["ratio too large"] == 1
    assert found["KL above budget"] <= 3


def test_a_reward_that_pays_for_length_is_told(train: Callable[..., Path]) -> None:
    def longer(rollout: Rollout, step: int) -> Rollout:
        return dataclasses.replace(rollout, scores=rollout.episodes.mask.sum(dim=1).float() / 4)

    found = alarms(train(sabotage=longer))
    assert found.keys() <= {"length drift", "stop rate falling"}
    assert "length drift" in found


def test_an_alarm_may_end_the_run(train: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(AlarmError, match=r"step 1: ratio too large: .*alarms\.stop=false goes on"):
        train("train.learning_rate=0.3", "alarms.stop=true", "checkpoint.every_steps=1")
    assert alarms(tmp_path / "ppo").keys() == {"ratio too large"}
    assert not (tmp_path / "ppo" / "stage.json").exists()
