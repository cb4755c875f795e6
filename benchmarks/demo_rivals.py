"""Three rivals beside the demo's PPO, in roughly the same time.

    python benchmarks/demo_rivals.py --seeds 0 1 2 --json docs/results/data/demo-rivals.json

- sft-gold: SFT on 1,280 gold demonstrations alone, in the time of SFT, reward model and PPO together, roughly;
- sft-best: rejection sampling. SFT answers PPO's prompts four times each, and the answers that the reward model scores
  highest are demonstrations for a new adapter on the base: SFT has no other start, but PPO and DPO start from SFT's
  adapter. It shares SFT and reward model with PPO;
- dpo: from the same SFT adapter on 160 rankings, one pair of each. It needs no reward model; its KL is in the table.

Their settings were not tuned, but PPO's were, on seed 10. PPO's reward model has 352 rankings, and all pairs of each.

The measure is the task score of greedy answers to the demo's held-out prompts, paired with PPO's by prompt. Intervals
are over prompts, for these trainings: they do not hold what another seed would change. Seconds are CPU seconds of a
stage from its first line to its last, evaluation included and start of Python not. On one thread (OMP_NUM_THREADS=1)
they are the wall time of an idle core, and another run beside it hardly changes them. The demo of each seed is run
first where it is not there. With --curve, PPO stopped earlier gives a learning curve: with a constant learning rate a
shorter run is a longer one's beginning. What is finished is kept.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from homes import Home, Table, markdown
from results import provenance

from evaluation.statistics import clustered, differences
from onebase.files.writing import hash_file, replace_file

DEMO, RIVALS = Path("recipes/demo"), Path("recipes/demo/rivals")
PROMPTS, DRAWN = 176, 4
"""Prompts of `sft-best`, and answers to each: those of PPO, with the same seed."""
EPISODES = (128, 320, 512)
"""Where PPO's learning curve is measured, before its end: whole batches."""
DRAWING = "drawing.json"
SCORE = "task_score"
STAGES: Mapping[str, tuple[str, ...]] = {
    "base": (),
    "sft": ("sft",),
    "ppo": ("sft", "reward", "ppo"),
    "sft-gold": ("sft-gold",),
    "sft-best": ("sft", "reward", "drawing", "sft-best"),
    "dpo": ("sft", "dpo"),
}
"""What each row is made of: its wall time is theirs."""
MINUTES = 55
"""A seed with its demo on the slowest machine that this was run on."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--curve", action="store_true", help="a learning curve of PPO too, 15 minutes a seed more")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    print(
        f"budget: at most {MINUTES + 15 * arguments.curve} minutes a seed, {len(arguments.seeds)} seeds",
        file=sys.stderr,
    )
    for seed in arguments.seeds:
        run(seed, arguments.runs_dir, curve=arguments.curve)
    folders = {
        seed: (arguments.runs_dir / f"demo-{seed}", arguments.runs_dir / f"demo-rivals-{seed}")
        for seed in arguments.seeds
    }
    values = {str(seed): collect({seed: pair}) for seed, pair in folders.items()}
    values["all"] = collect(folders)
    words = [
        "python",
        "benchmarks/demo_rivals.py",
        "--seeds",
        *map(str, arguments.seeds),
        *["--curve"] * arguments.curve,
    ]
    places = [provenance({seed: summary_of(pair[place]) for seed, pair in folders.items()}) for place in (0, 1)]
    home = Home(
        command=[shlex.join(words)],
        runs=[*places[0], *places[1]],
        values=values,
        tables=tables(),
    )
    home = Home.parse(home.dump())  # so that what is printed is what the documents will show
    for name in home.tables:
        print("\n".join(["", f"{name}:", "", *markdown(home.render(name))]))
    if arguments.json:
        arguments.json.write_text(home.dump(), encoding="utf-8")
    return 0


def run(seed: int, runs: Path, *, curve: bool) -> None:
    """The demo and its rivals with one seed."""
    demo, rivals = runs / f"demo-{seed}", runs / f"demo-rivals-{seed}"
    if not (demo / "summary.json").is_file():
        onebase("run", DEMO, f"runs_dir={runs}", "name=demo", "--seeds", seed)
    best = draw(demo, drawn(rivals), seed)
    policies = [f"compare.parents.{name}={demo / name}" for name in ("sft", "reward", "ppo")]
    for episodes in EPISODES if curve else ():
        out = rivals / f"ppo-{episodes}"
        parents = [f"parents.{name}={demo / name}" for name in ("sft", "reward")]
        onebase("ppo", DEMO / "ppo.yaml", *parents, f"seed={seed}", f"train.episodes={episodes}", f"out={out}")
        policies.append(f"compare.policies.ppo-{episodes}={out}")
    names = ("sft-gold", "sft-best", "dpo", "compare")
    overrides = [f"runs_dir={runs}", f"name={rivals.name}", *(f"{name}.seed={seed}" for name in names)]
    overrides += [f"sft-best.data.0.source={best}", f"dpo.parents.sft={demo / 'sft'}"]
    onebase("run", RIVALS, *overrides, *policies)


def draw(demo: Path, folder: Path, seed: int) -> Path:
    """The best of n answers of SFT to the prompts that PPO is trained on; and how long that took."""
    target, record = folder / "best.jsonl", folder / DRAWING
    parents = {stage: hash_file(demo / stage / "stage.json") for stage in ("sft", "reward")}
    wanted = {"prompts": PROMPTS, "n": DRAWN, **parents}
    if not record.is_file() or read(record)["of"] != wanted:
        target.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        began = children_cpu_seconds()
        source = ["builtin:tasks", "--split", "rl", "--rows", PROMPTS, "--n", DRAWN, "--max-new-tokens", 20]
        onebase("best-of-n", demo / "sft", demo / "reward", *source, "--seed", seed, "--out", target)
        replace_file(record, json.dumps({"of": wanted, "cpu_seconds": round(children_cpu_seconds() - began, 1)}))
    return target


def drawn(rivals: Path) -> Path:
    """Beside the run's folder, which holds nothing but what stages and comparison write."""
    return rivals.with_name(f"{rivals.name}-drawn")


def onebase(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", *map(str, words)])
    if done.returncode:
        raise SystemExit(done.returncode)


def collect(folders: Mapping[int, tuple[Path, Path]]) -> dict[str, Any]:
    """By row: training seconds, and estimates over the prompts of these seeds; each seed has its own."""
    answers = [row for seed, (_, rivals) in folders.items() for row in answers_of(rivals, seed)]
    sources: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        sources.setdefault(answer["source"].rpartition("/")[2], []).append(answer)
    rows: dict[str, Any] = {}
    for name, stages in STAGES.items():
        rows[name] = {
            "seconds": mean(sum(seconds(*pair, stage) for stage in stages) for pair in folders.values()),
            "last": mean(sum(seconds(*pair, stage) for stage in stages[-1:]) for pair in folders.values()),
            SCORE: estimate(answers, name, SCORE),
            **{source: estimate(some, name, SCORE) for source, some in sources.items()},
            **{metric: estimate(answers, name, metric) for metric in ("reward", "sampled_task_score", "kl_to_sft")},
            **{f"over {other}": estimate(answers, name, SCORE, other) for other in ("sft", "ppo") if other != name},
        }
    curve = {
        name.removeprefix("ppo-"): {
            SCORE: estimate(answers, name, SCORE),
            "seconds": mean(seconds(*pair, name) for pair in folders.values()),
        }
        for name in answers[0]
        if name.startswith("ppo-")
    }
    return {"rows": rows} | ({"curve": curve} if curve else {})


def answers_of(rivals: Path, seed: int) -> list[dict[str, Any]]:
    lines = (rivals / "evaluation" / "answers.jsonl").read_text("utf-8").splitlines()
    return [{**json.loads(line), "seed": seed} for line in lines]


def estimate(
    answers: Sequence[Mapping[str, Any]], name: str, metric: str, other: str | None = None
) -> dict[str, float]:
    """Mean of a model's metric, or of its paired difference to another's. What is asked twice is drawn together."""
    values = [float(row[name][metric]) for row in answers]
    if other is not None:
        values = differences(values, [float(row[other][metric]) for row in answers])
    return clustered(values, [(row["seed"], row["prompt"]) for row in answers]).as_dict()


def children_cpu_seconds() -> float:
    """Of all processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def seconds(demo: Path, rivals: Path, stage: str) -> float:
    """CPU seconds that a stage took."""
    if stage == "drawing":
        return float(read(drawn(rivals) / DRAWING)["cpu_seconds"])
    folder = next(home / stage for home in (demo, rivals) if (home / stage / "stage.json").is_file())
    return float(read(folder / "stage.json")["resources"]["cpu_seconds"])


def summary_of(run: Path) -> dict[str, Any]:
    return read(run / "summary.json")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def tables() -> dict[str, Table]:
    shown = {
        "training, CPU s:": "seconds|.0f",
        "task score": f"{SCORE}|.2f",
        "held-out families": "heldout-families|.2f",
        "held-out templates": "heldout-templates|.2f",
        "task score over SFT": "over sft|+.2f",
        "task score over PPO": "over ppo|+.2f",
        "sampled task score": "sampled_task_score|.2f",
        "KL to SFT, nats": "kl_to_sft|.2f",
    }
    curve = {"seed": "@0", "episodes": "@2", "CPU seconds of PPO:": "seconds|.0f", "task score": f"{SCORE}|.2f"}
    names = ("training, CPU s:", "task score", "task score over SFT", "KL to SFT, nats")
    short = {"": "@2", **{name.replace("task score over", "over"): shown[name] for name in names}}
    return {
        "short": Table(rows=["all/rows/{base,sft,ppo,sft-gold}"], columns=short),
        "rows": Table(rows=["all/rows/*"], columns={"": "@2", **shown}),
        "seeds": Table(rows=["[0-9]*/rows/*"], columns={"seed": "@0", "": "@2", **shown}),
        "curve": Table(rows=["*/curve/*"], columns=curve),
    }


if __name__ == "__main__":
    sys.exit(main())
