"""LoRA's linear layer in fewer passes over memory: what PEFT's layer computes, to rounding.

    y = W x + s B A x

PEFT adds the branch in passes of their own over tensors as large as the activations (scale, add, and an add for the
gradient). Here the scale goes into the rank-r product, and both sums happen inside a matrix product (`addmm`). It is
used where everything is fp32 and nothing is cast or dropped; anything else takes PEFT's own forward.
"""

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit as FourBits
from peft.tuners.lora import layer as peft_layer
from peft.tuners.lora.bnb import Linear4bit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse(layer: peft_layer.LoraLayer) -> None:
    """Let a LoRA layer of PEFT's compute in this way wherever it can; layers of other kinds stay as they are."""
    # The class is exchanged and not the method, so that a copied or pickled model keeps working.
    if type(layer) is peft_layer.Linear and type(layer.base_layer) is nn.Linear:
        layer.__class__ = FusedLinear
    elif type(layer) is Linear4bit and type(layer.base_layer) is FourBits:
        layer.__class__ = FusedLinear4bit


class FusedLinear(peft_layer.Linear):
    """On a base of fp32 weights."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        role, base = _plain_role(self, x), self.base_layer
        # No gradient is computed for W: a base that learned would stand still without a word.
        frozen_single = base.weight.dtype == torch.float32 and not base.weight.requires_grad
        if args or kwargs or role is None or not frozen_single:
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[role].weight, self.lora_B[role].weight
        return _FusedLinear.apply(x, base.weight, base.bias, a, b, self.scaling[role])


class FusedLinear4bit(Linear4bit):
    """On a base of four bits, whose own product stays bitsandbytes'."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        role = _plain_role(self, x)
        if args or kwargs or role is None:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x)
        a, b = self.lora_A[role].weight, self.lora_B[role].weight
        return _AddLora.apply(result, x, a, b, self.scaling[role])


def _plain_role(layer: Any, x: Tensor) -> str | None:
    """The one adapter that is active, where it is LoRA as published, in fp32, and nothing is dropped or cast."""
    active = layer.active_adapters
    if len(active) != 1 or layer.disable_adapters or layer.merged:
        return None
    (role,) = active
    if role not in layer.lora_A or role in layer.lora_variant:
        return None
    dropout, a, b = layer.lora_dropout[role], layer.lora_A[role], layer.lora_B[role]
    dropped = layer.training and not isinstance(dropout, nn.Identity)
    single = x.dtype == a.weight.dtype == b.weight.dtype == torch.float32
    if dropped or not single or b.bias is not None or torch.is_autocast_enabled(x.device.type):
        return None
    return role


class _FusedLinear(torch.autograd.Function):
    """W x + bias + s B A x with W frozen. Rows of x: any leading shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = (flat @ a.t()).mul_(scale)
        y = nn.functional.linear(flat, weight, bias).addmm_(low, b.t())
        _keep(ctx, flat, low, a, b, scale, weight)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - wrapped
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad = upstream[0].reshape(-1, upstream[0].shape[-1])
        x, low, a, b, weight = ctx.saved_tensors
        grad_low, grad_a, grad_b = _branch_gradients(ctx, grad, x, low, b)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a).view(*upstream[0].shape[:-1], -1)
        return grad_x, None, None, grad_a, grad_b, None


class _AddLora(torch.autograd.Function):
    """result + s B A x, for a result that was computed elsewhere."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = (flat @ a.t()).mul_(scale)
        y = torch.addmm(result.reshape(-1, result.shape[-1]), low, b.t())
        _keep(ctx, flat, low, a, b, scale)
        return y.view(result.shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - wrapped
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad = upstream[0].reshape(-1, upstream[0].shape[-1])
        x, low, a, b = ctx.saved_tensors
        grad_low, grad_a, grad_b = _branch_gradients(ctx, grad, x, low, b)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = (grad_low @ a).view(*upstream[0].shape[:-1], -1)
        return upstream[0], grad_x, grad_a, grad_b, None


def _keep(ctx: Any, x: Tensor, low: Tensor, a: Tensor, b: Tensor, scale: float, *more: Tensor) -> None:
    """For the backward pass; activations only where the adapter itself learns."""
    learns = a.requires_grad or b.requires_grad
    ctx.save_for_backward(*(x, low) if learns else (None, None), a, b, *more)
    ctx.scale, ctx.learns = scale, learns


def _branch_gradients(
    ctx: Any, grad: Tensor, x: Tensor | None, low: Tensor | None, b: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of s A x, A and B: with l = s A x and g the gradient of y,

    dl = s B' g,   dA = dl x',   dB = g l'
    """
    grad_low = (grad @ b).mul_(ctx.scale)
    if not ctx.learns:
        return grad_low, None, None
    assert x is not None and low is not None
    return grad_low, grad_low.t() @ x, grad.t() @ low
