"""TRL's side of the PPO benchmarks: its trainer on our base, with the reward model and a clock around its parts."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppo_workload import RANK, model_of, read_ids, stages_of
from processes import PPO_PEER
from step_marks import Marks

RATE = 1e-5
LORA = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear"}


def train_trl(settings: dict[str, Any]) -> dict[str, Any]:
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.experimental import ppo as peer  # pyright: ignore[reportAttributeAccessIssue]  # 1.12 has it

    from onebase.model import base as bases
    from onebase.recipe.sections import BaseSection, ChatSection

    if trl.__version__ != PPO_PEER:
        raise RuntimeError(f"the peer should be trl {PPO_PEER}, found {trl.__version__}")
    torch.manual_seed(0)
    tokenizer, stops = bases.load_tokenizer(BaseSection(model=model_of(settings)), ChatSection())
    tokenizer.padding_side = "left"
    prompts = [ids for ids in read_ids(Path(settings["prompts"]), settings)]
    rows = [{"input_ids": ids} for ids in prompts for _ in range(settings["responses_per_prompt"])]
    policy, reward, value = models(settings)
    marks, parts = Marks(), Parts()

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if logs and "objective/kl" in logs:
                marks.add({"score": logs["objective/scores"], "kl": logs["objective/kl"], **parts.taken()})

    with tempfile.TemporaryDirectory(prefix="ppo-vs-trl-") as out:
        trainer = peer.PPOTrainer(
            args=peer.PPOConfig(output_dir=out, stop_token_id=sorted(stops)[0], **config(settings)),
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:1]),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
            callbacks=[Steps()],
        )
        if settings["checkpointing"]:
            # Its own train() never switches it on.
            for model in (policy, value):
                model.gradient_checkpointing_enable({"use_reentrant": False})
        parts.watch(peer.ppo_trainer, sorted(stops))
        trainer.train()
    return marks.measured(settings["batch"])


def models(settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Policy, reward and value."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    from onebase.model import base as bases

    folder = bases.resolve(model_of(settings), None)
    policy = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )
    reward, value = scorer(settings, folder), scorer(settings, folder)
    reward.requires_grad_(False)
    if settings["value"] == "adapter":
        # The trainer reads the trunk by its name, which a PeftModel would hide; the adapter itself is PEFT's.
        value.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(**{**LORA, "target_modules": linears(value)}), value)
        value.get_submodule("score").requires_grad_(True)
    return policy, reward, value


def config(settings: dict[str, Any]) -> dict[str, Any]:
    batch = settings["batch"]
    micro = min(settings["micro"], batch)
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "num_mini_batches": 1,
        "num_ppo_epochs": settings["epochs"],
        "total_episodes": batch * settings["steps"],
        "local_rollout_forward_batch_size": settings["decoded"],
        "response_length": settings["response_tokens"],
        "temperature": 1.0,
        "missing_eos_penalty": None,
        "kl_coef": 0.05,
        "vf_coef": 0.5,
        "learning_rate": RATE,
        "adam_epsilon": 1e-5,
        "lr_scheduler_type": "constant",
        "num_sample_generations": 0,
        "gradient_checkpointing": settings["checkpointing"],
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
    }


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
        times = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        times["time/training_and_rest"] = now - self._started - sum(self.seconds.values())
        times["response_length"] = statistics.fmean(self.lengths)
        self.seconds, self.lengths, self._started = {}, [], now
        return times

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
                generated = generate(model, queries, batch, pad, generation)
            for row in torch.isin(generated[0][:, queries.shape[1] :], stop_ids):
                places = row.nonzero().flatten().tolist()
                self.lengths.append(places[0] + 1 if places else len(row))
            return generated

        def truncate_response(stop_id: int, pad: int, responses: Any) -> Any:
            seen = torch.isin(responses, stop_ids).long().cumsum(dim=1)
            behind = torch.nn.functional.pad(seen, (1, 0))[:, :-1] > 0
            return responses.masked_fill(behind, pad)

        def scored(*args: Any) -> Any:
            with self.timed("reward_and_value"):
                return reward(*args)

        def forwarded(*args: Any) -> Any:
            if torch.is_grad_enabled():
                return forward(*args)
            with self.timed("reference"):
                return forward(*args)

        module.batch_generation, module.truncate_response = batch_generation, truncate_response
        module.get_reward, module.forward = scored, forwarded
