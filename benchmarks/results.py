"""Run a folder of recipes with several seeds, unchanged otherwise, and print the tables of docs/results.md.

    python benchmarks/results.py recipes/demo --seeds 0 1 2 --override compare.sampling.batch=16

Each seed is a run of its own (runs/NAME-SEED). A finished stage is not run again and a stopped one goes on, so the
command can be repeated; --report prints what there is and runs nothing. Every figure comes out of the runs'
summary.json and the reward stages' report.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import chain

METRICS = (
    "correctness",
    "form",
    "check",
    "reward",
    "sampled_correctness",
    "sampled_check",
    "sampled_reward",
    "kl_to_sft",
    "length",
    "lm_loss",
)
WORST = 3
"""Flaw classes that are shown by name: those that the reward model ranks worst."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, help="folder of recipes, such as recipes/demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--override", action="append", default=[], help="given to `onebase run`; may be repeated")
    given = parser.parse_args()
    folders = {seed: given.runs_dir / f"{given.recipes.name}-{seed}" for seed in given.seeds}
    for seed, folder in folders.items():
        if not given.report:
            code = subprocess.run(command(given.recipes, seed, folder, given.override)).returncode
            if code:
                return code
    found = {seed: json.loads((folder / "summary.json").read_text("utf-8")) for seed, folder in folders.items()}
    print("\n".join([*provenance(found), "", *models(found, None), "", *differences(found, None), ""]))
    for source in sorted({source for one in found.values() for source in one["by_source"]}):
        print("\n".join([*models(found, source), "", *differences(found, source), ""]))
    print("\n".join([*language(found), *rewards(folders), "", *costs(found)]))
    return 0


def command(recipes: Path, seed: int, folder: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Runs all stages with one seed."""
    seeds = [f"{step.name}.seed={seed}" for step in chain.plan(recipes, [])]
    own = [f"name={folder.name}", f"runs_dir={folder.parent}", *seeds]
    return [sys.executable, "-m", "pipeline", "run", str(recipes), *own, *overrides]


def provenance(found: Mapping[int, Mapping[str, Any]]) -> Iterable[str]:
    for seed, one in found.items():
        changed = ", with local changes" if one["git"].get("dirty") else ""
        yield (
            f"Seed {seed}: commit {str(one['git'].get('commit'))[:7]}{changed}; {one['machine']['cores']} cores, "
            f"{one['machine']['device']}; {one['prompts']} held-out prompts."
        )


def models(found: Mapping[int, Mapping[str, Any]], source: str | None) -> Iterable[str]:
    """Every model of every seed, on all prompts (None) or on those of a source."""
    rows = [(seed, name, row) for seed, one in found.items() for name, row in in_order(part(one, source)["models"])]
    shown = [metric for metric in METRICS if any(metric in row for *_, row in rows)]
    yield f"| prompts | seed | model | {' | '.join(shown)} |"
    yield "|---|---|---|" + "---|" * len(shown)
    for seed, name, row in rows:
        yield f"| {short(source)} | {seed} | {name} | {' | '.join(cell(row.get(metric)) for metric in shown)} |"


def differences(found: Mapping[int, Mapping[str, Any]], source: str | None) -> Iterable[str]:
    """Paired by prompt; bold where the interval does not hold 0."""
    rows = [row for one in found.values() for row in part(one, source)["differences"].values()]
    compared = [name for name in METRICS if name not in ("kl_to_sft", "length", "lm_loss")]
    shown = [name for name in compared if any(name in row for row in rows)]
    yield f"| prompts | seed | paired difference | {' | '.join(shown)} |"
    yield "|---|---|---|" + "---|" * len(shown)
    for seed, one in found.items():
        for name, row in part(one, source)["differences"].items():
            cells = " | ".join(cell(row.get(metric), sign=True) for metric in shown)
            yield f"| {short(source)} | {seed} | {name} | {cells} |"


def part(one: Mapping[str, Any], source: str | None) -> Mapping[str, Any]:
    return one if source is None else one["by_source"].get(source, {"models": {}, "differences": {}})


def language(found: Mapping[int, Mapping[str, Any]]) -> Iterable[str]:
    """Loss of texts that are no tasks, where the comparison has some; paired over SFT and, of a variant, over PPO."""
    rows = [
        f"| {seed} | {model} | {cell(row['lm_loss'], digits=3)} | {' | '.join(_losses_over(one, model))} |"
        for seed, one in found.items()
        for model, row in in_order(one["models"])
        if "lm_loss" in row
    ]
    head = ["| seed | model | LM loss, nats a token | over SFT | over PPO |", "|---|---|---|---|---|"]
    return [*head, *rows, ""] if rows else []


def _losses_over(one: Mapping[str, Any], model: str) -> Iterable[str]:
    for before in ("sft", "ppo"):
        yield cell(one["differences"].get(f"{model} over {before}", {}).get("lm_loss"), sign=True, digits=3)


def rewards(folders: Mapping[int, Path]) -> Iterable[str]:
    """The reward models: accuracy on held-out pairs, the classes of flaws that they rank worst, and the baselines;
    nothing where functions score."""
    reports = {seed: folder / "reward" / "report.json" for seed, folder in folders.items()}
    reports = {seed: path for seed, path in reports.items() if path.is_file()}
    if reports:
        yield "| seed | reward accuracy | lowest classes of flaws | longer wins | bag of words |"
        yield "|---|---|---|---|---|"
    for seed, path in reports.items():
        report = json.loads(path.read_text("utf-8"))
        classes = {
            label: one["put_below_a_better_one"]
            for label, one in report["by_label"].items()
            if isinstance(one, Mapping) and "mean" in one.get("put_below_a_better_one", {})
        }
        worst = sorted(classes, key=lambda label: classes[label]["mean"])[:WORST]
        named = ", ".join(f"{label} {cell(classes[label])}" for label in worst)
        baselines = [cell(report["baselines"][name].get("accuracy")) for name in ("longer wins", "bag of words")]
        yield f"| {seed} | {cell(report['accuracy'])} | {named} | {' | '.join(baselines)} |"


def costs(found: Mapping[int, Mapping[str, Any]]) -> Iterable[str]:
    yield "| seed | stage | seconds | peak memory, GiB |"
    yield "|---|---|---|---|"
    for seed, one in found.items():
        for stage, cost in one["stages"].items():
            yield f"| {seed} | {stage} | {cost['seconds']:.0f} | {cost['peak_rss_bytes'] / 2**30:.2f} |"


def in_order(models: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The base, SFT, then what came out of it by name."""
    first = {"base": 0, "sft": 1}
    return sorted(models.items(), key=lambda item: (first.get(item[0], len(first)), item[0]))


def short(source: str | None) -> str:
    return "all" if source is None else source.rpartition("/")[2]


def cell(estimate: Mapping[str, float] | None, *, sign: bool = False, digits: int = 2) -> str:
    if estimate is None:
        return ""
    form = "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]" if sign else "{:.{d}f} [{:.{d}f}, {:.{d}f}]"
    text = form.format(estimate["mean"], estimate["low"], estimate["high"], d=digits)
    return f"**{text}**" if sign and (estimate["low"] > 0 or estimate["high"] < 0) else text


if __name__ == "__main__":
    sys.exit(main())
