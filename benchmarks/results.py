"""Run a folder of recipes with several seeds, unchanged otherwise, and print the tables of docs/results.

    python benchmarks/results.py recipes/demo --seeds 0 1 2 --json docs/results/data/demo.json

Each seed is a run of its own (runs/NAME-SEED). A finished stage is not run again and a stopped one goes on, so the
command can be repeated; --report prints what there is and runs nothing. Every figure comes out of the runs'
summary.json and the reward stages' report.json. With --json it is a home of figures (benchmarks/claims.py): the next
`claims.py --write` puts its tables into the documents, and names what their text says otherwise.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homes import Home, Run, Table, markdown

GREEDY = {"correctness": "correctness", "form": "form", "task_score": "task score", "reward": "reward"}
PAIRED = {**GREEDY, "sampled_task_score": "sampled task score", "sampled_reward": "sampled reward"}
KL, TOKENS, LOSS = {"kl_to_sft": "KL to SFT, nats"}, {"length": "tokens"}, {"lm_loss": "LM loss, nats per token"}
"""Metrics and the headings of their columns."""
WORST = 3
"""Flaw classes that are shown by name: those that the reward model ranks worst."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, help="folder of recipes, such as recipes/demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--override", action="append", default=[], help="given to `onebase run`; may be repeated")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    folders = {seed: arguments.runs_dir / f"{arguments.recipes.name}-{seed}" for seed in arguments.seeds}
    if not arguments.report:
        seeds = ["--seeds", *map(str, arguments.seeds)]
        overrides = [f"name={arguments.recipes.name}", f"runs_dir={arguments.runs_dir}", *arguments.override]
        code = subprocess.run(
            [sys.executable, "-m", "pipeline", "run", str(arguments.recipes), *seeds, *overrides]
        ).returncode
        if code:
            return code
    summaries = {seed: json.loads((folder / "summary.json").read_text("utf-8")) for seed, folder in folders.items()}
    values = collect(summaries, folders)
    words = ["python", "benchmarks/results.py", str(arguments.recipes), "--seeds", *map(str, arguments.seeds)]
    words += [word for override in arguments.override for word in ("--override", override)]
    # Through its text, so that what is printed is what the documents will show.
    home = Home(
        command=[shlex.join(words)],
        runs=provenance(summaries),
        values=values,
        tables=tables(values, arguments.seeds[0]),
    )
    home = Home.parse(home.dump())
    print("\n".join(markdown(home.render_runs())))
    for name in home.tables:
        print("\n".join(["", f"{name}:", "", *markdown(home.render(name))]))
    if arguments.json:
        arguments.json.write_text(home.dump(), encoding="utf-8")
    return 0


def provenance(summaries: Mapping[int, Mapping[str, Any]]) -> list[Run]:
    runs: list[Run] = []
    for seed, summary in summaries.items():
        git, machine = summary["git"], summary["machine"]
        changed = ", with local changes" if git.get("dirty") else ""
        described = f"{machine['cores']} cores, {machine['device']}; {summary['prompts']} held-out prompts"
        runs.append(Run(seeds=[seed], commit=str(git.get("commit"))[:7] + changed, machine=described))
    return runs


def collect(summaries: Mapping[int, Mapping[str, Any]], folders: Mapping[int, Path]) -> dict[str, Any]:
    """All figures: of models and differences by prompts (all, then each source), seed and name."""
    sources = sorted({source for summary in summaries.values() for source in summary["by_source"]})
    parts = {"all": summaries} | {
        source.rpartition("/")[2]: {
            seed: summary["by_source"].get(source, {"models": {}, "differences": {}})
            for seed, summary in summaries.items()
        }
        for source in sources
    }
    return {
        "models": {
            prompts: {str(seed): dict(in_order(rows["models"])) for seed, rows in part.items()}
            for prompts, part in parts.items()
        },
        "differences": {
            prompts: {str(seed): rows["differences"] for seed, rows in part.items()} for prompts, part in parts.items()
        },
        "language": {str(seed): language(summary) for seed, summary in summaries.items()},
        "rewards": {str(seed): rewards(folder) for seed, folder in folders.items()},
        "costs": {
            str(seed): {
                stage: {key: cost[key] for key in ("seconds", "cpu_seconds") if cost.get(key)}
                | {"GiB": cost["peak_rss_bytes"] / 2**30}
                for stage, cost in summary["stages"].items()
            }
            for seed, summary in summaries.items()
        },
    }


def language(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Loss of general texts, if the comparison has some; paired over SFT and, for a variant, over PPO."""
    rows: dict[str, Any] = {}
    for model, row in in_order(summary["models"]):
        if "lm_loss" in row:
            pairs = {f"over {before}": f"{model} over {before}" for before in ("sft", "ppo")}
            changes = {name: summary["differences"].get(pair, {}) for name, pair in pairs.items()}
            paired = {name: change["lm_loss"] for name, change in changes.items() if "lm_loss" in change}
            rows[model] = {"loss": row["lm_loss"], **paired}
    return rows


def rewards(folder: Path) -> dict[str, Any]:
    """A reward model: accuracy on held-out pairs, the classes of flaws that it ranks worst, and the baselines."""
    path = folder / "reward" / "report.json"
    if not path.is_file():
        return {}
    report = json.loads(path.read_text("utf-8"))
    classes = {
        label: row["put_below_a_better_one"]
        for label, row in report["by_label"].items()
        if isinstance(row, Mapping) and "mean" in row.get("put_below_a_better_one", {})
    }
    worst = sorted(classes, key=lambda label: classes[label]["mean"])[:WORST]
    baselines = {name: report["baselines"][name].get("accuracy") for name in ("longer wins", "bag of words")}
    known = {name: accuracy for name, accuracy in baselines.items() if accuracy is not None}
    return {"accuracy": report["accuracy"], "lowest": {label: classes[label] for label in worst}, **known}


def tables(values: Mapping[str, Any], first: int) -> dict[str, Table]:
    """Each is shown as far as there are values. first: the seed of the tables that show one."""
    made: dict[str, Table] = {}
    for prompts in values["models"]:
        place = {"prompts": "@1", "seed": "@2"}
        shown = columns_of(PAIRED | KL | TOKENS, ".2f")
        made[f"models {prompts}"] = Table(rows=[f"models/{prompts}/*/*"], columns={**place, "model": "@3", **shown})
        changes = {"paired difference": "@3", **columns_of(PAIRED, "+.2f")}
        made[f"differences {prompts}"] = Table(rows=[f"differences/{prompts}/*/*"], columns={**place, **changes})
    grades = ("correctness", "form")
    changes = {name: heading for name, heading in PAIRED.items() if name not in grades} | KL | TOKENS
    over = columns_of(changes, "+.2f") | columns_of(LOSS, "+.3f")
    for before in ("sft", "ppo"):
        columns = {"seed": "@2", "paired difference": "@3", **over}
        made[f"over {before}"] = Table(rows=[f"differences/all/*/* over {before}"], columns=columns)
    greedy = {
        **columns_of(GREEDY, ".2f"),
        "tokens": "length/mean|.1f",
        "stopped": "stop_rate/mean|.2f",
    }
    drawn = {heading: f"sampled_{name}|.2f" for name, heading in GREEDY.items()} | columns_of(KL, ".2f")
    rows = [f"models/all/{first}/*"]
    made["greedy"] = Table(rows=rows, columns={"greedy response": "@3", **greedy})
    made["sampled"] = Table(rows=rows, columns={"sampled, temperature 1": "@3", **drawn})
    loss = {"LM loss, nats per token": "loss|.3f", "over SFT": "over sft|+.3f", "over PPO": "over ppo|+.3f"}
    made["language"] = Table(rows=["language/*/*"], columns={"seed": "@1", "model": "@2", **loss})
    flaws = {"reward accuracy": "accuracy|.2f", "lowest classes of flaws": "lowest|.2f"}
    baselines = {name: f"{name}|.2f" for name in ("longer wins", "bag of words")}
    made["rewards"] = Table(rows=["rewards/*"], columns={"seed": "@1", **flaws, **baselines})
    cost = {"seconds": "seconds|.0f", "CPU seconds": "cpu_seconds|.0f", "peak memory, GiB": "GiB|.2f"}
    made["costs"] = Table(rows=["costs/*/*"], columns={"seed": "@1", "stage": "@2", **cost})
    return made


def columns_of(headings: Mapping[str, str], form: str) -> dict[str, str]:
    return {heading: f"{name}|{form}" for name, heading in headings.items()}


def in_order(models: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The base, SFT, then what came out of it by name."""
    first = {"base": 0, "sft": 1}
    return sorted(models.items(), key=lambda item: (first.get(item[0], len(first)), item[0]))


if __name__ == "__main__":
    sys.exit(main())
