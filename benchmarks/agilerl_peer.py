"""AgileRL's PPO as `ppo_vs_agilerl.py` drives it, in an environment of its own: nothing of ours is imported.

It is driven by its own two calls, `get_action` and `learn`, in the order of its own training loop, which also moves the
reference onto the actor after each pass of the data.
"""

import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import word_rewards

RANK = 16


class Peer:
    """AgileRL's PPO on these prompts."""

    def __init__(self, settings: dict[str, Any], **changes: Any) -> None:
        """changes: arguments of its own constructor, over those that are taken from the settings."""
        from tokenizers import Tokenizer

        self.settings = settings
        content = json.loads(Path(settings["peer_prompts"]).read_text(encoding="utf-8"))
        self.prompts: list[dict[str, Any]] = content["prompts"]
        self.stops, self.pad = set(content["stops"]), content["pad"]
        self.tokenizer = Tokenizer.from_file(str(Path(settings["folder"]) / "tokenizer.json"))
        self.reward: Callable[..., float] = getattr(word_rewards, settings["function"])
        self.agent = make_agent(settings, self.pad, content["stops"], **changes)

    def steps(self, count: int, *, with_kl: bool = False) -> Iterator[dict[str, float]]:
        """What each step scored and took; kl is 0 where it is not asked for."""
        for number, (passes, chosen) in zip(range(count), self.batches(), strict=False):
            start = time.perf_counter()
            self.agent.set_reference_policy(passes)
            rows = self.roll_out(chosen)
            rolled_out = time.perf_counter()
            responses = [ids[len(prompt["ids"]) :] for prompt, ids in zip(chosen, rows, strict=True)]
            scores = [
                self.reward(SimpleNamespace(user_text=prompt["text"]), self.tokenizer.decode(response))
                for prompt, response in zip(chosen, responses, strict=True)
            ]
            kl, measuring = 0.0, time.perf_counter()
            if with_kl:
                kl = self.kl_to_start(chosen, rows)
            measuring = time.perf_counter() - measuring
            ids, masks = learnable(chosen, rows)
            self.agent.learn((ids, masks, self.tensor(scores)))
            end = time.perf_counter()
            print(f"step {number + 1}: score {statistics.fmean(scores):.3f}, kl {kl:.3f}", file=sys.stderr, flush=True)
            yield {
                "score": statistics.fmean(scores),
                "kl": kl,
                "response_length": statistics.fmean(map(len, responses)),
                "seconds": end - start - measuring,
                "time/rollout": rolled_out - start,
                "time/learning": end - rolled_out - measuring,
            }

    def batches(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        return batches(self.prompts, self.settings["batch"], self.settings["seed"])

    def roll_out(self, chosen: Sequence[dict[str, Any]]) -> list[list[int]]:
        """Prompt and response of each, without padding."""
        import torch

        prompts = [torch.tensor([prompt["ids"]]) for prompt in chosen]
        if not self.settings["batched"]:
            tokens = self.agent.get_action([{"input_ids": ids} for ids in prompts]).token_ids
            return [
                self.until_stop(len(prompt["ids"]), row[0].tolist()) for prompt, row in zip(chosen, tokens, strict=True)
            ]
        width = max(len(prompt["ids"]) for prompt in chosen)
        ids = torch.full((len(chosen), width), self.pad)
        for row, prompt in enumerate(chosen):
            ids[row, width - len(prompt["ids"]) :] = torch.tensor(prompt["ids"])
        mask = torch.arange(width) >= width - torch.tensor([[len(prompt["ids"])] for prompt in chosen])
        (tokens,) = self.agent.get_action([{"input_ids": ids, "attention_mask": mask.long()}]).token_ids
        return [
            self.until_stop(len(prompt["ids"]), row[width - len(prompt["ids"]) :].tolist())
            for prompt, row in zip(chosen, tokens, strict=True)
        ]

    def until_stop(self, prompt: int, row: list[int]) -> list[int]:
        """A row without what stands behind its response's first stop token. prompt: tokens of it."""
        end = next((place + 1 for place in range(prompt, len(row)) if row[place] in self.stops), len(row))
        return row[:end]

    def kl_to_start(self, chosen: Sequence[dict[str, Any]], rows: Sequence[list[int]]) -> float:
        """Mean over responses of the sum of log pi - log pi_start of what was sampled: the estimator k1, as ours logs.
        Its adapters start with B = 0, so the base is where it started."""
        padded, mask = self.stacked(chosen, rows)
        now = logprobs(self.agent, padded, "actor")
        start = logprobs(self.agent, padded, "__base__")
        return float(((now - start) * mask).sum(dim=1).mean())

    def stacked(self, chosen: Sequence[dict[str, Any]], rows: Sequence[list[int]]) -> tuple[Any, Any]:
        """Tokens padded on the right, and which of all but the first were sampled."""
        import torch

        ids, masks = learnable(chosen, rows)
        pad, width = torch.nn.functional.pad, max(map(len, rows))
        padded = torch.cat([pad(row, (0, width - row.shape[1]), value=self.pad) for row in ids])
        return padded, torch.cat([pad(mask, (0, width - 1 - mask.shape[1])) for mask in masks])

    def tensor(self, values: Sequence[float]) -> Any:
        import torch

        return torch.tensor(values)


def batches(prompts: Sequence[Any], size: int, seed: int) -> Iterator[tuple[int, list[Any]]]:
    """How often all prompts have been handed out, and a batch, without end: each comes once before one comes again."""
    drawn, waiting = random.Random(seed), list[Any]()
    for number in itertools.count():
        while len(waiting) < size:
            waiting += drawn.sample(prompts, len(prompts))
        yield number * size // len(prompts), waiting[:size]
        waiting = waiting[size:]


def learnable(chosen: Sequence[dict[str, Any]], rows: Sequence[list[int]]) -> tuple[list[Any], list[Any]]:
    """What its `learn` takes: tokens, and which of the next tokens were sampled."""
    import torch

    ids = [torch.tensor([row]) for row in rows]
    masks = [torch.arange(1, len(row))[None] >= len(prompt["ids"]) for prompt, row in zip(chosen, rows, strict=True)]
    return ids, masks


def logprobs(agent: Any, ids: Any, adapter: str) -> Any:
    """Of every token but the first under one of its adapters; `__base__` is none. Shape: rows x (tokens - 1)."""
    import torch
    from agilerl.lora.fused import unset_fused_adapter_routing  # pyright: ignore[reportMissingImports]  # peer's
    from agilerl.utils.llm_utils import attention_mask_from_padded_ids  # pyright: ignore[reportMissingImports]  # peer's

    agent.actor.eval()
    mask = attention_mask_from_padded_ids(ids, agent.pad_token_id)
    with torch.no_grad():
        token_logprobs, _ = agent._fused_model_pass(
            ids, mask, [adapter] * len(ids), batch_size=agent.micro_batch_size_per_gpu
        )
    unset_fused_adapter_routing(agent.actor)
    return token_logprobs


def make_agent(settings: dict[str, Any], pad: int, stops: Sequence[int], **changes: Any) -> Any:
    """Its PPO with these settings. changes: arguments of its own, over all others."""
    import agilerl  # pyright: ignore[reportMissingImports]  # only the peer's environment has it
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    if not settings.get("liger"):
        # Its Triton kernels need a GPU, and it binds them to the model wherever the package is installed.
        agilerl.HAS_LIGER_KERNEL = False
    from agilerl.algorithms.ppo_llm import PPO  # pyright: ignore[reportMissingImports]  # peer's

    torch.manual_seed(settings["seed"])
    four_bits = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    }
    options: dict[str, Any] = {
        "pad_token_id": pad,
        "pad_token": "",
        "model_name": settings["folder"],
        "model_config": {"torch_dtype": torch.float32, "attn_implementation": "sdpa"},
        "batch_size": settings["batch"],
        "mini_batch_size": settings["batch"],
        "micro_batch_size_per_gpu": min(settings["micro"], settings["batch"]),
        "beta": 0.05,
        "lr_actor": settings["rate"],
        "lr_critic": settings["rate"],
        "max_output_tokens": settings["response_tokens"],
        "max_model_len": settings["prompt_tokens"] + settings["response_tokens"],
        "top_k": 0,
        "lora_config": LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        ),
        "gradient_checkpointing": settings["checkpointing"],
        "fuse_actor_critic_pass": settings["fused"],
        "chunk_rows": settings.get("chunk_rows"),
        "quantization_config": BitsAndBytesConfig(**four_bits) if settings["quantization"] == "nf4" else None,
        "seed": settings["seed"],
        "device": "cpu",
    }
    agent = PPO(**options | changes)
    agent.generation_config.eos_token_id = list(stops)
    if not settings.get("repacked", True):
        keep_unpacked(agent)
    return agent


def keep_unpacked(agent: Any) -> None:
    """Its 4-bit weights as they were loaded. Without this bitsandbytes repacks them on CPUs with AVX512-BF16 at the
    first forward without gradients, and the gradients are wrong from then on (`--facts` shows it)."""
    for module in agent.actor.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
