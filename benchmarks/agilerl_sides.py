"""One process of `ppo_vs_agilerl.py` in AgileRL's environment: a PPO run of it, and what it took."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import agilerl_facts
from agilerl_peer import Peer
from step_marks import Goal, Marks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=sorted(SIDES))
    parser.add_argument("--settings", type=json.loads, required=True)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    # Whatever libraries print goes to stderr: stdout is the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = SIDES[arguments.side](arguments.settings)
    print(json.dumps(result | {"load": [load, os.getloadavg()[0]]}))


def versions(settings: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    return {"versions": {name: version(name) for name in settings["names"]}}


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """A few steps against the clock."""
    peer, marks = Peer(settings), Marks()
    for step in peer.steps(settings["steps"]):
        marks.add({name: value for name, value in step.items() if name != "seconds"})
    return marks.measured(settings["batch"])


def learn(settings: dict[str, Any]) -> dict[str, Any]:
    """Train until the score is there, or the run's time or steps are used up. Measuring the KL costs no time here."""
    peer, goal = Peer(settings), Goal(settings)
    for step in peer.steps(settings["steps"], with_kl=True):
        goal.add(**{name: step[name] for name in ("score", "kl", "response_length", "seconds")})
        if goal.is_over:
            break
    return goal.result()


SIDES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "versions": versions,
    "train": train,
    "learn": learn,
    "facts": agilerl_facts.check,
    "start": agilerl_facts.start,
}


if __name__ == "__main__":
    main()
