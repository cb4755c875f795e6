"""Matrix products with frozen weights on a CPU: oneDNN's where torch would take MKL's.

torch multiplies fp32 matrices with MKL, which uses AVX-512 on Intel's processors only: on an AMD one with the same
instructions oneDNN, that comes with torch as well, is about twice as fast, and 1.4 to 1.6 times on a decoding step's
few rows (benchmarks/products.py). Both compute in fp32 throughout. torch has no switch for it (`torch.compile` replaces
linear layers by the same operator); `torch.backends.mkldnn.flags(enabled=False)` turns it off here as well.

Which of the two is taken depends on shapes and machine alone, so that a resumed run computes the same bits; but where
oneDNN fails, because memory is all but used up, torch's own way is taken.
"""

import contextlib
import platform
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HAS_ONE_DNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)

SMALLEST = 250_000
"""Multiplications of a product below which calling oneDNN costs more than it saves: LoRA's of a few rows."""


def product(x: Float[Tensor, "M K"], weight: Float[Tensor, "N K"]) -> Float[Tensor, "M N"]:
    """x W', without gradients. Either may be transposed in memory."""
    if _takes_one_dnn(x, weight):
        # oneDNN compiles for each shape and fails where that finds no memory ("could not create a primitive"), for a
        # single row too: smaller micro-batches are no help. torch's own way fits, or says how many bytes it lacks.
        with contextlib.suppress(RuntimeError):
            return _by_one_dnn(x, weight)
    return x @ weight.t()


def _by_one_dnn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")


def _takes_one_dnn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[0] * weight.numel() >= SMALLEST
        and torch.backends.mkldnn.enabled
        and HAS_ONE_DNN
    )


class FrozenLinear(nn.Linear):
    """A linear layer that does not learn, such as the LM head of a base. Its input may have a gradient."""

    def forward(self, input: Tensor) -> Tensor:
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if learns or self.weight.dtype != torch.float32 or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        if not torch.is_grad_enabled():
            return _forward(input, self.weight, self.bias)
        return _FrozenLinear.apply(input, self.weight, self.bias)


def freeze_linear(layer: nn.Module) -> None:
    """Let a plain linear layer compute by `product`; layers of other kinds stay as they are."""
    # The class is exchanged and not the method, so that a copied or pickled model keeps working.
    if type(layer) is nn.Linear:
        layer.__class__ = FrozenLinear


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = product(x.reshape(-1, x.shape[-1]), weight)
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - wrapped
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        grad = upstream[0]
        return product(grad.reshape(-1, grad.shape[-1]), weight.t()).view(*grad.shape[:-1], -1), None, None
