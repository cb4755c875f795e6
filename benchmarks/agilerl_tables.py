"""What the runs of `ppo_vs_agilerl.py` amount to, and the tables of docs/performance.md."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agilerl_plan import SIDES, Run

GIB = 2**30
KEPT = (
    "seconds_per_episode",
    "episodes_per_second",
    "cpu_seconds_per_episode",
    "tokens_per_second",
    "response_length",
    "score",
    "peak_rss_bytes",
    "load",
)
LEARNT = (
    "reached",
    "seconds",
    "episodes",
    "kl",
    "score",
    "first_score",
    "response_length",
    "first_response_length",
    "load",
)


def compare(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Of each side of a row: its runs, and its ratio to the row's first side, taken within a round."""
    against, *_ = rounds[0]
    return {
        name: {
            "runs": [{key: one[name][key] for key in KEPT} for one in rounds],
            "episodes_ratio": spread(
                one[name]["episodes_per_second"] / one[against]["episodes_per_second"] for one in rounds
            ),
            "memory_ratio": spread(one[name]["peak_rss_bytes"] / one[against]["peak_rss_bytes"] for one in rounds),
        }
        for name in rounds[0]
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def group(probes: Iterable[tuple[Run, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Runs of one probe, rate and side together. probes: each run with what it found."""
    rows: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for run, found in probes:
        place = (run.settings["function"], run.settings["rate"], SIDES[run.side])
        rows.setdefault(place, []).append({"seed": run.settings["seed"]} | {key: found[key] for key in LEARNT})
    return [
        {"probe": probe, "rate": rate, "side": side, "runs": runs} for (probe, rate, side), runs in sorted(rows.items())
    ]


def show(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    versions = (
        f"{side}: {', '.join(f'{name} {one}' for name, one in found.items())}"
        for side, found in result["versions"].items()
    )
    where = f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB"
    lines = [f"Commit {', '.join(result['commits'])}, {where}. {'; '.join(versions)}."]
    if result.get("tried"):
        lines += ["", "| AgileRL at | s an episode | peak memory | load |", "|---|---:|---:|---:|"]
        for name, one in result["tried"].items():
            lines.append(f"| {name} | {one['seconds_per_episode']:.2f} | {_gib(one)} | {max(one['load']):.1f} |")
    if result.get("rows"):
        columns = ("s an episode", "CPU s", "tokens/s", "tokens a response", "peak memory", "load")
        columns = (*columns, "episodes/s to AgileRL (range)", "memory to AgileRL (range)")
        lines += ["", f"| row | side | {' | '.join(columns)} |", "|---|---" + "|---:" * len(columns) + "|"]
    for name, sides in result.get("rows", {}).items():
        for side, found in sides.items():
            ratios = f"{_range(found['episodes_ratio'])} | {_range(found['memory_ratio'])}"
            lines.append(f"| {name} | {side} | {' | '.join(_cells(found['runs']))} | {ratios} |")
    for title, name in (("Rates, chosen on another seed", "tuning"), ("Probes", "probes")):
        if result.get(name):
            lines += ["", f"{title}:", *_learning(result[name])]
    return "\n".join(lines)


def _learning(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    columns = ("seeds that reached it", "seconds", "episodes", "KL, nats", "tokens a response, first and last", "load")
    yield ""
    yield f"| pays for | rate | side | {' | '.join(columns)} |"
    yield "|---|---:|---" + "|---:" * len(columns) + "|"
    for row in rows:
        yield f"| {row['probe']} | {row['rate']:g} | {row['side']} | {' | '.join(_learnt(row['runs']))} |"


def _cells(runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    digits = {"seconds_per_episode": 2, "cpu_seconds_per_episode": 2, "tokens_per_second": 1, "response_length": 1}
    for name, places in digits.items():
        yield f"{statistics.median(one[name] for one in runs):.{places}f}"
    yield _gib(max(runs, key=lambda one: one["peak_rss_bytes"]))
    yield f"{max(max(one['load']) for one in runs):.1f}"


def _learnt(runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Medians with range over the seeds that reached it; without one the best score that was seen at an end."""
    there = [one for one in runs if one["reached"]]
    yield f"{len(there)} of {len(runs)}"
    if not there:
        yield f"not in {max(one['seconds'] for one in runs):.0f}"
        yield f"{max(one['episodes'] for one in runs)}, score {max(one['score'] for one in runs):.2f}"
    else:
        yield _range(spread(one["seconds"] for one in there), 0)
        yield _range(spread(one["episodes"] for one in there), 0)
    yield _range(spread(one["kl"] for one in there or runs))
    lengths = (
        statistics.median(one[name] for one in there or runs) for name in ("first_response_length", "response_length")
    )
    yield ", ".join(f"{length:.1f}" for length in lengths)
    yield f"{max(max(one['load']) for one in runs):.1f}"


def _range(ratio: Mapping[str, float], places: int = 2) -> str:
    return f"{ratio['median']:.{places}f} ({ratio['low']:.{places}f} to {ratio['high']:.{places}f})"


def _gib(one: Mapping[str, Any]) -> str:
    return f"{one['peak_rss_bytes'] / GIB:.2f} GiB"
