"""One process of `reward_vs_trl.py`: train a reward model on some rankings, ours or TRL's, and say what it took.

Both sides get the same token ids, LoRA (rank 16 on all linear layers, fp32), optimiser (AdamW, constant learning rate)
and number of prompts an optimiser step. Ours is the reward stage's own `train`. The peer gets every pair that is no tie
as a row of `chosen_ids` and `rejected_ids`, which is what its trainer takes.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reward_data

RANK, ALPHA = 16, 32
PER_STEP = 4
"""Prompts an optimiser step."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["ours", "trl", "data"])
    parser.add_argument("--settings", type=json.loads, required=True)
    arguments = parser.parse_args()
    from onebase.cli.command import quieten

    quieten()
    # Whatever libraries print goes to stderr: stdout is the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = SIDES[arguments.side](arguments.settings)
    print(json.dumps(result))


def describe(settings: dict[str, Any]) -> dict[str, Any]:
    """How many rankings there are and how long: nothing is trained."""
    from onebase.sequences.tree import pack_size

    rankings = reward_data.read_rankings(settings)
    return {
        "rankings": len(rankings),
        "responses": sum(len(ranking.responses_ids) for ranking in rankings),
        "pairs": sum(len(ranking.ranking.pairs) for ranking in rankings),
        "prompt_tokens": [len(ranking.prompt_ids) for ranking in rankings],
        "shared_tokens": [pack_size(ranking.sequences) for ranking in rankings],
        "pair_tokens": [
            sum(len(ranking.sequences[index]) for pair in ranking.ranking.pairs for index in pair)
            for ranking in rankings
        ],
    }


def train_ours(settings: dict[str, Any]) -> dict[str, Any]:
    import torch

    from onebase.inference.scoring import score
    from onebase.memory import Budget
    from onebase.model import base as bases
    from onebase.model.roles import Roles
    from onebase.recipe.sections import AdapterSection
    from onebase.run import stages
    from onebase.run.learning import state_bytes
    from onebase.seeding import generator, seed_everything
    from reward.recipe import RewardRecipe
    from reward.train import train

    rankings = reward_data.read_rankings(settings)
    with tempfile.TemporaryDirectory(prefix="reward-vs-trl-") as folder:
        recipe = RewardRecipe.model_validate(
            {
                "base": reward_data.base_section(settings),
                "parents": {"sft": "none"},
                "data": [{"source": "builtin:tasks"}],
                "evaluation": {
                    "rankings": [{"source": "builtin:tasks"}],
                    "demonstrations": [{"source": "builtin:tasks"}],
                },
                "train": {
                    "learning_rate": settings["learning_rate"],
                    "rankings_per_step": PER_STEP,
                    "tokens_per_microbatch": settings["tokens"],
                    "activation_checkpointing": settings["checkpointing"],
                },
                "track": {"wandb": "off"},
                "checkpoint": {"every_minutes": 1e6},
                "seed": settings["seed"],
                "out": str(Path(folder) / "reward"),
            }
        )
        seed_everything(recipe.seed)
        roles = Roles(bases.load(recipe.base, recipe.chat))
        roles.add("reward", AdapterSection(rank=RANK, alpha=ALPHA), generator=generator(recipe.seed, "adapter"))
        head = roles.add_head("reward")
        drawn = torch.randn(head.weight.shape, generator=generator(recipe.seed, "head"))
        head.weight.data.copy_(drawn / (len(drawn) + 1) ** 0.5)
        roles.train("reward")
        if recipe.train.activation_checkpointing:
            roles.forwards.enable_checkpointing()
        size = state_bytes(roles, ["reward"])
        budget = Budget(tokens=settings["tokens"])
        origin = stages.Origin(stage="reward", recipe=recipe, base=roles.base)
        session = stages.open_session(origin, state_bytes=size, budget=budget)
        with session:
            start = time.perf_counter()
            train(roles, rankings, recipe, session)
            seconds = time.perf_counter() - start
        losses = logged_losses(recipe.out / "metrics.jsonl")

    def scores(sequences: list[tuple[int, ...]]) -> list[float]:
        return score(roles, "reward", sequences, tokens_per_microbatch=settings["tokens"]).tolist()

    return {**resources(seconds, len(rankings)), "loss": losses, **held_out_accuracies(settings, scores)}


def train_trl(settings: dict[str, Any]) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from onebase.model import base as bases

    rankings = reward_data.read_rankings(settings)
    section, chat = reward_data.sections(settings)
    tokenizer, _ = bases.load_tokenizer(section, chat)
    model = AutoModelForSequenceClassification.from_pretrained(
        bases.resolve(section.model, None),
        num_labels=1,
        dtype=torch.float32,
        attn_implementation="sdpa",
        trust_remote_code=False,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = [
        {"chosen_ids": list(ranking.sequences[better]), "rejected_ids": list(ranking.sequences[worse])}
        for ranking in rankings
        for better, worse in ranking.ranking.pairs
    ]
    per_step = max(1, round(PER_STEP * len(rows) / len(rankings)))
    batch = settings["batch"]
    with tempfile.TemporaryDirectory(prefix="reward-vs-trl-") as folder:
        config = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=max(1, round(per_step / batch)),
            num_train_epochs=1,
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_length=None,
            bf16=False,
            use_cpu=True,
            # TRL turns it on unless told otherwise.
            gradient_checkpointing=settings["checkpointing"],
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            seed=settings["seed"],
        )
        trainer = RewardTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="SEQ_CLS"),
        )
        kept = len(trainer.train_dataset)  # type: ignore[arg-type]  # a Dataset, as given
        if kept != len(rows):
            raise RuntimeError(f"TRL kept {kept} of {len(rows)} pairs: the comparison would not be fair")
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]

    def scores(sequences: list[tuple[int, ...]]) -> list[float]:
        """One at a time: no padding that its model would have to find the end in front of."""
        trained = trainer.model.eval()  # type: ignore[union-attr]  # it has been trained
        with torch.no_grad():
            return [float(trained(input_ids=torch.tensor([sequence])).logits[0, 0]) for sequence in sequences]

    return {**resources(seconds, len(rankings)), "loss": losses, **held_out_accuracies(settings, scores)}


def held_out_accuracies(
    settings: dict[str, Any], scores: Callable[[list[tuple[int, ...]]], list[float]]
) -> dict[str, Any]:
    """The share of pairs ranked right in each held-out ranking, where some are asked for. Equal scores count half."""
    if "held_out" not in settings:
        return {}
    accuracies = []
    for ranking in reward_data.read_held_out(settings):
        scored = scores(list(ranking.sequences))
        margins = [scored[better] - scored[worse] for better, worse in ranking.ranking.pairs]
        accuracies.append(statistics.fmean(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins))
    return {"accuracies": accuracies}


SIDES = {"ours": train_ours, "trl": train_trl, "data": describe}


def resources(seconds: float, rankings: int) -> dict[str, Any]:
    from onebase.tracking.usage import peak_rss_bytes

    return {
        "seconds": seconds,
        "seconds_per_prompt": seconds / rankings,
        "peak_rss_bytes": peak_rss_bytes(),
        "load": os.getloadavg()[0],
    }


def logged_losses(path: Path) -> list[float]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["reward/loss"] for row in rows if "reward/loss" in row]


if __name__ == "__main__":
    main()
