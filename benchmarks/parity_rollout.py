"""What both sides of `parity_trl112.py` start from: a base, an adapter for each role, and given responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.recipe.sections import AdapterSection, BaseSection, ChatSection
from onebase.sequences.episodes import Episodes
from ppo.recipe.recipe import PpoRecipe

LENGTH = 12
"""Tokens of a response that is cut."""
ROLES = ("policy", "reference", "reward", "value", "policy_now", "value_now")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A rollout on which the two are compared."""

    name: str
    lengths: tuple[int, ...]
    """Response tokens of each episode; a response of LENGTH tokens ends with an end token where its row is even."""
    discount: float
    gae_lambda: float
    agree: frozenset[str]
    """What is meant to be the same; everything else is a difference that docs/ppo.md explains."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What both sides start from."""

    model: Path
    """Folder of the base."""
    adapters: Path
    """A folder for each role."""
    episodes: Episodes
    ended: Tensor
    recipe: PpoRecipe
    roles: Roles


def build_model(folder: Path) -> Path:
    """A Llama of two layers with random weights, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepare(case: Case, model: str, home: Path) -> Given:
    """Roles with random adapters, and responses of random tokens to prompts of several lengths."""
    section = BaseSection(model=model, quantization="fp32")
    roles = Roles(bases.load(section, ChatSection(), device=torch.device("cpu")))
    adapters = home / case.name.replace(" ", "-")
    draw = torch.Generator().manual_seed(1)
    for role in ROLES:
        roles.add(role, AdapterSection(rank=4, alpha=8), generator=draw)
        if role in ("reward", "value", "value_now"):
            roles.add_head(role)
        randomise(roles, role, draw)
        roles.save(role, adapters / role)
    vocabulary = roles.base.model.config.get_text_config().vocab_size
    avoided = {roles.base.pad_id, *roles.base.stop_ids}
    plain = torch.tensor([token for token in range(vocabulary) if token not in avoided])

    def tokens(count: int) -> list[int]:
        return plain[torch.randint(len(plain), (count,), generator=draw)].tolist()

    end = roles.base.tokenizer.eos_token_id
    assert isinstance(end, int)
    prompts = [tokens(4 + row) for row in range(len(case.lengths))]
    ended = torch.tensor([length < LENGTH or row % 2 == 0 for row, length in enumerate(case.lengths)])
    responses = [
        [*tokens(length - 1), end] if stops else tokens(length)
        for length, stops in zip(case.lengths, ended.tolist(), strict=True)
    ]
    recipe = PpoRecipe.model_validate(
        {
            "base": {"model": model, "quantization": "fp32"},
            "parents": {"sft": "sft", "reward": "reward"},
            "data": [{"source": "builtin:tasks", "split": "rl"}],
            "sampling": {"max_new_tokens": LENGTH, "temperature": 0.7},
            "reward": {"eos_penalty": 1.0},
            "kl": {"weight": 0.05},
            "value": {"clip": 0.2, "weight": 0.5},
            "train": {
                **{"episodes": len(prompts), "batch": len(prompts), "minibatch": len(prompts)},
                **{
                    "clip": 0.2,
                    "discount": case.discount,
                    "gae_lambda": case.gae_lambda,
                    "tokens_per_microbatch": 100_000,
                },
            },
        }
    )
    episodes = Episodes.of(prompts, responses, pad_id=roles.base.pad_id)
    folder = bases.resolve(model, None)
    return Given(model=folder, adapters=adapters, episodes=episodes, ended=ended, recipe=recipe, roles=roles)


def randomise(roles: Roles, role: str, draw: torch.Generator) -> None:
    """Weights that are not zero; those of NAME_now lie near those of NAME, as after a few optimiser steps."""
    before = roles.parameters(role.removesuffix("_now"))
    spread = 0.01 if role.endswith("_now") else 0.1
    for parameter, start in zip(roles.parameters(role), before, strict=True):
        noise = torch.randn(parameter.shape, generator=draw) * spread
        parameter.data.copy_(start.data + noise if role.endswith("_now") else noise)


def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """All gradients in one row."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters), "a parameter without a gradient"
    return torch.cat([gradient.flatten() for gradient in gradients])
