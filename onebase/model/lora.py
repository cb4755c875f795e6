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
from typing import Any, cast

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
            return _by_one_dnn(x, weight)
    return x @ weight.t()


def _by_one_dnn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")


class FrozenLinear(nn.Linear):
    """A linear layer that does not learn, such as the LM head of a base. Its input may have a gradient."""

    def forward(self, input: Tensor) -> Tensor:
        learns = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if learns or self.weight.dtype != torch.float32 or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        return _FrozenLinear.apply(input, self.weight, self.bias)


def freeze_linear(layer: nn.Module) -> None:
    """Let a plain linear layer compute by `product`; layers of other kinds stay as they are."""
    # The class is exchanged and not the method, so that a copied or pickled model keeps working.
    if type(layer) is nn.Linear:
        layer.__class__ = FrozenLinear


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        y = product(x.reshape(-1, x.shape[-1]), weight)
        return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - wrapped
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        grad = upstream[0]
        return product(grad.reshape(-1, grad.shape[-1]), weight.t()).view(*grad.shape[:-1], -1), None, None


# --- LoRA's linear layer ---


def fuse(layer: peft_layer.LoraLayer) -> None:
    """Let a LoRA layer of PEFT's compute in this way wherever it can; layers of other kinds stay as they are."""
    # The class is exchanged and not the method, so that a copied or pickled model keeps working.
    if type(layer) is peft_layer.Linear and type(layer.base_layer) is FrozenLinear:
        layer.__class__ = FusedLinear
    elif type(layer) is Linear4bit and type(layer.base_layer) is FourBits:
        layer.__class__ = FusedLinear4bit


class FusedLinear(peft_layer.Linear):
    """On a base of fp32 weights."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        branch, base = _plain_branch(self, x), cast(nn.Linear, self.base_layer)
        # No gradient is computed for W: a base that learned would stand still without a word.
        frozen_single = base.weight.dtype == torch.float32 and not base.weight.requires_grad
        if args or kwargs or branch is None or not frozen_single:
            return super().forward(x, *args, **kwargs)
        return _both(base, branch, x)


class FusedLinear4bit(Linear4bit):
    """On a base of four bits: what bitsandbytes makes of W goes into the same product on a CPU; elsewhere the product
    with W stays bitsandbytes' own."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        branch, base = _plain_branch(self, x), cast(FourBits, self.base_layer)
        if args or kwargs or branch is None:
            return super().forward(x, *args, **kwargs)
        if x.device.type == "cpu" and base.compute_dtype == torch.float32:
            return _both(base, branch, x)
        return _AddLora.apply(base(x), x, *branch)


Branch = tuple[Tensor, Tensor, float]
"""A [r, K], B [N, r], and s."""


def _both(base: nn.Linear, branch: Branch, x: Tensor) -> Tensor:
    """W x + bias + s B A x."""
    if torch.is_grad_enabled():
        return _FusedLinear.apply(x, base.weight, base.bias, *branch)
    # A decoding step has hundreds of these, and autograd's way costs more than some of the products.
    _, y = _forward(x.reshape(-1, x.shape[-1]), base.weight, base.bias, *branch)
    return y.view(*x.shape[:-1], -1)


def _plain_branch(layer: Any, x: Tensor) -> Branch | None:
    """That of the one active adapter, where it is LoRA as published, in fp32, and nothing is dropped or cast."""
    active = layer.active_adapters
    if len(active) != 1 or layer.disable_adapters or layer.merged:
        return None
    (role,) = active
    if role not in layer.lora_A or role in layer.lora_variant:
        return None
    dropped = layer.training and not isinstance(layer.lora_dropout[role], nn.Identity)
    second = layer.lora_B[role]
    a, b = layer.lora_A[role].weight, second.weight
    single = x.dtype == a.dtype == b.dtype == torch.float32
    if dropped or not single or second.bias is not None or torch.is_autocast_enabled(x.device.type):
        return None
    return a, b, layer.scaling[role]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """A x, and the layer's output."""
    low = product(x, a)
    y = product(x, _in_full(weight)).addmm_(low, b.t(), alpha=scale)
    return low, y if bias is None else y.add_(bias)


def _in_full(weight: Tensor) -> Tensor:
    """[N, K] fp32, of four bits each or of fp32 itself."""
    return dequantize_4bit(weight, weight.quant_state).float() if isinstance(weight, Params4bit) else weight


class _FusedLinear(torch.autograd.Function):
    """W x + bias + s B A x with W frozen. Rows of x: any leading shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low, y = _forward(flat, weight, bias, a, b, scale)
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
            grad_x = product(grad, _in_full(weight).t()).addmm_(grad_low, a).view(*upstream[0].shape[:-1], -1)
        return grad_x, None, None, grad_a, grad_b, None


class _AddLora(torch.autograd.Function):
    """result + s B A x, for a result that was computed elsewhere."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = product(flat, a)
        y = torch.addmm(result.reshape(-1, result.shape[-1]), low, b.t(), alpha=scale)
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
            grad_x = product(grad_low, a.t()).view(*upstream[0].shape[:-1], -1)
        return upstream[0], grad_x, grad_a, grad_b, None


def _keep(ctx: Any, x: Tensor, low: Tensor, a: Tensor, b: Tensor, scale: float, *more: Tensor) -> None:
    """For the backward pass; activations only where the adapter itself learns."""
    learns = a.requires_grad or b.requires_grad
    ctx.save_for_backward(*(x, low) if learns else (None, None), a, b, *more)
    ctx.scale, ctx.learns = scale, learns


def _branch_gradients(
    ctx: Any, grad: Tensor, x: Tensor | None, low: Tensor | None, b: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of l = A x, A and B: with g the gradient of y,

    dl = s B' g,   dA = dl x',   dB = s g l'
    """
    grad_low = product(grad, b.t()).mul_(ctx.scale)
    if not ctx.learns:
        return grad_low, None, None
    assert x is not None and low is not None
    return grad_low, product(grad_low.t(), x.t()), (grad.t() @ low).mul_(ctx.scale)
