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

PAIRED = ("correctness", "form", "check", "reward", "sampled_check", "sampled_reward")
LIKELIEST = ("correctness", "form", "check", "reward")
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
    given = parser.parse_args()
    folders = {seed: given.runs_dir / f"{given.recipes.name}-{seed}" for seed in given.seeds}
    if not given.report:
        seeds = ["--seeds", *map(str, given.seeds)]
        own = [f"name={given.recipes.name}", f"runs_dir={given.runs_dir}", *given.override]
        code = subprocess.run([sys.executable, "-m", "pipeline", "run", str(given.recipes), *seeds, *own]).returncode
        if code:
            return code
    found = {seed: json.loads((folder / "summary.json").read_text("utf-8")) for seed, folder in folders.items()}
    values = collect(found, folders)
    said = ["python", "benchmarks/results.py", str(given.recipes), "--seeds", *map(str, given.seeds)]
    said += [word for override in given.override for word in ("--override", override)]
    # Through its text, so that what is printed is what the documents will show.
    home = Home(
        command=[shlex.join(said)], runs=provenance(found), values=values, tables=tables(values, given.seeds[0])
    )
    home = Home.parse(home.dump())
    print("\n".join(markdown(home.render_runs())))
    for name in home.tables:
        print("\n".join(["", f"{name}:", "", *markdown(home.render(name))]))
    if given.json:
        given.json.write_text(home.dump(), encoding="utf-8")
    return 0


def provenance(found: Mapping[int, Mapping[str, Any]]) -> list[Run]:
    runs: list[Run] = []
    for seed, one in found.items():
        changed = ", with local changes" if one["git"].get("dirty") else ""
        machine = f"{one['machine']['cores']} cores, {one['machine']['device']}; {one['prompts']} held-out prompts"
        runs.append(Run(seeds=[seed], commit=str(one["git"].get("commit"))[:7] + changed, machine=machine))
    return runs


def collect(found: Mapping[int, Mapping[str, Any]], folders: Mapping[int, Path]) -> dict[str, Any]:
    """All figures: of models and differences by prompts (all, then each source), seed and name."""
    sources = sorted({source for one in found.values() for source in one["by_source"]})
    parts = {"all": found} | {
        source.rpartition("/")[2]: {
            seed: one["by_source"].get(source, {"models": {}, "differences": {}}) for seed, one in found.items()
        }
        for source in sources
    }
    return {
        "models": {
            prompts: {str(seed): dict(in_order(one["models"])) for seed, one in part.items()}
            for prompts, part in parts.items()
        },
        "differences": {
            prompts: {str(seed): one["differences"] for seed, one in part.items()} for prompts, part in parts.items()
        },
        "language": {str(seed): language(one) for seed, one in found.items()},
        "rewards": {str(seed): rewards(folder) for seed, folder in folders.items()},
        "costs": {
            str(seed): {
                stage: {key: cost[key] for key in ("seconds", "cpu_seconds") if cost.get(key)}
                | {"GiB": cost["peak_rss_bytes"] / 2**30}
                for stage, cost in one["stages"].items()
            }
            for seed, one in found.items()
        },
    }


def language(one: Mapping[str, Any]) -> dict[str, Any]:
    """Loss of texts that are no tasks, where the comparison has some; paired over SFT and, of a variant, over PPO."""
    found: dict[str, Any] = {}
    for model, row in in_order(one["models"]):
        if "lm_loss" in row:
            over = {f"over {before}": one["differences"].get(f"{model} over {before}", {}) for before in ("sft", "ppo")}
            known = {name: difference["lm_loss"] for name, difference in over.items() if "lm_loss" in difference}
            found[model] = {"loss": row["lm_loss"], **known}
    return found


def rewards(folder: Path) -> dict[str, Any]:
    """A reward model: accuracy on held-out pairs, the classes of flaws that it ranks worst, and the baselines."""
    path = folder / "reward" / "report.json"
    if not path.is_file():
        return {}
    report = json.loads(path.read_text("utf-8"))
    classes = {
        label: one["put_below_a_better_one"]
        for label, one in report["by_label"].items()
        if isinstance(one, Mapping) and "mean" in one.get("put_below_a_better_one", {})
    }
    worst = sorted(classes, key=lambda label: classes[label]["mean"])[:WORST]
    baselines = {name: report["baselines"][name].get("accuracy") for name in ("longer wins", "bag of words")}
    found = {"accuracy": report["accuracy"], "lowest": {label: classes[label] for label in worst}, **baselines}
    return {name: one for name, one in found.items() if one is not None}


def tables(values: Mapping[str, Any], first: int) -> dict[str, Table]:
    """Each is shown as far as there are values. first: the seed of the tables that show one."""
    said: dict[str, Table] = {}
    for prompts in values["models"]:
        place = {"prompts": "@1", "seed": "@2"}
        shown = {name: f"{name}|.2f" for name in (*PAIRED, "kl_to_sft", "length")}
        said[f"models {prompts}"] = Table(rows=[f"models/{prompts}/*/*"], columns={**place, "model": "@3", **shown})
        changes = {"paired difference": "@3", **{name: f"{name}|+.2f" for name in PAIRED}}
        said[f"differences {prompts}"] = Table(rows=[f"differences/{prompts}/*/*"], columns={**place, **changes})
    over = {**{name: f"{name}|+.2f" for name in (*PAIRED[2:], "kl_to_sft", "length")}, "lm_loss": "lm_loss|+.3f"}
    for before in ("sft", "ppo"):
        columns = {"seed": "@2", "paired difference": "@3", **over}
        said[f"over {before}"] = Table(rows=[f"differences/all/*/* over {before}"], columns=columns)
    greedy = {
        **{name: f"{name}|.2f" for name in LIKELIEST},
        "tokens": "length/mean|.1f",
        "stopped": "stop_rate/mean|.2f",
    }
    drawn = {**{name: f"sampled_{name}|.2f" for name in LIKELIEST}, "KL to SFT, nats": "kl_to_sft|.2f"}
    rows = [f"models/all/{first}/*"]
    said["likeliest"] = Table(rows=rows, columns={"likeliest response": "@3", **greedy})
    said["sampled"] = Table(rows=rows, columns={"sampled, temperature 1": "@3", **drawn})
    loss = {"LM loss, nats a token": "loss|.3f", "over SFT": "over sft|+.3f", "over PPO": "over ppo|+.3f"}
    said["language"] = Table(rows=["language/*/*"], columns={"seed": "@1", "model": "@2", **loss})
    flaws = {"reward accuracy": "accuracy|.2f", "lowest classes of flaws": "lowest|.2f"}
    baselines = {name: f"{name}|.2f" for name in ("longer wins", "bag of words")}
    said["rewards"] = Table(rows=["rewards/*"], columns={"seed": "@1", **flaws, **baselines})
    cost = {"seconds": "seconds|.0f", "CPU seconds": "cpu_seconds|.0f", "peak memory, GiB": "GiB|.2f"}
    said["costs"] = Table(rows=["costs/*/*"], columns={"seed": "@1", "stage": "@2", **cost})
    return said


def in_order(models: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The base, SFT, then what came out of it by name."""
    first = {"base": 0, "sft": 1}
    return sorted(models.items(), key=lambda item: (first.get(item[0], len(first)), item[0]))


if __name__ == "__main__":
    sys.exit(main())
