"""The reward stage with a unit scale and with labelers held out, on the tiny model."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.select.labelers import LabelersSection, fold_of
from data.tasks import generate
from data.writing import row_of
from evaluation import score_file
from evaluation.reward_model import heldout, loading
from onebase.errors import InputError
from onebase.files.writing import hash_file
from onebase.inference.scoring import score
from onebase.model import base as bases
from onebase.model.roles import HEAD, WEIGHTS, Roles
from onebase.recipe import reader
from onebase.run import record
from ppo.recipe.recipe import PpoRecipe
from reward.recipe import RewardRecipe
from reward.scale import rescale
from reward.train import read_data, run
from reward.train import start_roles as start_reward
from tests.factories import start as start_ppo

LABELERS = [f"labeler {number}" for number in range(6)]
SECTION = LabelersSection(folds=3, held_out=0)


def write_rankings(path: Path, split: str, rows: int, seed: int) -> Path:
    """Built-in rankings, each by somebody."""
    rankings = generate.rankings(split, rows, seed, responses=(3, 3))
    lines = [{**row_of(ranking), "labeler": LABELERS[index % len(LABELERS)]} for index, ranking in enumerate(rankings)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass(frozen=True, kw_only=True)
class Twins:
    """The same training, with its scores as they come and brought to unit variance."""

    none: Path
    unit: Path
    recipe: RewardRecipe

    def report(self, name: str) -> dict[str, Any]:
        return json.loads((getattr(self, name) / "report.json").read_text())

    def metrics(self, name: str) -> dict[str, float]:
        return record.read(getattr(self, name), stage="reward").record.metrics


@pytest.fixture(scope="module")
def twins(finish_run: Callable[[str], Path], tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    home = tmp_path_factory.mktemp("twins")
    training = write_rankings(home / "training.jsonl", "reward", 18, 0)
    held_out = write_rankings(home / "heldout.jsonl", "heldout", 12, 1)

    def recipe(scale: str) -> RewardRecipe:
        settings = [
            *(f"base.model={tiny_base_folder}", f"parents.sft={finish_run('fp32') / 'sft'}", "track.wandb=off"),
            *(f"data=[{{source: {training}}}]", f"evaluation.rankings=[{{source: {held_out}}}]"),
            *("labelers={folds: 3, held_out: 0}", "train.learning_rate=5e-3", f"scale={scale}", f"out={home / scale}"),
        ]
        return reader.read("recipes/smoke/reward.yaml", RewardRecipe, settings)

    for scale in ("none", "unit"):
        run(recipe(scale))
    return Twins(none=home / "none", unit=home / "unit", recipe=recipe("unit"))


def scores_of(twins: Twins, stage: Path, sequences: list[tuple[int, ...]]) -> list[float]:
    base = bases.load(twins.recipe.base, twins.recipe.chat, device=torch.device("cpu"))
    return score(Roles(base).load("reward", stage / "adapter"), "reward", sequences, tokens_per_microbatch=1).tolist()


def test_held_out_responses_have_variance_one_and_demonstrations_still_mean_zero(twins: Twins) -> None:
    data = read_data(twins.recipe)
    responses = [ids for ranking in data.held_out for ids in ranking.sequences]
    plain, unit = scores_of(twins, twins.none, responses), scores_of(twins, twins.unit, responses)
    divisor = statistics.pstdev(plain)
    assert divisor != pytest.approx(1.0, abs=0.05), "a division by 1 would show nothing"
    assert statistics.pstdev(unit) == pytest.approx(1.0, abs=1e-3)
    assert unit == pytest.approx([score / divisor for score in plain], abs=1e-3)
    demonstrations = scores_of(
        twins, twins.unit, [tuple(demonstration.input_ids) for demonstration in data.demonstrations]
    )
    assert statistics.fmean(demonstrations) == pytest.approx(0.0, abs=1e-3)


def test_the_divisor_is_stored_with_the_head_and_nothing_else_is_changed(twins: Twins) -> None:
    divisor = twins.metrics("unit")["reward/scale"]
    plain, unit = (load_file(folder / "adapter" / HEAD) for folder in (twins.none, twins.unit))
    for name, tensor in plain.items():
        assert torch.equal(unit[name], tensor / divisor)
    assert hash_file(twins.none / "adapter" / WEIGHTS) == hash_file(twins.unit / "adapter" / WEIGHTS)
    assert twins.metrics("none")["reward/scale"] == 1.0


def test_accuracy_loss_and_calibration_are_those_before_the_division(twins: Twins) -> None:
    plain, unit = twins.report("none"), twins.report("unit")
    for section in ("accuracy", "by_gap", "best_of_n", "held_out_labelers"):
        assert unit[section] == plain[section]
    assert unit["calibration"]["log_loss"]["mean"] == pytest.approx(plain["calibration"]["log_loss"]["mean"], abs=1e-4)
    key = "reward/eval_loss"
    assert twins.metrics("unit")[key] == pytest.approx(twins.metrics("none")[key], abs=1e-4)
    assert unit["demonstrations"]["standard_deviation"] != plain["demonstrations"]["standard_deviation"]


def test_the_eval_command_divides_and_holds_out_as_the_stage_did(twins: Twins, tmp_path: Path) -> None:
    for name in ("none", "unit"):
        now, then = heldout.evaluate([getattr(twins, name)], tmp_path / name), twins.report(name)
        assert {key: now[key] for key in then} == then


def test_scoring_a_file_and_ppos_roles_use_the_divided_head(
    twins: Twins, finish_run: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Name a city.", "response": "Paris"}) + "\n")
    scores = {
        name: next(score_file.scored(loading.load([folder]), rows, best=False))["score"]
        for name, folder in (("none", twins.none), ("unit", twins.unit))
    }
    assert scores["unit"] == pytest.approx(scores["none"] / twins.metrics("unit")["reward/scale"], abs=1e-4)
    settings = [f"base.model={twins.recipe.base.model}", f"parents.sft={finish_run('fp32') / 'sft'}"]
    recipe = reader.read("recipes/smoke/ppo.yaml", PpoRecipe, [*settings, f"parents.reward={twins.unit}"])
    roles = start_ppo(recipe)
    head = load_file(twins.unit / "adapter" / HEAD)
    for role in ("reward", "value"):
        assert all(torch.equal(roles.heads[role].state_dict()[name], tensor) for name, tensor in head.items())


def test_scores_that_are_all_equal_cannot_be_scaled(twins: Twins) -> None:
    recipe = twins.recipe
    base = bases.load(recipe.base, recipe.chat, device=torch.device("cpu"))
    roles = start_reward(base, record.read(recipe.parents.sft, stage="sft"), recipe)
    roles.heads["reward"].weight.data.zero_()
    with pytest.raises(InputError, match="standard deviation of the scores of 36 held-out responses is 0"):
        rescale(roles, read_data(recipe).held_out, tokens_per_microbatch=512)


# --- labelers


def test_rankings_of_held_out_labelers_are_not_trained_on(twins: Twins) -> None:
    out = {name for name in LABELERS if fold_of(name, 3) == 0}
    assert out and out != set(LABELERS)
    data = read_data(twins.recipe)
    assert {ranking.ranking.labeler for ranking in data.training} == set(LABELERS) - out
    assert {ranking.ranking.labeler for ranking in data.left_out} == out
    assert len(data.training) + len(data.left_out) == 18


def test_the_report_has_both_sides_of_the_division_and_each_labeler(twins: Twins) -> None:
    report, out = twins.report("none"), sorted(name for name in LABELERS if fold_of(name, 3) == 0)
    section = report["held_out_labelers"]
    assert section["labelers"] == out
    each = 2 * len(out)  # of 12 held-out rankings, every sixth is by each
    assert section["trained_on"]["prompts"] == 12 - each
    assert section["not_trained_on"]["prompts"] == each + 3 * len(out) - section["rankings_of_trained_prompts"]
    assert set(report["agreement"]["by_labeler"]) == set(LABELERS)
    assert "no_data" in report["agreement"]["between_labelers"], "no prompt was ranked by two"
