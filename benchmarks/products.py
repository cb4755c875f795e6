"""Matrix products with frozen weights: torch's own way against oneDNN's, and how threads that wait should wait.

    python benchmarks/products.py --json FILE

The products are those of one forward of SmolLM2-135M's trunk in fp32 (30 layers of seven weights, no LoRA), x [rows, K]
times W' [K, N]: `onebase.model.lora` against torch's `linear`, which is MKL's. 16 rows are a decoding step, 2,048 a
micro-batch. Weights are as many as the model's, so that they come from memory and not from a cache. Both ways in turn,
each way of waiting in a process of its own; the median of all passes counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from processes import ROOT, machine

SHAPES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
LAYERS = 30
WAITS: dict[str, dict[str, str]] = {
    "asleep at once": {"OMP_WAIT_POLICY": "passive"},
    "1,000 spins (ours)": {"GOMP_SPINCOUNT": "1000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "torch's default": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256, 2048])
    parser.add_argument("--runs", type=int, default=5, help="passes of each, in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.rows, arguments.runs)))
        return
    waits = {name: in_a_process(arguments, wait) for name, wait in WAITS.items()}
    result = {"machine": machine(arguments.threads), "milliseconds": waits}
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def in_a_process(arguments: argparse.Namespace, wait: dict[str, str]) -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**kept, **wait, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--one", "--runs", str(arguments.runs), "--rows", *map(str, arguments.rows)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(rows: list[int], runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a pass over all weights: rows -> way -> median."""
    import torch

    from onebase.model.lora import product

    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for _ in range(LAYERS) for shape in SHAPES]
    ways = {"torch": torch.nn.functional.linear, "ours": product}
    seconds: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for count in rows:
            inputs = {width: torch.randn(count, width, generator=generator) for width in (576, 1536)}
            times: dict[str, list[float]] = {name: [] for name in ways}
            for run in range(runs + 1):
                for name, way in ways.items():
                    start = time.perf_counter()
                    for weight in weights:
                        way(inputs[weight.shape[1]], weight)
                    if run:  # the first warms up
                        times[name].append(1000 * (time.perf_counter() - start))
            seconds[str(count)] = {name: statistics.median(durations) for name, durations in times.items()}
    return seconds


def show(result: dict[str, Any]) -> None:
    print(f"load {result['machine']['load']:.1f}; milliseconds of a pass: torch's, ours, ratio\n")
    rows = list(next(iter(result["milliseconds"].values())))
    print(f"| threads that wait | {' | '.join(f'{count} rows' for count in rows)} |\n|---|{'---|' * len(rows)}")
    for name, by_rows in result["milliseconds"].items():
        cells = [f"{row['torch']:.1f}, {row['ours']:.1f}, {row['torch'] / row['ours']:.2f}" for row in by_rows.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
