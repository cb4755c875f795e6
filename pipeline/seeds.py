"""`onebase run FOLDER --seeds 0 1 2`: the same recipes with several seeds, each a run of its own, and one table of all.

One seed is one draw of rows, of initial weights and of samples. What holds with every seed is less likely to be luck.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onebase.command import say
from onebase.errors import RecipeError
from onebase.terminal import console
from pipeline import chain

SUMMARY = "summary.json"
METRICS = {"check": "check", "reward": "reward", "sampled_check": "sampled check", "sampled_reward": "sampled reward"}
"""Differences that the table shows, and their headings; the first by source of prompts too."""


def split(words: Sequence[str], first: int | None) -> tuple[list[int], list[str]]:
    """The seeds and the overrides of a command line: numbers that stand alone are seeds; RecipeError at one given
    twice, and at numbers without `--seeds`."""
    alone = [word for word in words if word.isdecimal()]
    if alone and first is None:
        raise RecipeError(f"override '{alone[0]}': a number alone is a seed. Write: --seeds {' '.join(alone)}")
    seeds = [] if first is None else [first, *map(int, alone)]
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise RecipeError(f"--seeds: {twice} is given twice. Each seed is one run.")
    return seeds, [word for word in words if word not in alone]


def run(folder: Path, overrides: Sequence[str], seeds: Sequence[int], *, restart: bool) -> int:
    """A run of each seed, then the table; the exit code of the first that fails, else 0. What is finished is kept."""
    planned = {seed: seeded(folder, overrides, seed) for seed in seeds}
    for seed, own in planned.items():  # reads all recipes: a wrong one must not cost the hours of the seeds before it
        say(f"seed {seed}: {home(folder, own)}")
    for own in planned.values():
        code = chain.run(folder, own, restart=restart)
        if code:
            return code
    written = {seed: home(folder, own) / SUMMARY for seed, own in planned.items()}
    if all(path.is_file() for path in written.values()):
        show({seed: json.loads(path.read_text("utf-8")) for seed, path in written.items()})
    return 0


def seeded(folder: Path, overrides: Sequence[str], seed: int) -> list[str]:
    """The overrides of a run with this seed, in a folder of its own: runs/NAME-SEED."""
    plain = home(folder, overrides)
    seeds = [f"{step.name}.seed={seed}" for step in chain.plan(folder, overrides)]
    return [*overrides, f"runs_dir={plain.parent}", f"name={plain.name}-{seed}", *seeds]


def home(folder: Path, overrides: Sequence[str]) -> Path:
    """The folder of a run."""
    return chain.plan(folder, overrides)[0].out.parent


def show(summaries: Mapping[int, Mapping[str, Any]]) -> None:
    """Print every paired difference of every seed, and their means over the seeds."""
    from rich.table import Table

    rows = {seed: _rows(summary) for seed, summary in summaries.items()}
    headings = list(dict.fromkeys(heading for own in rows.values() for row in own.values() for heading in row))
    table = Table(title="paired differences, mean [95 % interval] over prompts")
    for heading in ("difference", "seed", *headings):
        table.add_column(heading, justify="left" if heading == "difference" else "right", overflow="fold")
    for difference in dict.fromkeys(name for own in rows.values() for name in own):
        mine = {seed: own[difference] for seed, own in rows.items() if difference in own}
        for seed, row in mine.items():
            cells = (_cell(row[heading]) if heading in row else "" for heading in headings)
            table.add_row(difference, str(seed), *cells)
        if len(mine) > 1:
            means = ([row[heading]["mean"] for row in mine.values() if heading in row] for heading in headings)
            table.add_row("", "mean", *(f"{sum(some) / len(some):+.2f}" if some else "" for some in means))
        table.add_section()
    console().print(table)


def _rows(summary: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float]]]:
    """By difference, then by heading: an estimate."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    first = next(iter(METRICS))
    for name, row in summary["differences"].items():
        mine = {heading: row[metric] for metric, heading in METRICS.items() if metric in row}
        for source, part in summary["by_source"].items():
            if first in part["differences"].get(name, {}):
                mine[f"{first}, {source.rpartition('/')[2]}"] = part["differences"][name][first]
        kl = summary["models"].get(name.partition(" over ")[0], {}).get("kl_to_sft")
        found[name] = mine | ({"KL to SFT, nats": kl} if kl else {})
    return found


def _cell(one: Mapping[str, float]) -> str:
    return f"{one['mean']:+.2f}\n[{one['low']:+.2f}, {one['high']:+.2f}]"
