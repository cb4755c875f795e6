"""The demo's rivals: what is run, and what the table is made of."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline import chain


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("demo_rivals")


TASK_SCORES = {"base": 0.1, "sft": 0.4, "ppo": 0.6, "sft-gold": 0.7, "sft-best": 0.5, "dpo": 0.55, "ppo-96": 0.45}
SECONDS = {"sft": 100, "reward": 200, "ppo": 150, "sft-gold": 440, "sft-best": 90, "dpo": 80, "ppo-96": 40}


def put(runs: Path, seed: int, *, ppo: float) -> tuple[Path, Path]:
    """What the runs of a seed leave."""
    demo, rivals_run = runs / f"demo-{seed}", runs / f"demo-rivals-{seed}"
    for stage, seconds in SECONDS.items():
        folder = (demo if stage in ("sft", "reward", "ppo") else rivals_run) / stage
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text(json.dumps({"resources": {"cpu_seconds": seconds + seed}}))
    (runs / f"demo-rivals-{seed}-drawn").mkdir()
    (runs / f"demo-rivals-{seed}-drawn" / "drawing.json").write_text('{"cpu_seconds": 60}')
    (rivals_run / "evaluation").mkdir()
    with (rivals_run / "evaluation" / "answers.jsonl").open("w") as written:
        for number, gain in enumerate((-0.2, 0.2, -0.1, 0.1)):
            source = f"builtin:tasks/heldout-{'families' if number < 2 else 'templates'}"
            row: dict[str, Any] = {"prompt": str(number), "source": source, "family": "f"}
            for name, score in {**TASK_SCORES, "ppo": ppo}.items():
                row[name] = {"task_score": score + gain, "sampled_task_score": 0.5, "reward": 1.0, "kl_to_sft": 0.0}
            written.write(json.dumps(row) + "\n")
    return demo, rivals_run


def means(rows: dict[str, Any], metric: str) -> dict[str, float]:
    return {row: round(metrics[metric]["mean"], 6) for row, metrics in rows.items() if metric in metrics}


def test_a_row_has_the_time_of_all_its_stages_and_is_paired_with_ppo(rivals: ModuleType, tmp_path: Path) -> None:
    result = rivals.collect({0: put(tmp_path, 0, ppo=0.6)})
    rows = result["rows"]
    times = {"base": 0, "sft": 100, "ppo": 450, "sft-gold": 440, "sft-best": 100 + 200 + 60 + 90, "dpo": 180}
    assert {row: metrics["seconds"] for row, metrics in rows.items()} == times
    assert means(rows, "over ppo") == {"base": -0.5, "sft": -0.2, "sft-gold": 0.1, "sft-best": -0.1, "dpo": -0.05}
    assert means(rows, "over sft") == {"base": -0.3, "ppo": 0.2, "sft-gold": 0.3, "sft-best": 0.1, "dpo": 0.15}
    # Every prompt moved alike, so nothing is left open, however far the prompts lie apart.
    assert rows["sft-gold"]["over ppo"]["high"] - rows["sft-gold"]["over ppo"]["low"] < 1e-5
    assert rows["sft-gold"]["task_score"]["high"] - rows["sft-gold"]["task_score"]["low"] > 0.1
    assert result["curve"]["96"]["seconds"] == 40 and round(result["curve"]["96"]["task_score"]["mean"], 6) == 0.45


def test_seeds_together_have_the_prompts_of_all(rivals: ModuleType, tmp_path: Path) -> None:
    both = rivals.collect({0: put(tmp_path, 0, ppo=0.6), 2: put(tmp_path, 2, ppo=0.8)})["rows"]
    assert both["ppo"]["seconds"] == (450 + 456) / 2
    assert means(both, "task_score")["ppo"] == 0.7 and means(both, "over sft")["ppo"] == 0.3
    # The seeds differ in what PPO gained, and all prompts are drawn together.
    assert both["ppo"]["over sft"]["low"] < 0.26 and both["ppo"]["over sft"]["high"] > 0.34
    assert (means(both, "heldout-families")["sft"], means(both, "heldout-templates")["sft"]) == (0.4, 0.4)


def test_what_is_run_fits_the_recipes(rivals: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command that is given is one that the chain can plan, with the demo of the same seed for parents."""
    commands: list[list[str]] = []
    for stage in ("sft", "reward"):
        (tmp_path / "demo-3" / stage).mkdir(parents=True)
        (tmp_path / "demo-3" / stage / "stage.json").write_text("{}")
    monkeypatch.setattr(rivals, "onebase", lambda *words: commands.append([str(word) for word in words]))
    rivals.run(3, tmp_path, curve=True)
    assert [command[0] for command in commands] == ["run", "best-of-n", "ppo", "ppo", "ppo", "run"]
    demo, rivals_run = tmp_path / "demo-3", tmp_path / "demo-rivals-3"
    folder, *overrides = commands[-1][1:]
    steps = {step.name: step for step in chain.plan(Path(folder), overrides)}
    assert list(steps) == ["sft-best", "sft-gold", "dpo", "compare"]
    assert all("seed=3" in step.overrides for step in steps.values())
    assert f"data.0.source={tmp_path / 'demo-rivals-3-drawn' / 'best.jsonl'}" in steps["sft-best"].overrides
    assert f"parents.sft={demo / 'sft'}" in steps["dpo"].overrides
    compared = {override.partition("=")[0]: override.partition("=")[2] for override in steps["compare"].overrides}
    assert {name: compared[f"parents.{name}"] for name in ("sft", "reward", "ppo", "dpo")} == {
        **{name: str(demo / name) for name in ("sft", "reward", "ppo")},
        "dpo": str(rivals_run / "dpo"),
    }
    assert {"policies.sft-gold", "policies.sft-best", *(f"policies.ppo-{n}" for n in rivals.EPISODES)} <= set(compared)


def test_answers_are_drawn_anew_where_their_models_have_changed(
    rivals: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    demo, folder = put(tmp_path, 3, ppo=0.6)[0], tmp_path / "drawn"
    drawn: list[bool] = []

    def onebase(*words: object) -> None:
        drawn.append((folder / "best.jsonl").exists())  # which best-of-n would refuse
        (folder / "best.jsonl").write_text("{}")

    monkeypatch.setattr(rivals, "onebase", onebase)
    for _ in range(2):
        assert rivals.draw(demo, folder, 3) == folder / "best.jsonl"
    assert drawn == [False]
    (demo / "reward" / "stage.json").write_text("{}")
    rivals.draw(demo, folder, 3)
    (folder / "drawing.json").unlink()  # killed between the two
    rivals.draw(demo, folder, 3)
    assert drawn == [False] * 3
