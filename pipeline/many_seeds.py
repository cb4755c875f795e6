"""`onebase run FOLDER --seeds 0 1 2`: a run of the same recipes for each seed, and one table of all.

One seed is one draw of rows, initial weights and samples. A result that holds for every seed is less likely to be luck.
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
"""Of the first of the two policies: not a difference."""
METRICS = {
    "task_score": "task score",
    "reward": "reward",
    "sampled_task_score": "sampled task score",
    "sampled_reward": "sampled reward",
}
"""Differences in the table, and their headings. The first is also shown for each source of prompts."""


def split(words: Sequence[str], first: Sequence[int]) -> tuple[list[int], list[str]]:
    """The seeds and the overrides of a command line. Plain numbers are seeds. RecipeError if a seed is repeated, or if
    there are numbers without `--seeds`. first: the value of `--seeds`."""
    numbers = [word for word in words if word.isdecimal()]
    if numbers and not first:
        raise RecipeError(f"override '{numbers[0]}': a plain number is a seed. Write: --seeds {' '.join(numbers)}")
    seeds = [*first, *map(int, numbers)]
    repeated = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if repeated is not None:
        raise RecipeError(f"--seeds: {repeated} is given twice. Each seed is one run.")
    return seeds, [word for word in words if word not in numbers]


def run(folder: Path, overrides: Sequence[str], seeds: Sequence[int], *, restart: bool) -> int:
    """A run for each seed, then the table; the exit code of the first that fails, else 0. Finished stages are kept."""
    if folder.name.isdecimal() and not folder.exists():
        raise RecipeError(
            f"{folder}: there is no such folder. Write it before the seeds: onebase run FOLDER --seeds 0 1"
        )
    # All recipes are checked before the first run starts.
    planned = {seed: chain.plan(folder, seeded(folder, overrides, seed)) for seed in seeds}
    for steps in planned.values():
        chain.require_folders(steps)
    for number, (seed, steps) in enumerate(planned.items()):
        say(f"seed {seed}: {_home(steps)}")
        code = chain.carry_out(steps, restart=restart)
        if code:
            later = " ".join(map(str, [*seeds][number + 1 :]))
            if restart and later:
                say(f"Not restarted yet: seeds {later}. Restart these with a separate command.")
            return code
    if any(step.stage == chain.COMPARE for steps in planned.values() for step in steps):
        show({seed: json.loads((_home(steps) / SUMMARY).read_text("utf-8")) for seed, steps in planned.items()})
    else:
        say(f"{folder}: there is no {chain.COMPARE}.yaml, so nothing was compared.")
    return 0


def seeded(folder: Path, overrides: Sequence[str], seed: int) -> list[str]:
    """The overrides of a run with this seed in its own folder, runs/NAME-SEED. Seeds among the overrides are kept."""
    values = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    keys = [f"{step.name}.seed" for step in chain.plan(folder, overrides)]
    name = values.get("name") or folder.resolve().name
    return [*overrides, f"name={name}-{seed}", *(f"{key}={seed}" for key in keys if key not in values)]


def _home(steps: Sequence[chain.Step]) -> Path:
    """The folder of the run."""
    return steps[0].out.parent


def show(summaries: Mapping[int, Mapping[str, Any]]) -> None:
    """Print every paired difference of every seed, and their means over the seeds."""
    from rich.table import Column, Table

    from evaluation.statistics import interval_text

    rows = {seed: _rows(summary) for seed, summary in summaries.items()}
    headings = list(dict.fromkeys(heading for some in rows.values() for row in some.values() for heading in row))
    numbers = (Column(heading, justify="right", overflow="fold") for heading in ("seed", *headings))
    table = Table(
        Column("difference", overflow="fold"), *numbers, title="paired differences, mean [95 % interval] over prompts"
    )
    for difference in dict.fromkeys(name for row in rows.values() for name in row):
        shown = {seed: row[difference] for seed, row in rows.items() if difference in row}
        for seed, row in shown.items():
            cells = (interval_text(row[heading], _form(heading)) if heading in row else "" for heading in headings)
            table.add_row(difference, str(seed), *(cell.replace(" [", "\n[") for cell in cells))
        if len(shown) > 1:
            means = ([row[heading]["mean"] for row in shown.values() if heading in row] for heading in headings)
            pairs = zip(means, headings, strict=True)
            table.add_row("", "mean", *(format(mean(some), _form(heading)) if some else "" for some, heading in pairs))
        table.add_section()
    console().print(table)


def _rows(summary: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float]]]:
    """By difference, then by heading: an estimate."""
    rows = {}
    first, sources = next(iter(METRICS)), summary["by_source"]
    tails = [source.rpartition("/")[2] for source in sources]
    names = [tail if tails.count(tail) == 1 else source for tail, source in zip(tails, sources, strict=True)]
    parts = {
        f"{METRICS[first]}, {name}": part["differences"] for name, part in zip(names, sources.values(), strict=True)
    }
    for difference, metrics in summary["differences"].items():
        of_policy = summary["models"].get(difference.partition(" over ")[0], {})
        rows[difference] = {
            **{heading: metrics[metric] for metric, heading in METRICS.items() if metric in metrics},
            **{name: part[difference][first] for name, part in parts.items() if first in part.get(difference, {})},
            **({KL: of_policy["kl_to_sft"]} if "kl_to_sft" in of_policy else {}),
        }
    return rows


def _form(heading: str) -> str:
    return ".2f" if heading == KL else "+.2f"
