"""LoRA in fewer passes says and learns what PEFT's own layer does."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from onebase.model import lora
from onebase.model.lora import FrozenLinear, FusedLinear, FusedLinear4bit, freeze_linear, product
from onebase.model.roles import Roles

IDS = torch.tensor([[5, 9, 40, 7, 300, 22], [60, 11, 8, 33, 100, 2]])
MakeRoles = Callable[..., Roles]


def fused_layers(roles: Roles) -> list[Any]:
    assert roles.peft is not None
    return [module for module in roles.peft.modules() if isinstance(module, FusedLinear | FusedLinear4bit)]


def use_pefts_own(roles: Roles) -> None:
    for layer in fused_layers(roles):
        layer.__class__ = type(layer).__mro__[2]


def outcome(roles: Roles, role: str | None) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Hidden states, and the gradients of a loss that weighs every one of them differently."""
    for parameter in roles.parameters("policy"):
        parameter.grad = None
    with roles.active(role):
        hidden = roles.forwards.hidden_states(IDS)
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
    monkeypatch.setattr(lora, "SMALLEST", 0 if one_dnn else 10**12)
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
    pefts = type(layer).__mro__[2].forward

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return pefts(*args, **kwargs)

    monkeypatch.setattr(type(layer).__mro__[2], "forward", counted)
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


# --- products by oneDNN are those of torch, forwards and backwards, whichever of the two a machine has

needs_one_dnn = pytest.mark.skipif(not lora.HAS_ONE_DNN, reason="oneDNN's operator is in torch for x86 only")


class Operators(TorchDispatchMode):
    """Counts what torch really calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def one_dnn(self) -> int:
        return sum("mkldnn" in name for name in self.names)


@pytest.fixture(params=["oneDNN", "MKL"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every product by oneDNN, however small, or none."""
    monkeypatch.setattr(lora, "SMALLEST", 0)
    if request.param == "MKL":
        monkeypatch.setattr(lora, "HAS_ONE_DNN", False)
    return request.param


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rows", [0, 1, 3, 64, 257])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_that_of_double_precision(kind: str, rows: int, transposed: bool) -> None:
    x, weight = numbers(rows, 48), numbers(33, 48)
    if transposed:  # the same numbers, the other way round in memory
        x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    expected = (x.double() @ weight.double().t()).float()
    result = product(x, weight)
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-5)


def test_rows_with_gaps_between_them(kind: str) -> None:
    x, weight = numbers(6, 96)[:, ::2], numbers(33, 48)
    torch.testing.assert_close(product(x, weight), x.contiguous() @ weight.t(), atol=2e-5, rtol=1e-5)


@needs_one_dnn
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_one_dnn_multiplies_what_is_large_enough() -> None:
    for rows, calls in ((249, 0), (250, 1)):
        with Operators() as seen:
            product(numbers(rows, 20), numbers(50, 20))
        assert seen.one_dnn == calls, rows
    with Operators() as seen, torch.backends.mkldnn.flags(enabled=False):
        product(numbers(1000, 20), numbers(50, 20))
    assert not seen.one_dnn


@needs_one_dnn
def test_where_one_dnn_fails_torchs_own_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(torch.ops.mkldnn._linear_pointwise, "default", fail)
    x, weight = numbers(1000, 20), numbers(500, 20)
    assert torch.equal(product(x, weight), x @ weight.t())


@needs_one_dnn
def test_doubles_are_multiplied_as_doubles() -> None:
    x, weight = numbers(1000, 20).double(), numbers(50, 20).double()
    assert torch.equal(product(x, weight), x @ weight.t())


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_layer_gives_what_a_linear_one_gives(kind: str, bias: bool) -> None:
    plain = nn.Linear(48, 33, bias=bias).requires_grad_(False)
    frozen = nn.Linear(48, 33, bias=bias).requires_grad_(False)
    frozen.load_state_dict(plain.state_dict())
    freeze_linear(frozen)
    assert type(frozen) is FrozenLinear
    outcomes: list[tuple[Tensor, Tensor]] = []
    for layer in (plain, frozen):
        x = numbers(2, 5, 48).requires_grad_()
        y = layer(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        assert x.grad is not None
        outcomes.append((y.detach(), x.grad))
    for outcome, expected in zip(outcomes[1], outcomes[0], strict=True):
        torch.testing.assert_close(outcome, expected, atol=2e-5, rtol=1e-5)


def test_a_layer_that_learns_after_all_gets_its_gradient() -> None:
    layer = nn.Linear(48, 33)
    freeze_linear(layer)
    layer(torch.ones(3, 48)).sum().backward()
    assert layer.weight.grad is not None and torch.equal(layer.weight.grad, torch.full((33, 48), 3.0))


def test_autocast_is_obeyed() -> None:
    layer = nn.Linear(48, 33).requires_grad_(False)
    freeze_linear(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(numbers(3, 48)).dtype == torch.bfloat16


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    class Own(nn.Linear):
        pass

    layer = Own(4, 4)
    freeze_linear(layer)
    assert type(layer) is Own


@needs_one_dnn
def test_every_product_of_a_forward_and_a_backward_pass_goes_through_it(
    make_roles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model with seven linear layers in each of two decoder layers, and an LM head."""
    monkeypatch.setattr(lora, "SMALLEST", 0)
    roles: Roles = make_roles("policy").train("policy")
    ids = torch.tensor([[5, 9, 40, 7]])
    with roles.active("policy"), Operators() as seen:
        loss = roles.forwards.lm_head(roles.forwards.hidden_states(ids)).square().sum()
    assert seen.one_dnn == 14 * 2 + 1  # W x and A x, and the head
    with Operators() as seen:
        loss.backward()
    # B' g and dA of each; W' g of all but those three that read the embeddings; the head's.
    assert seen.one_dnn == 14 * 2 + 11 + 1


@pytest.mark.parametrize("learns", [True, False])
def test_no_rows_give_no_rows(learns: bool) -> None:
    layer = nn.Linear(4, 3).requires_grad_(False)
    freeze_linear(layer)
    inputs = torch.zeros(0, 4, requires_grad=learns)
    outputs = layer(inputs)
    assert outputs.shape == (0, 3)
    if learns:
        outputs.sum().backward()
        assert inputs.grad is not None and inputs.grad.shape == (0, 4)
