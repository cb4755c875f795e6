"""What docs/own.md and docs/dashboard.md promise to a user who brings a model and data of his own."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.run import record
from pipeline import chain, stages

ROOT = Path(__file__).parents[2]
MOMENTS = ("seen", "running_mean", "running_variance")

AND_ITS_ADAPTER_COUNTS = """
with policy.disable_adapter():
    without = policy(**inputs).logits
assert (policy(**inputs).logits - without).abs().max() > 1e-3
"""


def test_every_metric_of_a_run_is_explained(finish_run: Callable[[str], Path]) -> None:
    page = (ROOT / "docs" / "dashboard.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([a-z_]+/[a-z_/]+)`", page))
    families = ("ppo/time/", "ppo/eval/", "ppo/reward/")
    assert all(f"`{family}" in page for family in families)
    logged = set[str]()
    for stage in stages.ORDER:
        lines = (finish_run("fp32") / stage / "metrics.jsonl").read_text().splitlines()
        logged |= {name for line in lines for name in json.loads(line) if not name.startswith(families)}
    assert logged - explained == {"step"}
    # The smoke recipes do not log these.
    assert {"ppo/next_kl_weight", *(f"ppo/score_{name}" for name in MOMENTS)} <= explained


def test_the_adapter_answers_under_peft_as_the_page_says(finish_run: Callable[[str], Path], tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "own.md").read_text(encoding="utf-8"), re.S)
    home = finish_run("fp32")
    model = record.read(home / "ppo").record.base.model
    code = code.replace("Qwen/Qwen2.5-0.5B-Instruct", model).replace("runs/mine", str(home)) + AND_ITS_ADAPTER_COUNTS
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_recipes_for_data_of_ones_own_run_on_two_files(tiny_base_folder: Path, tmp_path: Path) -> None:
    towns = [f"Town {number}" for number in range(60)]
    rows = [{"prompt": f"Where is {town}?", "response": f"{town} is in the north."} for town in towns]
    (tmp_path / "demonstrations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [
        {"prompt": f"Tell me of {town}.", "responses": [f"{town} is old.", "No.", "old " * 600], "tiers": [0, 1, 2]}
        if number == 7
        else {"prompt": f"Tell me of {town}.", "responses": [f"{town} is old.", "No."], "tiers": [0, 1]}
        for number, town in enumerate(towns)
    ]
    (tmp_path / "rankings.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = ["ppo.train.episodes=256", "ppo.sampling.max_new_tokens=8", "compare.sampling.max_new_tokens=8"]
    base = [f"{name}.base.model={tiny_base_folder}" for name in (*stages.ORDER, chain.COMPARE)]
    # Together no more than the tiny base's 512 positions.
    lengths = ("prompt_tokens=200", "response_tokens=300")
    limits = [f"{name}.limits.{length}" for name in (*stages.ORDER, chain.COMPARE) for length in lengths]
    command = [sys.executable, "-m", "pipeline", "run", str(ROOT / "recipes" / "own"), *sizes, *base, *limits]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rows left out: 1 with a response over 300 tokens" in done.stderr
    summary = json.loads((tmp_path / "runs" / "own" / "summary.json").read_text())
    assert set(summary["models"]) == {"base", "sft", "ppo", "dpo"}
    assert {"reward", "kl_to_sft", "length"} <= set(summary["models"]["ppo"])
    assert (tmp_path / "runs" / "own" / "ppo" / "best" / "stage.json").is_file()
