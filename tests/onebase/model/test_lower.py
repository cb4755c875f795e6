"""Adapters on the upper half of the layers: where they sit, and that the lower half is computed once for all roles."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.errors import BaseError
from onebase.inference.scoring import last_token_scores, logprobs, score, token_scores, token_values
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.recipe.sections import AdapterSection, BaseSection, ChatSection
from onebase.sequences.episodes import Episodes

PROMPTS = ([5, 9, 40, 8, 7, 6], [5, 9, 40, 8, 7, 6], [7, 300, 22, 11, 8], [60], [5, 9, 40, 8, 12, 33])
RESPONSES = ([100, 2], [17, 18, 19, 20, 2], [44, 45, 46], [9], [9, 10, 2])
"""Ragged, with a prompt that has two responses and a prefix that three prompts share."""
DeepRoles = Callable[..., Roles]


@pytest.fixture
def deep_roles(deep_base_folder: Path) -> DeepRoles:
    """Different roles with random adapters and heads on five layers."""

    def make(*names: str, quantization: str = "fp32", **adapter: Any) -> Roles:
        section = BaseSection.model_validate({"model": str(deep_base_folder), "quantization": quantization})
        roles = Roles(bases.load(section, ChatSection(), device=torch.device("cpu")))
        given = AdapterSection.model_validate({"rank": 4, "alpha": 8, "layers": "top-half", **adapter})
        for index, name in enumerate(names):
            draws = torch.Generator().manual_seed(index)
            roles.add(name, given, generator=draws).add_head(name)
            for parameter in roles.parameters(name):
                parameter.data.copy_(torch.randn(parameter.shape, generator=draws) * 0.1)
        return roles

    return make


@pytest.fixture
def episodes() -> Episodes:
    return Episodes.of(PROMPTS, RESPONSES, pad_id=0)


def layers_of(roles: Roles, role: str) -> set[int]:
    found = [re.findall(r"\.layers\.(\d+)\.", name) for name in roles.state(role)]
    assert all(len(numbers) == 1 for numbers in found)
    return {int(numbers[0]) for numbers in found}


class Counted:
    """Tokens that go through each layer."""

    def __init__(self, roles: Roles) -> None:
        assert roles.stack is not None
        self.tokens = [0] * len(roles.stack.layers)
        for index, layer in enumerate(roles.stack.layers):
            layer.register_forward_pre_hook(functools.partial(self.add, index))

    def add(self, index: int, layer: Any, given: tuple[Tensor, ...]) -> None:
        self.tokens[index] += given[0].shape[0] * given[0].shape[1]


# --- where adapters sit


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj"), r".*\.v_proj"])
def test_adapters_sit_on_the_upper_half_of_the_layers(
    deep_roles: DeepRoles, targets: Any, quantization: str, tmp_path: Path
) -> None:
    roles = deep_roles("policy", targets=targets, quantization=quantization)
    roles.copy("policy", "copied").save("policy", tmp_path)
    roles.load("loaded", tmp_path)
    for role in roles.names:
        assert layers_of(roles, role) == {2, 3, 4}
    assert roles.untouched == 2


def test_adapters_on_all_layers_say_nothing_new(deep_roles: DeepRoles, tmp_path: Path) -> None:
    roles = deep_roles("policy", layers="all")
    roles.save("policy", tmp_path)
    assert layers_of(roles, "policy") == {0, 1, 2, 3, 4}
    assert roles.untouched == 0
    assert json.loads((tmp_path / "adapter_config.json").read_text())["exclude_modules"] is None


def test_peft_itself_reads_the_upper_half_to_the_same_logits(
    deep_roles: DeepRoles, deep_base_folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    roles = deep_roles("policy")
    roles.save("policy", tmp_path)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(deep_base_folder, trust_remote_code=False), str(tmp_path)
    )
    ids = torch.tensor([[5, 9, 40, 7, 300, 2]])
    with torch.no_grad(), roles.active("policy"):
        torch.testing.assert_close(roles.lm_head(roles.hidden_states(ids)), plain(input_ids=ids).logits)
    assert {int(n) for n in re.findall(r"layers\.(\d+)\.\S*lora_A", str(list(plain.state_dict())))} == {2, 3, 4}


def test_a_model_whose_layers_are_not_found_is_refused(deep_roles: DeepRoles) -> None:
    roles = deep_roles()
    roles.base.model.config.num_hidden_layers = 7
    with pytest.raises(BaseError, match=r"top-half: no single list of 7 decoder layers.*Pass adapter\.layers=all"):
        roles.add("policy", AdapterSection(layers="top-half"), generator=torch.Generator())


def test_the_lowest_adapter_of_any_role_decides(deep_roles: DeepRoles) -> None:
    roles = deep_roles("policy", "reward")
    assert roles.untouched == 2
    roles.add("lower", AdapterSection(targets=(r"layers.1.mlp.up_proj",)), generator=torch.Generator())
    assert roles.untouched == 1
    roles.add("lowest", AdapterSection(targets=(r"layers.0.self_attn.q_proj",)), generator=torch.Generator())
    assert roles.untouched == 0


# --- what is computed once


def alone(roles: Roles, role: str, row: int) -> Tensor:
    """Last hidden states of one episode alone, by the model's own whole forward."""
    with torch.no_grad(), roles.active(role):
        sequence = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]])
        hidden = roles.base.model(input_ids=sequence, output_hidden_states=True).hidden_states
    assert hidden is not None
    return hidden[-1][0]


@pytest.mark.parametrize("budget", [1, 14, 1000])
def test_every_role_says_what_a_whole_forward_of_each_episode_says(
    deep_roles: DeepRoles, episodes: Episodes, budget: int, quantization: str
) -> None:
    roles = deep_roles("policy", "reward", "value", quantization=quantization)
    with roles.shared_lower():
        roles.keep_lower(episodes.sequences, tokens=20)
        counted = Counted(roles)
        found = logprobs(roles, "policy", episodes, temperature=0.8, tokens_per_microbatch=budget)
        scores = score(roles, "reward", episodes.sequences, tokens_per_microbatch=budget)
        with torch.no_grad():
            values = token_values(roles, "value", episodes)
    assert counted.tokens[:2] == [0, 0] < counted.tokens[2:4]
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        before = range(len(prompt) - 1, len(prompt) - 1 + len(response))
        table = torch.log_softmax(roles.lm_head(alone(roles, "policy", row)).double() / 0.8, dim=-1)
        expected = table[list(before), list(response)].float()
        torch.testing.assert_close(found[row, : len(response)], expected, atol=1e-4, rtol=0)
        for role, said, places in (("value", values[row, : len(response)], list(before)), ("reward", scores[row], -1)):
            head = roles.heads[role]
            wanted = alone(roles, role, row)[places] @ head.weight + head.bias
            torch.testing.assert_close(said, wanted.detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_all_roles_at_once_are_those_of_whole_forwards(
    deep_roles: DeepRoles, episodes: Episodes, checkpointing: bool, quantization: str
) -> None:
    """One backward pass long after each role was active, so that a recomputation must find its role again."""
    roles = deep_roles("policy", "reward", "value", quantization=quantization).train("policy", "reward", "value")

    def gradients(sequences: list[tuple[int, ...]]) -> list[Tensor]:
        with roles.shared_lower():
            if sequences:
                roles.keep_lower(sequences, tokens=20)
            with roles.training_forward():
                now = token_scores(roles, "policy", episodes, temperature=1.0, value_head="policy")
                assert now.values is not None
                losses = [
                    now.logprobs.square().sum(),
                    now.values.square().sum(),
                    last_token_scores(roles, "reward", episodes.sequences).square().sum(),
                    token_values(roles, "value", episodes).square().sum(),
                ]
            torch.stack(losses).sum().backward()
        found = [parameter.grad for role in roles.names for parameter in roles.parameters(role)]
        for role in roles.names:
            for parameter in roles.parameters(role):
                parameter.grad = None
        assert all(gradient is not None for gradient in found)
        return [gradient for gradient in found if gradient is not None]

    whole = gradients([])
    if checkpointing:
        roles.enable_checkpointing()
    shared = gradients(episodes.sequences)
    largest = max(float(gradient.abs().max()) for gradient in whole)
    for one, other in zip(shared, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * largest)


def test_the_lower_half_is_computed_once_and_the_upper_one_for_each_role(
    deep_roles: DeepRoles, episodes: Episodes
) -> None:
    roles = deep_roles("policy", "reference", "reward", "value").train("policy", "value")
    once = 38 - 2 * 4  # three of them begin with the same four tokens
    assert sum(map(len, episodes.sequences)) == 38
    roles.splits(2)  # tries it on a few tokens
    counted = Counted(roles)
    with roles.shared_lower():
        roles.keep_lower([*episodes.sequences, *episodes.sequences], tokens=1000)
        assert counted.tokens == [once, once, 0, 0, 0]
        assert roles.lower is not None
        assert roles.lower.states.shape == (once, 64)  # the memory that is promised
        for role in ("policy", "reference"):
            logprobs(roles, role, episodes, temperature=1.0, tokens_per_microbatch=1000)
        score(roles, "reward", episodes.sequences, tokens_per_microbatch=1000)
        token_values(roles, "value", episodes).sum().backward()
        token_scores(roles, "policy", episodes, temperature=1.0).logprobs.sum().backward()
    assert counted.tokens == [once, once, 5 * once, 5 * once, 5 * once]


def test_policy_and_reference_have_equal_bits_where_both_go_on_from_what_was_kept(
    deep_roles: DeepRoles, episodes: Episodes
) -> None:
    roles = deep_roles("policy")
    roles.copy("policy", "reference")
    with roles.shared_lower():
        roles.keep_lower(episodes.sequences, tokens=14)
        found = [
            logprobs(roles, role, episodes, temperature=1.0, tokens_per_microbatch=14)
            for role in ("policy", "reference")
        ]
    assert torch.equal(*found)


# --- where it is not


def scores_of(roles: Roles, sequences: list[tuple[int, ...]]) -> Tensor:
    return score(roles, "reward", sequences, tokens_per_microbatch=1000)


def test_what_was_not_kept_takes_a_whole_forward(deep_roles: DeepRoles, episodes: Episodes) -> None:
    roles = deep_roles("reward")
    plain = scores_of(roles, episodes.sequences)
    with roles.shared_lower():
        roles.keep_lower(episodes.sequences[:-1], tokens=1000)
        assert torch.equal(scores_of(roles, episodes.sequences), plain)
        counted = Counted(roles)
        scores_of(roles, episodes.sequences[:-1])
        assert counted.tokens[0] == 0 < counted.tokens[4]


def test_nothing_is_kept_beyond_its_batch(deep_roles: DeepRoles, episodes: Episodes) -> None:
    roles = deep_roles("reward")
    roles.keep_lower(episodes.sequences, tokens=1000)
    assert roles.lower is None
    with roles.shared_lower():
        roles.keep_lower(episodes.sequences[:2], tokens=1000)
        roles.keep_lower(episodes.sequences[2:], tokens=1000)
        assert roles.lower is not None
        assert set(roles.lower.columns) == set(episodes.sequences[2:])
        assert roles.lower.states.dtype == torch.float32
        assert not roles.lower.states.requires_grad
    assert roles.lower is None


def test_with_adapters_on_all_layers_nothing_changes(deep_roles: DeepRoles, episodes: Episodes) -> None:
    roles = deep_roles("reward", layers="all")
    plain = scores_of(roles, episodes.sequences)
    with roles.shared_lower():
        roles.keep_lower(episodes.sequences, tokens=1000)
        assert roles.lower is None
        assert torch.equal(scores_of(roles, episodes.sequences), plain)


def test_padded_rows_are_never_split(deep_roles: DeepRoles, episodes: Episodes) -> None:
    roles = deep_roles("reward")
    roles.packs = False
    with roles.shared_lower():
        roles.keep_lower(episodes.sequences, tokens=1000)
        assert roles.lower is None


def test_a_model_that_cannot_go_on_from_hidden_states_is_found_out(deep_roles: DeepRoles, episodes: Episodes) -> None:
    """As one does that scales what it takes for embeddings."""

    def scaled(module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        embeddings = given.get("inputs_embeds")
        return args, given if embeddings is None else {**given, "inputs_embeds": 1.1 * embeddings}

    roles = deep_roles("reward")
    roles.trunk.register_forward_pre_hook(scaled, with_kwargs=True)
    plain = scores_of(roles, episodes.sequences)
    with roles.shared_lower():
        roles.keep_lower(episodes.sequences, tokens=1000)
        assert roles.lower is None
        assert torch.equal(scores_of(roles, episodes.sequences), plain)


def test_layers_come_back_when_a_forward_of_some_fails(deep_roles: DeepRoles) -> None:
    roles = deep_roles("reward")
    assert roles.stack is not None
    with pytest.raises(ZeroDivisionError), roles.stack.only(2, 5):
        assert len(getattr(roles.trunk, "layers")) == 3  # noqa: B009 - pyright does not know the trunk's class
        raise ZeroDivisionError
    assert getattr(roles.trunk, "layers") is roles.stack.layers  # noqa: B009 - the same
