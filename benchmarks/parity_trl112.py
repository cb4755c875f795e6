"""Our PPO and trl 1.12's on the same rollout, number by number: log-probabilities, KL, rewards, advantages, losses and
the gradient of one step.

    pip install --no-deps --target build/trl112 trl==1.12.0
    python benchmarks/parity_trl112.py --trl build/trl112 --json FILE

Theirs is `PPOTrainer.train()` as it is: only decoding is replaced, by one that returns given responses, and the
trainer's own variables are read while it runs. Ours are the functions that the ppo stage calls. Both sides start from
the same files: one base and an adapter (with a head) for each role. Policy and value are other ones in the update than
in the rollout, so that ratios and values are clipped.

Exit code 1 where something that is meant to agree differs by more than 1e-5 (gradients: relative to the largest one).
Where the two differ on purpose the size of the difference is printed: docs/ppo.md has the reasons.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from onebase import base as bases
from onebase.episodes import Episodes
from onebase.recipes import AdapterSection, BaseSection, ChatSection
from onebase.roles import HEAD, Roles
from onebase.scoring import in_microbatches, logprobs, score, token_values
from ppo.advantages import gae
from ppo.recipe import PpoRecipe
from ppo.rollout import Rollout, Targets, compute_targets
from ppo.scores import score_episodes
from ppo.update import backward, to_batch

TOLERANCE = 1e-5
VERSION = "1.12.0"
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
    trace: float
    agree: frozenset[str]
    """What is meant to be the same; everything else is a difference that docs/ppo.md explains."""


EVERYTHING = frozenset(
    {
        *("log-probabilities", "reference", "KL", "values", "scores less the penalty", "reward of a response"),
        *("rewards", "advantages", "returns", "standardised advantages"),
        *("policy loss", "value loss", "policy gradient", "value gradient", "advantages by their placing"),
    }
)
VALUE_PAST_THE_END = frozenset({"rewards", "value loss", "value gradient"})
ADVANTAGES = frozenset({"advantages", "returns", "standardised advantages", "policy loss", "policy gradient"})

CASES = (
    Case(name="responses as long as the limit", lengths=(LENGTH,) * 8, discount=0.99, trace=0.95, agree=EVERYTHING),
    Case(
        name="shorter responses, trace 1",
        lengths=(12, 3, 7, 12, 1, 9, 5, 11),
        discount=1.0,
        trace=1.0,
        agree=EVERYTHING - VALUE_PAST_THE_END,
    ),
    Case(
        name="shorter responses, trace 0.95",
        lengths=(12, 3, 7, 12, 1, 9, 5, 11),
        discount=1.0,
        trace=0.95,
        agree=EVERYTHING - VALUE_PAST_THE_END - ADVANTAGES,
    ),
)


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


class Stopped(Exception):
    """Raised at the peer's first optimiser step, when everything has been seen."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Agreement with trl 1.12's PPO on one fixed rollout.")
    parser.add_argument("--trl", type=Path, default=Path("build/trl112"), help="folder that trl 1.12.0 is installed in")
    parser.add_argument("--model", help="pypi:NAME, a folder or a hub id; without it a small random Llama")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    peer = import_peer(options.trl)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = options.model or str(build_model(home / "model"))
        rows = [row for case in CASES for row in compare(peer, case, model, home)]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"trl": VERSION, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return int(any(row["agrees"] is False for row in rows))


def import_peer(folder: Path) -> Any:
    """The module of their trainer, out of that folder and no other."""
    sys.path.insert(0, str(folder.resolve()))
    trl = importlib.import_module("trl")
    if trl.__version__ != VERSION:
        raise SystemExit(
            f"{folder}: expected trl {VERSION}, found {trl.__version__} at {trl.__file__}. "
            f"pip install --no-deps --target {folder} trl=={VERSION}"
        )
    return importlib.import_module("trl.experimental.ppo.ppo_trainer")


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


# --- what both sides start from ---------------------------------------------------------------------------------------


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
                **{"clip": 0.2, "discount": case.discount, "trace": case.trace, "tokens_per_microbatch": 100_000},
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


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(given: Given) -> dict[str, Tensor]:
    roles, recipe, episodes = given.roles, given.recipe, given.episodes
    budget, temperature = recipe.train.tokens_per_microbatch, recipe.sampling.temperature
    settings = {"temperature": temperature, "tokens_per_microbatch": budget}
    rollout = Rollout(
        episodes=episodes,
        stopped=given.ended,
        logprobs=logprobs(roles, "policy", episodes, **settings),
        reference=logprobs(roles, "reference", episodes, **settings),
        values=in_microbatches(lambda part: token_values(roles, "value", part), episodes, tokens=budget),
        scores=score_episodes(roles, episodes, recipe, None).total,
        seconds={},
    )
    targets = compute_targets(rollout, recipe)
    batch = to_batch(rollout, targets, roles.base.device, recipe)
    placed = by_their_placing(given, rollout, targets)
    for role in ("policy", "value"):
        for parameter, now in zip(roles.parameters(role), roles.parameters(f"{role}_now"), strict=True):
            parameter.data.copy_(now.data)
    roles.train("policy", "value")
    tally = backward(roles, batch, recipe)
    means, tokens = tally.means(), int(episodes.mask.sum())
    # They divide the variance by n - 1, we by n. Loss and gradient of the policy are proportional to the advantages.
    bessel = math.sqrt((tokens - 1) / tokens)
    penalty = recipe.reward.eos_penalty * (~given.ended).float()
    return {
        "log-probabilities": rollout.logprobs,
        "reference": rollout.reference,
        "KL": targets.kl,
        "values": rollout.values,
        "scores less the penalty": rollout.scores - penalty,
        "reward of a response": targets.rewards.sum(dim=1),
        "rewards": targets.rewards,
        "advantages": targets.advantages,
        "advantages by their placing": placed,
        "returns": targets.returns,
        "standardised advantages": batch.advantages * bessel,
        "policy loss": torch.tensor(means["policy_loss"] * bessel),
        "value loss": torch.tensor(means["value_loss"]),
        "policy gradient": flat(roles.parameters("policy")) * bessel,
        "value gradient": flat(roles.parameters("value")),
        "outside the clip range": torch.tensor(means["clip_fraction"]),
    }


def by_their_placing(given: Given, rollout: Rollout, targets: Targets) -> Tensor:
    """Our estimator on episodes of theirs: a response that ends before the longest one has a position more, with the
    value after the end token and the score. That it gives their advantages shows that nothing else differs."""
    roles, recipe, mask = given.roles, given.recipe, given.episodes.mask
    budget = recipe.train.tokens_per_microbatch
    after = score(roles, "value", given.episodes.sequences, tokens_per_microbatch=budget)
    lengths, columns = mask.sum(dim=1, keepdim=True), torch.arange(mask.shape[1])
    past = columns == lengths
    at_end = columns == lengths.clamp(max=mask.shape[1] - 1)
    scores = rollout.scores - recipe.reward.eos_penalty * (~given.ended).float()
    rewards = -recipe.kl.weight * targets.kl + at_end * scores.unsqueeze(1)
    values = torch.where(past, after.unsqueeze(1), rollout.values)
    return gae(rewards, values, mask | past, discount=recipe.train.discount, trace=recipe.train.trace)[0] * mask


def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """All gradients in one row."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters), "a parameter without a gradient"
    return torch.cat([gradient.flatten() for gradient in gradients])


# --- theirs -----------------------------------------------------------------------------------------------------------


class WithHead(nn.Module):
    """A trunk with a linear head on it, as their `get_reward` expects it."""

    base_model_prefix = "trunk"

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(hidden_size, 1)


def their_model(given: Given, role: str) -> Any:
    """The base with a role's adapter in it (and its head on it), as transformers and PEFT load them."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    folder = given.adapters / role
    model = PeftModel.from_pretrained(loaded, str(folder), is_trainable=role in ("policy_now", "value_now"))
    causal: Any = model.base_model.model
    if not (folder / HEAD).is_file():
        return causal
    found = WithHead(getattr(causal, causal.base_model_prefix), causal.config.get_text_config().hidden_size)
    head = load_file(folder / HEAD)
    found.score.weight.data.copy_(head["weight"].unsqueeze(0))
    found.score.bias.data.copy_(head["bias"].unsqueeze(0))
    return found


def their_parameters(model: nn.Module) -> list[nn.Parameter]:
    """In the order of `Roles.parameters`: adapter by name, then head."""
    adapter = [weight for name, weight in sorted(model.named_parameters()) if "lora_" in name]
    return adapter + (list(model.score.parameters()) if isinstance(model, WithHead) else [])


def theirs(peer: Any, given: Given) -> dict[str, Tensor]:
    """What `PPOTrainer.train()` computes up to its first optimiser step."""
    from datasets import Dataset

    recipe, episodes, tokenizer = given.recipe, given.episodes, given.roles.base.tokenizer
    tokenizer.padding_side = "left"
    rows = {prompt: row for row, prompt in enumerate(episodes.prompts)}
    pad, order, seen = given.roles.base.pad_id, list[int](), dict[str, Any]()
    sampler, policy = their_model(given, "policy"), their_model(given, "policy_now")
    value, later = their_model(given, "value"), their_model(given, "value_now")
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
        """Called between rollout and update: keeps the rollout's variables, and makes the value function a later one."""
        names = ("logprobs", "ref_logprobs", "kl", "values", "scores", "rewards", "returns", "advantages_reversed")
        found = sys._getframe(1).f_locals
        seen.update({name: found[name] for name in (*names, "advantages", "padding_mask")})
        for weight, now in zip(their_parameters(value), their_parameters(later), strict=True):
            weight.data.copy_(now.data)
        return torch.arange(count).numpy()

    def stop() -> None:
        found = sys._getframe(1).f_locals
        seen.update({name: found[name].detach() for name in ("pg_loss", "vf_loss")})
        seen["gradients"] = [flat(their_parameters(model)) for model in (policy, value)]
        raise Stopped

    with tempfile.TemporaryDirectory() as folder:
        trainer = peer.PPOTrainer(
            args=their_config(given, folder),
            processing_class=tokenizer,
            model=policy,
            ref_model=their_model(given, "reference"),
            reward_model=their_model(given, "reward"),
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


def their_config(given: Given, folder: str) -> Any:
    train, batch = given.recipe.train, len(given.episodes)
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
        temperature=given.recipe.sampling.temperature,
        missing_eos_penalty=given.recipe.reward.eos_penalty,
        kl_coef=given.recipe.kl.weight,
        cliprange=train.clip,
        cliprange_value=given.recipe.value.clip,
        vf_coef=given.recipe.value.weight,
        gamma=train.discount,
        lam=train.trace,
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


# --- comparison -------------------------------------------------------------------------------------------------------


def compare(peer: Any, case: Case, model: str, home: Path) -> list[dict[str, Any]]:
    given = prepare(case, model, home)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = theirs(peer, given)
    own = ours(given)
    clipped = float(own.pop("outside the clip range"))
    rows: list[dict[str, Any]] = []
    for name, mine in own.items():
        largest = float(other[name].abs().max())
        error = float((mine - other[name]).abs().max())
        if "gradient" in name:
            error /= largest
        agrees = error <= TOLERANCE if name in case.agree else None
        rows.append(
            {
                **{"case": case.name, "quantity": name, "difference": error, "largest": largest},
                **{"agrees": agrees, "outside_clip": clipped},
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table of docs/ppo.md."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    found = {(row["case"], row["quantity"]): row for row in rows}
    print("\n| largest difference | " + " | ".join(cases) + " |\n|---|" + "---:|" * len(cases))
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        print(f"| {quantity} | " + " | ".join(cell(found[case, quantity]) for case in cases) + " |")
    for case in cases:
        share = next(row["outside_clip"] for row in rows if row["case"] == case)
        print(f"{case}: {share:.0%} of tokens outside the clip range", file=sys.stderr)


def cell(row: dict[str, Any]) -> str:
    if row["agrees"] is None:
        return f"differs: {row['difference']:.1e}"
    return f"{row['difference']:.1e}" if row["agrees"] else f"**{row['difference']:.1e}**"


if __name__ == "__main__":
    sys.exit(main())
