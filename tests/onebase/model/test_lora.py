"""LoRA in fewer passes says and learns what PEFT's own layer does."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from onebase.model import products
from onebase.model.lora import FusedLinear, FusedLinear4bit
from onebase.model.roles import Roles

IDS = torch.tensor([[5, 9, 40, 7, 300, 22], [60, 11, 8, 33, 100, 2]])
MakeRoles = Callable[..., Roles]


def fused_layers(roles: Roles) -> list[Any]:
    assert roles.peft is not None
    return [one for one in roles.peft.modules() if isinstance(one, FusedLinear | FusedLinear4bit)]


def use_pefts_own(roles: Roles) -> None:
    for layer in fused_layers(roles):
        layer.__class__ = type(layer).__mro__[1]


def outcome(roles: Roles, role: str | None) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Hidden states, and the gradients of a loss that weighs every one of them differently."""
    for parameter in roles.parameters("policy"):
        parameter.grad = None
    with roles.active(role):
        hidden = roles.hidden_states(IDS)
    if hidden.requires_grad:
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    grads = enumerate(parameter.grad for parameter in roles.parameters("policy"))
    return hidden.detach(), {number: grad.clone() for number, grad in grads if grad is not None}


def test_every_linear_layer_is_a_fused_one(make_roles: MakeRoles, quantization: str) -> None:
    assert len(fused_layers(make_roles("policy", quantization=quantization))) == 2 * 7


@pytest.mark.parametrize("role", ["policy", "reference", None])
@pytest.mark.parametrize("one_dnn", [False, True])
def test_outputs_and_gradients_are_pefts(
    make_roles: MakeRoles, quantization: str, role: str | None, one_dnn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SMALLEST", 0 if one_dnn else 10**12)
    roles = make_roles("policy", "reference", quantization=quantization).train("policy")
    hidden, grads = outcome(roles, role)
    use_pefts_own(roles)
    assert not fused_layers(roles)
    plain, expected = outcome(roles, role)
    torch.testing.assert_close(hidden, plain, atol=2e-5, rtol=1e-5)
    assert grads.keys() == expected.keys()
    assert len(grads) == (len(roles.parameters("policy")) if role == "policy" else 0)
    for number, grad in grads.items():
        torch.testing.assert_close(grad, expected[number], atol=2e-4, rtol=1e-4)


def test_dropout_autocast_and_two_adapters_take_pefts_forward(
    make_roles: MakeRoles, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = make_roles("policy", "reference", quantization=quantization)
    layer, x = fused_layers(roles)[0], torch.randn(3, 64)
    calls = 0
    own = type(layer).__mro__[1].forward

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return own(*args, **kwargs)

    monkeypatch.setattr(type(layer).__mro__[1], "forward", counted)
    with roles.active("policy"):
        layer(x)
        assert calls == 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)
        assert calls == 1
        layer.lora_dropout["policy"] = torch.nn.Dropout(0.5)
        layer(x)
        assert calls == 1, "dropout does nothing in eval mode"
        layer.train()
        layer(x)
        assert calls == 2
    layer._active_adapter = ["policy", "reference"]
    layer(x)
    assert calls == 3


def test_a_base_that_learns_gets_its_gradient(make_roles: MakeRoles) -> None:
    roles = make_roles("policy")
    layer, x = fused_layers(roles)[0], torch.ones(3, 64)
    weight = layer.base_layer.weight.requires_grad_(True)
    with roles.active("policy"):
        layer(x).sum().backward()
    # The sum of W x over three rows of ones: each weight counts three times.
    assert torch.equal(weight.grad, torch.full_like(weight, 3.0))


def test_a_copied_layer_computes_with_its_own_weights(make_roles: MakeRoles) -> None:
    roles = make_roles("policy")
    layer, x = fused_layers(roles)[0], torch.randn(3, 64)
    with roles.active("policy"), torch.no_grad():
        before = layer(x)
        twin = copy.deepcopy(layer)
        twin.lora_B["policy"].weight.zero_()
        assert torch.equal(layer(x), before)
        assert torch.equal(twin(x), twin.base_layer(x))
