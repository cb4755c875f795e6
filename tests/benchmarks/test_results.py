"""What the tables of docs/results are made of."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("results")


def estimate(mean: float, spread: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


def part(gain: float) -> dict[str, Any]:
    """With names in the order of a summary's, which is the alphabet's."""
    models = {
        "base": {},
        "ppo": {"task_score": estimate(0.5 + gain)},
        "ppo-ptx": {"lm_loss": estimate(2.5)},
        "sft": {"task_score": estimate(0.5), "lm_loss": estimate(3.0)},
    }
    differences = {
        "ppo over sft": {"task_score": estimate(gain), "kl_to_sft": estimate(2.0)},
        "ppo-ptx over sft": {"lm_loss": estimate(-0.5)},
        "ppo-ptx over ppo": {"lm_loss": estimate(-0.05)},
    }
    return {"models": models, "differences": differences}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds as two runs left them; the second gained nothing, and its tree was changed by hand."""
    for seed, gain in ((0, 0.25), (1, 0.05)):
        summary = {
            **part(gain),
            "by_source": {"builtin:tasks/heldout-families": part(-gain)},
            "git": {"commit": "abcdef0123", "dirty": seed == 1},
            "machine": {"cores": 2, "device": "cpu"},
            "prompts": 208,
            "stages": {"sft": {"seconds": 61.4, "peak_rss_bytes": 3 * 2**30}},
        }
        folder = tmp_path / f"demo-{seed}"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(summary))
    report = {
        "accuracy": estimate(0.8),
        "by_label": {
            "right": {"mean_score": 1.0},
            **{f"flaw {n}": {"put_below_a_better_one": estimate(n / 10)} for n in (9, 6, 8, 7)},
        },
        "baselines": {"longer wins": {"accuracy": estimate(0.5)}, "bag of words": {"accuracy": estimate(0.6)}},
    }
    (tmp_path / "demo-0" / "reward").mkdir()
    (tmp_path / "demo-0" / "reward" / "report.json").write_text(json.dumps(report))
    return tmp_path


def test_the_report_shows_every_seed_and_marks_intervals_without_zero(
    results: ModuleType, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["results.py", "recipes/demo", "--seeds", "0", "1", "--override", "sft.seed=1", "--report"]
    written = runs / "demo.json"
    monkeypatch.setattr("sys.argv", [*settings, "--runs-dir", str(runs), "--json", str(written)])
    assert results.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| 0 | abcdef0 | 2 cores, cpu; 208 held-out prompts |" in lines
    assert "| 1 | abcdef0, with local changes | 2 cores, cpu; 208 held-out prompts |" in lines

    def differences(prompts: str, seed: int) -> list[str]:
        begin = f"| {prompts} | {seed} | ppo over sft |"
        return [cell.strip() for line in lines if line.startswith(begin) for cell in line.split("|") if "[" in cell]

    assert differences("all", 0) == ["**+0.25 [+0.15, +0.35]**"]
    assert differences("all", 1) == ["+0.05 [-0.05, +0.15]"]
    assert differences("heldout-families", 0) == ["**-0.25 [-0.35, -0.15]**"]
    place = lines.index("| 0 | sft | 3.000 [2.900, 3.100] |  |  |")
    ptx = "| 0 | ppo-ptx | 2.500 [2.400, 2.600] | **-0.500 [-0.600, -0.400]** | -0.050 [-0.150, +0.050] |"
    assert lines[place + 1] == ptx
    named = [line.split("|")[3].strip() for line in lines if line.startswith("| heldout-families | 0 |")]
    assert named[:4] == ["base", "sft", "ppo", "ppo-ptx"]
    assert "| all | 0 | ppo | 0.75 [0.65, 0.85] |" in lines
    assert "| all | 0 | ppo-ptx |  |" in lines
    assert "| 0 | ppo-ptx over ppo | -0.050 [-0.150, +0.050] |" in lines
    worst = "flaw 6 0.60 [0.50, 0.70], flaw 7 0.70 [0.60, 0.80], flaw 8 0.80 [0.70, 0.90]"
    assert f"| 0 | 0.80 [0.70, 0.90] | {worst} | 0.50 [0.40, 0.60] | 0.60 [0.50, 0.70] |" in lines
    assert [line for line in lines if line.endswith("| sft | 61 | 3.00 |")] == [
        f"| {n} | sft | 61 | 3.00 |" for n in (0, 1)
    ]
    # What is written is a home of figures, whose tables are those that were printed.
    home = importlib.import_module("homes").Home.parse(written.read_text())
    assert home.command == ["python benchmarks/results.py recipes/demo --seeds 0 1 --override sft.seed=1"]
    assert [(run.seeds, run.commit) for run in home.runs] == [([0], "abcdef0"), ([1], "abcdef0, with local changes")]
    assert float(home.values["models"]["all"]["0"]["ppo"]["task_score"]["mean"]) == 0.75
    rows = [line for name in home.tables for line in results.markdown(home.render(name))]
    assert rows == [line for line in lines if line.startswith("|")][len(home.runs) + 2 :]
