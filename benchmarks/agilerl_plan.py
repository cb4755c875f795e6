"""What `ppo_vs_agilerl.py` runs: every process, its settings and how long it may take, before the first one starts."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

RATES = (1e-4, 3e-4, 1e-3)
"""Of both sides in the probes, for policy and value function alike."""
TUNED_ON = 10
"""The seed on which each side's rate is chosen for each probe; it is none of those that are reported."""
SEEDS = (0, 1, 2)
PROBES = {"constant": "a constant word", "longest": "the prompt's longest word"}
"""Functions of `word_rewards.py`, and what they pay for."""
SIDES = {"ours": "ours", "peer": "AgileRL"}
PEERS: dict[str, dict[str, Any]] = {
    "16 at once": {"micro": 16},
    "8 at once": {"micro": 8},
    "4 at once": {"micro": 4},
    "8 at once, actor and critic apart": {"micro": 8, "fused": False},
}
"""Where the peer may be fastest, all with batched rollouts; tried in fp32."""
ONE_PROMPT = {"batched": False, "checkpointing": True}
"""Rollouts of one prompt at a time, and activation checkpointing, as it comes. The rest is not as it comes."""
PEER_SMALLEST = {"micro": 1, "batched": False, "checkpointing": True, "fused": False, "chunk_rows": 64}
OURS_SMALLEST = {"tokens": 128, "decoded": 1, "checkpointing": True}


@dataclass(frozen=True)
class Run:
    """One process."""

    name: str
    side: str
    """ours or peer."""
    task: str
    """What the side's script is asked for."""
    settings: Mapping[str, Any]
    minutes: float
    """What it takes at most where nothing else runs on two cores."""

    @property
    def seconds_at_most(self) -> float:
        """After so many it is ended: a busy machine may take three times as long, and no run takes over an hour."""
        return 60 * min(3 * self.minutes, 60)

    def key(self, model: str, threads: int) -> str:
        """Changes with whatever could change what is measured."""
        text = json.dumps([self.side, self.task, dict(self.settings), model, threads], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    rounds: int
    steps: int
    """Of a run against the clock; the first is not counted."""
    batch: int
    response_tokens: int
    probes: Sequence[str]
    rates: Sequence[float]
    seeds: Sequence[int]
    probe_minutes: float
    """Of a run that learns."""
    speed_minutes: float
    """Of a run against the clock."""


FULL = Sizes(3, 2, 8, 64, tuple(PROBES), RATES, SEEDS, 8.0, 3.0)
QUICK = Sizes(1, 2, 2, 16, ("constant",), (3e-4,), (0,), 1.0, 0.5)
"""Batches of 4 and probes of 2 minutes took 15 minutes on two cores with AVX-512; slower cores need smaller ones."""
LOADING = 2.0
"""Minutes before a run's first step and after its last one, at most."""


def common(sizes: Sizes) -> dict[str, Any]:
    """What both sides are told in a run against the clock."""
    return {
        "base": "plain",
        "function": "constant",
        "prompt_tokens": 64,
        "response_tokens": sizes.response_tokens,
        "responses_per_prompt": 1,
        "batch": sizes.batch,
        "steps": sizes.steps,
        "epochs": 1,
        "quantization": "fp32",
        "rate": 1e-5,
        "seed": 0,
        "checkpointing": False,
        # Ours.
        "value": "adapter",
        "decoded": sizes.batch,
        "tokens": 2048,
        # The peer's.
        "micro": 8,
        "batched": True,
        "fused": None,
        # Its gradients are right only then on some CPUs; what it does as it comes is run once, and in --facts.
        "repacked": False,
    }


def tries(sizes: Sizes) -> dict[str, Run]:
    """One short run of the peer at each setting in which it may be fastest, and in NF4 as it comes."""
    settings = common(sizes) | {"steps": 2}
    named = {name: settings | changes for name, changes in PEERS.items()}
    named["NF4, repacked as it comes"] = settings | {"quantization": "nf4", "repacked": True}
    return {
        name: Run(f"AgileRL, {name}", "peer", "train", changes, sizes.speed_minutes) for name, changes in named.items()
    }


def rows(sizes: Sizes, fastest: Mapping[str, Any]) -> dict[str, list[Run]]:
    """The sides of each row of the comparison, in the order in which a round runs them; the first is the peer that
    ours is measured against."""
    runs = {}
    for quantization in ("fp32", "nf4"):
        settings = common(sizes) | {"quantization": quantization}
        short = settings | {"steps": 2}

        def ours(name: str, changes: Mapping[str, Any], settings: dict[str, Any] = settings) -> Run:
            return Run(name, "ours", "ours", {**settings, **changes}, sizes.speed_minutes)

        def peer(name: str, changes: Mapping[str, Any], settings: dict[str, Any] = settings) -> Run:
            return Run(name, "peer", "train", {**settings, **changes}, sizes.speed_minutes)

        runs[f"{quantization}, fastest"] = [
            peer("AgileRL, batched rollouts", fastest),
            ours("ours, value adapter", {}),
            peer("AgileRL, one prompt at a time", {**fastest, **ONE_PROMPT}, short),
            ours("ours, shared value", {"value": "shared"}),
        ]
        runs[f"{quantization}, smallest"] = [
            peer("AgileRL, smallest", PEER_SMALLEST, short),
            ours("ours, value adapter, smallest", OURS_SMALLEST, short),
            ours("ours, shared value, smallest", {**OURS_SMALLEST, "value": "shared"}, short),
        ]
    return runs


def rounds_of(row: str, sides: Sequence[Run], sizes: Sizes) -> list[list[Run]]:
    """The sides of a row in turn, as often as its figure needs: seconds vary between rounds, peak memory does not."""
    rounds = 1 if row.endswith("smallest") else sizes.rounds
    return [[replace(run, settings={**run.settings, "round": number}) for run in sides] for number in range(rounds)]


def tuning(sizes: Sizes, fastest: Mapping[str, Any]) -> list[Run]:
    """Runs that choose a rate; none where there is one rate only."""
    if len(sizes.rates) == 1:
        return []
    return [
        run
        for probe in sizes.probes
        for rate in sizes.rates
        for run in probed(sizes, fastest, probe, TUNED_ON, {side: rate for side in SIDES})
    ]


def probes(sizes: Sizes, fastest: Mapping[str, Any], chosen: Mapping[str, Mapping[str, float]]) -> list[Run]:
    """Runs that learn until the score is there, at the rates that were chosen: probe -> side -> rate. Every seed goes
    through all else before the next one begins."""
    return [
        run
        for seed in sizes.seeds
        for probe in sizes.probes
        for run in probed(sizes, fastest, probe, seed, chosen.get(probe) or {side: sizes.rates[-1] for side in SIDES})
    ]


def chosen_rates(tuned: Iterable[tuple[Run, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Probe -> side -> the rate that got there soonest; where none did, the one with the best score at its end."""
    best: dict[tuple[str, str], tuple[Any, float]] = {}
    for run, outcome in tuned:
        place = (run.settings["function"], run.side)
        rank = (outcome["reached"], -outcome["seconds"] if outcome["reached"] else outcome["score"])
        if place not in best or rank > best[place][0]:
            best[place] = (rank, run.settings["rate"])
    rates: dict[str, dict[str, float]] = {}
    for (probe, side), (_, rate) in best.items():
        rates.setdefault(probe, {})[side] = rate
    return rates


def probed(
    sizes: Sizes, fastest: Mapping[str, Any], probe: str, seed: int, rates: Mapping[str, float]
) -> Iterable[Run]:
    """Both sides of one probe with one seed, each at its own rate."""
    learning = {
        "response_tokens": 24,
        "batch": 16,
        "decoded": 16,
        "value": "shared",
        "wanted_score": 0.8,
        "window": 64,
        "seconds_at_most": 60 * sizes.probe_minutes,
        "steps": 256,
    }
    for side, name in SIDES.items():
        probe_settings = {**learning, "function": probe, "rate": rates[side], "seed": seed}
        settings = {**common(sizes), **fastest, **probe_settings}
        title = f"{name}, {probe}, {rates[side]:g}, seed {seed}"
        yield Run(title, side, "learn", settings, sizes.probe_minutes + LOADING)


def minutes_at_most(runs: Iterable[Run]) -> float:
    return sum(run.minutes for run in runs)
