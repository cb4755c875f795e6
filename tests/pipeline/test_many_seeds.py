"""Several seeds of one folder of recipes: a run of each, and one table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.errors import RecipeError
from pipeline import chain, many_seeds

Command = Callable[..., tuple[int, str, str]]


def test_a_seed_goes_to_every_stage_and_variant() -> None:
    overrides = many_seeds.seeded(Path("recipes/builtin-1h"), ["name=a/long", "runs_dir=r", "ppo.kl.weight=1"], 7)
    steps = chain.plan(Path("recipes/builtin-1h"), overrides)
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
    assert [step.out for step in steps] == [
        *(Path("r/a/long-7") / step.name for step in steps[:-1]),
        Path("r/a/long-7"),
    ]
    assert "kl.weight=1" in steps[2].overrides and "parents.reward=r/a/long-7/reward" in steps[2].overrides
    assert "track.group=a/long-7" in steps[2].overrides
    overrides = many_seeds.seeded(Path("recipes/demo"), ["compare.seed=0"], 7)
    seeds = [
        [override for override in step.overrides if override.startswith("seed=")][-1]  # the last one counts
        for step in chain.plan(Path("recipes/demo"), overrides)
    ]
    assert seeds == ["seed=7"] * 3 + ["seed=0"]


def test_numbers_that_stand_alone_are_seeds() -> None:
    assert many_seeds.split(["1", "name=n", "2"], [0]) == ([0, 1, 2], ["name=n"])
    assert many_seeds.split(["name=n"], []) == ([], ["name=n"])
    with pytest.raises(RecipeError, match="--seeds: 0 is given twice"):
        many_seeds.split(["1", "0"], [0])
    with pytest.raises(RecipeError, match=r"override '1': a plain number is a seed. Write: --seeds 1 2"):
        many_seeds.split(["1", "2"], [])


def estimate(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def summary(gain: float) -> dict[str, Any]:
    differences = {"ppo over sft": {"task_score": estimate(gain), "sampled_reward": estimate(2 * gain)}}
    return {
        "models": {"sft": {"kl_to_sft": estimate(0.0)}, "ppo": {"kl_to_sft": estimate(1.5)}},
        "differences": {**differences, "sft over base": {"task_score": estimate(0.3)}},
        "by_source": {
            "builtin:tasks/heldout-families": {"differences": {"ppo over sft": {"task_score": estimate(-gain)}}}
        },
    }


def test_the_table_has_every_seed_and_the_mean(
    onebase: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    homes: list[Path] = []

    def carry_out(steps: list[chain.Step], *, restart: bool) -> int:
        home = steps[0].out.parent
        home.mkdir(parents=True)
        (home / "summary.json").write_text(json.dumps(summary(0.25 if home.name == "demo-3" else 0.75)))
        homes.append(home)
        return 0

    monkeypatch.setattr(chain, "carry_out", carry_out)  # what a run does is tests/pipeline/test_run.py's
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = onebase("run", "recipes/demo", "--seeds", "3", "4", f"runs_dir={tmp_path}")
    assert (code, homes) == (0, [tmp_path / "demo-3", tmp_path / "demo-4"])
    assert f"seed 3: {tmp_path}/demo-3" in err and f"seed 4: {tmp_path}/demo-4" in err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    values = {(row[0], row[1]): row[2:] for row in rows if row[1]}
    assert values["ppo over sft", "3"] == ["+0.25", "+0.50", "-0.25", "1.50"]
    assert values["ppo over sft", "4"] == ["+0.75", "+1.50", "-0.75", "1.50"]
    assert ["", "mean", "+0.50", "+1.00", "-0.50", "1.50"] in rows
    assert any("[+0.15, +0.35]" in cell for row in rows for cell in row)


def test_what_is_wrong_with_the_last_seed_costs_no_run(
    onebase: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chain, "carry_out", lambda steps, *, restart: pytest.fail("a run has started"))
    code, _, err = onebase("run", "recipes/demo", "--seeds", "1", "99999999999999", f"runs_dir={tmp_path}")
    assert code == 2 and "seed" in err
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_the_last_folder_costs_no_run(
    onebase: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chain, "carry_out", lambda steps, *, restart: pytest.fail("a run has started"))
    (tmp_path / "demo-2").mkdir()
    (tmp_path / "demo-2" / "letter.txt").write_text("mine")
    code, _, err = onebase("run", "recipes/demo", "--seeds", "1", "2", f"runs_dir={tmp_path}")
    assert code == 2 and "demo-2: is not the folder of a run of Onebase" in err
    assert [path.name for path in tmp_path.iterdir()] == ["demo-2"]


def test_the_folder_comes_before_the_seeds(onebase: Command) -> None:
    code, _, err = onebase("run", "--seeds", "0", "1", "recipes/demo")
    assert code == 2 and "onebase run FOLDER --seeds 0 1" in err


def test_seeds_that_were_not_restarted_are_named(
    onebase: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chain, "carry_out", lambda steps, *, restart: 130 * (steps[0].out.parent.name == "demo-4"))
    code, _, err = onebase("run", "recipes/demo", "--restart", "--seeds", "3", "4", "5", "6", f"runs_dir={tmp_path}")
    assert code == 130 and "Not restarted yet: seeds 5 6." in err
