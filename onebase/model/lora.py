"""What we compute otherwise than torch and PEFT do, to rounding: products with frozen weights, and LoRA's linear layer.

**Products.** torch multiplies fp32 matrices with MKL, which uses AVX-512 on Intel's processors only. On an AMD one with
the same instructions oneDNN, which comes with torch as well, is about twice as fast, and 1.4 to 1.6 times on a decoding
step's few rows (benchmarks/products.py). Both compute in fp32 throughout. torch has no switch for it (`torch.compile`
replaces linear layers by the same operator); `torch.backends.mkldnn.flags(enabled=False)` turns it off here as well.
Shapes and machine alone decide which of the two is used, so a resumed run computes the same bits. Only where oneDNN
fails, because memory is all but used up, does torch's own product take over.

**LoRA.** y = W x + s B A x in fewer passes over memory. PEFT adds the branch in passes of their own over tensors as
large as the activations (scale, add, and an add for the gradient). Here scale and sums are part of a matrix product
(`addmm`). It is used where everything is fp32 and nothing is cast or dropped; anything else takes PEFT's own forward.
"""

import contextlib
import platform
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit as FourBits
from bitsandbytes.nn.modules import Params4bit
from jaxtyping import Float
from peft.tuners.lora import layer as peft_layer
from peft.tuners.lora.bnb import Linear4bit
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
    single = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    large = x.shape[0] * weight.numel() >= SMALLEST
    if HAS_ONE_DNN and single and large and torch.backends.mkldnn.enabled:
        # oneDNN compiles for each shape and fails where that finds no memory ("could not create a primitive"), for a
        # single row too: smaller micro-batches are no help. torch's own way fits, or says how many bytes it lacks.
        with contextlib.suppress(RuntimeError):
            return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")
    return x @ weight.t()


class FrozenLinear(nn.Linear):
    """A linear layer that does not learn, such as the LM head of a base. Its input may have a gradient."""

    def forward(self, input: Tensor) -> Tensor:
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if learns or self.weight.dtype != torch.float32 or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        return _Linear.apply(input, self.weight, self.bias, None, None, 0.0)


def freeze_linear(layer: nn.Module) -> None:
    """Let a plain linear layer compute by `product`; layers of other kinds stay as they are."""
    # The class is exchanged and not the method, so that a copied or pickled model keeps working.
    if type(layer) is nn.Linear:
        layer.__class__ = FrozenLinear


def fuse(layer: peft_layer.LoraLayer) -> None:
    """Let a LoRA layer of PEFT's compute in this way wherever it can; layers of other kinds stay as they are."""
    # The class is exchanged and not the method, so that a copied or pickled model keeps working.
    if type(layer) is peft_layer.Linear and type(layer.base_layer) is FrozenLinear:
        layer.__class__ = FusedLinear
    elif type(layer) is Linear4bit and type(layer.base_layer) is FourBits:
        layer.__class__ = FusedLinear4bit


class Fused(nn.Module):
    """In front of PEFT's class of a LoRA layer: it takes over the forward where it can."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.base_layer
        branch = _plain_branch(self, x)
        if args or kwargs or branch is None:
            return super().forward(x, *args, **kwargs)
        if torch.is_grad_enabled():
            return _Linear.apply(x, base.weight, base.bias, *branch)
        # A decoding step has hundreds of these, and autograd's way costs more than some of the products.
        _, y = _output(x.reshape(-1, x.shape[-1]), base.weight, base.bias, *branch)
        return y.view(*x.shape[:-1], y.shape[-1])


class FusedLinear(Fused, peft_layer.Linear):
    """On a base of fp32 weights."""


class FusedLinear4bit(Fused, Linear4bit):
    """On a base of four bits: what bitsandbytes makes of W goes into the same product on a CPU. Elsewhere the layer
    is PEFT's."""


def _plain_branch(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """A [r, K], B [N, r] and s of the one active adapter, where it is LoRA as published on a frozen base, all of it
    computes in fp32, and nothing is dropped or cast."""
    active, base = layer.active_adapters, layer.base_layer
    if len(active) != 1 or layer.disable_adapters or layer.merged or torch.is_autocast_enabled(x.device.type):
        return None
    (role,) = active
    if role not in layer.lora_A or role in layer.lora_variant:
        return None
    dropped = layer.training and not isinstance(layer.lora_dropout[role], nn.Identity)
    a, b = layer.lora_A[role].weight, layer.lora_B[role].weight
    if isinstance(base, FourBits):
        frozen_single = x.device.type == "cpu" and base.compute_dtype == torch.float32
    else:
        # No gradient is computed for W: a base that learned would stand still without a word.
        frozen_single = base.weight.dtype == torch.float32 and not base.weight.requires_grad
    single = frozen_single and x.dtype == a.dtype == b.dtype == torch.float32
    return None if dropped or not single or layer.lora_B[role].bias is not None else (a, b, layer.scaling[role])


def _output(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor | None, b: Tensor | None, scale: float
) -> tuple[Tensor | None, Tensor]:
    """A x where there is an adapter, and W x + bias + s B A x."""
    low = None if a is None else product(x, a)
    y = product(x, _in_full(weight))
    if low is not None and b is not None:
        y.addmm_(low, b.t(), alpha=scale)
    return low, y if bias is None else y.add_(bias)


def _in_full(weight: Tensor) -> Tensor:
    """[N, K] fp32, of four bits each or of fp32 itself."""
    return dequantize_4bit(weight, weight.quant_state).float() if isinstance(weight, Params4bit) else weight


class _Linear(torch.autograd.Function):
    """W x + bias + s B A x with W frozen, or without a branch. Rows of x: any leading shape."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor | None, b: Tensor | None, scale: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low, y = _output(flat, weight, bias, a, b, scale)
        ctx.scale, ctx.learns = scale, any(factor is not None and factor.requires_grad for factor in (a, b))
        # Activations are kept only where the adapter itself learns.
        ctx.save_for_backward(*(flat, low) if ctx.learns else (None, None), a, b, weight)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - wrapped
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        """With g the gradient of y and l = A x:   dl = s B' g,   dA = dl x',   dB = s g l',   dx = W' g + A' dl."""
        grad = upstream[0].reshape(-1, upstream[0].shape[-1])
        x, low, a, b, weight = ctx.saved_tensors
        grad_x = grad_a = grad_b = None
        grad_low = None if b is None else product(grad, b.t()).mul_(ctx.scale)
        if ctx.learns:
            assert grad_low is not None
            grad_a, grad_b = product(grad_low.t(), x.t()), (grad.t() @ low).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, _in_full(weight).t())
            if grad_low is not None:
                grad_x.addmm_(grad_low, a)
            grad_x = grad_x.view(*upstream[0].shape[:-1], grad_x.shape[-1])
        return grad_x, None, None, grad_a, grad_b, None
