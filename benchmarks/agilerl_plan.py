"""What `ppo_vs_agilerl.py` runs: every process, its settings and how long it may take, before the first one starts."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

RATES = (3e-5, 1e-4, 3e-4)
"""Of both sides in the probes, for policy and value function alike."""
SEEDS = (0, 1, 2)
PROBES = {"constant": "a constant word", "asked": "the prompt's longest word"}
"""Functions of `word_rewards.py`, and what they pay for."""
PEERS: dict[str, dict[str, Any]] = {
    "16 at once": {"micro": 16},
    "8 at once": {"micro": 8},
    "4 at once": {"micro": 4},
    "8 at once, actor and critic apart": {"micro": 8, "fused": False},
}
"""Where the peer may be fastest, all with batched rollouts; tried in fp32."""
AS_IT_COMES = {"batched": False, "checkpointing": True}
"""Rollouts of one prompt at a time, and activation checkpointing, which is its default."""
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
        said = json.dumps([self.side, self.task, dict(self.settings), model, threads], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


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


FULL = Sizes(3, 3, 16, 64, tuple(PROBES), RATES, SEEDS, 20.0, 6.0)
QUICK = Sizes(1, 2, 4, 16, ("constant",), (3e-4,), (0,), 2.0, 0.5)
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
    named = {name: settings | own for name, own in PEERS.items()}
    named["NF4, repacked as it comes"] = settings | {"quantization": "nf4", "repacked": True}
    return {name: Run(f"AgileRL, {name}", "peer", "train", own, sizes.speed_minutes) for name, own in named.items()}


def rows(sizes: Sizes, fastest: Mapping[str, Any]) -> dict[str, list[Run]]:
    """The sides of each row of the comparison, in the order in which a round runs them; the first is the peer that
    ours is measured against."""
    found = {}
    for quantization in ("fp32", "nf4"):
        settings = common(sizes) | {"quantization": quantization}
        short = settings | {"steps": 2}

        def ours(name: str, own: Mapping[str, Any], settings: dict[str, Any] = settings) -> Run:
            return Run(name, "ours", "ours", {**settings, **own}, sizes.speed_minutes)

        def peer(name: str, own: Mapping[str, Any], settings: dict[str, Any] = settings) -> Run:
            return Run(name, "peer", "train", {**settings, **own}, sizes.speed_minutes)

        found[f"{quantization}, fastest"] = [
            peer("AgileRL, batched rollouts", fastest),
            ours("ours, value adapter", {}),
            peer("AgileRL, as it comes", {**fastest, **AS_IT_COMES}, short),
            ours("ours, shared value", {"value": "shared"}),
        ]
        found[f"{quantization}, smallest"] = [
            peer("AgileRL, smallest", PEER_SMALLEST, short),
            ours("ours, value adapter, smallest", OURS_SMALLEST, short),
            ours("ours, shared value, smallest", {**OURS_SMALLEST, "value": "shared"}, short),
        ]
    return found


def round_of(sides: Sequence[Run], number: int) -> list[Run]:
    """The sides of a row once more."""
    return [replace(run, settings={**run.settings, "round": number}) for run in sides]


def probes(sizes: Sizes, fastest: Mapping[str, Any]) -> list[Run]:
    """Runs that learn until the score is there, every seed through all else before the next one begins."""
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
    found = []
    for seed in sizes.seeds:
        for probe in sizes.probes:
            for rate in sizes.rates:
                own = {**learning, "function": probe, "rate": rate, "seed": seed}
                settings = {**common(sizes), **fastest, **own}
                minutes = sizes.probe_minutes + LOADING
                found.append(Run(f"ours, {probe}, {rate:g}, seed {seed}", "ours", "learn", settings, minutes))
                found.append(Run(f"AgileRL, {probe}, {rate:g}, seed {seed}", "peer", "learn", settings, minutes))
    return found


def minutes_at_most(runs: Iterable[Run]) -> float:
    return sum(run.minutes for run in runs)
