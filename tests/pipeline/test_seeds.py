"""Several seeds of one folder of recipes: a run of each, and one table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.errors import RecipeError
from pipeline import chain, seeds

Command = Callable[..., tuple[int, str, str]]


def test_a_seed_goes_to_every_stage_and_variant() -> None:
    given = seeds.seeded(Path("recipes/builtin-1h"), ["name=long", "runs_dir=r", "ppo.kl.weight=1"], 7)
    steps = chain.plan(Path("recipes/builtin-1h"), given)
    assert [step.name for step in steps] == [
        "sft",
        "reward",
        "ppo",
        "ppo-grpo",
        "ppo-ptx",
        "ppo-rloo",
        "dpo",
        "compare",
    ]
    assert all("seed=7" in step.overrides for step in steps)
    assert [step.out for step in steps] == [*(Path("r/long-7") / step.name for step in steps[:-1]), Path("r/long-7")]
    assert "kl.weight=1" in steps[2].overrides and "parents.reward=r/long-7/reward" in steps[2].overrides


def test_numbers_that_stand_alone_are_seeds() -> None:
    assert seeds.split(["1", "name=n", "2"], 0) == ([0, 1, 2], ["name=n"])
    assert seeds.split(["name=n"], None) == ([], ["name=n"])
    with pytest.raises(RecipeError, match="--seeds: 0 is given twice"):
        seeds.split(["1", "0"], 0)
    with pytest.raises(RecipeError, match=r"override '1': a number alone is a seed. Write: --seeds 1 2"):
        seeds.split(["1", "2"], None)


def estimate(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def summary(gain: float) -> dict[str, Any]:
    differences = {"ppo over sft": {"check": estimate(gain), "sampled_reward": estimate(2 * gain)}}
    return {
        "models": {"sft": {"kl_to_sft": estimate(0.0)}, "ppo": {"kl_to_sft": estimate(1.5)}},
        "differences": {**differences, "sft over base": {"check": estimate(0.3)}},
        "by_source": {"builtin:tasks/heldout-families": {"differences": {"ppo over sft": {"check": estimate(-gain)}}}},
    }


def test_the_table_has_every_seed_and_the_mean(
    onebase: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, ...]] = []

    def run(folder: Path, overrides: list[str], *, restart: bool) -> int:
        asked.append(tuple(overrides))
        home = seeds.home(folder, overrides)
        home.mkdir(parents=True)
        (home / "summary.json").write_text(json.dumps(summary(0.25 if home.name == "demo-3" else 0.75)))
        return 0

    monkeypatch.setattr(chain, "run", run)  # what a run does is tests/pipeline/test_run.py's
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = onebase("run", "recipes/demo", "--seeds", "3", "4", f"runs_dir={tmp_path}")
    assert (code, len(asked)) == (0, 2)
    assert f"seed 3: {tmp_path}/demo-3" in err and f"seed 4: {tmp_path}/demo-4" in err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    values = {(row[0], row[1]): row[2:] for row in rows if row[1]}
    assert values["ppo over sft", "3"] == ["+0.25", "+0.50", "-0.25", "+1.50"]
    assert values["ppo over sft", "4"] == ["+0.75", "+1.50", "-0.75", "+1.50"]
    assert ["", "mean", "+0.50", "+1.00", "-0.50", "+1.50"] in rows
    assert any("[+0.15, +0.35]" in cell for row in rows for cell in row)


def test_what_is_wrong_with_the_last_seed_costs_no_run(onebase: Command, tmp_path: Path) -> None:
    code, _, err = onebase("run", "recipes/demo", "--seeds", "1", "99999999999999", f"runs_dir={tmp_path}")
    assert code == 2 and "seed" in err
    assert not list(tmp_path.iterdir())
