"""One process of `reward_vs_trl.py`: train a reward model on some rankings, ours or TRL's, and say what it took.

Both sides get the same token ids, LoRA (rank 16 on all linear layers, fp32), optimiser (AdamW, constant learning rate)
and number of prompts an optimiser step. Ours is the reward stage's own `train`. The peer gets every pair that is no tie
as a row of `chosen_ids` and `rejected_ids`, which is what its trainer takes.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32
PER_STEP = 4
"""Prompts an optimiser step."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["ours", "trl", "data"])
    parser.add_argument("--settings", type=json.loads, required=True)
    given = parser.parse_args()
    from onebase.command import quieten

    quieten()
    # Whatever libraries print goes to stderr: stdout is the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = SIDES[given.side](given.settings)
    print(json.dumps(result))


def describe(settings: dict[str, Any]) -> dict[str, Any]:
    """How many rankings there are and how long: nothing is trained."""
    from onebase.tree import pack_size

    rankings = read_rankings(settings)
    return {
        "rankings": len(rankings),
        "responses": sum(len(one.responses_ids) for one in rankings),
        "pairs": sum(len(one.ranking.pairs) for one in rankings),
        "prompt_tokens": [len(one.prompt_ids) for one in rankings],
        "shared_tokens": [pack_size(one.sequences) for one in rankings],
        "pair_tokens": [
            sum(len(one.sequences[index]) for pair in one.ranking.pairs for index in pair) for one in rankings
        ],
    }


def train_ours(settings: dict[str, Any]) -> dict[str, Any]:
    import torch

    from onebase import base as bases
    from onebase import stages
    from onebase.learning import state_bytes
    from onebase.recipes import AdapterSection
    from onebase.roles import Roles
    from onebase.seeding import generator, seed_everything
    from reward.recipe import RewardRecipe
    from reward.train import train

    rankings = read_rankings(settings)
    with tempfile.TemporaryDirectory(prefix="reward-vs-trl-") as folder:
        recipe = RewardRecipe.model_validate(
            {
                "base": base_section(settings),
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
            roles.enable_checkpointing()
        size = state_bytes(roles, ["reward"])
        session = stages.open_session(recipe, "reward", recipe, parents={}, data=[], state_bytes=size)
        with session:
            start = time.perf_counter()
            train(roles, rankings, recipe, session)
            seconds = time.perf_counter() - start
        losses = logged_losses(recipe.out / "metrics.jsonl")
    return {**resources(seconds, len(rankings)), "loss": losses}


def train_trl(settings: dict[str, Any]) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from onebase import base as bases

    rankings = read_rankings(settings)
    section, chat = sections(settings)
    tokenizer, _ = bases.load_tokenizer(section, chat)
    model = AutoModelForSequenceClassification.from_pretrained(
        bases.resolve(section.model, None), num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = [
        {"chosen_ids": list(one.sequences[better]), "rejected_ids": list(one.sequences[worse])}
        for one in rankings
        for better, worse in one.ranking.pairs
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
    return {**resources(seconds, len(rankings)), "loss": losses}


SIDES = {"ours": train_ours, "trl": train_trl, "data": describe}


def resources(seconds: float, rankings: int) -> dict[str, Any]:
    from onebase.tracking import peak_rss_bytes

    return {
        "seconds": seconds,
        "seconds_per_prompt": seconds / rankings,
        "peak_rss_bytes": peak_rss_bytes(),
        "load": os.getloadavg()[0],
    }


def logged_losses(path: Path) -> list[float]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["reward/loss"] for row in rows if "reward/loss" in row]


def base_section(settings: dict[str, Any]) -> dict[str, str]:
    return {"model": settings["model"], "quantization": "fp32"}


def sections(settings: dict[str, Any]) -> tuple[Any, Any]:
    from onebase.recipes import BaseSection, ChatSection

    return BaseSection.model_validate(base_section(settings)), ChatSection()


# --- what is ranked


def read_rankings(settings: dict[str, Any]) -> list[Any]:
    """The first questions whose prompt is short enough, as tokens."""
    from data.chat import Chat, Limiter, encode_rankings
    from data.records import Ranking
    from data.sources import Source, load
    from onebase import base as bases
    from onebase.recipes import LimitsSection

    section, chat_section = sections(settings)
    chat = Chat(*bases.load_tokenizer(section, chat_section), chat_section)
    wanted = settings["questions"]
    limiter = Limiter(LimitsSection(prompt_tokens=settings["prompt_tokens"], response_tokens=1024, over="drop"))
    if settings["synthetic"]:
        records = synthetic_rankings(wanted, settings["synthetic"])
    elif settings["data"] is None:
        records = load([Source(source="builtin:tasks", split="reward", rows=wanted)], Ranking, seed=0).records
    elif settings["data"].endswith(".json"):
        records = qa_feedback(Path(settings["data"]))
    else:
        records = load([Source(source=settings["data"])], Ranking, seed=0).records
    encoded = encode_rankings(chat, records, limiter)
    if len(encoded) < wanted:
        raise SystemExit(f"{wanted} questions asked for, and {len(encoded)} have a prompt that is short enough")
    longest = sorted(encoded[:wanted], key=lambda one: -len(one.prompt_ids) - sum(map(len, one.responses_ids)))
    # Short runs that choose the peer's setting take the longest rows, which decide memory.
    return longest[: settings["probe"]] if settings["probe"] else encoded[:wanted]


def qa_feedback(path: Path) -> list[Any]:
    """Rankings of FineGrainedRLHF's QA-feedback (Wu et al. 2023, https://arxiv.org/abs/2306.01693): four answers a
    question and a preference for each of the six pairs. Rows whose preferences make no order are left out."""
    from data.records import Message, Origin, Prompt, Ranking
    from onebase.errors import DataError

    order = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    found = []
    for line, row in enumerate(json.loads(path.read_text(encoding="utf-8")), start=1):
        passages = "\n\n".join(" ".join(sentences[1:]) for sentences in row["passages"])
        prompt = Prompt((Message("user", f"{passages}\n\n{row['question']}"),), Origin(str(path), line))
        said = dict(zip(order, row["preference"], strict=True))
        losses = [sum(verdict == (2 if place == pair[0] else 1) for pair, verdict in said.items() if place in pair)
                  for place in range(4)]  # fmt: skip
        levels = sorted(set(losses))
        tiers = tuple(levels.index(count) for count in losses)
        consistent = all(
            verdict == (0 if tiers[i] == tiers[j] else 1 if tiers[i] < tiers[j] else 2)
            for (i, j), verdict in said.items()
        )
        responses = tuple(row[f"prediction {number}"] for number in range(1, 5))
        if consistent:
            # All tied, or the same answer twice: no ranking.
            with contextlib.suppress(DataError):
                found.append(Ranking(prompt, responses, tiers))
    return found


def synthetic_rankings(count: int, responses: int) -> list[Any]:
    """Random words: a prompt of 200 to 260 and answers of 30 to 60, in the order of their number."""
    from data.records import Message, Origin, Prompt, Ranking

    drawn = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"{drawn.choice('bcdfgl')}{drawn.choice('aeiou')}t" for _ in range(drawn.randint(low, high)))

    return [
        Ranking(
            Prompt((Message("user", words(200, 260)),), Origin("synthetic", number + 1)),
            tuple(f"{place} {words(30, 60)}" for place in range(responses)),
            tuple(range(responses)),
        )
        for number in range(count)
    ]


if __name__ == "__main__":
    main()
