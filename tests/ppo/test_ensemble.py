"""PPO against several reward models: what each says, what is made of it, and that nothing else changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.errors import InputError, RecordError
from onebase.files.writing import hash_file
from onebase.inference.scoring import score
from onebase.model.roles import WEIGHTS, Roles
from onebase.recipe import reader
from pipeline import chain
from ppo import train as ppo_train
from ppo.recipe.recipe import PpoRecipe
from ppo.start import read_data, read_parents
from ppo.train import run
from tests.factories import load_base_of, roll_out, rows_of, start, untimed

MakeRecipe = Callable[..., PpoRecipe]
RULES = {
    "mean": lambda scores: sum(scores) / len(scores),
    "min": min,
    "mean-minus-variance": lambda scores: (
        sum(scores) / len(scores)
        - 2.0 * sum((score - sum(scores) / len(scores)) ** 2 for score in scores) / len(scores)
    ),
}


@pytest.fixture
def of_ensemble(make_recipe: MakeRecipe, other_rewards: list[Path]) -> MakeRecipe:
    """Recipes with several reward models: these stages, or all three."""

    def make(*overrides: str, rewards: list[Path] | None = None) -> PpoRecipe:
        folders = ", ".join(map(str, other_rewards if rewards is None else rewards))
        return make_recipe(f"parents.reward=[{folders}]", *overrides)

    return make


@pytest.mark.parametrize("rule", RULES)
def test_scores_of_a_rollout_are_the_rule_over_separate_reward_models(
    of_ensemble: MakeRecipe, other_rewards: list[Path], rule: str
) -> None:
    weight = ["reward.terms.0.combine.spread_weight=2.0"] if "minus" in rule else []
    recipe = of_ensemble(f"reward.terms.0.combine.rule={rule}", "reward.terms.0.weight=0.5", *weight)
    rollout, budget = roll_out(start(recipe), recipe), recipe.train.tokens_per_microbatch
    closed = read_data(recipe).chat.closed(rollout.episodes.sequences)
    separate = []
    for folder in other_rewards:
        alone = Roles(load_base_of(recipe))
        alone.load("reward", folder / "adapter")
        separate.append(score(alone, "reward", closed, tokens_per_microbatch=budget))
    assert list(rollout.members) == ["reward", "reward_2", "reward_3"]
    for scores, expected in zip(rollout.members.values(), separate, strict=True):
        assert torch.equal(scores, expected), "one base with three adapters scores as three loads of one"
    by_response = list(zip(*(scores_of_member.tolist() for scores_of_member in separate), strict=True))
    assert rollout.scores.tolist() == pytest.approx(
        [0.5 * RULES[rule](scores_of_response) for scores_of_response in by_response], abs=1e-4
    )
    assert max(max(scores_of_response) - min(scores_of_response) for scores_of_response in by_response) > 0.01, (
        "members that agree would show nothing"
    )


def test_a_run_with_an_ensemble_of_one_has_the_bits_of_a_run_with_a_plain_reward(
    of_ensemble: MakeRecipe, other_rewards: list[Path], tmp_path: Path
) -> None:
    outcomes = {}
    for name, parent in (
        ("plain", f"parents.reward={other_rewards[1]}"),
        ("list", f"parents.reward=[{other_rewards[1]}]"),
    ):
        recipe = of_ensemble(parent, f"out={tmp_path / name}", "train.episodes=8")
        run(recipe)
        outcomes[name] = outcome(tmp_path / name)
    assert outcomes["plain"] == outcomes["list"]


def test_an_ensemble_costs_an_adapter_and_a_head_a_member_and_no_second_base(
    of_ensemble: MakeRecipe, other_rewards: list[Path]
) -> None:
    def parameters(roles: Roles) -> tuple[int, int]:
        assert roles.peft is not None
        trained = {id(parameter) for role in roles.names for parameter in roles.parameters(role)}
        frozen = [parameter for parameter in roles.peft.parameters() if id(parameter) not in trained]
        return sum(parameter.numel() for parameter in frozen), len(trained)

    plain, several = start(of_ensemble(rewards=other_rewards[:1])), start(of_ensemble())
    assert parameters(plain)[0] == parameters(several)[0]
    assert parameters(several)[1] - parameters(plain)[1] == 2 * len(plain.parameters("reward"))
    assert set(several.names) - set(plain.names) == {"reward_2", "reward_3"}
    value, first = several.state("value"), several.state("reward")
    assert all(torch.equal(value[name], first[name]) for name in first), "the value starts from the first"
    assert not any(p.requires_grad for name in ("reward", "reward_2", "reward_3") for p in several.parameters(name))


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stop(*_: Any, **__: Any) -> Any:
    raise StoppedError


def outcome(folder: Path) -> Any:
    """Weights and metric rows, without what a clock or the memory says."""
    return hash_file(folder / "adapter" / WEIGHTS), untimed(rows_of(folder))


def test_a_run_with_an_ensemble_that_was_stopped_goes_on_to_the_same_bits(
    of_ensemble: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = ("reward.terms.0.combine.rule=mean-minus-deviation", "checkpoint.every_steps=1")
    run(of_ensemble(*rule, f"out={tmp_path / 'whole'}"))

    whole, steps = ppo_train.update, 0

    def stop_in_the_second(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise StoppedError
        return whole(*arguments, **options)

    monkeypatch.setattr(ppo_train, "update", stop_in_the_second)
    with pytest.raises(StoppedError):
        run(of_ensemble(*rule, f"out={tmp_path / 'stopped'}"))
    monkeypatch.undo()
    run(of_ensemble(*rule, f"out={tmp_path / 'stopped'}"))
    resumed, expected = outcome(tmp_path / "stopped"), outcome(tmp_path / "whole")
    assert resumed == expected
    row = expected[1][-1]
    spread = ("ppo/score_spread", "ppo/score/reward", "ppo/score/reward_2", "ppo/score/reward_3")
    assert all(name in row for name in spread) and row["ppo/score_spread"] > 0
    record = json.loads((tmp_path / "whole" / "stage.json").read_text())
    assert set(record["parents"]) == {"sft", "reward", "reward_2", "reward_3"}


def test_another_ensemble_does_not_go_on_with_the_checkpoints_of_this_one(
    of_ensemble: MakeRecipe, other_rewards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_train.stages, "finish", stop)
    with pytest.raises(StoppedError):
        run(of_ensemble("checkpoint.every_steps=1", "train.episodes=16"))
    with pytest.raises(InputError, match="would mix two runs: parent reward_3"):
        run(of_ensemble("checkpoint.every_steps=1", "train.episodes=16", rewards=other_rewards[:2]))


# --- hand-over: every check for every member


def damaged(folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a reward stage whose record was edited; its parent is found where it was."""
    copy = Path(shutil.copytree(folder, tmp_path / "edited" / "reward"))
    content = json.loads((copy / "stage.json").read_text())
    content["parents"]["sft"]["path"] = str((folder / content["parents"]["sft"]["path"]).resolve())
    change(content)
    (copy / "stage.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("base", "weights_sha256", "0" * 64, "other weights"),
        ("base", "config_sha256", "0" * 64, "other configuration"),
        ("base", "quantization", "nf4", "other quantisation"),
        ("base", "vocabulary", 7, "other vocabulary size"),
        ("base", "hidden_layers", 7, "other layers"),
        ("tokenizer", "template_sha256", "0" * 64, "another chat template"),
        ("tokenizer", "tokenizer_sha256", "0" * 64, "another tokenizer"),
        ("tokenizer", "pad_id", 7, "another pad token"),
        ("tokenizer", "stop_ids", [7], "another stop tokens"),
    ],
)
def test_the_last_member_is_checked_as_the_first(
    of_ensemble: MakeRecipe, other_rewards: list[Path], tmp_path: Path, section: str, key: str, value: Any, message: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        content[section][key] = value

    edited = damaged(other_rewards[2], tmp_path, change)
    with pytest.raises(RecordError, match=message) as caught:
        read_parents(of_ensemble(rewards=[*other_rewards[:2], edited]))
    assert str(edited) in str(caught.value)


def test_a_member_of_another_sft_stage_is_refused(
    of_ensemble: MakeRecipe, other_rewards: list[Path], tmp_path: Path
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["parents"] = {}

    edited = damaged(other_rewards[1], tmp_path, change)
    with pytest.raises(RecordError, match="does not descend from"):
        read_parents(of_ensemble(rewards=[other_rewards[0], edited]))


def test_a_damaged_head_of_a_member_is_found(
    of_ensemble: MakeRecipe, other_rewards: list[Path], tmp_path: Path
) -> None:
    edited = damaged(other_rewards[1], tmp_path, lambda content: None)
    head = edited / "adapter" / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(bytes(content))
    with pytest.raises(RecordError, match="damaged or edited"):
        read_parents(of_ensemble(rewards=[other_rewards[0], edited]))


def test_a_stage_that_is_no_reward_stage_is_no_member(
    of_ensemble: MakeRecipe, other_rewards: list[Path], finish_run: Callable[[str], Path]
) -> None:
    with pytest.raises(RecordError, match="expected a run of stage 'reward', found stage 'sft'"):
        read_parents(of_ensemble(rewards=[other_rewards[0], finish_run("fp32") / "sft"]))


def test_a_reward_model_given_twice_is_refused(of_ensemble: MakeRecipe, other_rewards: list[Path]) -> None:
    with pytest.raises(RecordError, match="copies always agree"):
        read_parents(of_ensemble(rewards=[other_rewards[0], other_rewards[1], other_rewards[0]]))


# --- a whole run


def test_a_run_of_all_stages_leaves_the_recipes_list_as_it_is(tmp_path: Path) -> None:
    listed = "ppo.parents.reward=[runs/a/reward, runs/b/reward]"
    steps = {step.stage: step for step in chain.plan(Path("recipes/smoke"), [f"runs_dir={tmp_path}", listed])}
    overrides = steps["ppo"].overrides
    assert f"parents.sft={tmp_path}/smoke/sft" in overrides
    assert not any(override == f"parents.reward={tmp_path}/smoke/reward" for override in overrides)
    recipe = reader.read(steps["ppo"].recipe, PpoRecipe, overrides)
    assert recipe.parents.rewards == (Path("runs/a/reward"), Path("runs/b/reward"))
