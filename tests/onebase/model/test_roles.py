"""Roles on one base: who computes, who learns, and what survives the disk."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onebase.errors import BaseError, RecordError
from onebase.model.base import Base
from onebase.model.roles import HEAD, WEIGHTS, Roles
from onebase.recipe.sections import AdapterSection

IDS = torch.tensor([[5, 9, 40, 7, 300, 2]])


def hidden(roles: Roles, role: str | None) -> torch.Tensor:
    with torch.no_grad(), roles.active(role):
        return roles.forwards.hidden_states(IDS)


def test_each_role_computes_with_its_own_adapter_and_none_with_the_bare_base(
    make_roles: Callable[..., Roles], quantization: str
) -> None:
    roles = make_roles("policy", "reward", quantization=quantization)
    bare = hidden(roles, None)
    policy, reward = hidden(roles, "policy"), hidden(roles, "reward")
    assert not torch.allclose(policy, bare, atol=1e-3)
    assert not torch.allclose(policy, reward, atol=1e-3)
    assert torch.equal(hidden(roles, "policy"), policy)


def test_activation_never_touches_what_is_trained(make_roles: Callable[..., Roles]) -> None:
    roles = make_roles("policy", "reference").train("policy")
    with roles.active("reference"):
        assert all(parameter.requires_grad for parameter in roles.parameters("policy"))
        assert not any(parameter.requires_grad for parameter in roles.parameters("reference"))
    trained = [parameter for parameter in roles.base.model.parameters() if parameter.requires_grad]
    assert len(trained) == len(roles.parameters("policy"))


def test_masters_are_fp32_whatever_the_base_is(make_roles: Callable[..., Roles], quantization: str) -> None:
    roles = make_roles("reward", quantization=quantization)
    roles.add_head("reward")
    assert {parameter.dtype for parameter in roles.parameters("reward")} == {torch.float32}


def test_a_role_comes_back_from_disk_bit_for_bit_with_its_head(
    make_roles: Callable[..., Roles], tmp_path: Path
) -> None:
    roles = make_roles("reward")
    head = roles.add_head("reward")
    head.weight.data.normal_()
    head.bias.data.fill_(0.5)
    roles.save("reward", tmp_path)
    roles.load("again", tmp_path)
    for before, after in zip(roles.parameters("reward"), roles.parameters("again"), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(hidden(roles, "again"), hidden(roles, "reward"))


def test_the_saved_adapter_names_the_base_of_the_recipe(make_roles: Callable[..., Roles], tmp_path: Path) -> None:
    roles = make_roles("policy")
    roles.save("policy", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == roles.base.identity.model


def test_peft_itself_reads_the_saved_adapter_to_the_same_logits(
    make_roles: Callable[..., Roles], tmp_path: Path, tiny_base_folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    roles = make_roles("policy")
    roles.save("policy", tmp_path)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base_folder, trust_remote_code=False), str(tmp_path)
    )
    with torch.no_grad(), roles.active("policy"):
        ours = roles.forwards.lm_head(roles.forwards.hidden_states(IDS))
        theirs = plain(input_ids=IDS).logits
    torch.testing.assert_close(ours, theirs)


def test_a_copy_starts_equal_and_then_goes_its_own_way(make_roles: Callable[..., Roles]) -> None:
    roles = make_roles("reward")
    roles.add_head("reward").weight.data.normal_()
    roles.copy("reward", "value")
    assert torch.equal(hidden(roles, "reward"), hidden(roles, "value"))
    assert torch.equal(roles.heads["reward"].weight, roles.heads["value"].weight)
    for parameter in roles.parameters("value"):
        parameter.data.add_(0.1)
    assert not torch.allclose(hidden(roles, "reward"), hidden(roles, "value"))


@pytest.mark.parametrize(("change", "message"), [("missing", "1 missing key"), ("surplus", "1 surplus key")])
def test_a_missing_or_surplus_key_is_an_error(
    make_roles: Callable[..., Roles], tmp_path: Path, change: str, message: str
) -> None:
    roles = make_roles("policy")
    roles.save("policy", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    if change == "missing":
        tensors.pop(sorted(tensors)[0])
    else:
        tensors["base_model.model.extra.lora_A.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(RecordError, match=message):
        roles.load("again", tmp_path)


def test_a_head_with_another_key_is_an_error(make_roles: Callable[..., Roles], tmp_path: Path) -> None:
    roles = make_roles("reward")
    roles.add_head("reward")
    roles.save("reward", tmp_path)
    save_file({"weight": torch.zeros(64)}, tmp_path / HEAD)
    with pytest.raises(RecordError, match=r"head\.safetensors.*1 missing key, such as 'bias'"):
        roles.load("again", tmp_path)


def test_recomputed_activations_see_the_role_of_their_forward(make_roles: Callable[..., Roles]) -> None:
    """Both roles' losses in one backward pass, long after either was active: as without checkpointing."""

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        roles = make_roles("policy", "value").train("policy", "value")
        if checkpointing:
            roles.forwards.enable_checkpointing()
        losses = []
        with roles.forwards.checkpointed():
            for role in ("policy", "value"):
                with roles.active(role):
                    losses.append(roles.forwards.hidden_states(IDS).square().sum())
        torch.stack(losses).sum().backward()
        gradients_of_roles = [parameter.grad for role in ("policy", "value") for parameter in roles.parameters(role)]
        assert all(gradient is not None for gradient in gradients_of_roles)
        return [gradient for gradient in gradients_of_roles if gradient is not None]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_an_adapter_on_the_lm_head_that_all_roles_share_is_refused(load_base: Callable[[str], Base]) -> None:
    section = AdapterSection(targets=("q_proj", "lm_head"))
    with pytest.raises(BaseError, match=r"sits on the LM head.*Leave the head out of adapter\.targets"):
        Roles(load_base("fp32")).add("policy", section, generator=torch.Generator())
