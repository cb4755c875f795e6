"""`onebase run FOLDER --seeds 0 1 2`: the same recipes with several seeds, each a run of its own, and one table of all.

One seed is one draw of rows, of initial weights and of samples. What holds with every seed is less likely to be luck.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from onebase.cli.command import say
from onebase.errors import RecipeError
from onebase.terminal import console
from pipeline import chain

SUMMARY = "summary.json"
KL = "KL to SFT, nats"
"""Of the first of the two policies; no difference."""
METRICS = {
    "task_score": "task score",
    "reward": "reward",
    "sampled_task_score": "sampled task score",
    "sampled_reward": "sampled reward",
}
"""Differences that the table shows, and their headings; the first by source of prompts too."""


def split(words: Sequence[str], first: Sequence[int]) -> tuple[list[int], list[str]]:
    """The seeds and the overrides of a command line: numbers that stand alone are seeds; RecipeError at one given
    twice, and at numbers without `--seeds`. first: what stood right behind `--seeds`."""
    alone = [word for word in words if word.isdecimal()]
    if alone and not first:
        raise RecipeError(f"override '{alone[0]}': a number alone is a seed. Write: --seeds {' '.join(alone)}")
    seeds = [*first, *map(int, alone)]
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise RecipeError(f"--seeds: {twice} is given twice. Each seed is one run.")
    return seeds, [word for word in words if word not in alone]


def run(folder: Path, overrides: Sequence[str], seeds: Sequence[int], *, restart: bool) -> int:
    """A run of each seed, then the table; the exit code of the first that fails, else 0. What is finished is kept."""
    if folder.name.isdecimal() and not folder.exists():
        raise RecipeError(
            f"{folder}: there is no such folder. Write it before the seeds: onebase run FOLDER --seeds 0 1"
        )
    # All are read and checked before the first starts: the last one's recipes must not cost the hours of the others.
    planned = {seed: chain.plan(folder, seeded(folder, overrides, seed)) for seed in seeds}
    for steps in planned.values():
        chain.require_folders(steps)
    for number, (seed, steps) in enumerate(planned.items()):
        say(f"seed {seed}: {_home(steps)}")
        code = chain.carry_out(steps, restart=restart)
        if code:
            later = " ".join(map(str, [*seeds][number + 1 :]))
            if restart and later:
                say(f"Not restarted yet: seeds {later}. Run these with --restart in a command of their own.")
            return code
    if any(step.stage == chain.COMPARE for steps in planned.values() for step in steps):
        show({seed: json.loads((_home(steps) / SUMMARY).read_text("utf-8")) for seed, steps in planned.items()})
    else:
        say(f"{folder}: there is no {chain.COMPARE}.yaml, so nothing was compared.")
    return 0


def seeded(folder: Path, overrides: Sequence[str], seed: int) -> list[str]:
    """The overrides of a run with this seed in a folder of its own, runs/NAME-SEED. A seed that is given stays."""
    given = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    keys = [f"{step.name}.seed" for step in chain.plan(folder, overrides)]
    name = given.get("name") or folder.resolve().name
    return [*overrides, f"name={name}-{seed}", *(f"{key}={seed}" for key in keys if key not in given)]


def _home(steps: Sequence[chain.Step]) -> Path:
    """The folder of the run."""
    return steps[0].out.parent


def show(summaries: Mapping[int, Mapping[str, Any]]) -> None:
    """Print every paired difference of every seed, and their means over the seeds."""
    from rich.table import Table

    rows = {seed: _rows(summary) for seed, summary in summaries.items()}
    headings = list(dict.fromkeys(heading for some in rows.values() for row in some.values() for heading in row))
    table = Table(title="paired differences, mean [95 % interval] over prompts")
    for heading in ("difference", "seed", *headings):
        table.add_column(heading, justify="left" if heading == "difference" else "right", overflow="fold")
    for difference in dict.fromkeys(name for row in rows.values() for name in row):
        shown = {seed: row[difference] for seed, row in rows.items() if difference in row}
        for seed, row in shown.items():
            cells = (_cell(row[heading], heading) if heading in row else "" for heading in headings)
            table.add_row(difference, str(seed), *cells)
        if len(shown) > 1:
            means = ([row[heading]["mean"] for row in shown.values() if heading in row] for heading in headings)
            pairs = zip(means, headings, strict=True)
            table.add_row("", "mean", *(_number(mean(some), heading) if some else "" for some, heading in pairs))
        table.add_section()
    console().print(table)


def _rows(summary: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float]]]:
    """By difference, then by heading: an estimate."""
    rows: dict[str, dict[str, Mapping[str, float]]] = {}
    first = next(iter(METRICS))
    tails = [source.rpartition("/")[2] for source in summary["by_source"]]
    for name, difference in summary["differences"].items():
        row = {heading: difference[metric] for metric, heading in METRICS.items() if metric in difference}
        for source, part in summary["by_source"].items():
            tail = source.rpartition("/")[2]
            if first in part["differences"].get(name, {}):
                row[f"{METRICS[first]}, {tail if tails.count(tail) == 1 else source}"] = part["differences"][name][
                    first
                ]
        kl = summary["models"].get(name.partition(" over ")[0], {}).get("kl_to_sft")
        rows[name] = row | ({KL: kl} if kl else {})
    return rows


def _cell(estimate: Mapping[str, float], heading: str) -> str:
    low, high = _number(estimate["low"], heading), _number(estimate["high"], heading)
    return f"{_number(estimate['mean'], heading)}\n[{low}, {high}]"


def _number(value: float, heading: str) -> str:
    return f"{value:.2f}" if heading == KL else f"{value:+.2f}"
