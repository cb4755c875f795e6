"""A model has several stop tokens and a template writes one: what is sampled is scored as if it ended with that one."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from data.chat.conversations import Chat, EncodedPrompt
from data.records import Message, Origin, Prompt
from evaluation import best_of_n
from evaluation.compare import compare
from evaluation.compare.recipe import CompareRecipe
from evaluation.compare.responses import Responder
from evaluation.reward_model.loading import RewardModel
from onebase.inference.sampling import sample
from onebase.inference.scoring import Ensemble, score
from onebase.memory import Budget
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.recipe import reader
from onebase.recipe.sections import AdapterSection, BaseSection, ChatSection
from onebase.seeding import generator
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import PpoState, collect
from ppo.scores import PromptBatch, score_episodes

END = 2
OTHERS = tuple(range(40, 240))
"""Ordinary tokens that end a response as well: so many that responses of a random model end with one soon."""
PROMPTS = [
    Prompt((Message("user", text),), Origin("here", line)) for line, text in enumerate(("Name a city.", "Say yes."))
]
BUDGET = 512


@pytest.fixture(scope="module")
def roles(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Roles:
    folder = tmp_path_factory.mktemp("stops") / "base"
    shutil.copytree(tiny_base_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, *OTHERS]}))
    section = BaseSection.model_validate({"model": str(folder), "quantization": "fp32"})
    roles = Roles(bases.load(section, ChatSection(), device=torch.device("cpu")))
    for number, name in enumerate(("policy", "reference", "sft", "reward")):
        drawn = generator(number, "adapter")
        roles.add(name, AdapterSection(rank=2, alpha=4), generator=drawn)
        if name == "reward":
            for parameter in roles.parameters(name):
                parameter.data.copy_(torch.randn(parameter.shape, generator=drawn) * 0.1)
            roles.add_head(name).weight.data.copy_(torch.randn(64, generator=drawn))
    return roles


def scored_as_closed(roles: Roles, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
    """Stand-alone scores, one by one, of the responses with their last token put right by hand."""
    closed = [[*response[:-1], END] if response[-1] in OTHERS else list(response) for response in responses]
    whole = [[*prompt, *response] for prompt, response in zip(prompts, closed, strict=True)]
    return score(roles, "reward", whole, tokens_per_microbatch=1).tolist()


def test_responses_that_end_with_another_stop_token_score_as_those_of_rankings_do(roles: Roles) -> None:
    chat = Chat.of(roles.base, ChatSection())
    assert chat.end_id == END and len(chat.stop_ids) == 1 + len(OTHERS)
    encoded = [EncodedPrompt(prompt, chat.prompt_ids(prompt)) for prompt in PROMPTS for _ in range(4)]
    ids = [prompt.ids for prompt in encoded]
    overrides = [f"base.model={roles.base.identity.model}", "advantages.kind=rloo", "sampling.responses_per_prompt=4"]
    recipe = reader.read("recipes/smoke/ppo.yaml", PpoRecipe, overrides)
    batch, tokens = PromptBatch(chat=chat, prompts=encoded), recipe.train.tokens_per_microbatch
    budget, state = Budget(tokens=tokens, episodes=recipe.sampling.batch), PpoState(kl_weight=0.0)
    rollout, _ = collect(roles, batch, method_of(recipe), generator(0, "test"), budget, state)
    responses = [
        row[mask].tolist() for row, mask in zip(rollout.episodes.responses, rollout.episodes.mask, strict=True)
    ]
    assert sum(response[-1] in OTHERS for response in responses) >= 4, "the test is of such responses"
    expected = scored_as_closed(roles, ids, responses)
    assert rollout.scores.tolist() == pytest.approx(expected, abs=1e-4)
    # As they stand they score otherwise: that is what went wrong.
    plain = score(roles, "reward", rollout.episodes.sequences, tokens_per_microbatch=BUDGET).tolist()
    assert max(abs(plain_score - other) for plain_score, other in zip(plain, expected, strict=True)) > 0.05
    # The function that scores is the stand-alone one, bit for bit in the same micro-batches.
    closed = chat.closed(rollout.episodes.sequences)
    reward = method_of(recipe).reward
    scores = score_episodes(roles, rollout.episodes, batch, reward, tokens_per_microbatch=tokens)
    assert torch.equal(scores.total, score(roles, "reward", closed, tokens_per_microbatch=tokens))
    # What the policy said keeps its tokens.
    assert rollout.episodes.sequences != closed


def test_best_of_n_and_compare_score_closed_responses(roles: Roles, tmp_path: Path) -> None:
    chat = Chat.of(roles.base, ChatSection())
    model = RewardModel(members={}, ensemble=Ensemble(), roles=roles, chat=chat, tokens_per_microbatch=BUDGET)
    sampling = best_of_n.Sampling(n=4, max_new_tokens=8, temperature=1.0, batch=8, seed=5)
    rows = list(best_of_n.answered(model, iter(PROMPTS), sampling, keep_all=True))
    ids = [chat.prompt_ids(prompt) for prompt in PROMPTS for _ in range(4)]
    settings = {"max_new_tokens": 8, "temperature": 1.0, "batch": 8}
    drawn = sample(roles, "policy", ids, generator=generator(5, "best-of-n", 0), **settings).episodes
    responses = [row[mask].tolist() for row, mask in zip(drawn.responses, drawn.mask, strict=True)]
    assert any(response[-1] in OTHERS for response in responses)
    scores = [value for row in rows for value in row["scores"]]
    assert scores == pytest.approx(scored_as_closed(roles, ids, responses), abs=1e-4)

    encoded = [EncodedPrompt(prompt, chat.prompt_ids(prompt)) for prompt in PROMPTS]
    respond = Responder(
        roles=roles, prompts=[prompt.ids for prompt in encoded], folder=tmp_path, max_new_tokens=8, batch=8, seed=1
    )
    recipe = reader.read("recipes/smoke/compare.yaml", CompareRecipe, [f"base.model={roles.base.identity.model}"])
    answers = compare.judge(roles, "base", None, respond, chat, encoded, [], recipe)
    for name, temperature in (("reward", 0.0), ("sampled_reward", 1.0)):
        episodes = respond(None, adapter_sha256=None, temperature=temperature)
        responses = [row[mask].tolist() for row, mask in zip(episodes.responses, episodes.mask, strict=True)]
        expected = scored_as_closed(roles, [prompt.ids for prompt in encoded], responses)
        assert answers.metrics[name] == pytest.approx(expected, abs=1e-4)
