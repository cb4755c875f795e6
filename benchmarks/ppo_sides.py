"""One process of `ppo_vs_trl.py`, `ppo_vs_agilerl.py` or `scaling.py`: a PPO run, ours or TRL's, and what it took.

Both sides get the same prompts as the same tokens, base, LoRA, reward function, batch, learning rate and number of
optimiser steps, and no penalty for unfinished responses. The first step is not counted: it warms up. What a step took
runs from the moment the step before was logged to the moment it was logged itself.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ppo_workload
from ppo_workload import RANK, model_of, read_ids, stages_of
from processes import PPO_PEER
from step_marks import Goal, Marks

RATE = 1e-5


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
    asked = ("sft", "reward") if any(term["kind"] == "adapter" for term in terms) else ("sft",)
    return {
        "base": {"model": model_of(settings), "quantization": settings.get("quantization", "fp32")},
        "parents": {stage: str(stages / stage) for stage in asked},
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
            "inner_epochs": settings["inner_epochs"],
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
    from onebase.tracking.tracker import peak_rss_bytes
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


# --- the peer


def train_trl(settings: dict[str, Any]) -> dict[str, Any]:
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.experimental import ppo as peer  # pyright: ignore[reportAttributeAccessIssue]  # 1.12 has it

    from onebase.model import base as bases
    from onebase.recipe.recipes import BaseSection, ChatSection

    if trl.__version__ != PPO_PEER:
        raise RuntimeError(f"the peer should be trl {PPO_PEER}, found {trl.__version__}")
    torch.manual_seed(0)
    tokenizer, stops = bases.load_tokenizer(BaseSection(model=model_of(settings)), ChatSection())
    tokenizer.padding_side = "left"
    prompts = [ids for ids in read_ids(Path(settings["prompts"]), settings)]
    rows = [{"input_ids": ids} for ids in prompts for _ in range(settings["responses_per_prompt"])]
    folder = bases.resolve(model_of(settings), None)
    policy = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )
    lora = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear"}
    reward, value = scorer(settings, folder), scorer(settings, folder)
    reward.requires_grad_(False)
    if settings["value"] == "adapter":
        # The trainer reads the trunk by its name, which a PeftModel would hide; the adapter itself is PEFT's.
        value.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(**{**lora, "target_modules": linears(value)}), value)
        value.get_submodule("score").requires_grad_(True)
    marks, parts = Marks(), Parts()

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if logs and "objective/kl" in logs:
                marks.add({"score": logs["objective/scores"], "kl": logs["objective/kl"], **parts.taken()})

    batch = settings["batch"]
    micro = min(settings["micro"], batch)
    with tempfile.TemporaryDirectory(prefix="ppo-vs-trl-") as out:
        config = peer.PPOConfig(
            output_dir=out,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=batch // micro,
            num_mini_batches=1,
            num_ppo_epochs=settings["inner_epochs"],
            total_episodes=batch * settings["steps"],
            local_rollout_forward_batch_size=settings["decoded"],
            response_length=settings["response_tokens"],
            stop_token_id=sorted(stops)[0],
            temperature=1.0,
            missing_eos_penalty=None,
            kl_coef=0.05,
            vf_coef=0.5,
            learning_rate=RATE,
            adam_epsilon=1e-5,
            lr_scheduler_type="constant",
            num_sample_generations=0,
            gradient_checkpointing=settings["checkpointing"],
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=0,
        )
        trainer = peer.PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:1]),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
            callbacks=[Steps()],
        )
        if settings["checkpointing"]:
            # Its own train() never switches it on.
            for model in (policy, value):
                model.gradient_checkpointing_enable({"use_reentrant": False})
        parts.watch(peer.ppo_trainer, sorted(stops))
        trainer.train()
    return marks.measured(batch)


def scorer(settings: dict[str, Any], folder: Path) -> Any:
    """The base with the head of our reward stage."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )
    head = load_file(stages_of(settings) / "reward" / "adapter" / "head.safetensors")
    model.score.weight.data.copy_(head["weight"].unsqueeze(0))
    return model


def linears(model: Any) -> list[str]:
    """The names of the linear layers but the head: what `all-linear` is for a causal model."""
    import torch

    names = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(names - {"score"})


class Parts:
    """Where the peer's time goes, and how long its responses are: its functions with a clock around them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.lengths: list[int] = []
        self._started = time.perf_counter()

    def taken(self) -> dict[str, float]:
        now = time.perf_counter()
        found = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        found["time/training_and_rest"] = now - self._started - sum(self.seconds.values())
        found["response_length"] = statistics.fmean(self.lengths)
        self.seconds, self.lengths, self._started = {}, [], now
        return found

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def watch(self, module: Any, stops: list[int]) -> None:
        """Put clocks into the trainer's module, and let it stop at each of `stops`: by itself it knows one."""
        import torch

        generate, forward, reward = module.batch_generation, module.forward, module.get_reward
        stop_ids = torch.tensor(stops)

        def batch_generation(model: Any, queries: Any, batch: int, pad: int, generation: Any) -> Any:
            generation.eos_token_id = stops
            with self.timed("rollout"):
                found = generate(model, queries, batch, pad, generation)
            for row in torch.isin(found[0][:, queries.shape[1] :], stop_ids):
                places = row.nonzero().flatten().tolist()
                self.lengths.append(places[0] + 1 if places else len(row))
            return found

        def truncate_response(stop_id: int, pad: int, responses: Any) -> Any:
            seen = torch.isin(responses, stop_ids).long().cumsum(dim=1)
            behind = torch.nn.functional.pad(seen, (1, 0))[:, :-1] > 0
            return responses.masked_fill(behind, pad)

        def scored(*given: Any) -> Any:
            with self.timed("reward_and_value"):
                return reward(*given)

        def forwarded(*given: Any) -> Any:
            if torch.is_grad_enabled():
                return forward(*given)
            with self.timed("reference"):
                return forward(*given)

        module.batch_generation, module.truncate_response = batch_generation, truncate_response
        module.get_reward, module.forward = scored, forwarded


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
