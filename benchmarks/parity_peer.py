"""The peer's side of `parity_trl112.py`: trl's `PPOTrainer.train()`, watched from outside."""

import contextlib
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from parity_rollout import LENGTH, Given, flat
from processes import PPO_PEER
from torch import Tensor, nn

from onebase.model.roles import HEAD


class Stopped(Exception):
    """Raised at the peer's first optimiser step, when everything has been seen."""


def import_peer(folder: Path) -> Any:
    """The module of their trainer, out of that folder and no other."""
    sys.path.insert(0, str(folder.resolve()))
    trl = importlib.import_module("trl")
    if trl.__version__ != PPO_PEER:
        raise SystemExit(
            f"{folder}: expected trl {PPO_PEER}, found {trl.__version__} at {trl.__file__}. "
            f"pip install --no-deps --target {folder} trl=={PPO_PEER}"
        )
    return importlib.import_module("trl.experimental.ppo.ppo_trainer")


class WithHead(nn.Module):
    """A trunk with a linear head on it, as their `get_reward` expects it."""

    base_model_prefix = "trunk"

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(hidden_size, 1)


def their_model(inputs: Given, role: str) -> Any:
    """The base with a role's adapter in it (and its head on it), as transformers and PEFT load them."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(inputs.model, dtype=torch.float32, trust_remote_code=False)
    folder = inputs.adapters / role
    model = PeftModel.from_pretrained(loaded, str(folder), is_trainable=role in ("policy_now", "value_now"))
    causal: Any = model.base_model.model
    if not (folder / HEAD).is_file():
        return causal
    with_head = WithHead(getattr(causal, causal.base_model_prefix), causal.config.get_text_config().hidden_size)
    head = load_file(folder / HEAD)
    with_head.score.weight.data.copy_(head["weight"].unsqueeze(0))
    with_head.score.bias.data.copy_(head["bias"].unsqueeze(0))
    return with_head


def their_parameters(model: nn.Module) -> list[nn.Parameter]:
    """In the order of `Roles.parameters`: adapter by name, then head."""
    adapter = [weight for name, weight in sorted(model.named_parameters()) if "lora_" in name]
    return adapter + (list(model.score.parameters()) if isinstance(model, WithHead) else [])


def theirs(peer: Any, inputs: Given) -> dict[str, Tensor]:
    """What `PPOTrainer.train()` computes up to its first optimiser step."""
    from datasets import Dataset

    recipe, episodes, tokenizer = inputs.recipe, inputs.episodes, inputs.roles.base.tokenizer
    tokenizer.padding_side = "left"
    rows = {prompt: row for row, prompt in enumerate(episodes.prompts)}
    pad, order, seen = inputs.roles.base.pad_id, list[int](), dict[str, Any]()
    sampler, policy = their_model(inputs, "policy"), their_model(inputs, "policy_now")
    value, later = their_model(inputs, "value"), their_model(inputs, "value_now")
    for weight in their_parameters(value):
        weight.requires_grad_(True)

    def decode(model: Any, queries: Tensor, batch: int, pad_id: int, config: Any) -> tuple[Tensor, Tensor]:
        """In place of sampling: the given responses, and the logits that would have sampled them."""
        order[:] = [rows[tuple(query[query != pad].tolist())] for query in queries]
        responses = episodes.responses[order].masked_fill(~episodes.mask[order], pad)
        both = torch.cat([queries, responses], dim=1)
        logits = peer.forward(sampler, both, pad_id).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / recipe.sampling.temperature

    def look(count: int) -> Any:
        """Called between rollout and update: keeps the variables, and makes the value function a later one."""
        names = ("logprobs", "ref_logprobs", "kl", "values", "scores", "rewards", "returns", "advantages_reversed")
        variables = sys._getframe(1).f_locals
        seen.update({name: variables[name] for name in (*names, "advantages", "padding_mask")})
        for weight, now in zip(their_parameters(value), their_parameters(later), strict=True):
            weight.data.copy_(now.data)
        return torch.arange(count).numpy()

    def stop() -> None:
        variables = sys._getframe(1).f_locals
        seen.update({name: variables[name].detach() for name in ("pg_loss", "vf_loss")})
        seen["gradients"] = [flat(their_parameters(model)) for model in (policy, value)]
        raise Stopped

    with tempfile.TemporaryDirectory() as folder:
        trainer = peer.PPOTrainer(
            args=their_config(inputs, folder),
            processing_class=tokenizer,
            model=policy,
            ref_model=their_model(inputs, "reference"),
            reward_model=their_model(inputs, "reward"),
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": [list(prompt) for prompt in episodes.prompts]}),
        )
        trainer.optimizer.step = stop
        quiet = contextlib.redirect_stdout(sys.stderr)  # stdout is for the table
        with (
            quiet,
            replaced(peer, batch_generation=decode, np=SimpleNamespace(random=SimpleNamespace(permutation=look))),
        ):
            trainer.train()
    # Rows come in the order of their data loader; what lies outside the responses is theirs to fill.
    back = torch.tensor(order).argsort()
    mask = episodes.mask
    assert torch.equal(~seen["padding_mask"][back], mask), "the two disagree about what was generated"

    def tokens(tensor: Tensor) -> Tensor:
        return tensor[back].masked_fill(~mask, 0.0)

    return {
        "log-probabilities": tokens(seen["logprobs"]),
        "reference": tokens(seen["ref_logprobs"]),
        "KL": tokens(seen["kl"]),
        "values": tokens(seen["values"]),
        "scores less the penalty": seen["scores"][back],
        "reward of a response": seen["rewards"].sum(dim=1)[back],
        "rewards": tokens(seen["rewards"]),
        **dict.fromkeys(
            ("advantages", "advantages by their placing"), tokens(torch.stack(seen["advantages_reversed"][::-1], dim=1))
        ),
        "returns": tokens(seen["returns"]),
        "standardised advantages": tokens(seen["advantages"]),
        "policy loss": seen["pg_loss"],
        "value loss": seen["vf_loss"],
        "policy gradient": seen["gradients"][0],
        # Theirs is the gradient of vf_coef times the loss, as ours is of value.weight times it.
        "value gradient": seen["gradients"][1],
    }


def their_config(inputs: Given, folder: str) -> Any:
    train, batch = inputs.recipe.train, len(inputs.episodes)
    config = importlib.import_module("trl.experimental.ppo.ppo_config").PPOConfig
    return config(
        output_dir=folder,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=batch,
        num_sample_generations=0,
        response_length=LENGTH,
        stop_token="eos",
        temperature=inputs.recipe.sampling.temperature,
        missing_eos_penalty=inputs.recipe.reward.eos_penalty,
        kl_coef=inputs.recipe.kl.weight,
        cliprange=train.clip,
        cliprange_value=inputs.recipe.value.clip,
        vf_coef=inputs.recipe.value.weight,
        gamma=train.discount,
        lam=train.gae_lambda,
    )


class replaced:
    """Other things under some names of a module, for a while; ends quietly where the peer has been stopped."""

    def __init__(self, module: Any, **names: Callable[..., Any] | SimpleNamespace) -> None:
        self.module, self.names = module, names
        self.before = {name: getattr(module, name) for name in names}

    def __enter__(self) -> None:
        for name, value in self.names.items():
            setattr(self.module, name, value)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for name, value in self.before.items():
            setattr(self.module, name, value)
        return kind is Stopped
