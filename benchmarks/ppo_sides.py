"""One process of `ppo_vs_trl.py`, `ppo_vs_agilerl.py` or `scaling.py`: a PPO run, ours or TRL's, and what it took.

Both sides get the same prompts as the same tokens, base, LoRA, reward function, batch, learning rate and number of
optimiser steps, and no penalty for unfinished responses. The first step is not counted: it warms up. What a step took
runs from the moment the step before was logged to the moment it was logged itself.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ppo_workload
from ppo_trl_side import RATE, train_trl
from ppo_workload import model_of, stages_of
from step_marks import Goal, Marks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=sorted(SIDES))
    parser.add_argument("--settings", type=json.loads, required=True)
    arguments = parser.parse_args()
    from onebase.cli.command import quieten

    quieten()
    load = os.getloadavg()[0]
    # Whatever libraries print goes to stderr: stdout is the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = SIDES[arguments.side](arguments.settings)
    print(json.dumps(result | {"load": [load, os.getloadavg()[0]]}))


# --- ours


def train_ours(settings: dict[str, Any]) -> dict[str, Any]:
    marks = Marks()
    run_ours(settings, marks.add)
    return marks.measured(settings["batch"])


def learn_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Train until the score is there, or the run's time or episodes are used up."""
    goal = Goal(settings)

    def add(values: dict[str, float]) -> None:
        goal.add(seconds=values["time/step"], **{name: values[name] for name in STEP_NAMES.values()})
        if goal.is_over:
            raise _Enough

    with contextlib.suppress(_Enough):
        run_ours(settings, add)
    return goal.result()


class _Enough(Exception):
    """Nothing more is asked of this run."""


STEP_NAMES = {"ppo/score": "score", "ppo/kl": "kl", "ppo/response_length": "response_length"}


def run_ours(settings: dict[str, Any], add: Callable[[dict[str, float]], None]) -> None:
    """A run of our PPO; `add` gets what each step logged, in the moment it is logged."""
    from onebase.tracking.tracker import Tracker
    from ppo.recipe.recipe import PpoRecipe
    from ppo.train import run

    log = Tracker.log

    def mark(tracker: Any, step: int, values: Any) -> None:
        log(tracker, step, values)
        if "ppo/score" in values:
            timed = {
                name.removeprefix("ppo/"): float(value) for name, value in values.items() if name.startswith("ppo/time")
            }
            add({name: float(values[key]) for key, name in STEP_NAMES.items()} | timed)

    Tracker.log = mark  # type: ignore[method-assign]  # metrics.jsonl has no CPU time
    try:
        with tempfile.TemporaryDirectory(prefix="ppo-side-") as folder:
            run(PpoRecipe.model_validate(our_recipe(settings, Path(folder) / "ppo")))
    finally:
        Tracker.log = log  # type: ignore[method-assign]  # as it was


def our_recipe(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    stages, batch, terms = stages_of(settings), settings["batch"], reward_terms(settings)
    parents = ("sft", "reward") if any(term["kind"] == "adapter" for term in terms) else ("sft",)
    return {
        "base": {"model": model_of(settings), "quantization": settings.get("quantization", "fp32")},
        "parents": {stage: str(stages / stage) for stage in parents},
        "data": [{"source": settings["prompts"]}],
        "limits": {"prompt_tokens": settings["prompt_tokens"]},
        "sampling": {
            "max_new_tokens": settings["response_tokens"],
            "responses_per_prompt": settings["responses_per_prompt"],
            "batch": settings["decoded"],
        },
        "reward": {"terms": terms, "eos_penalty": 0.0},
        "value": {"kind": settings["value"]},
        "train": {
            "learning_rate": settings.get("rate", RATE),
            "episodes": batch * settings["steps"],
            "batch": batch,
            "minibatch": batch,
            "epochs": settings["epochs"],
            "tokens_per_microbatch": settings["tokens"],
            "activation_checkpointing": settings["checkpointing"],
        },
        "track": {"wandb": "off"},
        "checkpoint": {"every_minutes": 1e6},
        "seed": settings.get("seed", 0),
        "out": str(out),
    }


def reward_terms(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The reward model, or one of `word_rewards.py`."""
    if "function" not in settings:
        return [{"kind": "adapter"}]
    return [{"kind": "function", "function": f"word_rewards:{settings['function']}"}]


def train_sft(settings: dict[str, Any]) -> dict[str, Any]:
    """Our SFT stage in micro-batches of as many tokens: what a plain fine-tune on this base takes."""
    from onebase.tracking.usage import peak_rss_bytes
    from sft.recipe import SftRecipe
    from sft.train import run

    row = settings["prompt_tokens"] + settings["response_tokens"]
    rows = settings["tokens"] // row
    limits = {"prompt_tokens": settings["prompt_tokens"], "response_tokens": settings["response_tokens"]}
    with tempfile.TemporaryDirectory(prefix="ppo-vs-trl-") as folder:
        recipe = {
            "base": {"model": model_of(settings), "quantization": settings.get("quantization", "fp32")},
            "data": [{"source": "builtin:tasks", "split": "sft", "rows": 16 * rows}],
            "evaluation": {"demonstrations": [{"source": "builtin:tasks", "split": "heldout", "rows": 2 * rows}]},
            "limits": {**limits, "over": "drop"},
            "trl": {"per_device_train_batch_size": rows, "per_device_eval_batch_size": rows, "max_length": row},
            "track": {"wandb": "off"},
            "checkpoint": {"every_minutes": 1e6},
            "out": str(Path(folder) / "sft"),
        }
        run(SftRecipe.model_validate(recipe))
    return {"peak_rss_bytes": peak_rss_bytes(), "rows": rows, "row_tokens": row}


SIDES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "prompts": ppo_workload.write_prompts,
    "shared": ppo_workload.write_shared,
    "exact": ppo_workload.write_exact,
    "prepare": ppo_workload.prepare,
    "ours": train_ours,
    "learn": learn_ours,
    "sft": train_sft,
    "trl": train_trl,
}


if __name__ == "__main__":
    main()
