"""What the runs of `ppo_vs_agilerl.py` amount to: a home of figures (`homes.py`), with tables for the docs."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agilerl_plan import SIDES, Run
from homes import Home, Table
from homes import Run as Provenance

GIB = 2**30
SPEED = {
    "s per episode:": "seconds|.2f",
    "CPU s:": "cpu|.2f",
    "tokens per response:": "length|.1f",
    "tokens/s:": "tokens|.1f",
    "peak memory, GiB:": "GiB|.2f",
    "load:": "load|.1f",
    "episodes/s to AgileRL (range):": "episodes ratio|.2f",
    "memory to AgileRL (range):": "memory ratio|.2f",
}
LEARNING = {
    "seeds that reached it:": "reached",
    "seconds:": "seconds|.0f",
    "episodes:": "episodes|.0f",
    "KL, nats:": "kl|.2f",
    "score at the end:": "score|.2f",
    "tokens per response, first and last:": "lengths|.1f",
    "load:": "load|.1f",
}
TABLES = {
    "tried": Table(rows=["tried/*"], columns={"AgileRL at": "@1", **SPEED}),
    "speed": Table(rows=["speed/*/*"], columns={"row": "@1", "side": "@2", **SPEED}),
    "rates": Table(
        rows=["rates/*/*/*"], columns={"pays for": "@1", "side": "@2", "rate, chosen on another seed": "@3", **LEARNING}
    ),
    "probes": Table(rows=["probes/*/*"], columns={"pays for": "@1", "side": "@2", "rate": "rate", **LEARNING}),
}


def home(
    command: str,
    commits: Sequence[str],
    machine: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, str]],
    values: Mapping[str, Any],
) -> Home:
    """values: `tried`, `speed`, `rates` and `probes`, as far as they have been measured."""
    place = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB"
    runs = [Provenance(seeds=[], commit=commit, machine=place) for commit in commits]
    tables = {name: table for name, table in TABLES.items() if values.get(name)}
    return Home(command=[command], runs=runs, values={**values, "versions": versions}, tables=tables)


def speed(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the runs of one side; memory and load are their largest."""
    medians = {
        "seconds": "seconds_per_episode",
        "cpu": "cpu_seconds_per_episode",
        "tokens": "tokens_per_second",
        "length": "response_length",
    }
    return {
        **{name: statistics.median(run[key] for run in runs) for name, key in medians.items()},
        "GiB": max(run["peak_rss_bytes"] for run in runs) / GIB,
        "load": max(max(run["load"]) for run in runs),
    }


def compare(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Of each side of a row: what its runs took, and its ratios to the row's first side, taken within a round."""
    against, *others = rounds[0]
    sides = {name: speed([runs[name] for runs in rounds]) for name in rounds[0]}
    for name in others:
        for ratio, key in (("episodes ratio", "episodes_per_second"), ("memory ratio", "peak_rss_bytes")):
            sides[name][ratio] = spread(runs[name][key] / runs[against][key] for runs in rounds)
    return sides


def spread(values: Iterable[float]) -> dict[str, float]:
    numbers = list(values)
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}


def learning(runs: Sequence[tuple[Run, Mapping[str, Any]]]) -> dict[str, Any]:
    """Of one side in one probe: medians and ranges over the seeds that reached the score; over all if none did."""
    results = [result for _, result in runs]
    there = [result for result in results if result["reached"]]
    lengths = [
        statistics.median(result[name] for result in there or results)
        for name in ("first_response_length", "response_length")
    ]
    return {
        "rate": f"{runs[0][0].settings['rate']:g}",
        "reached": f"{len(there)} of {len(results)}",
        **{
            name: spread(result[name] for result in there or results) for name in ("seconds", "episodes", "kl", "score")
        },
        "lengths": lengths,
        "load": max(max(result["load"]) for result in results),
    }


def rates(tuned: Sequence[tuple[Run, Mapping[str, Any]]]) -> dict[str, Any]:
    """Probe -> side -> rate -> what it came to."""
    values: dict[str, Any] = {}
    for run, result in tuned:
        sides = values.setdefault(run.settings["function"], {})
        sides.setdefault(SIDES[run.side], {})[f"{run.settings['rate']:g}"] = learning([(run, result)])
    return values


def probes(runs: Sequence[tuple[Run, Mapping[str, Any]]]) -> dict[str, Any]:
    """Probe -> side -> what its seeds came to."""
    places: dict[str, dict[str, list[tuple[Run, Mapping[str, Any]]]]] = {}
    for run, result in runs:
        places.setdefault(run.settings["function"], {}).setdefault(SIDES[run.side], []).append((run, result))
    return {probe: {side: learning(seeds) for side, seeds in sides.items()} for probe, sides in places.items()}
